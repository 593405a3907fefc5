"""Aggregates over games and runs with stratified bootstrap intervals, by rliable (Agarwal et al. 2021).

Scores are human-normalised matrices of (runs, games); runs are resampled within each game.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diamond_gym.errors import MissingDependencyError, first_line

METRICS = ("mean", "median", "IQM", "optimality gap")
"""Names of the aggregates; the optimality gap is what is missing to a human, lower is better."""
THRESHOLDS = np.linspace(0.0, 8.0, 81)
"""Human-normalised scores at which performance profiles are evaluated."""
_CURVE_RESAMPLES = 500

Scores = Float[np.ndarray, "runs games"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def require_rliable() -> None:
    """Makes sure that rliable can be used, before anything is read.

    Raises:
        MissingDependencyError: It cannot.
    """
    try:
        import rliable.library  # noqa: F401
    except Exception as error:  # its own dependencies fail in many ways when they do not fit each other
        raise MissingDependencyError(
            f"the report needs rliable ({first_line(error)}): pip install 'diamond-gym[report]'"
        ) from error


def aggregates(scores: Scores) -> Float[np.ndarray, " 4"]:
    """The aggregates named in `METRICS`."""
    from rliable import metrics

    of = (
        metrics.aggregate_mean,
        metrics.aggregate_median,
        metrics.aggregate_iqm,
        metrics.aggregate_optimality_gap,
    )
    return np.array([metric(scores) for metric in of])


def aggregate(scores: Mapping[str, Scores], resamples: int) -> dict[str, dict[str, Estimate]]:
    """Every aggregate of every agent."""
    estimates = _estimates(dict(scores), aggregates, resamples)
    return {name: dict(zip(METRICS, values, strict=True)) for name, values in estimates.items()}


def improvement(x: Scores, y: Scores) -> Float[np.ndarray, " 1"]:
    """Probability that a run of X is better than one of Y, averaged over games; ties count half.

    It is the Mann-Whitney statistic that `rliable.metrics.probability_of_improvement` computes game by game,
    for all games at once.
    """
    better = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return better.mean(axis=(0, 1)).mean(keepdims=True)


def improvements(
    pairs: Mapping[tuple[str, str], tuple[Scores, Scores]], resamples: int
) -> dict[tuple[str, str], Estimate]:
    """The probability of improvement of each pair."""
    estimates = _estimates({key: list(pair) for key, pair in pairs.items()}, improvement, resamples)
    return {key: values[0] for key, values in estimates.items()}


def profiles(scores: Mapping[str, Scores], resamples: int) -> dict[str, list[Estimate]]:
    """Share of runs above each of `THRESHOLDS`."""
    return _estimates(dict(scores), lambda x: (x[..., None] > THRESHOLDS).mean(axis=(0, 1)), resamples)


def curves(scores: Float[np.ndarray, "runs games steps"], resamples: int) -> list[Estimate]:
    """IQM at each step of training."""
    from rliable import metrics

    def iqm(x: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(x[..., i]) for i in range(x.shape[-1])])

    return _estimates({"": scores}, iqm, min(resamples, _CURVE_RESAMPLES))[""]


def _estimates(data: dict[Any, Any], func: Callable[..., np.ndarray], resamples: int) -> dict[Any, Any]:
    """Estimates of a function of resampled runs; the same for the same data."""
    from rliable import library

    with _seeded():
        values, intervals = library.get_interval_estimates(data, func, reps=resamples)
    return {
        key: [Estimate(*map(float, three)) for three in zip(values[key], *intervals[key], strict=True)]
        for key in data
    }


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixes NumPy's global generator, which rliable draws from, for the block."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
