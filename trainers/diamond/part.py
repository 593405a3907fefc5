"""A network being trained: its optimiser, moving average and objective, and what one step does to them.

Knows nothing of epochs, files or games.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diamond_gym.backends.choose import trains_fast_in_channels_last
from trainers.diamond.config import PARTS, OptimizerConfig, PartTrainingConfig
from trainers.diamond.errors import DivergedError
from trainers.diamond.losses import Metrics
from trainers.diamond.objectives import Example, Objective
from trainers.diamond.optimizer import ExponentialMovingAverage, make_optimizer
from trainers.diamond.processes import ALONE, Group
from trainers.diamond.replay import Replay

_STEPS_BETWEEN_CHECKS = 20
"""On a GPU: to look at a loss is to wait for it."""


class NotFiniteError(Exception):
    """A loss or gradient is not finite; holds what can be told and saved of that step."""

    def __init__(self, part: str, step: int, numbers: dict[str, float], batch: dict[str, Tensor]) -> None:
        super().__init__(f"{part}: step {step}: {numbers}")
        self.part, self.step, self.numbers, self.batch = part, step, numbers, batch


@dataclass
class Part:
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
    group: Group = ALONE
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
        group: Group = ALONE,
    ) -> Part:
        """Nothing is trained yet."""
        ema = ExponentialMovingAverage.of(module, training.ema_decay) if training.ema_decay else None
        moves = make_optimizer(module, optimizer)
        return cls(name, module, training, optimizer.lr, moves, ema, objective, group)

    def step(self, replay: Replay, *, seed: int, lr_factor: float) -> Metrics:
        """Makes one optimiser step; its randomness is a function of seed, part and step.

        Returns:
            Its metrics, to be added up over steps and then by `total`.

        Raises:
            NotFiniteError: The loss or the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * lr_factor
        rng = np.random.default_rng([seed, PARTS.index(self.name), self.num_steps])
        self.optimizer.zero_grad()
        count = self.training.grad_acc_steps
        examples = [self._accumulate(replay, rng) for _ in range(count)]
        metrics = _mean([x.metrics | {"loss": x.loss} for x in examples])
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self.group.add_up([*gradients, metrics["loss"]])
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.training.max_grad_norm).detach()
        self._watch(metrics["loss"], norm, {k: v for x in examples for k, v in x.batch.items()})
        self.optimizer.step()
        self.num_steps += 1
        if self.ema is not None:
            self.ema.update(self.module)
        return metrics | {"grad_norm": norm}

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """The module is in training mode, its weights laid out to train fast, for as long as it lasts.

        channels_last always plays faster, but see `trains_fast_in_channels_last`.
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
        """Sums of metrics of steps, over all processes."""
        known = ("loss", "grad_norm")  # by every process, of the whole batch
        return {name: x if name in known else self.group.total(x) for name, x in sums.items()}

    def _accumulate(self, replay: Replay, rng: np.random.Generator) -> Example:
        example = self.objective.example(replay, rng, self.num_steps)
        example.loss.backward()
        return Example(example.loss.detach(), example.metrics, example.batch)

    def _watch(self, loss: Tensor, norm: Tensor, batch: dict[str, Tensor]) -> None:
        self._unchecked.append((self.num_steps, loss, norm, batch))
        if loss.device.type == "cpu" or len(self._unchecked) >= _STEPS_BETWEEN_CHECKS:
            self.check_finite()

    def check_finite(self) -> None:
        """Looks at the steps that were made since it last did.

        Raises:
            NotFiniteError: Of the first step whose loss or gradient is not finite.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        numbers = torch.stack([torch.stack([loss, norm]).float() for _, loss, norm, _ in unchecked]).tolist()
        for (step, _, _, batch), (loss, norm) in zip(unchecked, numbers, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFiniteError(self.name, step, {"loss": loss, "grad_norm": norm}, batch)

    def weights(self) -> dict[str, Tensor]:
        """State dict to save and play: averaged weights where there is an average."""
        weights = {name: x.detach().clone() for name, x in self.module.state_dict().items()}
        return weights if self.ema is None else weights | {k: v.clone() for k, v in self.ema.values.items()}

    @contextmanager
    def as_played(self) -> Iterator[None]:
        """The module holds the weights that are saved and played, for as long as it lasts."""
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
        """What `load_state_dict` needs to go on exactly; all processes must ask, the first gets all."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "num_steps": self.num_steps,
            "objective": self.group.gathered(self.objective.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        self.objective.load_state_dict(self.group.share_of(state.get("objective", {})))


def diverged(error: NotFiniteError, batch_file: str) -> DivergedError:
    """What to tell the user."""
    name, value = next((k, v) for k, v in error.numbers.items() if not math.isfinite(v))
    return DivergedError(
        f"{error.part}: the {name} is {value} at step {error.step}; its batch is in {batch_file}, the last "
        "good epoch is kept. To go on from its weights, start a run with initialization.path_to_ckpt=RUN "
        f"and a lower {error.part}.optimizer.lr"
    )


def _mean(rows: list[Metrics]) -> Metrics:
    """Means of scalars, sums of counts."""
    if len(rows) == 1:
        return rows[0]
    stacks = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: x.mean(0) if x.ndim == 1 else x.sum(0) for name, x in stacks.items()}
