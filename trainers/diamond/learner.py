"""A learner: one network, its optimiser, moving average and objective, and what one step does to them.

An objective draws a batch from the replay, or plays one, and computes its loss, given the random numbers.
This module does not depend on epochs or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from diamond_gym.backends.choose import has_fast_bfloat16, trains_fast_in_channels_last
from diamond_gym.world.models import ActorCritic, Denoiser
from diamond_gym.world.policy import draws_shape
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from trainers.diamond.config import (
    PARTS,
    DenoiserPartConfig,
    OptimizerConfig,
    PartTrainingConfig,
    RewEndPartConfig,
)
from trainers.diamond.distributed import REPLICATED, SINGLE_PROCESS, Group
from trainers.diamond.errors import DivergedError
from trainers.diamond.losses import (
    REW_END_METRICS,
    ActorCriticLossConfig,
    DenoiserErrors,
    DenoiserNoise,
    Metrics,
    actor_critic_loss,
    denoiser_errors,
    draw_denoiser_noise,
    mean_of_predictions,
    rew_end_loss,
)
from trainers.diamond.optim import ExponentialMovingAverage, make_optimizer
from trainers.diamond.replay import Crop, Hard, HardSteps, Replay, SegmentBatch, StepErrors
from trainers.diamond.rollout import PlayerState, SavedGames, begin, play, with_imagined_frames

# --- graphed loss
# Losses and their gradients as CUDA graphs: their kernels are recorded once and launched again as a whole.
#
# A training step of a small network launches some thousand kernels; launching them takes longer than running
# them. Weights are read and gradients written in place; autograd sees a graph as one operation. This section
# does not depend on what is trained.


Loss = Callable[..., tuple[Tensor, ...]]
"""Maps tensors on one device to tensors, the loss first; it draws no random numbers and never waits."""


class _WithParameters(nn.Module):
    """A function as a module with the network's parameters, which alone get gradients."""

    def __init__(self, network: nn.Module, function: Loss) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


class _Setting(NamedTuple):
    """The settings that a recording depends on, besides the shapes of its inputs."""

    places: tuple[int, ...]
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, network: nn.Module) -> _Setting:
        places = tuple(p.data_ptr() for p in network.parameters())
        return cls(places, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))


