"""Curves, film strip and film of imagination beside reality. Measures nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym.data.video import write_mp4
from diamond_gym.envs import rendering
from diamond_gym.errors import MissingDependencyError
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imagined
from diamond_gym.evaluate.measure import RADIUS
from diamond_gym.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILM_SCALE = 4
_FILM_STARTS = 6
_GAP = 2
"""Black pixels between frames."""
_GAIN = 2
"""Factor by which differences are enlarged."""


def require_matplotlib() -> None:
    """Fail early when Matplotlib is missing.

    Raises:
        MissingDependencyError: Matplotlib is not installed, or cannot be imported.
    """
    new_figure((1, 1))


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches; this is the only place that imports Matplotlib.

    Figures need no screen and no backend, so `MPLBACKEND` is ignored: a name that is unknown in this process,
    such as a notebook's, would fail the import.

    Raises:
        MissingDependencyError: Matplotlib is not installed, or cannot be imported.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"the pictures need matplotlib ({error}): pip install 'diamond-gym[evaluate]'"
        ) from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure(figsize=size, layout="constrained")


def curves(result: dict[str, Any]) -> Figure:
    """Plot PSNR, SSIM, object accuracy and drift over the imagined steps."""
    rows = result["steps"]
    within = [name.removesuffix("_within") for name in rows[0] if name.endswith("_within")]
    figure = new_figure((5 * (3 + bool(within)), 3.6))
    axes = figure.subplots(1, 3 + bool(within), squeeze=False)[0]
    for kind, label in (("", "imagined"), ("_repeat", "last frame repeated"), ("_mean", "mean frame")):
        _plot(axes[0], rows, f"psnr{kind}", label)
        _plot(axes[1], rows, f"ssim{kind}", label, marker="o")
    axes[0].set_ylabel("PSNR against the real frame (dB)")
    axes[1].set_ylabel("SSIM against the real frame")
    _plot(axes[2], rows, "drift", "mean frame, imagined against real")
    if result.get("spread"):
        axes[2].plot(range(1, len(rows) + 1), result["spread"], label="spread over noise")
    axes[2].set_ylabel("levels of 0..255")
    for name in within:
        _plot(axes[-1], rows, f"{name}_within", f"{name} within {RADIUS:g} px", scale=100)
        _plot(axes[-1], rows, f"{name}_present", f"{name} there", scale=100, linestyle=":")
    if within:
        axes[-1].set(ylabel="frames (%)", ylim=(0, 102))
    for axis in axes:
        axis.set_xlabel("imagined step")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def _plot(
    axis: Any, rows: list[dict[str, Any]], name: str, label: str, *, scale: float = 1, **style: Any
) -> None:
    points = [(row["step"], scale * row[name]) for row in rows if row[name] == row[name]]  # without NaN
    axis.plot(*zip(*points, strict=True) if points else ([], []), label=label, **style)


def film_strip(starts: Starts, imagined: Imagined, num_starts: int = 4, num_frames: int = 8) -> Figure:
    """Draw real over imagined over their difference (x 2) for a few starts."""
    rows = _some_complete(starts, num_starts)
    steps = np.unique(np.geomspace(1, starts.valid.shape[1], num_frames).round().astype(int))
    figure = new_figure((1.28 * len(steps) + 1.4, 4.2 * len(rows)))
    for axis, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        strip = _compared(starts.future_obs[row].numpy()[steps - 1], imagined.obs[row].numpy()[steps - 1])
        _, k, h, w, _ = strip.shape
        axis.imshow(_grid(strip), interpolation="nearest")
        axis.set_xticks(w * (np.arange(k) + 0.5), [f"step {step}" for step in steps])
        axis.set_yticks(h * (np.arange(3) + 0.5), ["real", "imagined", f"difference x {_GAIN}"])
        axis.tick_params(length=0)
    return figure


def write_film(path: Path, starts: Starts, imagined: Imagined, num_starts: int = _FILM_STARTS) -> None:
    """Write an MP4 of real over imagined over their difference (x 2), with some starts side by side.

    Raises:
        CacheError: The folder cannot be written.
    """
    write_mp4(path, _film(starts, imagined, num_starts), rendering.RENDER_FPS)


def _film(starts: Starts, imagined: Imagined, num_starts: int) -> Iterator[NDArray[np.uint8]]:
    rows = _some_complete(starts, num_starts)
    tiles = _compared(starts.future_obs[rows].numpy(), imagined.obs[rows].numpy())  # (3, b, t, h, w, c)
    for t in range(tiles.shape[2]):
        yield rendering.enlarge(_grid(tiles[:, :, t]), _FILM_SCALE)


def _some_complete(starts: Starts, count: int) -> NDArray[np.int64]:
    """Choose some starts, if possible such that the episode lasts for the whole horizon."""
    complete = np.flatnonzero(starts.valid.numpy().all(1))
    rows = complete if len(complete) else np.arange(len(starts))
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def _compared(real: NDArray[np.uint8], dreamt: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stack real, imagined and their difference, with channels last and a black rim: (3, ..., h, w, c)."""
    difference = np.clip(_GAIN * np.abs(real.astype(int) - dreamt), 0, 255).astype(np.uint8)
    frames = np.moveaxis(np.stack([real, dreamt, difference]), -3, -1)
    around = [(0, 0)] * (frames.ndim - 3) + [(0, _GAP), (0, _GAP), (0, 0)]
    return np.pad(frames, around)


def _grid(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join frames (rows, columns, h, w, c) to one picture."""
    rows, columns, h, w, c = tiles.shape
    return tiles.swapaxes(1, 2).reshape(rows * h, columns * w, c)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the text of a figure 8 inches wide is readable at 800 pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    write_file(path, buffer.getvalue())
