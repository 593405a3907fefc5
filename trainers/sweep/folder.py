"""A sweep on disk: its plan, its runs, what they print, and their results.

    sweep.json            which runs, and with which keys
    runs/GAME-SEED/       the run folders
    results/GAME-SEED.json    one for every finished run
    output/GAME-SEED.txt  what the run printed

On a cluster, every machine must see the folder under the same path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from diamond_gym.errors import CacheError, InvalidInputError
from diamond_gym.evaluate.report import write_json
from diamond_gym.files import open_itself
from trainers.report.results import PLAN_FILE, Plan, read_plan, result_file
from trainers.sweep.errors import SweepInUseError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing keeps two processes apart there
    fcntl = None

_POLL_S = 0.5


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        game: The game.
        seed: The seed.
    """

    game: str
    seed: int

    @property
    def name(self) -> str:
        """What the run is called."""
        return f"{self.game}-{self.seed}"


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder, and how it is begun."""

    path: Path

    def run(self, trial: Trial) -> Path:
        """The run folder."""
        return self.path / "runs" / trial.name

    def output(self, trial: Trial) -> Path:
        """What the run printed."""
        return self.path / "output" / f"{trial.name}.txt"

    def result(self, trial: Trial) -> Path:
        """What the finished run has reached."""
        return result_file(self.path, trial.game, trial.seed)

    @property
    def plan_file(self) -> Path:
        """The plan."""
        return self.path / PLAN_FILE

    def merged(self, plan: Plan) -> Plan:
        """The plan with what the folder holds already: games and seeds may be added to a sweep.

        Raises:
            InvalidInputError: The folder holds a sweep of another trainer or with other keys, or something
                else.
            DatasetError: Its plan is damaged.
        """
        if not self.plan_file.is_file():
            if self.path.is_dir() and any(path.name != ".lock" for path in self.path.iterdir()):
                raise InvalidInputError(f"{self.path} holds something else than a sweep: choose another out=")
            return plan
        before = read_plan(self.path)
        pairs = {
            "trainer": (before.run, plan.run),
            "keys": (" ".join(sorted(before.keys)), " ".join(sorted(plan.keys))),
            "working folder": (before.cwd, plan.cwd),
        }
        for name, (old, new) in pairs.items():
            if old != new:
                raise InvalidInputError(
                    f"{self.path} holds a sweep with the {name} {old or 'none'}, not {new or 'none'}: "
                    "choose another out="
                )
        games = [*before.games, *(game for game in plan.games if game not in before.games)]
        seeds = [*before.seeds, *(seed for seed in plan.seeds if seed not in before.seeds)]
        return Plan(before.run, before.keys, games, sorted(seeds), before.cwd)

    def write_plan(self, plan: Plan) -> None:
        """Begins the sweep, or adds to it.

        Raises:
            CacheError: The folder cannot be written.
        """
        write_json(asdict(plan), self.plan_file)
        for name in ("runs", "results", "output"):
            (self.path / name).mkdir(exist_ok=True)

    def missing(self, plan: Plan) -> list[Trial]:
        """Runs that are not finished: the first seed of every game, then the second of every game, ..."""
        every = [Trial(game, seed) for seed in plan.seeds for game in plan.games]
        return [trial for trial in every if not self.result(trial).is_file()]

    def locked(self) -> AbstractContextManager[BinaryIO]:
        """Keeps other sweeps out of the folder; see `locked`."""
        return locked(
            self.path / ".lock", f"another sweep is working in {self.path}: let it finish, or stop it"
        )

    def run_locked(self, trial: Trial, wait_s: float = 0.0) -> AbstractContextManager[BinaryIO]:
        """Keeps other processes from working on a run; see `locked`."""
        hint = f"the run {trial.name} is still at work somewhere: let it finish, or stop it"
        return locked(self.path / "output" / f".{trial.name}.lock", hint, wait_s)


@contextmanager
def locked(path: Path, hint: str, wait_s: float = 0.0) -> Iterator[BinaryIO]:
    """Holds a lock, which a child that inherits the file holds, too; the system releases a killed process's.

    Args:
        path: The file to lock.
        hint: What is said where another process holds it.
        wait_s: How long to wait for it, in seconds.

    Raises:
        SweepInUseError: Another process holds it.
        CacheError: The file cannot be written, or is a link or not a regular file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_itself(path, os.O_RDWR)
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as file:
        until = time.monotonic() + wait_s
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise SweepInUseError(hint) from error
                time.sleep(_POLL_S)
        yield file
