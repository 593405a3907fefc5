"""A comparison as pictures: aggregates, performance profiles, probabilities of improvement, curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diamond_gym.evaluate.pictures import write_figure
from trainers.report.aggregates import METRICS, THRESHOLDS, Estimate
from trainers.report.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARE_WORTH_SHOWING = 0.01
"""Profiles are drawn up to the score that fewer runs than this reach."""


def write(comparison: Comparison, out: Path, prefix: str = "") -> list[str]:
    """Draws what there is into a folder; returns the names of the files, which begin with the prefix.

    Raises:
        CacheError: The folder cannot be written.
    """
    figures = {"aggregates.png": _aggregates(comparison), "profiles.png": _profiles(comparison)}
    if comparison.improvements:
        figures["improvement.png"] = _improvements(comparison)
    if comparison.curves:
        figures["curves.png"] = _curves(comparison)
    for name, figure in figures.items():
        write_figure(figure, out / f"{prefix}{name}")
    return [f"{prefix}{name}" for name in figures]


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colours(comparison: Comparison) -> dict[str, Any]:
    """A colour for each agent; ours are strong, published ones pale."""
    from matplotlib import colormaps

    strong, pale = colormaps["tab10"], colormaps["Set2"]
    ours = {name: strong(i % 10) for i, name in enumerate(comparison.ours)}
    others = [name for name in comparison.agents if name not in ours]
    return ours | {name: pale(i % 8) for i, name in enumerate(others)}


def _aggregates(comparison: Comparison) -> Figure:
    """One panel an aggregate, one bar an agent."""
    names, colours = comparison.agents, _colours(comparison)
    only = list(comparison.means_only)
    figure = _new_figure(13, 1.2 + 0.32 * (len(names) + len(only)))
    for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
        rows = [comparison.aggregates[name][metric] for name in names]
        _intervals(axes, rows, [colours[name] for name in names])
        if metric == "mean":
            axes.plot(list(comparison.means_only.values()), range(len(names), len(names) + len(only)), "kd")
        axes.set(title=metric + (" (lower is better)" if metric == "optimality gap" else ""))
        axes.set_yticks(range(len(names) + len(only)), [*names, *(f"{name} *" for name in only)])
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].set_ylim(len(names) + len(only) - 0.5, -0.5)
    games = len(comparison.games)
    figure.supxlabel(f"human-normalised score, {games} game{'s' if games > 1 else ''}")
    return figure


def _intervals(axes: Any, rows: Sequence[Estimate], colours: Sequence[Any]) -> None:
    axes.use_sticky_edges = False  # room beside the bars
    for y, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        axes.barh(y, max(row.high - row.low, 1e-9), left=row.low, height=0.6, color=colour, alpha=0.8)
        axes.plot([row.value] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.5)


def _profiles(comparison: Comparison) -> Figure:
    figure, colours = _new_figure(7, 4.2), _colours(comparison)
    axes = figure.subplots()
    for name, shares in comparison.profiles.items():
        axes.plot(
            THRESHOLDS,
            [share.value for share in shares],
            color=colours[name],
            label=name,
            lw=1.2 + (name in comparison.ours),
        )
        axes.fill_between(
            THRESHOLDS,
            [share.low for share in shares],
            [share.high for share in shares],
            color=colours[name],
            alpha=0.15,
        )
    reached = [
        threshold
        for i, threshold in enumerate(THRESHOLDS)
        if any(shares[i].value >= _SHARE_WORTH_SHOWING for shares in comparison.profiles.values())
    ]
    axes.axvline(1.0, color="black", linestyle=":", linewidth=1)
    axes.set(
        xlabel="human-normalised score s", ylabel="share of runs with a score above s", ylim=(-0.02, 1.02)
    )
    axes.set_xlim(0, max([1.1, *reached]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _improvements(comparison: Comparison) -> Figure:
    pairs = list(comparison.improvements)
    figure, colours = _new_figure(7, 1.2 + 0.32 * len(pairs)), _colours(comparison)
    axes = figure.subplots()
    _intervals(axes, list(comparison.improvements.values()), [colours[other] for _, other in pairs])
    axes.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(pairs)), [f"{name} over {other}" for name, other in pairs])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(pairs) - 0.5, -0.5), xlabel="probability of improvement")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _curves(comparison: Comparison) -> Figure:
    """A panel for each unit in which steps are counted."""
    from matplotlib.ticker import EngFormatter

    units = sorted({curve.unit for curve in comparison.curves.values()})
    figure, colours = _new_figure(5.5 * len(units), 3.8), _colours(comparison)
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        for name, curve in comparison.curves.items():
            if curve.unit == unit:
                low, high = [value.low for value in curve.iqm], [value.high for value in curve.iqm]
                values = [value.value for value in curve.iqm]
                axes.plot(curve.steps, values, color=colours[name], label=name, marker="o", markersize=4)
                axes.fill_between(curve.steps, low, high, color=colours[name], alpha=0.2)
        axes.set(xlabel=unit, ylabel="IQM of human-normalised scores")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
