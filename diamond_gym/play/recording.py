"""Recording of played episodes in the dataset layout.

Each place and kind of player has a folder: `<root>/rec_<env>_<H or π>`. H is for episodes in which a person
took any step, π for those of policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diamond_gym import files as disk
from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.data.episodes import Episode, EpisodeDataset, channels_first
from diamond_gym.errors import CacheError
from diamond_gym.world.action_space import ActionSpace

_Array = TypeVar("_Array", bound=NDArray[Any])

TRAJECTORY = "denoising_trajectory"
"""Key in an episode's `info`: float16 (t, steps + 1, c, h, w); entry i became the frame after step i."""
ORIGINAL_OBS = "original_obs"
"""Key in an episode's `info`: uint8 (t + 1, c, h, w), the console's screens, also after the last step."""


@dataclass(frozen=True)
class RecordedStep:
    """A recorded step.

    Attributes:
        obs: Frame before the step, uint8 (h, w, 3).
        act: The action.
        rew: Its reward.
        by_human: Whether a person chose it.
        original: The frame before the step in the console's size.
        trajectory: Denoising of the frame after the step, float16 (steps + 1, h, w, 3).
    """

    obs: NDArray[np.uint8]
    act: Any
    rew: float
    by_human: bool
    original: NDArray[np.uint8] | None = None
    trajectory: NDArray[np.float16] | None = None


@dataclass
class Recorder:
    """A recorder, which gathers the steps of an episode and writes it at its end.

    An episode that could not be written is kept and tried again with the next one and at the end.

    Attributes:
        root: Folder of the datasets.
        steps: Steps of the episode so far.
        num_saved: Number of episodes written.
        action_space: The actions, to be written down beside the episodes; None where they are discrete.
    """

    root: Path
    store_trajectory: bool = False
    store_original: bool = False
    steps: tuple[RecordedStep, ...] = ()
    num_saved: int = 0
    action_space: ActionSpace | None = None
    _waiting: list[tuple[Path, Episode]] = field(default_factory=list)

    def __post_init__(self) -> None:
        disk.prepare_folder(self.root)

    def forget(self) -> None:
        """Drop the episode so far."""
        self.steps = ()

    def add(self, step: RecordedStep) -> None:
        """Add a step."""
        self.steps = (*self.steps, step)

    def finish(
        self, env_name: str, final: NDArray[np.uint8], original: NDArray[np.uint8] | None, *, terminated: bool
    ) -> Path:
        """Write the episode, which is over.

        Args:
            env_name: Name of the place.
            final: The frame after the last step.
            original: The same frame in the console's size.
            terminated: Whether the game ended; if not, the episode was truncated.

        Returns:
            The dataset's folder.

        Raises:
            CacheError: It cannot be written now.
        """
        letter = "H" if any(step.by_human for step in self.steps) else "π"
        folder = self.root / f"rec_{env_name}_{letter}"
        self._waiting.append((folder, _episode(self.steps, final, original, terminated)))
        self.steps = ()
        self.flush()
        return folder

    def flush(self) -> None:
        """Write the episodes that wait.

        Raises:
            CacheError: One cannot be written.
        """
        while self._waiting:
            folder, episode = self._waiting[0]
            try:
                dataset = EpisodeDataset(folder, create=True)
                dataset.append(episode)
                if self.action_space is not None:
                    dataset.save_action_space(self.action_space)
            except CacheError as error:
                raise CacheError(
                    f"{len(self._waiting)} episode(s) not saved yet, tried again later: {error}"
                ) from error
            self._waiting.pop(0)
            self.num_saved += 1


def _episode(
    steps: tuple[RecordedStep, ...],
    final: NDArray[np.uint8],
    original: NDArray[np.uint8] | None,
    terminated: bool,
) -> Episode:
    builder, info = EpisodeBuilder(), {}
    for step in steps:
        builder.add(step.obs, step.act, step.rew)
    screens = _all_there([*(step.original for step in steps), original])
    if screens is not None:
        info[ORIGINAL_OBS] = channels_first(np.stack(screens))
    trajectories = _all_there([step.trajectory for step in steps])
    if trajectories is not None:
        info[TRAJECTORY] = channels_first(_of_one_length(trajectories))
    return builder.episode(end=terminated, trunc=not terminated, final_obs=final, info=info)


def _all_there(arrays: Sequence[_Array | None]) -> list[_Array] | None:
    """Return the arrays, or None if one is missing."""
    there = [array for array in arrays if array is not None]
    return there if len(there) == len(arrays) else None


def _of_one_length(trajectories: list[NDArray[np.float16]]) -> NDArray[np.float16]:
    """Stack trajectories; shorter ones, with fewer denoising steps, repeat their end."""
    longest = max(map(len, trajectories))
    padding = [(0, 0)] * (trajectories[0].ndim - 1)
    return np.stack([np.pad(t, [(0, longest - len(t)), *padding], mode="edge") for t in trajectories])
