"""A run's metrics as one picture: `python -m trainers.diamond curves run=PATH`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diamond_gym import untrusted
from diamond_gym.cli import option
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.evaluate import pictures
from trainers.diamond.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOUT = "Draws what the run has logged so far, by epoch: losses, F1 of rewards and ends, returns, entropy."

PANELS: dict[str, dict[str, str]] = {
    "denoiser loss": {"denoiser/loss": "training", "denoiser/test_loss": "test episodes"},
    "reward/end loss": {"rew_end_model/loss": "training", "rew_end_model/test_loss": "test episodes"},
    "F1 on test episodes": {
        "rew_end_model/test_f1_rew[0]": "reward -1",
        "rew_end_model/test_f1_rew[2]": "reward +1",
        "rew_end_model/test_f1_end[1]": "end",
    },
    "imagined, per step": {"actor_critic/rew": "reward", "actor_critic/end": "end"},
    "policy entropy (bits)": {"actor_critic/policy_entropy": "imagined games"},
    "return in the real game": {
        "collect/return": "collection",
        "test/return": "test games",
        "final/return": "final games",
    },
}
"""What is drawn: the metrics of a panel, `[i]` of a list, and their labels. Empty panels are left out."""

_MAX_BYTES = 2**28
"""Largest size of a log; an epoch writes some kilobytes."""


@dataclass
class CurvesOptions:
    """Which run to draw, and where to."""

    run: str = option(MISSING, "the run folder", is_path=True)
    out: str | None = option(None, "the PNG to write; without it curves.png in the run folder", is_path=True)


def draw(options: CurvesOptions) -> Path:
    """Write the picture; return its path.

    Raises:
        InvalidInputError: The run has logged nothing that can be drawn.
        MissingDependencyError: matplotlib is not installed.
        CheckpointError: There is no run.
        CacheError: The picture cannot be written.
    """
    pictures.require_matplotlib()
    run = RunFolder.existing(Path(options.run))
    path = run.path / "curves.png" if options.out is None else Path(options.out)
    pictures.write_figure(figure(read(run.metrics_file)), path)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, which may be growing; none if there is no such file yet."""
    if not path.is_file():
        return []
    what = "the metrics of a run"
    lines = untrusted.read_text(path, CheckpointError, what, _MAX_BYTES).splitlines(keepends=True)
    with untrusted.reading(path, CheckpointError, what):
        return [dict(untrusted.parse_json(line)) for line in lines if line.endswith("\n")]


def figure(lines: list[dict[str, Any]]) -> Figure:
    """The panels for which something was logged.

    Raises:
        InvalidInputError: Nothing was logged for any panel.
    """
    from matplotlib.ticker import MaxNLocator

    panels = {
        title: shown
        for title, shown in PANELS.items()
        if any(_value(line, name) is not None for line in lines for name in shown)
    }
    if not panels:
        raise InvalidInputError("this run has logged nothing to draw yet: wait for its first epoch")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    picture = pictures.new_figure((2.8 * columns, 2.6 * rows))
    for i, (title, shown) in enumerate(panels.items()):
        axes = picture.add_subplot(rows, columns, i + 1)
        for name, label in shown.items():
            _plot(axes, lines, name, label)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.15 * (1 + len(shown)) * (top - bottom))  # room for the legend
        axes.legend(loc="upper right", fontsize="small")
    return picture


def _plot(axes: Axes, lines: list[dict[str, Any]], name: str, label: str) -> None:
    points = [
        (line["epoch"], value, line.get(f"{name}_std"))
        for line in lines
        if (value := _value(line, name)) is not None
    ]
    if not points:
        return
    epochs, values, spreads = zip(*points, strict=True)
    errors = None if None in spreads else spreads
    axes.errorbar(epochs, values, errors, label=label, marker="." if len(points) < 50 else None, capsize=3)


def _value(line: dict[str, Any], name: str) -> float | None:
    name, _, index = name.removesuffix("]").partition("[")
    value = line.get(name)
    return value[int(index)] if index and value is not None else value
