"""What each network learns from: a batch drawn from the replay or played, and its loss.

An objective is given its random numbers; what it must remember from one step to the next (the games that the
actor-critic is playing) is its state. Knows nothing of optimisers, epochs or files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diamond_gym.world.models import ActorCritic, Denoiser
from diamond_gym.world.world_model import WorldModel
from trainers.diamond.actor_critic_loss import ActorCriticLossConfig, actor_critic_loss
from trainers.diamond.config import DenoiserPartConfig, PartTrainingConfig, RewEndPartConfig
from trainers.diamond.crops import Crop
from trainers.diamond.graphed_loss import Run, plainly
from trainers.diamond.hard_steps import HardSteps
from trainers.diamond.imagined_segments import with_imagined_frames
from trainers.diamond.losses import (
    REW_END_METRICS,
    DenoiserErrors,
    DenoiserNoise,
    Metrics,
    denoiser_errors,
    draw_denoiser_noise,
    mean_of_predictions,
    rew_end_loss,
)
from trainers.diamond.processes import ALONE, COMMON, Group
from trainers.diamond.replay import Hard, Replay, SegmentBatch
from trainers.diamond.rollout import PlayerState, SavedGames, begin, play

Autocast = Callable[[], AbstractContextManager]
"""Makes the context in which networks run."""


@dataclass(frozen=True)
class Example:
    """One batch, or one process's share of it: its loss, what is worth measuring, and the batch itself.

    Losses and metrics of all shares add up to those of the batch.
    """

    loss: Tensor
    metrics: Metrics
    batch: dict[str, Tensor]


class Objective(Protocol):
    """What a network minimises."""

    def example(self, replay: Replay, rng: np.random.Generator, step: int) -> Example:
        """Draws a batch with `rng`, for optimiser step `step`, and computes its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what it remembered."""
        ...


@dataclass(frozen=True)
class Draw:
    """Draws segments for a network onto its device.

    Attributes:
        training: Batch size and weights.
        by_age: Whether recent episodes are preferred; else longer ones.
        device: Where the network is.
        group: Who shares the batches: all draw the same, each cuts out its share.
    """

    training: PartTrainingConfig
    by_age: bool
    device: torch.device
    group: Group = ALONE

    @property
    def share(self) -> slice:
        """Which of a batch's segments are this process's."""
        return self.group.share(self.training.batch_size)

    def __call__(
        self,
        replay: Replay,
        rng: np.random.Generator,
        length: int,
        *,
        batch_size: int | None = None,
        pad_after: bool = False,
        plain: bool = False,
        num_learned: int | None = None,
        hard: Hard | None = None,
        crop: Crop | None = None,
    ) -> SegmentBatch:
        """Segments of `length` steps; `plain` ones favour neither events nor hard steps."""
        batch_size = self.training.batch_size if batch_size is None else batch_size
        batch = replay.draw(
            rng,
            batch_size,
            length,
            sample_weights=self.training.sample_weights if self.by_age else None,
            pad_after=pad_after,
            num_learned=num_learned,
            event_fraction=0.0 if plain else self.training.event_fraction,
            hard=None if plain else hard,
            crop=crop,
            share=self.group.share(batch_size),
        )
        return batch.to(self.device)


class _Forgetful:
    """An objective without a memory."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class DenoiserObjective:
    """The denoiser's loss on segments of the replay, or crops of them.

    Remembers which steps are hard, if they are favoured.
    """

    denoiser: Denoiser
    config: DenoiserPartConfig
    draw: Draw
    autocast: Autocast
    hard_steps: HardSteps = field(default_factory=HardSteps)
    run: Run = plainly

    def example(self, replay: Replay, rng: np.random.Generator, step: int, *, plain: bool = False) -> Example:
        """See `Objective`; a `plain` batch is of whole frames, favours nothing, and is not remembered."""
        training = self.config.training
        crop = self._crop() if training.is_on_crops(step) and not plain else None
        size = training.batch_size if crop is None else training.crop_batch_size
        num_predictions = training.num_predictions(step, on_crops=crop is not None)
        n = self.denoiser.config.inner_model.num_steps_conditioning
        hard = self._hard(replay) if training.hard_fraction > 0 and not plain else None
        batch = self.draw(
            replay,
            rng,
            n + num_predictions,
            batch_size=size,
            plain=plain,
            num_learned=num_predictions,
            hard=hard,
            crop=crop,
        )
        random = self._noise(rng, len(batch.obs), tuple(batch.obs.shape[2:]), num_predictions)
        with self.autocast():
            loss, *errors = self.run(self.denoiser, self._loss, *vars(batch).values(), *random)
        if hard is not None:
            self._remember(batch, DenoiserErrors(*errors), on_crops=crop is not None)
        return Example(loss, {"loss": loss.detach()}, vars(batch))

    def _crop(self) -> Crop:
        size = self.config.training.crop_size
        assert size is not None
        return Crop(size, self.denoiser.config.inner_model.divides)

    def _hard(self, replay: Replay) -> Hard:
        weights = self.hard_steps.weights(replay.lengths)
        return Hard(self.config.training.hard_fraction, weights, self.hard_steps.places)

    def _noise(
        self, rng: np.random.Generator, count: int, shape: tuple[int, ...], num_predictions: int
    ) -> list[Tensor]:
        """Random numbers for this process's `count` segments of a batch, prediction after prediction."""
        generator = torch.Generator(self.draw.device).manual_seed(int(rng.integers(2**62)))
        size = count * self.draw.group.size
        share = self.draw.group.share(size)
        objective, sigmas = self.denoiser.config.objective, self.config.sigma_distribution
        noises = (
            draw_denoiser_noise(objective, sigmas, shape, size, generator) for _ in range(num_predictions)
        )
        return [x[share] for noise in noises for x in noise]

    def _loss(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The loss, and what is known of every prediction, of a batch and its random numbers."""
        size, each = len(fields(SegmentBatch)), len(DenoiserNoise._fields)
        batch, random = SegmentBatch(*tensors[:size]), tensors[size:]
        noises = [DenoiserNoise(*random[i : i + each]) for i in range(0, len(random), each)]
        weight = self.config.training.moving_pixels_weight
        errors = denoiser_errors(self.denoiser, batch, noises, moving_pixels_weight=weight)
        loss = mean_of_predictions(errors.error, errors.counts, self.draw.group.total)
        return loss, errors.error.detach(), *errors[1:]

    def _remember(self, batch: SegmentBatch, errors: DenoiserErrors, *, on_crops: bool) -> None:
        """Notes the whole batch in every process, so that all draw the same; waits for the GPU."""
        count, p = errors.error.shape
        n = batch.act.shape[1] - p
        has_past = batch.mask_padding[:, :p]  # without it nobody could have known
        order = torch.arange(p, device=errors.error.device)
        place = errors.worst + batch.corner[:, None]
        told = [
            batch.episode[:, None].expand(count, p),
            batch.start[:, None] + n + order,
            errors.error,
            errors.c_noise,
            (2 * order + on_crops).expand(count, p),
            *place.unbind(2),
            ~batch.is_hard[:, None].expand(count, p),
            errors.counts & has_past,
        ]
        group = self.draw.group
        seen = torch.zeros(len(told), count * group.size, p, dtype=torch.float64)
        seen[:, group.share(count * group.size)] = torch.stack([x.cpu().double() for x in told])
        *numbers, kept = group.total(seen)
        episode, time, error, c_noise, kind, row, column, usual = (x[kept.bool()] for x in numbers)
        place = torch.stack([row, column], dim=1).long()
        self.hard_steps.note(
            episode.long(), time.long(), error.float(), c_noise, kind.long(), place, usual.bool()
        )

    def state_dict(self) -> dict[str, Any]:
        """Which steps are hard."""
        return {COMMON: self.hard_steps.state_dict()} if self.config.training.hard_fraction > 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers which steps were hard."""
        if COMMON in state:
            self.hard_steps.load_state_dict(state[COMMON])


@dataclass(frozen=True)
class RewEndObjective(_Forgetful):
    """The reward/end model's loss on segments of the replay, some of which `world_model` goes on with."""

    world_model: WorldModel
    config: RewEndPartConfig
    draw: Draw
    autocast: Autocast
    run: Run = plainly

    def example(self, replay: Replay, rng: np.random.Generator, step: int, *, plain: bool = False) -> Example:
        """See `Objective`."""
        training = self.config.training
        batch = self.draw(replay, rng, training.seq_length, pad_after=True, plain=plain)
        if training.imagined_fraction > 0 and not plain:
            with self.autocast():  # apart: its copies of the weights have no gradients
                batch = with_imagined_frames(batch, self.world_model, training.imagined_fraction, rng)
        model = self.world_model.rew_end_model
        with self.autocast():
            loss, *values = self.run(model, self._loss, *vars(batch).values())
        return Example(loss, dict(zip(REW_END_METRICS, values, strict=True)), vars(batch))

    def _loss(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The loss and its metrics, of a batch."""
        loss, metrics = rew_end_loss(
            self.world_model.rew_end_model,
            SegmentBatch(*tensors),
            event_weight=self.config.training.event_weight,
            total=self.draw.group.total,
        )
        return loss, *(metrics[name] for name in REW_END_METRICS)


class ActorCriticObjective:
    """The actor-critic's loss on steps it plays, in games that go on from one optimiser step to the next.

    Args:
        actor_critic: The network.
        games: What it plays, imagined or real; the replay is theirs to look at.
        num_steps: Steps played for each loss.
        config: The loss.
        autocast: Makes the context in which networks run.
        group: Who else plays: `games` is this process's share.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        games: SavedGames,
        num_steps: int,
        config: ActorCriticLossConfig,
        autocast: Autocast,
        group: Group = ALONE,
    ) -> None:
        self.actor_critic, self.games = actor_critic, games
        self.num_steps, self.config, self.autocast, self.group = num_steps, config, autocast, group
        self._player: PlayerState | None = None

    def example(self, replay: Replay, rng: np.random.Generator, step: int) -> Example:
        """See `Objective`."""
        device = self.actor_critic.lstm.weight_hh.device
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        with self.autocast():
            player = self._player or self._start()
            num_games = len(player.obs) * self.group.size
            u = torch.rand(self.num_steps, num_games, generator=generator, device=device)
            share = u[:, self.group.share(num_games)]
            self._player, steps = play(self.actor_critic, self.games, player, share)
        loss, metrics = actor_critic_loss(steps, self.config)
        part = 1 / self.group.size  # of a mean over equal shares
        metrics = {name: x * part for name, x in metrics.items()}
        return Example(loss * part, metrics, {name: x.detach() for name, x in vars(steps).items()})

    @torch.no_grad()
    def _start(self) -> PlayerState:
        """Starts all games, without memory: as published, that is burned in only where games start anew."""
        return begin(self.actor_critic, self.games.start()[:, -1:])

    def state_dict(self) -> dict[str, Any]:
        """The games, and where they stand for the player."""
        if self._player is None:
            return {}
        return {"games": self.games.state_dict(), "player": self._player.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the games."""
        if state:
            self.games.load_state_dict(state["games"])
            device = self.actor_critic.lstm.weight_hh.device
            self._player = PlayerState.from_state_dict(state["player"], device)
