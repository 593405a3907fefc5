"""Logs of a run: metrics of steps and epochs, TensorBoard, Weights & Biases, and videos of imagination."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import imageio.v3 as imageio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diamond_gym.errors import CacheError, require
from diamond_gym.files import write_file
from diamond_gym.world.pixels import mean_squared_error, psnr
from diamond_gym.world.world_model import WorldModel
from trainers.diamond.config import LoggingConfig, TensorBoardConfig, WandbConfig
from trainers.diamond.errors import LoggingError
from trainers.diamond.losses import Metrics
from trainers.diamond.replay import Replay, SegmentBatch
from trainers.diamond.run_folder import RunFolder

# --- metrics
# From tensors of single steps to the metrics of an epoch.


_log = logging.getLogger(__name__)
_SHOWN = ("/loss", "/test_loss", "collect/return", "test/return", "final/return", "/steps_per_s")


def add(sums: Metrics, metrics: Metrics) -> Metrics:
    """Add the metrics of one step to the sums so far."""
    return {name: sums[name] + value if name in sums else value for name, value in metrics.items()}


def summary(sums: Metrics, count: int) -> dict[str, Any]:
    """Means of scalars; confusion matrices as nested lists of counts, with scores of each class."""
    result: dict[str, Any] = {}
    for name, value in sums.items():
        if value.ndim == 0:
            result[name] = value.item() / count
        else:
            result[name] = value.tolist()
            what = name.removeprefix("confusion_")
            result |= {f"{score}_{what}": values for score, values in class_scores(value).items()}
    return result


def class_scores(confusion: Tensor) -> dict[str, list[float]]:
    """Precision, recall and F1 of each class of a confusion matrix (rows: true class).

    They are 0 for a class that was never predicted, never seen, or neither.
    """
    hits = confusion.diagonal().double()
    predicted, seen = confusion.sum(dim=0).double(), confusion.sum(dim=1).double()
    return {
        "precision": (hits / predicted.clamp(min=1)).tolist(),
        "recall": (hits / seen.clamp(min=1)).tolist(),
        "f1": (2 * hits / (predicted + seen).clamp(min=1)).tolist(),
    }


def one_line(metrics: dict[str, Any]) -> str:
    """An epoch's losses, returns and speeds on one line, to be shown."""
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith(_SHOWN)]
    return f"epoch {metrics['epoch']}: {', '.join(shown)}"


# --- open loop
# Imagination beside reality: real frames above, frames imagined under the same actions below.


_GAP = 2
"""Width in pixels of the black gaps between games and between rows."""


def draw_starts(replay: Replay, num_games: int, num_steps: int, seed: int) -> SegmentBatch | None:
    """Draw segments without padding, the same ones every time; None where no episode is long enough."""
    long_enough = np.flatnonzero(replay.lengths >= num_steps)
    if not len(long_enough):
        return None
    rng = np.random.default_rng(seed)
    episode = rng.choice(long_enough, num_games)
    return replay.segments(episode, rng.integers(replay.lengths[episode] - num_steps + 1), num_steps)


@torch.no_grad()
def imagine(world_model: WorldModel, batch: SegmentBatch) -> UInt8[Tensor, "b t c h w"]:
    """Imagine the frames after the first n under the segments' actions, with the same noise every time."""
    n = world_model.num_steps_conditioning
    state = world_model.start(batch.obs[:, :n], batch.act[:, :n], torch.arange(len(batch.obs)))
    frames = []
    for act in batch.act[:, n - 1 : -1].to(world_model.device).unbind(1):
        state, step = world_model.step(state, act)
        frames.append(step.obs.cpu())
    return torch.stack(frames, dim=1)


def mean_psnr(
    real: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]
) -> Float[np.ndarray, " t"]:
    """Peak signal-to-noise ratio in dB at each step, from the mean error over all games."""
    return psnr(mean_squared_error(real.numpy(), imagined.numpy()).mean(axis=0))


def side_by_side(
    real: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]
) -> UInt8[Tensor, "t h2 w2 3"]:
    """Arrange games from left to right, with real frames above imagined ones."""
    pad = (0, _GAP, 0, _GAP)
    rows = [torch.cat(list(torch.nn.functional.pad(x, pad).unbind(0)), dim=-1) for x in (real, imagined)]
    frames = torch.cat(rows, dim=-2).permute(0, 2, 3, 1)
    return frames.expand(-1, -1, -1, 3).contiguous()  # grey frames have one channel


