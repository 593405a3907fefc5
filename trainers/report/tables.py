"""A comparison as text, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diamond_gym.errors import InvalidInputError
from trainers.report import published
from trainers.report.aggregates import METRICS, THRESHOLDS, Estimate
from trainers.report.comparison import Comparison

MARKERS = ("<!-- report -->", "<!-- /report -->")
"""Lines of a page between which a report is written."""

Table = tuple[str, list[str], list[list[str]]]
"""A title, the heads of the columns, and rows."""


def tables(comparison: Comparison) -> list[Table]:
    """All tables of a report."""
    games = f"{len(comparison.games)} game{'s' if len(comparison.games) > 1 else ''}"
    found = [
        (
            f"Human-normalised aggregates over {games}, 95 % intervals by stratified bootstrap",
            ["agent", "runs a game", *METRICS],
            [_aggregates(comparison, name) for name in comparison.agents] + _means_only(comparison),
        )
    ]
    if comparison.improvements:
        found.append(
            (
                "Probability of improvement, that a run of X scores more than one of Y",
                ["X", "Y", "probability"],
                [
                    [*pair, _shown(value, min(comparison.num_runs[name] for name in pair))]
                    for pair, value in comparison.improvements.items()
                ],
            )
        )
    found.append(
        (
            "Scores by game, means over runs; of the sweeps with 95 % interval and number of runs",
            ["game", *comparison.agents],
            [
                [game, *(_score(*of_game[name], name in comparison.ours) for name in comparison.agents)]
                for game, of_game in comparison.per_game.items()
            ],
        )
    )
    return found


def _aggregates(comparison: Comparison, name: str) -> list[str]:
    num_runs, values = comparison.num_runs[name], comparison.aggregates[name]
    return [name, str(num_runs), *(_shown(values[metric], num_runs) for metric in METRICS)]


def _means_only(comparison: Comparison) -> list[list[str]]:
    empty = [""] * (len(METRICS) - 1)
    return [[f"{name} *", "", f"{mean:.3f}", *empty] for name, mean in comparison.means_only.items()]


def _shown(value: Estimate, num_runs: int) -> str:
    """With its interval, which a single run has not."""
    return str(value) if num_runs > 1 else f"{value.value:.3f}"


def _score(value: Estimate, num_runs: int, is_ours: bool) -> str:
    if not is_ours or num_runs == 1:
        return f"{value.value:.1f}" + (" (1 run)" if is_ours else "")
    return f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f}, {num_runs})"


def notes(comparison: Comparison) -> list[str]:
    """Sentences that belong above the tables."""
    marked = "agents marked * are reported by their authors as an aggregate only"
    later = [marked] if comparison.means_only else []
    single = [name for name, count in comparison.num_runs.items() if count == 1]
    alone = [f"{', '.join(single)}: one run a game, so there is no interval"] if single else []
    return [*comparison.notes, *alone, *later]


def text(comparison: Comparison) -> str:
    """The report for a terminal."""
    parts = [f"note: {note}" for note in notes(comparison)]
    for title, head, rows in tables(comparison):
        parts += ["", title, *_aligned([head, *rows])]
    return "\n".join(parts).strip()


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def markdown(comparison: Comparison, pictures: Sequence[str], command: str) -> str:
    """The report as a page.

    Args:
        comparison: The numbers.
        pictures: Names of pictures beside the page.
        command: What made it.
    """
    lines = [f"Made by `{command}`.", "", *(f"- {note}" for note in notes(comparison))]
    for title, head, rows in tables(comparison):
        lines += ["", f"{title}:", ""]
        lines += [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    for name in pictures:
        lines += ["", f"![{Path(name).stem.replace('_', ' ')}]({name})"]
    sources = [f"{name}: {published.source(name)}" for name in _published(comparison)]
    return "\n".join([*lines, *(["", f"Sources: {'; '.join(sources)}."] if sources else []), ""])


def replace_between_markers(page: str, body: str) -> str:
    """A page with another text between its markers.

    Raises:
        InvalidInputError: The page has no markers.
    """
    begin, end = MARKERS
    head, has_begin, rest = page.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not (has_begin and has_end):
        raise InvalidInputError(
            f"page= needs a page with the lines {begin} and {end}, for the report between"
        )
    return f"{head}{begin}\n\n{body.strip()}\n\n{end}{tail}"


def _published(comparison: Comparison) -> list[str]:
    return [name for name in comparison.agents if name not in comparison.ours] + list(comparison.means_only)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def as_json(comparison: Comparison, command: str) -> dict[str, Any]:
    """The report for programs."""
    return {
        "command": command,
        **{name: getattr(comparison, name) for name in ("notes", "games", "agents", "ours", "num_runs")},
        "per_game": {
            game: {name: asdict(value) | {"runs": count} for name, (value, count) in of_game.items()}
            for game, of_game in comparison.per_game.items()
        },
        "aggregates": {
            name: {metric: asdict(value) for metric, value in values.items()}
            for name, values in comparison.aggregates.items()
        },
        "means_only": comparison.means_only,
        "improvements": [
            {"x": x, "y": y, **asdict(value)} for (x, y), value in comparison.improvements.items()
        ],
        "profiles": {
            "thresholds": THRESHOLDS,
            "shares": {name: [asdict(v) for v in values] for name, values in comparison.profiles.items()},
        },
        "curves": {name: asdict(curve) for name, curve in comparison.curves.items()},
        "sources": {name: published.source(name) for name in _published(comparison)},
    }
