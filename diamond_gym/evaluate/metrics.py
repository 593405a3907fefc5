"""Metrics of imagined against real: pure functions of arrays. Knows nothing of games, models or files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """How well one kind of event is predicted; NaN where none was predicted, or none occurred."""

    precision: float
    recall: float
    f1: float


def mean_where(values: Array, mask: Mask) -> Array:
    """Mean over the first axis of the values that the mask marks; NaN where it marks none."""
    count = mask.sum(0)
    total = np.where(mask, values, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def hits(found: Array, real: Array, radius: float) -> Mask:
    """Whether points (..., d) lie within `radius` of the real ones; a NaN on either side is a miss."""
    return np.nan_to_num(distances(found, real), nan=np.inf) <= radius


def confusion(real: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Matrix of counts (real class, predicted class)."""
    flat = real * num_classes + predicted
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(matrix: NDArray[np.int64], nothing: int) -> Scores:
    """Precision, recall and F1 of events: all classes except `nothing`, right only with the right class.

    Args:
        matrix: Counts (real class, predicted class).
        nothing: The class without an event.
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
    """Sums (b,) of rewards (b, t) up to and including the first end, over valid steps only."""
    return np.where(_until_first(end) & valid, rew, 0).sum(1)


def event_rates(rew: Array, end: Mask) -> dict[str, float | int]:
    """Rates of points won and lost and of ends, from rewards and ends (b, t) up to the first end.

    Returns:
        "frames", the steps that count, and "won", "lost" and "ends" per 1 000 of them.
    """
    running = _until_first(end)
    frames = int(running.sum())
    counts = {"won": rew > 0, "lost": rew < 0, "ends": end}
    return {"frames": frames, **{name: 1000 * (x & running).sum() / frames for name, x in counts.items()}}


def _until_first(end: Mask) -> Mask:
    """Mask of the steps (b, t) up to and including the first end."""
    return np.cumsum(end, axis=1) - end == 0


def distances(found: Array, real: Array) -> Array:
    """Distances between points (..., d); NaN where either is."""
    return np.sqrt(np.square(found - real).sum(-1))


def correlation(a: Array, b: Array) -> float:
    """Pearson's correlation of two lists; NaN where one does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])


def drift(a: NDArray[np.uint8], b: NDArray[np.uint8], mask: Mask) -> Array:
    """Distance of the mean frames of two sets of films at each step.

    Args:
        a: Frames (b, t, c, h, w).
        b: The other frames.
        mask: Which frames (b, t) count, in both.

    Returns:
        Mean over pixels and channels of the absolute difference of the mean frames, (t,), in levels of
        0..255; NaN where no frame counts.
    """
    steps = range(a.shape[1])
    return np.array([_mean_frames_apart(a[mask[:, t], t], b[mask[:, t], t]) for t in steps])


def _mean_frames_apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.mean(0) - b.mean(0)).mean()) if len(a) else np.nan


@dataclass(frozen=True)
class ActionEffects:
    """The effect of actions in imagination against the real game.

    Attributes:
        correlation: Cosine between the real and the imagined effect, mean over starts; an effect is how
            the frames of a start's branches differ from their mean. 1 is perfect, 0 unrelated.
        gain: Size of the imagined effects relative to the real ones; 1 is perfect, 0 means that actions do
            nothing.
        told_apart: Share of pairs of branches of one start, with different real frames, whose imagined
            frame is nearer to its own real frame than to the other's; 0.5 is chance.
        starts: How many starts were compared: those where real actions make a difference.
    """

    correlation: float
    gain: float
    told_apart: float
    starts: int


def action_effects(real: NDArray[np.uint8], imagined: NDArray[np.uint8]) -> ActionEffects:
    """Compare frames (starts, actions, c, h, w) at the ends of branches that differ in their action."""
    rows = [_effects(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(real, imagined, strict=True)]
    rows = [row for row in rows if row[0] > 0]
    if not rows:
        return ActionEffects(np.nan, np.nan, np.nan, 0)
    real_size, imagined_size, product, right, pairs = np.array(rows).T
    cosine = product / np.sqrt(real_size * np.maximum(imagined_size, np.finfo(float).tiny))
    return ActionEffects(
        correlation=float(cosine.mean()),
        gain=float(np.sqrt(imagined_size.sum() / real_size.sum())),
        told_apart=float(right.sum() / pairs.sum()),
        starts=len(rows),
    )


def _effects(real: Array, imagined: Array) -> tuple[float, float, float, int, int]:
    """For one start: squared sizes of both effects, their product, pairs told apart, pairs that differ."""
    a, b = real - real.mean(0), imagined - imagined.mean(0)
    nearness = np.square(imagined[:, None] - real[None]).sum(axis=(2, 3, 4))
    differs = np.square(real[:, None] - real[None]).sum(axis=(2, 3, 4)) > 0
    right = (nearness.diagonal()[:, None] < nearness) & differs
    return (
        float((a * a).sum()),
        float((b * b).sum()),
        float((a * b).sum()),
        int(right.sum()),
        int(differs.sum()),
    )
