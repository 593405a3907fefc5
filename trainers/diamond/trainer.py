"""Trains the parts of a world model, epoch by epoch, and saves after each one.

Batches and noise are functions of (seed, part, step), so the saved weights, optimisers and step counts are
all that a resumed run needs to go on exactly. Knows nothing of the command line or of how data was collected.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from diamond_gym.errors import CheckpointError
from diamond_gym.models import Agent
from trainers.diamond.config import PARTS, PartTrainingConfig, TrainerConfig
from trainers.diamond.errors import DivergedError
from trainers.diamond.losses import Metrics, denoiser_loss, draw_denoiser_noise, rew_end_loss
from trainers.diamond.optimizer import ExponentialMovingAverage, make_optimizer
from trainers.diamond.replay import Replay, SegmentBatch
from trainers.diamond.run_folder import RunFolder

Loss = Callable[[Replay, np.random.Generator, int], tuple[Tensor, Metrics]]
"""(replay, generator, optimiser step) -> (loss, metrics)."""


@dataclass
class Part:
    """A network being trained.

    Attributes:
        name: Its name in the agent.
        module: The network.
        training: How it is trained.
        optimizer: Its optimiser.
        ema: Moving average of its weights, if any.
        loss: Draws a batch and computes the loss.
        num_steps: Optimiser steps made so far.
    """

    name: str
    module: nn.Module
    training: PartTrainingConfig
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage | None
    loss: Loss
    num_steps: int = 0

    def weights(self) -> dict[str, Tensor]:
        """State dict to save and play: averaged weights where there is an average."""
        weights = {name: x.detach().clone() for name, x in self.module.state_dict().items()}
        return weights if self.ema is None else weights | {k: v.clone() for k, v in self.ema.values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])


class Trainer:
    """Runs the epochs of a configuration.

    Args:
        config: The run.
        run: Where it is saved.
        agent: The networks, on their device.
        train: Episodes to learn from.
        test: Episodes to measure the losses on.

    Attributes:
        epoch: Epochs finished.
        stop_requested: Set it (in a signal handler, say) to have `fit` finish its step, save and raise
            `KeyboardInterrupt`.
    """

    def __init__(
        self, config: TrainerConfig, run: RunFolder, agent: Agent, train: Replay, test: Replay
    ) -> None:
        self.config, self.run, self.agent = config, run, agent
        self.train, self.test = train, test
        self.epoch = 0
        self.stop_requested = False
        self.device = next(agent.parameters()).device
        self.parts = [self._part(name) for name in config.training.parts]

    def _part(self, name: str) -> Part:
        part, loss = {
            "denoiser": (self.config.denoiser, self._denoiser_loss),
            "rew_end_model": (self.config.rew_end_model, self._rew_end_loss),
        }[name]
        module = getattr(self.agent, name)
        decay = part.training.ema_decay
        ema = ExponentialMovingAverage.of(module, decay) if decay else None
        return Part(name, module, part.training, make_optimizer(module, part.optimizer), ema, loss)

    def fit(self, *, progress: bool = True) -> None:
        """Trains to the last epoch, saving state and weights after each.

        Raises:
            DivergedError: A loss or gradient is not finite; what was saved before is kept.
            CacheError: The run folder cannot be written.
            KeyboardInterrupt: `stop_requested` was set; the state is saved as it was after the last step.
        """
        while self.epoch < self.config.training.num_epochs:
            metrics: dict[str, Any] = {"epoch": self.epoch + 1}
            for part in self.parts:
                metrics |= {f"{part.name}/{k}": v for k, v in self._train_part(part, progress).items()}
                metrics |= {f"{part.name}/test_{k}": v for k, v in self._test_part(part).items()}
            self.epoch += 1
            if progress:
                tqdm.write(one_line(metrics))
            self.run.log(metrics)
            self.save()

    def save(self) -> None:
        """Writes the state, and the weights where this epoch's are kept."""
        keeping = self.config.checkpointing
        if self.epoch % keeping.save_agent_every == 0 or self.epoch == self.config.training.num_epochs:
            self.run.save_agent(self.epoch, self.weights(), keeping.num_to_keep)
        self.save_state()

    def save_state(self) -> None:
        """Writes all that `resume` needs."""
        trained = [part.name for part in self.parts]
        self.run.save_state(
            {
                "epoch": self.epoch,
                "parts": {part.name: part.state_dict() for part in self.parts},
                "untrained": {
                    name: module.state_dict()
                    for name, module in self.agent.named_children()
                    if name not in trained
                },
            }
        )

    def weights(self) -> dict[str, Tensor]:
        """State dict of the agent, averaged where averages are kept."""
        weights = {name: x.detach().clone() for name, x in self.agent.state_dict().items()}
        for part in self.parts:
            weights |= {f"{part.name}.{name}": x for name, x in part.weights().items()}
        return weights

    def resume(self) -> None:
        """Goes on from the run's saved state.

        Raises:
            CheckpointError: The state does not fit the configuration.
        """
        state = self.run.load_state()
        try:
            for part in self.parts:
                part.load_state_dict(state["parts"][part.name])
            for name, weights in state.get("untrained", {}).items():
                getattr(self.agent, name).load_state_dict(weights)
            self.epoch = state["epoch"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.run.state_file} does not fit the run's config: {error}") from error
        self.run.forget_metrics_after(self.epoch)

    def _train_part(self, part: Part, progress: bool) -> dict[str, Any]:
        """Makes the steps that are left of the part's epoch: all, unless the epoch was interrupted."""
        training = part.training
        total = training.num_steps(self.config.training.num_epochs)
        steps = training.num_steps(self.epoch + 1) - part.num_steps
        sums: Metrics = {}
        start = time.perf_counter()
        part.module.train()
        for i in tqdm(range(steps), desc=f"epoch {self.epoch + 1} {part.name}", disable=not progress):
            metrics = self._step(part, training.lr_factor(part.num_steps, total))
            sums = {name: sums.get(name, 0) + value for name, value in metrics.items()}
            if self.stop_requested:
                check_finite(part, summary(sums, i + 1))
                self.save_state()
                raise KeyboardInterrupt
        part.module.eval()
        result: dict[str, Any] = {"num_steps": part.num_steps}
        if steps > 0:
            result |= summary(sums, steps)
            check_finite(part, result)
            result["steps_per_s"] = steps / (time.perf_counter() - start)
        return result

    def _step(self, part: Part, lr_factor: float) -> Metrics:
        base_lr = {"denoiser": self.config.denoiser, "rew_end_model": self.config.rew_end_model}[part.name]
        for group in part.optimizer.param_groups:
            group["lr"] = base_lr.optimizer.lr * lr_factor
        rng = np.random.default_rng([self.config.common.seed, PARTS.index(part.name), part.num_steps])
        loss, metrics = part.loss(self.train, rng, part.num_steps)
        part.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(part.module.parameters(), part.training.max_grad_norm)
        part.optimizer.step()
        part.num_steps += 1
        if part.ema is not None:
            part.ema.update(part.module)
        return metrics | {"loss": loss.detach(), "grad_norm": norm.detach()}

    @torch.no_grad()
    def _test_part(self, part: Part, num_batches: int = 8) -> dict[str, Any]:
        """Metrics of the weights to be saved, on the same test batches every time."""
        trained = {name: x.detach().clone() for name, x in part.module.state_dict().items()}
        part.module.load_state_dict(part.weights())
        sums: Metrics = {}
        for i in range(num_batches):
            rng = np.random.default_rng([i, PARTS.index(part.name)])
            loss, metrics = part.loss(self.test, rng, part.num_steps)
            metrics = metrics | {"loss": loss}
            sums = {name: sums.get(name, 0) + value for name, value in metrics.items()}
        part.module.load_state_dict(trained)
        result = summary(sums, num_batches)
        check_finite(part, result)
        return result

    def _autocast(self) -> torch.autocast:
        enabled = self.config.training.autocast is not None
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _draw(
        self,
        replay: Replay,
        rng: np.random.Generator,
        training: PartTrainingConfig,
        length: int,
        pad_after: bool,
    ) -> SegmentBatch:
        weights = None if self.config.static_dataset.path is not None else training.sample_weights
        batch = replay.draw(
            rng,
            training.batch_size,
            length,
            sample_weights=weights,
            pad_after=pad_after,
            event_fraction=training.event_fraction if replay is self.train else 0.0,
        )
        return batch.to(self.device)

    def _denoiser_loss(self, replay: Replay, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        training = self.config.denoiser.training
        autoregressive = step >= training.autoregressive_from_step
        num_predictions = 1 + (training.num_autoregressive_steps if autoregressive else 0)
        n = self.agent.config.denoiser.inner_model.num_steps_conditioning
        batch = self._draw(replay, rng, training, n + num_predictions, pad_after=False)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        noises = [
            draw_denoiser_noise(
                self.config.denoiser.sigma_distribution,
                tuple(replay.frame_shape),
                training.batch_size,
                generator,
            )
            for _ in range(num_predictions)
        ]
        with self._autocast():
            return denoiser_loss(
                self.agent.denoiser, batch, noises, moving_pixels_weight=training.moving_pixels_weight
            )

    def _rew_end_loss(self, replay: Replay, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        training = self.config.rew_end_model.training
        batch = self._draw(replay, rng, training, training.seq_length, pad_after=True)
        with self._autocast():
            return rew_end_loss(self.agent.rew_end_model, batch, event_weight=training.event_weight)


def check_finite(part: Part, metrics: dict[str, Any]) -> None:
    """Raises `DivergedError` if the loss or the gradient norm is not finite."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise DivergedError(
                f"{part.name}: the mean {name} is {metrics[name]} at step {part.num_steps}; the last good "
                "epoch is kept. To go on from its weights, start a run with initialization.path_to_ckpt=RUN "
                f"and a lower {part.name}.optimizer.lr"
            )


def one_line(metrics: dict[str, Any]) -> str:
    """An epoch's losses, to be shown."""
    losses = [
        f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith(("/loss", "/test_loss"))
    ]
    return f"epoch {metrics['epoch']}: {', '.join(losses)}"


def summary(sums: Metrics, count: int) -> dict[str, Any]:
    """Means of scalars; confusion matrices as nested lists of counts, each with the F1 of its classes."""
    result: dict[str, Any] = {}
    for name, value in sums.items():
        if value.ndim == 0:
            result[name] = value.item() / count
        else:
            result[name] = value.tolist()
            result[name.replace("confusion", "f1")] = f1_scores(value)
    return result


def f1_scores(confusion: Tensor) -> list[float]:
    """F1 of each class of a confusion matrix (rows: true class); 0 for a class never seen nor predicted."""
    hits = confusion.diagonal().double()
    total = confusion.sum(dim=0).double() + confusion.sum(dim=1).double()
    return (2 * hits / total.clamp(min=1)).tolist()
