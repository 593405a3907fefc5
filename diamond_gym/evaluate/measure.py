"""The measures: imagined against real frames, rewards and ends. Runs no model and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diamond_gym.errors import MissingDependencyError
from diamond_gym.evaluate import ball, bounces, metrics
from diamond_gym.evaluate.branches import MAX_HOLD, Branches, Play
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imagined, Transitions
from diamond_gym.players.vision import (
    breakout_ball,
    breakout_paddle,
    pong_ball,
    pong_left_paddle,
    pong_right_paddle,
)
from diamond_gym.world import pixels

RADIUS = 2.0
"""Distance in pixels within which an object counts as being in the right place."""
SHOWN_STEPS = (1, 3, 5, 15, 30, 50)

Detector = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
OBJECTS: dict[str, dict[str, Detector]] = {
    "Breakout": {"paddle": breakout_paddle, "ball": breakout_ball},
    "Pong": {"paddle": pong_right_paddle, "opponent": pong_left_paddle, "ball": pong_ball},
}
"""Objects that can be found in frames of each game; for other games only frames, rewards and ends count."""

STEPS_BEFORE_END = 4
"""Steps before an end from which it is imagined; it may come as many steps late."""
PLAYED_HORIZONS = 2
"""Horizons over which players play from the starts."""

DEFINITIONS = {
    "psnr": f"mean over starts of each frame's PSNR on uint8 RGB, dB, each at most {pixels.PSNR_CAP:g}",
    "psnr_of_mean_mse": "PSNR of the squared error averaged over starts, dB",
    "ssim": "mean over starts of each frame's structural similarity (torchmetrics' defaults), at shown steps",
    "repeat": "the same number for the last real frame repeated",
    "mean": "the same number for the mean of the starts' frames",
    "drift": "mean absolute difference of the mean real and the mean imagined frame, levels of 0..255",
    "spread": "mean sample standard deviation of a pixel over imaginations with other noise, levels of 255",
    "within": f"of the real frames with the object, those whose imagined one has it within {RADIUS:g} px",
    "error": "mean distance of the imagined object to the real one where both are there, px",
    "present": "of the real frames with the object, those whose imagined one has it anywhere",
    "reward, end": "likeliest class on real transitions, LSTM run through whole episodes; rewards as signs",
    "returns": "reward signs summed up to the horizon, the real end or, if imagined, the imagined end; bias "
    "is the mean difference, correlation Pearson's",
    "closed_loop": "the player itself, acting on real frames and on imagined ones, from the same starts: "
    "steps with a positive and with a negative reward, and ends, per 1 000 steps up to the first end; the "
    "player begins each without memory, with random numbers of its own",
    "random_play": f"the same of random actions, each held for 1 to {MAX_HOLD} steps",
    "at_paddle": "of the balls that come to the player's paddle, those lost (a point or a life), back on the "
    f"far side, and neither within {ball.FATE_STEPS} steps",
    "single_steps": "of single predictions from real frames, by what the ball does in them, those with it "
    f"within {bounces.RADIUS:g} px of the real one in both directions; a bounce changes its velocity "
    f"by more than {ball.TURN:g} px a step",
    "bounces": f"the same {bounces.AFTER_BOUNCE} steps after what happens, imagined under the real "
    f"actions from {bounces.BEFORE_BOUNCE} steps before it on; there: those with the ball anywhere",
    "overlooked_ends": f"of the real ends, those that imagination from {STEPS_BEFORE_END} steps before "
    f"under the real actions does not show within {2 * STEPS_BEFORE_END} steps",
    "actions": "frames after holding different actions from one start: cosine and relative size of the "
    "imagined effects against the real ones, and pairs of actions told apart by the nearest real frame",
}


def require_torchmetrics() -> None:
    """Fail early when torchmetrics is missing.

    Raises:
        MissingDependencyError: Torchmetrics is not installed.
    """
    try:
        import torchmetrics  # noqa: F401
    except ImportError:
        raise MissingDependencyError("SSIM needs torchmetrics: pip install 'diamond-gym[evaluate]'") from None


def shown_steps(horizon: int) -> list[int]:
    """Return the steps that tables show, and at which SSIM is measured."""
    return sorted({step for step in SHOWN_STEPS if step <= horizon} | {horizon})


def measure(game: str, starts: Starts, imagined: Imagined) -> dict[str, Any]:
    """Measure imagination against the real future, step by step and over the horizon."""
    valid = starts.valid.numpy()
    real, dreamt = starts.future_obs.numpy(), imagined.obs.numpy()
    last = starts.obs[:, -1:].numpy()
    mean = last.mean(axis=0, keepdims=True).round().astype(np.uint8)
    mse = squared_errors(real, dreamt)
    columns: dict[str, NDArray[Any]] = {
        "step": np.arange(1, valid.shape[1] + 1),
        "frames": valid.sum(0),
        "psnr": metrics.mean_where(pixels.psnr(mse), valid),
        "psnr_of_mean_mse": pixels.psnr(metrics.mean_where(mse, valid)),
        "psnr_repeat": metrics.mean_where(pixels.psnr(squared_errors(real, last)), valid),
        "psnr_mean": metrics.mean_where(pixels.psnr(squared_errors(real, mean)), valid),
        "ssim": _mean_ssim(real, dreamt, valid),
        "ssim_repeat": _mean_ssim(real, last, valid),
        "ssim_mean": _mean_ssim(real, mean, valid),
        "drift": metrics.drift(real, dreamt, valid),
    }
    for name, detector in OBJECTS.get(game, {}).items():
        columns |= _object_columns(name, detector, real, dreamt, last, valid)
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"steps": rows, "returns": _returns(starts, imagined)}


def measure_transitions(transitions: Transitions) -> dict[str, Any]:
    """Compute scores and confusion matrices (real class, predicted class) of rewards and ends."""
    rew = metrics.confusion(transitions.rew.numpy(), transitions.predicted_rew.numpy(), 3)
    end = metrics.confusion(transitions.end.numpy(), transitions.predicted_end.numpy(), 2)
    return {
        "reward": {**asdict(metrics.scores(rew, 1)), "confusion": rew, "classes": [-1, 0, 1]},
        "end": {**asdict(metrics.scores(end, 0)), "confusion": end, "classes": [0, 1]},
    }


def measure_actions(branches: Branches | None, imagined: Imagined | None) -> dict[str, Any]:
    """Measure whether actions change the imagined frame as they change the real one.

    Args:
        branches: The real branches; None where there are none.
        imagined: The same branches, start by start, imagined up to the frame that is compared.
    """
    if branches is None or imagined is None:
        nothing = np.zeros((0, 1, 1, 1, 1), np.uint8)
        return asdict(metrics.action_effects(nothing, nothing))
    real = branches.obs.numpy()
    return asdict(metrics.action_effects(real, imagined.obs[:, -1].numpy().reshape(real.shape)))


def measure_play(game: str, real: Play, imagined: Imagined) -> dict[str, Any]:
    """Measure what a player meets in the real and the imagined game, from the same starts."""
    return {
        "starts": len(real.start),
        "horizon": real.rew.shape[1],
        "real": _met(game, real),
        "imagined": _met(game, imagined),
    }


def _met(game: str, played: Play | Imagined) -> dict[str, Any]:
    """Events per 1 000 steps and, where the ball can be found, what becomes of it at the player's paddle."""
    rew, end = played.rew.double().numpy(), played.end.numpy()
    return metrics.event_rates(rew, end) | {"at_paddle": ball.count_fates(game, played.obs.numpy(), rew, end)}


