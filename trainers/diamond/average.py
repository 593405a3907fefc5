"""The best average of a run's snapshots, searched on its test episodes (Karras et al. 2023, EDM2, section 3).

Snapshots late in a run are weights of one descent: their average is often truer than any of them, most of all
in what lasts (walls, scores). Which one is best is not known beforehand, and cheap to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate import heldout, measure, metrics
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imaginer
from diamond_gym.evaluate.single_steps import measure_single_steps
from diamond_gym.world.world_model import WorldModel

NUM_STARTS, HORIZON = 96, 30
"""Moments from which is imagined, and for how many steps."""
STEPS = (1, 5, 15, 30)
"""Steps that count."""
DECIBELS = 30.0
"""An object that is always in the right place is worth so many dB."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """How true a world model is on episodes that neither training nor the model card sees.

    Attributes:
        game: The game's name; None for other environments.
        episodes: Finished episodes, and those cut short.
        starts: Moments in them.
    """

    game: str | None
    episodes: Sequence[Episode]
    starts: Starts = field(repr=False)

    @classmethod
    def of(cls, game: str | None, episodes: Sequence[Episode], num_steps_conditioning: int) -> Validation:
        """Moments spread evenly over the episodes.

        Raises:
            InvalidInputError: All episodes are shorter than a context.
        """
        finished = [episode for episode in episodes if episode.final_observation is not None]
        starts = heldout.choose_starts(finished, NUM_STARTS, num_steps_conditioning, HORIZON)
        return cls(game, finished, starts)

    def score(self, world_model: WorldModel) -> float:
        """Mean PSNR in dB at `STEPS`, and `DECIBELS` times the mean share of objects in the right place.

        Objects count in games where they can be found, at `STEPS` and after single steps of every kind.
        """
        imagined = Imaginer(world_model, seed=0, progress=False).future(self.starts)
        real, valid = self.starts.future_obs.numpy(), self.starts.valid.numpy()
        quality = metrics.psnr(measure.squared_errors(real, imagined.obs.numpy()))
        columns = [step - 1 for step in STEPS]
        score = float(np.nanmean(metrics.mean_where(quality, valid)[columns]))
        shares = [
            measure.share_within(detector, real, imagined.obs.numpy(), valid)[columns]
            for detector in measure.OBJECTS.get(self.game or "", {}).values()
        ]
        single = measure_single_steps(self.game or "", world_model, self.episodes)
        rights = [np.array([row["right"] for row in single.values()])] if single else []
        known = [np.nanmean(values) for values in shares + rights if np.isfinite(values).any()]
        return score + (DECIBELS * float(np.mean(known)) if known else 0.0)


def averages(files: Sequence[Path], prefix: str) -> Iterator[tuple[int, Weights]]:
    """Averages of the last snapshots of a network: of 1, 2, 3, 5, 8, ... and of all of them.

    Args:
        files: Weights of agents, oldest first; at least one.
        prefix: What the names of the network's weights begin with; it is taken away.

    Yields:
        How many snapshots it is the average of, and the average, in float32.
    """
    sums: dict[str, Tensor] = {}
    wanted = _window_sizes(len(files))
    for count, file in enumerate(reversed(files), start=1):
        weights = torch.load(file, map_location="cpu", weights_only=True)
        for name, x in weights.items():
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                sums[key] = x.double() + sums.get(key, 0.0)
        if count in wanted:
            yield count, {name: (x / count).float() for name, x in sums.items()}


def _window_sizes(count: int) -> set[int]:
    """1, 2, 3, 5, 8, ... up to a count, and the count."""
    sizes, following = 1, 2
    result = {count}
    while sizes <= count:
        result.add(sizes)
        sizes, following = following, sizes + following
    return result


def best_average(
    files: Sequence[Path], world_model: WorldModel, validation: Validation
) -> tuple[int, dict[int, float]]:
    """Puts the average with the highest score into a world model's denoiser.

    Args:
        files: Weights of agents, oldest first; at least one.
        world_model: In eval mode; its denoiser is changed.
        validation: Scores.

    Returns:
        How many of the last snapshots the best average is of, and the score of each average.
    """
    scores: dict[int, float] = {}
    best: Weights = {}
    for count, weights in averages(files, "denoiser."):
        world_model.denoiser.load_state_dict(weights)
        scores[count] = validation.score(world_model)
        if scores[count] >= max(scores.values()):
            best = weights
    world_model.denoiser.load_state_dict(best)
    return max(scores, key=lambda count: scores[count]), scores
