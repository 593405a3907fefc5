"""Where a sweep stands, as a table of games and seeds and as a single line. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trainers.sweep.folder import Trial
from trainers.sweep.runs import State

_LAST_SHOWN = 3


@dataclass
class _Row:
    """A run on the board."""

    state: State = field(default_factory=State)
    status: str = "waiting"
    message: str = ""


class Board:
    """Keeps what is known of every run of a sweep.

    Args:
        trials: All runs.
        done: Scores of those that were finished before.
        clock: Seconds, for the time left.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        done: dict[Trial, float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials = list(trials)
        self._rows = {trial.name: _Row() for trial in trials}
        for trial, score in done.items():
            self._rows[trial.name] = _Row(State(1.0, score), "done")
        self._clock, self._begin = clock, clock()
        self._share_at_begin: dict[str, float] = {}
        self._last: list[str] = []

    def update(self, name: str, status: str, state: State | None = None, message: str = "") -> None:
        """Takes news of a run: "running", "lost" (it will be resumed), "done" or "failed"."""
        row = self._rows[name]
        if state is not None:
            self._share_at_begin.setdefault(name, state.share if status == "running" else row.state.share)
        score = row.state.score if state is None or state.score is None else state.score
        row.state = State(row.state.share if state is None else state.share, score)
        row.status, row.message = status, message
        if status == "done":
            self._last = [*self._last, name][-_LAST_SHOWN:]

    def count(self, status: str) -> int:
        """Runs of a status."""
        return sum(row.status == status for row in self._rows.values())

    def failures(self) -> dict[str, str]:
        """What went wrong, by run."""
        return {name: row.message for name, row in self._rows.items() if row.status == "failed"}

    def running(self) -> list[Trial]:
        """Runs that are at work."""
        return [trial for trial in self.trials if self._rows[trial.name].status == "running"]

    def seconds_left(self) -> float | None:
        """Time that the rest will take at the speed so far; None while nobody knows."""
        gained = sum(self._rows[name].state.share - share for name, share in self._share_at_begin.items())
        left = sum(1 - row.state.share for row in self._rows.values() if row.status not in ("done", "failed"))
        if gained <= 0 or not left:  # the final games of a run are no part of its share
            return None if left or self.running() else 0.0
        return left / gained * (self._clock() - self._begin)

    def line(self) -> str:
        """A line for a log."""
        parts = [f"{self.count('done')} of {len(self._rows)} runs done", f"{self.count('running')} running"]
        parts += [f"{self.count(s)} {s}" for s in ("lost", "failed") if self.count(s)]
        left = self.seconds_left()
        parts.append(f"{'unknown time' if left is None else duration(left)} left")
        scores = [f"{name} {_score(self._rows[name].state.score)}" for name in self._last]
        return ", ".join(parts) + (f"; last scores: {', '.join(scores)}" if scores else "")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads of columns and rows: a row a game, a column a seed."""
        seeds = sorted({trial.seed for trial in self.trials})
        games = list(dict.fromkeys(trial.game for trial in self.trials))
        head = ["game", *(f"seed {seed}" for seed in seeds)]
        return head, [[game, *(self._cell(Trial(game, seed).name) for seed in seeds)] for game in games]

    def _cell(self, name: str) -> str:
        row = self._rows[name]
        if row.status == "done":
            return _score(row.state.score)
        if row.status == "waiting":
            return "waiting"
        share = f"{row.status} {100 * row.state.share:.0f} %"
        return share if row.state.score is None else f"{share} ({_score(row.state.score)})"


def _score(score: float | None) -> str:
    return "no score" if score is None else f"{score:.1f}"


def duration(seconds: float) -> str:
    """In words, of at most two units."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (s, "s")]
    first = next((i for i, (number, _) in enumerate(units) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2])
