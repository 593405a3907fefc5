"""Gathers the numbers, prints them as a table, and writes JSON and pictures. Runs no model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym.disk import write_file
from diamond_gym.errors import MissingDependencyError
from diamond_gym.evaluate import metrics
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imagined, Transitions
from diamond_gym.objects import breakout_ball, breakout_paddle, pong_ball, pong_left_paddle, pong_right_paddle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADIUS = 2.0
"""Pixels within which an object counts as in the right place."""
SHOWN_STEPS = (1, 3, 5, 15, 30, 50)

Detector = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
OBJECTS: dict[str, dict[str, Detector]] = {
    "Breakout": {"paddle": breakout_paddle, "ball": breakout_ball},
    "Pong": {"paddle": pong_right_paddle, "opponent": pong_left_paddle, "ball": pong_ball},
}
"""What can be found in frames of each game; other games are judged by PSNR, rewards and ends alone."""

DEFINITIONS = {
    "psnr": f"mean over starts of each frame's PSNR on uint8 RGB, dB, each at most {metrics.PSNR_CAP:g}",
    "psnr_of_mean_mse": "PSNR of the squared error averaged over starts, dB",
    "within": f"of the real frames with the object, those whose imagined one has it within {RADIUS:g} px",
    "repeat": "the same number for the last real frame repeated",
    "reward, end": "likeliest class on real transitions, LSTM run through whole episodes; rewards as signs",
    "returns": "reward signs summed up to the horizon, the real end or, if imagined, the imagined end",
}


def measure(game: str, starts: Starts, imagined: Imagined) -> dict[str, Any]:
    """The numbers of imagination against the real future, step by step and over the horizon."""
    valid = starts.valid.numpy()
    real, dreamt = starts.future_obs.numpy(), imagined.obs.numpy()
    last = starts.obs[:, -1:].numpy()
    mse = _squared_errors(real, dreamt)
    mse_repeat = _squared_errors(real, last)
    columns: dict[str, NDArray[Any]] = {
        "step": np.arange(1, valid.shape[1] + 1),
        "frames": valid.sum(0),
        "psnr": metrics.mean_where(metrics.psnr(mse), valid),
        "psnr_of_mean_mse": metrics.psnr(metrics.mean_where(mse, valid)),
        "psnr_repeat": metrics.mean_where(metrics.psnr(mse_repeat), valid),
    }
    for name, detector in OBJECTS.get(game, {}).items():
        columns |= _object_columns(name, detector, real, dreamt, last, valid)
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"steps": rows, "returns": _returns(starts, imagined)}


def measure_transitions(transitions: Transitions) -> dict[str, Any]:
    """Scores and confusion matrices (real class, predicted class) of rewards and ends."""
    rew = metrics.confusion(transitions.rew.numpy(), transitions.predicted_rew.numpy(), 3)
    end = metrics.confusion(transitions.end.numpy(), transitions.predicted_end.numpy(), 2)
    return {
        "reward": {**asdict(metrics.scores(rew, 1)), "confusion": rew, "classes": [-1, 0, 1]},
        "end": {**asdict(metrics.scores(end, 0)), "confusion": end, "classes": [0, 1]},
    }


def shown_steps(horizon: int) -> list[int]:
    """The steps that the table shows."""
    return sorted({step for step in SHOWN_STEPS if step <= horizon} | {horizon})


def table(result: dict[str, Any]) -> str:
    """The numbers as text."""
    rows = result["steps"]
    names = [name for name in rows[0] if not name.endswith("_frames")]
    body = [[_cell(name, rows[step - 1][name]) for name in names] for step in shown_steps(len(rows))]
    widths = [max(len(line[i]) for line in [names, *body]) for i in range(len(names))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [names, *body]
    ]
    for kind in ("reward", "end"):
        s = result[kind]
        lines.append(
            f"{kind:6} precision {s['precision']:.3f}  recall {s['recall']:.3f}  F1 {s['f1']:.3f}  "
            f"confusion (real x predicted, classes {s['classes']}) {np.asarray(s['confusion']).tolist()}"
        )
    r = result["returns"]
    lines.append(
        f"return over {len(rows)} steps: real {r['real_mean']:.3f}, imagined {r['imagined_mean']:.3f}, "
        f"mean absolute difference {r['mean_absolute_difference']:.3f}"
    )
    return "\n".join(lines)


def curves(result: dict[str, Any]) -> Figure:
    """PSNR and object accuracy over the imagined steps."""
    from matplotlib.figure import Figure

    rows = result["steps"]
    step = [row["step"] for row in rows]
    within = [name for name in rows[0] if "_within" in name]
    figure = Figure(figsize=(5 * (1 + bool(within)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + bool(within), squeeze=False)[0]
    for name, label in (("psnr", "imagined"), ("psnr_repeat", "last real frame repeated")):
        axes[0].plot(step, [row[name] for row in rows], label=label)
    axes[0].set(xlabel="imagined step", ylabel="PSNR against the real frame (dB)")
    for name in within:
        axes[-1].plot(step, [100 * row[name] for row in rows], label=name.removesuffix("_within"))
    if within:
        axes[-1].set(
            xlabel="imagined step", ylabel=f"within {RADIUS:g} px of the real one (%)", ylim=(0, 102)
        )
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def film(starts: Starts, imagined: Imagined, num_starts: int = 4, num_frames: int = 8) -> Figure:
    """Real over imagined over their difference (x 2) for a few starts."""
    from matplotlib.figure import Figure

    complete = np.flatnonzero(starts.valid.numpy().all(1))
    rows = complete if len(complete) else np.arange(len(starts))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, num_starts).round().astype(int))]
    steps = np.unique(np.geomspace(1, starts.valid.shape[1], num_frames).round().astype(int))
    figure = Figure(figsize=(1.28 * len(steps) + 1.4, 4.2 * len(rows)), layout="constrained")
    for axis, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        real = starts.future_obs[row].numpy()[steps - 1]
        dreamt = imagined.obs[row].numpy()[steps - 1]
        difference = np.clip(2 * np.abs(real.astype(int) - dreamt), 0, 255).astype(np.uint8)
        strip = np.stack([real, dreamt, difference])  # (3, k, c, h, w)
        _, k, _, h, w = strip.shape
        axis.imshow(strip.transpose(0, 3, 1, 4, 2).reshape(3 * h, k * w, 3), interpolation="nearest")
        axis.set_xticks(w * (np.arange(k) + 0.5), [f"step {step}" for step in steps])
        axis.set_yticks(h * (np.arange(3) + 0.5), ["real", "imagined", "difference x 2"])
        axis.tick_params(length=0)
    return figure


def require_matplotlib() -> None:
    """Fail early.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "the pictures need matplotlib: pip install 'diamond-gym[evaluate]'"
        ) from None


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write the numbers; NaN becomes null."""
    write_file(path, json.dumps(_plain(result), indent=1, allow_nan=False).encode() + b"\n")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    write_file(path, buffer.getvalue())


def _squared_errors(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Errors (b, t) of real frames against others (b, t or 1, c, h, w), step by step to save memory."""
    last = other.shape[1] - 1
    errors = [metrics.mean_squared_error(real[:, t], other[:, min(t, last)]) for t in range(real.shape[1])]
    return np.stack(errors, 1)


