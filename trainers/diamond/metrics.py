"""From tensors of single steps to the numbers of an epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainers.diamond.losses import Metrics

_SHOWN = ("/loss", "/test_loss", "collect/return", "test/return", "final/return")


def add(sums: Metrics, metrics: Metrics) -> Metrics:
    """Sums so far, and one step more."""
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
    """An epoch's losses and returns, to be shown."""
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith(_SHOWN)]
    return f"epoch {metrics['epoch']}: {', '.join(shown)}"