def measure_overlooked_ends(imagined: Imagined | None) -> dict[str, Any]:
    """Measure how many of the real ends are not imagined.

    Args:
        imagined: Imagination from `STEPS_BEFORE_END` steps before each end; None where there is none.
    """
    if imagined is None:
        return {"share": np.nan, "starts": 0}
    seen = imagined.end.numpy().any(axis=1)
    return {"share": 1 - float(np.mean(seen)), "starts": len(imagined.end)}


def measure_spread(samples: Sequence[Imagined], valid: NDArray[np.bool_]) -> list[float]:
    """Measure how much imaginations of the same starts and actions differ by their noise, step by step.

    Args:
        samples: Two or more imaginations.
        valid: Which of their frames (b, t) count.

    Returns:
        Standard deviations over samples, in levels of 0..255, averaged over pixels and starts; NaN where no
        frame counts.
    """
    frames = np.stack([sample.obs.numpy() for sample in samples])  # (s, b, t, c, h, w)
    spreads = [frames[:, :, t].astype(np.float64).std(0, ddof=1) for t in range(frames.shape[2])]
    return metrics.mean_where(np.stack([x.mean((1, 2, 3)) for x in spreads], axis=1), valid).tolist()


def squared_errors(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute errors (b, t) of real frames against others (b or 1, t or 1, c, h, w), saving memory."""
    last = other.shape[1] - 1
    errors = [pixels.mean_squared_error(real[:, t], other[:, min(t, last)]) for t in range(real.shape[1])]
    return np.stack(errors, 1)


def share_within(
    detector: Detector, real: NDArray[np.uint8], other: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Compute the share (t,) of valid real frames (b, t, c, h, w) whose object is there in the others too."""
    there, found = (_find(detector, frames) for frames in (real, other))
    shown = valid & ~np.isnan(there).any(-1)
    return metrics.mean_where(metrics.hits(found, there, RADIUS).astype(float), shown)


def _mean_ssim(
    real: NDArray[np.uint8], other: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Compute SSIM (t,) of real frames against others (b or 1, t or 1, c, h, w); NaN at steps not shown."""
    means = np.full(real.shape[1], np.nan)
    for step in shown_steps(real.shape[1]):
        t, counts = step - 1, valid[:, step - 1]
        frames = np.broadcast_to(other[:, min(t, other.shape[1] - 1)], real[:, t].shape)
        if counts.any():
            means[t] = _ssim(real[counts, t], frames[counts]).mean()
    return means


def _ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the structural similarity of each pair of frames (k, c, h, w) (Wang et al. 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (torch.from_numpy(np.ascontiguousarray(frames)).float() for frames in (a, b))
    similarity = structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    assert isinstance(similarity, torch.Tensor)
    return similarity.double().numpy()


def _find(detector: Detector, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Find objects in frames (b, t, c, h, w) as points (b, t, d)."""
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
    there, found, before = (_find(detector, frames) for frames in (real, dreamt, last))
    shown = valid & ~np.isnan(there).any(-1)
    seen = shown & ~np.isnan(found).any(-1)
    return {
        f"{name}_frames": shown.sum(0),
        f"{name}_within": metrics.mean_where(metrics.hits(found, there, RADIUS).astype(float), shown),
        f"{name}_repeat": metrics.mean_where(metrics.hits(before, there, RADIUS).astype(float), shown),
        f"{name}_error": metrics.mean_where(metrics.distances(found, there), seen),
        f"{name}_present": metrics.mean_where(seen.astype(float), shown),
    }


def _returns(starts: Starts, imagined: Imagined) -> dict[str, Any]:
    valid = starts.valid.numpy()
    real = metrics.returns(starts.future_rew.double().numpy(), starts.future_end.numpy(), valid)
    dreamt = metrics.returns(imagined.rew.double().numpy(), imagined.end.numpy(), valid)
    return {
        "real_mean": real.mean(),
        "imagined_mean": dreamt.mean(),
        "bias": (dreamt - real).mean(),
        "correlation": metrics.correlation(real, dreamt),
        "mean_absolute_difference": np.abs(real - dreamt).mean(),
        "real": real,
        "imagined": dreamt,
    }
