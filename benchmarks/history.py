"""Earlier measurements: kept by processor and commit, and compared with those of today."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import short_commit
from diamond_gym import files as disk
from diamond_gym.errors import InvalidInputError

MACHINE = ("cpu", "gpu", "num_threads")
"""Keys of a row in which both measurements must agree."""
CASE = ("preset", "part", "overrides", "batch_size", "game", "checkpoint", "model", "name", "num_envs")
PLACE = ("device", "dtype", "backend")
"""Keys that say, together with `CASE`, what a row measures."""
WORTH_SAYING = 1.1
"""How many times as long something takes where it counts as slower."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What became of a measurement.

    Attributes:
        what: What is measured.
        factor: How many times as long it takes now; beside plain PyTorch where that was measured too, because
            the same work disturbed both.
        is_ratio: Whether the factor is beside plain PyTorch.
    """

    what: str
    factor: float
    is_ratio: bool


def keep(rows: Sequence[Row], folder: Path) -> Path:
    """Write rows to the file of their processor and commit, in place of earlier ones of the same commit.

    Args:
        rows: Rows of one machine and commit.
        folder: The folder of all histories.

    Returns:
        The file, FOLDER/PROCESSOR/COMMIT.jsonl.

    Raises:
        CacheError: The folder cannot be written.
    """
    about = rows[0]
    names = [about["gpu"], about["cpu"], f"{about['num_threads']} threads"]
    machine = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(filter(None, names))).strip("-")
    file = folder / machine / f"{short_commit(about)}.jsonl"
    disk.write_file(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return file


def changes(rows: Sequence[Row], before: Sequence[Row]) -> list[Change]:
    """Compare what both measured, the slowest first; of several rows of one thing, the last one counts.

    Raises:
        InvalidInputError: They are of different machines, or have nothing in common.
    """
    for key in MACHINE:
        machines = {str(row.get(key)) for row in (*rows, *before)}
        if len(machines) > 1:
            raise InvalidInputError(
                f"only rows of one machine can be compared, {key} is {' and '.join(sorted(machines))}"
            )
    new, old = ({_case(row): row for row in some if _seconds(row)} for some in (rows, before))
    common = [(new[case], old[case]) for case in new if case in old]
    if not common:
        raise InvalidInputError("the earlier rows measured nothing of what these did")
    return sorted((_change(*pair) for pair in common), key=lambda change: -change.factor)


def say(found: Sequence[Change]) -> Iterator[str]:
    """The slower ones of some changes, a line each, and how many were compared."""
    slower = [change for change in found if change.factor > WORTH_SAYING]
    for change in slower:
        beside = ", beside plain PyTorch" if change.is_ratio else ""
        yield f"slower: {change.what} takes {change.factor:.2f} times as long{beside}"
    yield f"{len(slower)} of {len(found)} measurements are slower by more than {WORTH_SAYING - 1:.0%}"


def _case(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(row[key])) for key in (*CASE, *PLACE) if row.get(key) not in (None, ""))


def _seconds(row: Row) -> float | None:
    """Seconds of a step or of a collection; None where a row measures something else."""
    if row.get("steps_per_second"):
        return 1 / row["steps_per_second"]
    return row["p50_ms"] / 1e3 if row.get("p50_ms") else row.get("seconds")


def _change(new: Row, old: Row) -> Change:
    what = " ".join(text for key, text in _case(new) if key not in ("preset", "overrides"))
    now, then = (row.get("speedup") or row.get("ratio") for row in (new, old))
    if now and then:
        return Change(what, then / now, is_ratio=True)
    seconds, seconds_before = _seconds(new), _seconds(old)
    assert seconds is not None and seconds_before is not None, "rows without a time are left out"
    return Change(what, seconds / seconds_before, is_ratio=False)