def to_gif(frames: UInt8[Tensor, "t h w 3"], fps: int) -> bytes:
    """Encode frames as a GIF that loops."""
    return imageio.imwrite("<bytes>", frames.numpy(), extension=".gif", duration=1000 / fps, loop=0)


# --- run log
# Where a run's metrics and videos go: to metrics.jsonl always, to TensorBoard and Weights & Biases if
# enabled.
#
# This section does not depend on what the numbers mean, except for the names of classes.


if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_CLASSES = {3: ("negative", "zero", "positive"), 2: ("goes_on", "ends")}
"""Names of the classes of rewards and of ends, by how many there are."""
VIDEO_FPS = 8


class Sink(Protocol):
    """One destination of curves and videos."""

    def log(self, epoch: int, scalars: dict[str, float]) -> None:
        """Log the metrics of an epoch."""
        ...

    def point(self, series: str, index: int, scalars: dict[str, float]) -> None:
        """Log the metrics of one step or episode: number `index` of the series `series`."""
        ...

    def video(self, epoch: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Log a video of (height, width)."""
        ...

    def close(self) -> None:
        """Finishes."""
        ...


class RunLog:
    """The logs of a run; curves and videos are written once `open` was called.

    Args:
        run: The run's folder.
        logging: How often single steps and episodes are logged.
        tensorboard: Whether to write TensorBoard logs.
        wandb: Whether and how to log to Weights & Biases.
        settings: The run's configuration by key, for Weights & Biases to show.
    """

    def __init__(
        self,
        run: RunFolder,
        logging: LoggingConfig,
        tensorboard: TensorBoardConfig,
        wandb: WandbConfig,
        settings: Mapping[str, Any],
    ) -> None:
        self.run, self.logging, self.tensorboard, self.wandb = run, logging, tensorboard, wandb
        self.settings = settings
        self._sinks: list[Sink] = []

    def open(self, epoch: int, next_of: Mapping[str, int] | None = None) -> None:
        """Open the logs at an epoch; what a killed process logged of it and of later ones is hidden.

        Weights & Biases cannot hide entries: its curves show epochs that are trained again twice.

        Args:
            epoch: The first epoch to be logged.
            next_of: The first step or episode to be logged of each series, by `step_series(part)` and
                `episode_series(split)`; 0 for a series that is not given.

        Raises:
            CacheError: The run folder cannot be written.
            LoggingError: Weights & Biases cannot be reached.
        """
        if self.tensorboard.enabled:
            sink = _tensorboard(self.run.path / "tensorboard", epoch, dict(next_of or {}))
            self._sinks += [] if sink is None else [sink]
        if self.wandb.mode != "disabled":
            self._sinks.append(_Wandb(self.run.path, self.wandb, self.settings))

    def log(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of the epoch `metrics["epoch"]`.

        Raises:
            CacheError: The log cannot be written.
        """
        self.run.log(metrics)
        numbers = scalars(metrics)
        for sink in self._sinks:
            sink.log(metrics["epoch"], numbers)

    def wants_step(self, step: int) -> bool:
        """Whether an optimiser step of a network is to be logged; the same in every process."""
        has_logs = self.tensorboard.enabled or self.wandb.mode != "disabled"
        return has_logs and _is_due(step, self.logging.every_steps)

    def step(self, part: str, step: int, scalars: dict[str, float]) -> None:
        """Log the metrics of optimiser step `step` of a network, for which `wants_step` holds.

        Raises:
            CacheError: The log cannot be written.
        """
        for sink in self._sinks:
            sink.point(step_series(part), step, scalars)

    def episode(self, split: str, number: int, episode_return: float, length: int) -> None:
        """Log an episode of the real game, if it is one of every `every_episodes`.

        Raises:
            CacheError: The log cannot be written.
        """
        if _is_due(number, self.logging.every_episodes):
            for sink in self._sinks:
                sink.point(episode_series(split), number, {"return": episode_return, "length": length})

    def video(self, epoch: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Log a video, and keep it as videos/NAME_epoch_EPOCH.gif.

        Raises:
            CacheError: The log cannot be written.
        """
        write_file(self.run.video_file(name, epoch), gif)
        for sink in self._sinks:
            sink.video(epoch, name, gif, size)

    def close(self) -> None:
        """Finish all logs."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []


def step_series(part: str) -> str:
    """Name of the series of a network's optimiser steps."""
    return f"steps/{part}"


def episode_series(split: str) -> str:
    """Name of the series of the "train" or "test" episodes."""
    return f"episodes/{split}"


def _is_due(index: int, every: int | None) -> bool:
    return every is not None and index % every == 0


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Single numbers of the metrics, those of a class under its name; tables are left out."""
    result: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, int | float):
            result[name] = value
        elif isinstance(value, list) and all(isinstance(x, int | float) for x in value):
            result |= {f"{name}_{kind}": x for kind, x in zip(_CLASSES[len(value)], value, strict=True)}
    return result


def check_dependencies(config: WandbConfig) -> None:
    """Check that the requested loggers are installed.

    Raises:
        MissingDependencyError: Weights & Biases is requested and not installed.
    """
    if config.mode == "disabled":
        return
    require("wandb", "wandb", f"wandb.mode={config.mode}", "wandb")


def _tensorboard(folder: Path, epoch: int, next_of: dict[str, int]) -> Sink | None:
    try:
        return _TensorBoard(folder, epoch, next_of)
    except ImportError:
        _log.warning("tensorboard is not installed: curves are in metrics.jsonl alone")
        return None


class _TensorBoard:
    """TensorBoard logs: curves over epochs in the folder itself, those of each series in a folder of its own.

    TensorBoard hides entries by folder, from some number on, and epochs, steps and episodes count separately.
    """

    def __init__(self, folder: Path, epoch: int, next_of: dict[str, int]) -> None:
        self.folder = folder
        self._next_of = next_of
        self._series: dict[str, SummaryWriter] = {}
        self._writer = self._open(folder, epoch)

    def _open(self, folder: Path, first: int) -> SummaryWriter:
        """A writer that hides the folder's entries from number `first` on."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            return SummaryWriter(str(folder), purge_step=first)
        except OSError as error:
            raise self._unwritable(error) from error

    def point(self, series: str, index: int, scalars: dict[str, float]) -> None:
        if series not in self._series:
            self._series[series] = self._open(self.folder / series, self._next_of.get(series, 0))
        try:
            for name, value in scalars.items():
                self._series[series].add_scalar(f"{series}/{name}", value, index)
        except OSError as error:
            raise self._unwritable(error) from error

    def log(self, epoch: int, scalars: dict[str, float]) -> None:
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, epoch)
            for writer in (self._writer, *self._series.values()):
                writer.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def video(self, epoch: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        # as `add_video` does, which needs moviepy
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=gif)
        try:
            self._writer._get_file_writer().add_summary(
                Summary(value=[Summary.Value(tag=name, image=image)]), epoch
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        try:
            for writer in (self._writer, *self._series.values()):
                writer.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CacheError:
        return CacheError(f"cannot write {self.folder}: {error}; tensorboard.enabled=false trains without it")


class _Wandb:
    """Weights & Biases: rows in the order of logging; curves over epochs, steps or episodes."""

    def __init__(self, folder: Path, wanted: WandbConfig, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore

        self._wandb = wandb
        self._axes: dict[str, str] = {}
        try:
            self._run = wandb.init(
                mode=wanted.mode,  # pyright: ignore[reportArgumentType]
                project=wanted.project,
                entity=wanted.entity,
                name=wanted.name,
                group=wanted.group,
                tags=wanted.tags,
                notes=wanted.notes,
                id=_wandb_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                settings=wandb.Settings(silent=True),
            )
        except Exception as error:  # wandb's own errors, and whatever its network and files raise
            reason = str(error).partition("\n")[0]
            raise LoggingError(
                f"wandb.mode={wanted.mode}: {reason}; offline writes to the run folder, disabled does not log"
            ) from error

    def log(self, epoch: int, scalars: dict[str, float]) -> None:
        self._log(scalars, "epoch", epoch)

    def point(self, series: str, index: int, scalars: dict[str, float]) -> None:
        self._log({f"{series}/{name}": value for name, value in scalars.items()}, series, index)

    def _log(self, values: dict[str, Any], axis: str, index: int) -> None:
        for name in values:
            if name != axis and name not in self._axes:
                self._run.define_metric(name, step_metric=axis)
                self._axes[name] = axis
        self._run.log(values | {axis: index})

    def video(self, epoch: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        from io import BytesIO

        self._log({name: self._wandb.Video(BytesIO(gif), format="gif")}, "epoch", epoch)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """The run's id on the server, kept so that a resumed run continues its curves."""
    file = folder / "wandb" / "id.txt"
    if not file.is_file():
        write_file(file, secrets.token_hex(4).encode())
    return file.read_text()