class GraphedLoss:
    """A loss of one network, computed by CUDA graphs, one for each shape of the inputs.

    The first computation for each shape is slow because it is recorded; so is the first one after the weights
    have moved to other memory. Autocast is respected.
    """

    def __init__(self) -> None:
        self._setting: _Setting | None = None
        self._graphs: dict[Hashable, Loss] = {}

    def __call__(self, network: nn.Module, loss: Loss, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns for these inputs; gradients flow to the network only.

        The result is in fresh memory. The gradients are written to the same memory every time, so a second
        backward pass would overwrite those of the first.
        """
        if not torch.is_grad_enabled():
            return loss(*inputs)
        setting = _Setting.of(network)
        if setting != self._setting:
            self._setting, self._graphs = setting, {}
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = _record(network, loss, inputs, setting)
        value, *others = self._graphs[shapes](*inputs)
        return value.clone(), *(x.detach().clone() for x in others)


def _record(network: nn.Module, loss: Loss, inputs: tuple[Tensor, ...], setting: _Setting) -> Loss:
    static = tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
    # weights must be cast again each time
    with torch.autocast("cuda", dtype=setting.dtype, enabled=setting.autocast, cache_enabled=False):
        module = _WithParameters(network, loss)
        return cast(Loss, torch.cuda.make_graphed_callables(module, static, allow_unused_input=True))


# --- objectives
# What each network learns from: a batch, drawn from the replay or played, and its loss.
#
# An objective is given its random numbers. Its state is what it must remember from one step to the next, such
# as the games that the actor-critic is playing. It does not depend on optimisers, epochs or files.


Autocast = Callable[[], AbstractContextManager]
"""Makes the context in which networks run."""


def autocast_of(name: str | None, device: torch.device) -> Autocast:
    """A function that makes contexts in which networks run in the precision of `training.autocast`."""
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else None
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=name is not None)


@dataclass(frozen=True)
class Example:
    """One batch, or one rank's shard of it: its loss, its metrics, and the batch itself.

    Losses and metrics of all shards add up to those of the batch.
    """

    loss: Tensor
    metrics: Metrics
    batch: dict[str, Tensor]


class Objective(Protocol):
    """The objective of a network."""

    def example(self, replay: Replay, rng: np.random.Generator, step: int) -> Example:
        """Draw a batch with `rng`, for optimiser step `step`, and computes its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of the objective."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        ...


@dataclass(frozen=True)
class Draw:
    """A source of batches: segments of the replay, on the device of the network.

    Attributes:
        training: Batch size and weights.
        by_age: Whether recent episodes are preferred; else longer ones.
        device: Device of the network.
        group: The processes that share the batches: all draw the same ones, and each cuts out its shard.
    """

    training: PartTrainingConfig
    by_age: bool
    device: torch.device
    group: Group = SINGLE_PROCESS

    @property
    def share(self) -> slice:
        """Which segments of a batch belong to this process."""
        return self.group.shard(self.training.batch_size)

    def __call__(
        self,
        replay: Replay,
        rng: np.random.Generator,
        length: int,
        *,
        batch_size: int | None = None,
        pad_after: bool = False,
        num_learned: int | None = None,
        hard: Hard | None = None,
        crop: Crop | None = None,
    ) -> SegmentBatch:
        """Draw this process's shard of a batch of segments of `length` steps; see `Replay.draw`."""
        batch_size = self.training.batch_size if batch_size is None else batch_size
        batch = replay.draw(
            rng,
            batch_size,
            length,
            sample_weights=self.training.sample_weights if self.by_age else None,
            pad_after=pad_after,
            num_learned=num_learned,
            event_fraction=self.training.event_fraction,
            hard=hard,
            crop=crop,
            share=self.group.shard(batch_size),
        )
        return batch.to(self.device)


@dataclass(frozen=True)
class DenoiserObjective:
    """The denoiser's loss on segments of the replay, or on crops of them.

    Its state tells which steps are hard, if `hard_fraction` is above 0 and `given` does not. Predictions from
    pure noise (`pure_noise_fraction`) are at the noise level `first_level`.
    """

    denoiser: Denoiser
    config: DenoiserPartConfig
    draw: Draw
    autocast: Autocast
    hard_steps: HardSteps = field(default_factory=HardSteps)
    graph: GraphedLoss | None = None
    given: Hard | None = None
    first_level: float = DiffusionSamplerConfig.sigma_max

    def example(self, replay: Replay, rng: np.random.Generator, step: int) -> Example:
        """See `Objective`."""
        training = self.config.training
        crop = self._crop() if training.is_on_crops(step) else None
        num_predictions = training.num_predictions(step, on_crops=crop is not None)
        hard = self.given or (self._hard(replay) if training.hard_fraction > 0 else None)
        batch = self.draw(
            replay,
            rng,
            self.denoiser.config.inner_model.num_steps_conditioning + num_predictions,
            batch_size=training.batch_size if crop is None else training.crop_batch_size,
            num_learned=num_predictions,
            hard=hard,
            crop=crop,
        )
        random = self._noise(rng, len(batch.obs), tuple(batch.obs.shape[2:]), num_predictions)
        compute = self._loss if self.graph is None else partial(self.graph, self.denoiser, self._loss)
        with self.autocast():
            loss, *errors = compute(*vars(batch).values(), *random)
        if hard is not None and self.given is None:
            self._remember(batch, DenoiserErrors(*errors), on_crops=crop is not None)
        return Example(loss, {"loss": loss.detach()}, vars(batch))

    def test_batches(self, replay: Replay) -> Iterator[SegmentBatch]:
        """The whole replay, in segments for `measure`."""
        training, n = self.config.training, self.denoiser.config.inner_model.num_steps_conditioning
        return batches_in_order(replay, n + 1 + training.num_autoregressive_steps, training.batch_size)

    def measure(self, batch: SegmentBatch, rng: np.random.Generator, step: int) -> Metrics:
        """Metrics of a batch that is not sharded, as after `step` optimiser steps."""
        alone = replace(self, draw=replace(self.draw, group=SINGLE_PROCESS))
        batch = batch.to(self.draw.device)
        num_predictions = self.config.training.num_predictions(step, on_crops=False)
        random = alone._noise(rng, len(batch.obs), tuple(batch.obs.shape[2:]), num_predictions)
        with self.autocast():
            return {"loss": alone._loss(*vars(batch).values(), *random)[0]}

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
        """Random numbers for the `count` segments of this process, prediction by prediction."""
        generator = torch.Generator(self.draw.device).manual_seed(int(rng.integers(2**62)))
        size = count * self.draw.group.world_size
        share = self.draw.group.shard(size)
        objective, sigmas = self.denoiser.config.objective, self.config.sigma_distribution
        noises = (
            draw_denoiser_noise(
                objective,
                sigmas,
                shape,
                size,
                generator,
                pure_fraction=self.config.training.pure_noise_fraction,
                first_level=self.first_level,
            )
            for _ in range(num_predictions)
        )
        return [x[share] for noise in noises for x in noise]

    def _loss(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The loss, and the errors of every prediction, given a batch and its random numbers."""
        size, each = len(fields(SegmentBatch)), len(DenoiserNoise._fields)
        batch, random = SegmentBatch(*tensors[:size]), tensors[size:]
        noises = [DenoiserNoise(*random[i : i + each]) for i in range(0, len(random), each)]
        training = self.config.training
        errors = denoiser_errors(
            self.denoiser,
            batch,
            noises,
            moving_pixels_weight=training.moving_pixels_weight,
            displacement_radius=training.displacement_radius,
            max_displacement=training.max_displacement,
        )
        loss = mean_of_predictions(errors.error, errors.counts, self.draw.group.all_reduce)
        return loss, errors.error.detach(), *errors[1:]

    def _remember(self, batch: SegmentBatch, errors: DenoiserErrors, *, on_crops: bool) -> None:
        """Note the errors of the whole batch in every process, so that all draw alike; waits for the GPU."""
        count, p = errors.error.shape
        n = batch.act.shape[1] - p
        has_past = batch.mask_padding[:, :p]  # without it nothing foretold the frame
        order = torch.arange(p, device=errors.error.device)
        row, column = (errors.worst + batch.corner[:, None]).unbind(2)
        told = StepErrors(
            episode=batch.episode[:, None].expand(count, p),
            time=batch.start[:, None] + n + order,
            error=errors.error,
            c_noise=errors.c_noise,
            kind=(2 * order + on_crops).expand(count, p),
            row=row,
            column=column,
            is_usual=~batch.is_hard[:, None].expand(count, p),
        )
        counts = errors.counts & has_past
        group = self.draw.group
        seen = torch.zeros(len(told) + 1, count * group.world_size, p, dtype=torch.float64)
        seen[:, group.shard(count * group.world_size)] = torch.stack(
            [x.cpu().double() for x in (*told, counts)]
        )
        *numbers, kept = group.all_reduce(seen)
        self.hard_steps.note(StepErrors(*(x[kept.bool()] for x in numbers)))

    def state_dict(self) -> dict[str, Any]:
        """The errors noted so far."""
        return {REPLICATED: self.hard_steps.state_dict()} if self.config.training.hard_fraction > 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the errors noted before."""
        if REPLICATED in state:
            self.hard_steps.load_state_dict(state[REPLICATED])


@dataclass(frozen=True)
class RewEndObjective:
    """The reward/end model's loss on segments of the replay, some of which `world_model` continues."""

    world_model: WorldModel
    config: RewEndPartConfig
    draw: Draw
    autocast: Autocast
    graph: GraphedLoss | None = None

    def example(self, replay: Replay, rng: np.random.Generator, step: int) -> Example:
        """See `Objective`."""
        training, model = self.config.training, self.world_model.rew_end_model
        batch = self.draw(replay, rng, training.seq_length, pad_after=True)
        if training.imagined_fraction > 0:
            with self.autocast():  # a separate context: its copies of the weights have no gradients
                batch = with_imagined_frames(batch, self.world_model, training.imagined_fraction, rng)
        compute = self._loss if self.graph is None else partial(self.graph, model, self._loss)
        with self.autocast():
            loss, *values = compute(*vars(batch).values())
        return Example(loss, dict(zip(REW_END_METRICS, values, strict=True)), vars(batch))

    def test_batches(self, replay: Replay) -> Iterator[SegmentBatch]:
        """The whole replay, in segments for `measure`."""
        return batches_in_order(replay, self.config.training.seq_length, self.config.training.batch_size)

    def measure(self, batch: SegmentBatch, rng: np.random.Generator, step: int) -> Metrics:
        """Metrics of a batch that is not sharded; they depend on neither `rng` nor `step`."""
        with self.autocast():
            loss, metrics = rew_end_loss(self.world_model.rew_end_model, batch.to(self.draw.device))
        return metrics | {"loss": loss}

    def _loss(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The loss of a batch, and its metrics."""
        batch, total = SegmentBatch(*tensors), self.draw.group.all_reduce
        loss, metrics = rew_end_loss(self.world_model.rew_end_model, batch, total=total)
        return loss, *(metrics[name] for name in REW_END_METRICS)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: there is nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, for there is no state."""


class ActorCriticObjective:
    """The actor-critic's loss on steps it plays, in games that continue from one optimiser step to the next.

    Args:
        actor_critic: The network.
        games: The games that it plays, imagined or real.
        num_steps: Steps played for each loss.
        config: The loss.
        autocast: Makes the context in which networks run.
        group: The processes that play together; `games` is the shard of this process.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        games: SavedGames,
        num_steps: int,
        config: ActorCriticLossConfig,
        autocast: Autocast,
        group: Group = SINGLE_PROCESS,
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
            num_games = len(player.obs) * self.group.world_size
            shape = (self.num_steps, num_games, *draws_shape(self.actor_critic.action_space))
            u = torch.rand(shape, generator=generator, device=device)
            share = u[:, self.group.shard(num_games)]
            self._player, steps = play(self.actor_critic, self.games, player, share)
        loss, metrics = actor_critic_loss(steps, self.config, self.actor_critic.action_space)
        part = 1 / self.group.world_size  # of a mean over equal shares
        metrics = {name: x * part for name, x in metrics.items()}
        return Example(loss * part, metrics, {name: x.detach() for name, x in vars(steps).items()})

    @torch.no_grad()
    def _start(self) -> PlayerState:
        """Start all games, with an empty memory; as published, it is burned in only when games restart."""
        return begin(self.actor_critic, self.games.start()[:, -1:])

    def state_dict(self) -> dict[str, Any]:
        """The state of the games, and that of the player."""
        if self._player is None:
            return {}
        return {"games": self.games.state_dict(), "player": self._player.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the games and the player."""
        if state:
            self.games.load_state_dict(state["games"])
            device = self.actor_critic.lstm.weight_hh.device
            self._player = PlayerState.from_state_dict(state["player"], device)


# --- in order
# A whole replay, cut into consecutive segments: the data of test losses.
#
# As published, every step lies in exactly one segment; nothing is drawn at random.


def batches_in_order(replay: Replay, length: int, batch_size: int) -> Iterator[SegmentBatch]:
    """Yield consecutive segments of `length` steps; the last one of an episode is padded.

    A segment of a single step is left out.

    Args:
        replay: The episodes.
        length: Steps of a segment, at least 1.
        batch_size: Number of segments in a batch; the last batch may have fewer.
    """
    starts = [np.arange(0, num_steps, length) for num_steps in replay.lengths]
    kept = [x[num_steps - x >= 2] for x, num_steps in zip(starts, replay.lengths, strict=True)]
    episode = np.repeat(np.arange(len(kept)), [len(x) for x in kept])
    start = np.concatenate([*kept, np.zeros(0, np.int64)])
    for first in range(0, len(start), batch_size):
        batch = slice(first, first + batch_size)
        yield replay.segments(episode[batch], start[batch], length)


# --- learner
# A network being trained: its optimiser, moving average and objective, and what one step does to them.
#
# It does not depend on epochs, files or games.


_STEPS_BETWEEN_CHECKS = 20
"""Steps between looks at the loss on a GPU, because each look waits for the GPU."""


class NotFiniteError(Exception):
    """A loss or gradient is not finite; holds the metrics and the batch of that step."""

    def __init__(self, part: str, step: int, numbers: dict[str, float], batch: dict[str, Tensor]) -> None:
        super().__init__(f"{part}: step {step}: {numbers}")
        self.part, self.step, self.numbers, self.batch = part, step, numbers, batch


@dataclass
class Learner:
    """A network being trained.

    Attributes:
        name: Its name in the agent.
        module: The network.
        training: How it is trained.
        base_lr: Learning rate before warm-up and schedule.
        optimizer: Its optimiser.
        ema: Moving average of its weights, if any.
        objective: Draws a batch and computes the loss.
        group: The processes that train it together.
        num_steps: Optimiser steps made so far.
    """

    name: str
    module: nn.Module
    training: PartTrainingConfig
    base_lr: float
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage | None
    objective: Objective
    group: Group = SINGLE_PROCESS
    num_steps: int = 0
    _unchecked: list[tuple[int, Tensor, Tensor, dict[str, Tensor]]] = field(default_factory=list, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        module: nn.Module,
        training: PartTrainingConfig,
        optimizer: OptimizerConfig,
        objective: Objective,
        group: Group = SINGLE_PROCESS,
    ) -> Learner:
        """Make a learner that has made no step."""
        ema = ExponentialMovingAverage.of(module, training.ema_decay) if training.ema_decay else None
        made = make_optimizer(module, optimizer)
        return cls(name, module, training, optimizer.lr, made, ema, objective, group)

    def step(self, replay: Replay, *, seed: int, lr_factor: float) -> Metrics:
        """Make one optimiser step; its randomness is a function of seed, part and step.

        Returns:
            Metrics of the step, to be summed over steps and then over processes by `total`.

        Raises:
            NotFiniteError: The loss or the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * lr_factor
        rng = np.random.default_rng([seed, PARTS.index(self.name), self.num_steps])
        self.optimizer.zero_grad()
        rows, batch = [], {}
        for _ in range(self.training.grad_acc_steps):
            example = self.objective.example(replay, rng, self.num_steps)
            example.loss.backward()
            rows.append(example.metrics | {"loss": example.loss.detach()})
            batch |= example.batch
        metrics = _mean(rows)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self.group.all_reduce_([*gradients, metrics["loss"]])
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.training.max_grad_norm).detach()
        self._watch(metrics["loss"], norm, batch)
        self.optimizer.step()
        self.num_steps += 1
        if self.ema is not None:
            self.ema.update(self.module)
        return metrics | {"grad_norm": norm}

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Put the module into training mode, with weights laid out for fast training, within the context.

        Inference is always faster in channels_last; for training see `trains_fast_in_channels_last`.
        """
        convolutions = [p for p in self.module.parameters() if p.ndim == 4]
        weights = [p for p in convolutions if not trains_fast_in_channels_last(p.device)]
        strides = [p.stride() for p in weights]
        for p in weights:
            p.data = p.data.clone(memory_format=torch.contiguous_format)
        self.module.train()
        try:
            yield
        finally:
            self.module.eval()
            for p, stride in zip(weights, strides, strict=True):
                p.data = torch.empty_strided(p.shape, stride, dtype=p.dtype).copy_(p.data)

    def total(self, sums: Metrics) -> Metrics:
        """Sum metrics over all processes."""
        known = ("loss", "grad_norm")  # every process has these for the whole batch
        return {name: x if name in known else self.group.all_reduce(x) for name, x in sums.items()}

    def _watch(self, loss: Tensor, norm: Tensor, batch: dict[str, Tensor]) -> None:
        self._unchecked.append((self.num_steps, loss, norm, batch))
        if loss.device.type == "cpu" or len(self._unchecked) >= _STEPS_BETWEEN_CHECKS:
            self.check_finite()

    def check_finite(self) -> None:
        """Check the steps made since the last check.

        Raises:
            NotFiniteError: A loss or gradient is not finite; the error is about the first such step.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        numbers = torch.stack([torch.stack([loss, norm]).float() for _, loss, norm, _ in unchecked]).tolist()
        for (step, _, _, batch), (loss, norm) in zip(unchecked, numbers, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFiniteError(self.name, step, {"loss": loss, "grad_norm": norm}, batch)

    def weights(self) -> dict[str, Tensor]:
        """State dict to save and play: the EMA weights where there is a moving average."""
        weights = {name: x.detach().clone() for name, x in self.module.state_dict().items()}
        return weights if self.ema is None else weights | {k: v.clone() for k, v in self.ema.values.items()}

    @contextmanager
    def as_played(self) -> Iterator[None]:
        """Give the module its EMA weights, where it has them, within the context."""
        if self.ema is None:
            yield
            return
        trained = {name: x.detach().clone() for name, x in self.module.state_dict().items()}
        self.module.load_state_dict(self.weights())
        try:
            yield
        finally:
            self.module.load_state_dict(trained)

    def state_dict(self) -> dict[str, Any]:
        """The state for an exact resume; all processes must call this, and rank 0 gets the whole state."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "num_steps": self.num_steps,
            "objective": self.group.gather(self.objective.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        self.objective.load_state_dict(self.group.shard_state(state.get("objective", {})))


def diverged(error: NotFiniteError, batch_file: str) -> DivergedError:
    """The message for the user."""
    name, value = next((k, v) for k, v in error.numbers.items() if not math.isfinite(v))
    return DivergedError(
        f"{error.part}: the {name} is {value} at step {error.step}; its batch is in {batch_file}, the last "
        "good epoch is kept. To continue from its weights, start a run with initialization.path_to_ckpt=RUN "
        f"and a lower {error.part}.optimizer.lr"
    )


def _mean(rows: list[Metrics]) -> Metrics:
    """Means of scalars, sums of counts."""
    if len(rows) == 1:
        return rows[0]
    stacks = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: x.mean(0) if x.ndim == 1 else x.sum(0) for name, x in stacks.items()}
