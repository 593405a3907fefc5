"""How near the imagined is to the real: pure functions of arrays. Knows nothing of games, models or files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PSNR_CAP = 60.0
"""Frames nearer than this, in dB, count as this near: otherwise one exact frame would make a mean
infinite."""

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """How well one kind of event is predicted; NaN where nothing was predicted, or nothing happened."""

    precision: float
    recall: float
    f1: float


def mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Array:
    """Mean squared difference of frames (..., c, h, w), in levels of 0..255 squared."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64)


def psnr(mse: Array) -> Array:
    """Peak signal-to-noise ratio in dB for 8-bit frames, `10 log10(255^2 / mse)`, at most `PSNR_CAP`."""
    floor = 255.0**2 / 10 ** (PSNR_CAP / 10)
    return 10 * np.log10(255.0**2 / np.maximum(mse, floor))


def mean_where(values: Array, mask: Mask) -> Array:
    """Mean over the first axis of the values that the mask marks; NaN where it marks none."""
    count = mask.sum(0)
    total = np.where(mask, values, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def hits(found: Array, real: Array, radius: float) -> Mask:
    """Whether points (..., d) lie within `radius` of the real ones; a NaN on either side is a miss."""
    distance = np.sqrt(np.square(found - real).sum(-1))
    return np.nan_to_num(distance, nan=np.inf) <= radius


def confusion(real: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Counts (real class, predicted class)."""
    flat = real * num_classes + predicted
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(matrix: NDArray[np.int64], nothing: int) -> Scores:
    """Precision, recall and F1 of events: of all classes but `nothing`, and right only with the right class.

    Args:
        matrix: counts (real class, predicted class).
        nothing: the class that is no event.
    """
    events = [i for i in range(len(matrix)) if i != nothing]
    right = int(sum(matrix[i, i] for i in events))
    predicted, happened = int(matrix[:, events].sum()), int(matrix[events].sum())
    f1 = 2 * right / (predicted + happened) if predicted + happened else np.nan
    return Scores(
        precision=right / predicted if predicted else np.nan,
        recall=right / happened if happened else np.nan,
        f1=f1,
    )


def returns(rew: Array, end: Mask, valid: Mask) -> Array:
    """Sums of rewards (b, t) up to and with the first end, over valid steps only; (b,)."""
    running = np.cumsum(end, axis=1) - end == 0
    return np.where(running & valid, rew, 0).sum(1)