def _find(detector: Detector, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Objects in frames (b, t, c, h, w) as points (b, t, d)."""
    b, t = frames.shape[:2]
    found = [detector(np.ascontiguousarray(frames[:, i].transpose(0, 2, 3, 1))) for i in range(t)]
    return np.stack(found, 1).reshape(b, t, -1)


def _object_columns(
    name: str,
    detector: Detector,
    real: NDArray[np.uint8],
    dreamt: NDArray[np.uint8],
    last: NDArray[np.uint8],
    valid: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    there = _find(detector, real)
    shown = valid & ~np.isnan(there).any(-1)
    right = metrics.hits(_find(detector, dreamt), there, RADIUS)
    repeated = metrics.hits(_find(detector, last), there, RADIUS)
    return {
        f"{name}_frames": shown.sum(0),
        f"{name}_within": metrics.mean_where(right.astype(float), shown),
        f"{name}_repeat": metrics.mean_where(repeated.astype(float), shown),
    }


def _returns(starts: Starts, imagined: Imagined) -> dict[str, Any]:
    valid = starts.valid.numpy()
    real = metrics.returns(starts.future_rew.double().numpy(), starts.future_end.numpy(), valid)
    dreamt = metrics.returns(imagined.rew.double().numpy(), imagined.end.numpy(), valid)
    return {
        "real_mean": real.mean(),
        "imagined_mean": dreamt.mean(),
        "mean_absolute_difference": np.abs(real - dreamt).mean(),
        "real": real,
        "imagined": dreamt,
    }


def _cell(name: str, value: Any) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if name.startswith("psnr") else f"{100 * value:.1f} %"


def _plain(value: Any) -> Any:
    """The value as what JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
