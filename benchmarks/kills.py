"""Whether every writer can be killed, robbed of its files, or run twice at once, at any file operation.

    python -m benchmarks.kills --writers all --kills 40

Each writer fills a folder in a process of its own, which first counts the operations on files that it makes
there: opening to write, renaming, linking, removing, making folders, `fsync`. Then the process is
started again for up to `kills` of them, and ended by SIGKILL just before the operation or, where that opens a
file, by a signal in the midst of writing: after 16 bytes, through the system's limit on the size of files.

After each kill, every visible file must be whole and have a name that is there before or after an unharmed
run, and the writer's reader must read it. The same command must then end without an error and with the result
of one that was never killed, and leave no other file. Removals empty the folder in place of the kill: the
writer may end with an error that commands print in a line, and with no other. Several processes at once in
one folder must end like that, too. The program prints the counts and fails (status 1) where it finds a fault.
It needs fork, which Windows does not have.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.kill_writers import WRITERS, Writer, make_inputs
from benchmarks.rows import BenchmarkSettings, run_benchmark, write_rows
from diamond_gym import cli, untrusted
from diamond_gym.cli import option
from diamond_gym.errors import DiamondGymError, InvalidInputError

KILL, TEAR, REMOVE = "killed before", "killed within", "folder emptied before"
_TORN_BYTES = 16
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
_VARYING = {
    r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d(-\d+)?": "RUN",
    r"log-\d+": "log-N",
    r"events\.out\.[^/]*": "events",
    r"(episode_)?\d+\.npz": "N.npz",
    r"\d{3}/\d{2}/\d/\d+\.pt": "N.pt",
    r"\d{3}(/\d{2}(/\d)?)?$": "N",
    r"-\d+\.txt": ".txt",
}
"""What differs between two runs of one command in the names of files."""


@dataclass
class Settings(BenchmarkSettings):
    """What is killed, and how often."""

    writers: list[str] = option(["all"], f"all, or some of {', '.join(WRITERS)}")
    kills: int = option(40, "operations of each writer that are its last, spread evenly; 0 for all", least=0)
    removals: int = option(10, "operations of each before which its folder is emptied", least=0)
    processes: int = option(2, "of each writer at once, in one folder; 1 leaves this out", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted({*self.writers} - {"all", *WRITERS})
        if unknown:
            raise InvalidInputError(
                f"writers: there is no {unknown[0]}; accepted are all, {', '.join(WRITERS)}"
            )

    def chosen(self) -> list[Writer]:
        """The writers."""
        return [writer for name, writer in WRITERS.items() if {"all", name} & {*self.writers}]


@dataclass
class Row:
    """What became of a writer: a line of the table and of the JSON file.

    Attributes:
        writer: Its name.
        operations: Moments at which it can be killed.
        kills: Processes that were killed.
        removals: Processes whose folder was emptied.
        processes: How many worked in one folder at once.
        temporary: Temporary files that kills left, and how many of them the same command left in place.
        faults: Sentences.
    """

    writer: str
    operations: int = 0
    kills: int = 0
    removals: int = 0
    processes: int = 1
    temporary: tuple[int, int] = (0, 0)
    faults: list[str] = field(default_factory=list)


# --- a process that is ended at an operation


@dataclass
class Operations:
    """Counts the operations on files of a folder, and does something at one of them.

    Attributes:
        folder: Whose files count.
        at: The operation, from 1; None to count.
        removes: Empties the folder there instead of ending the process.
        tell: Is given the description of what happens.
    """

    folder: Path
    at: int | None
    removes: bool
    tell: Callable[[str], None]
    count: int = 0

    def install(self) -> None:
        """Counts from now on, in all threads; only the main one may call this. Nothing ends it again."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and other threads cannot change it
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted(descriptor: Any) -> None:
            self._pass("fsync")
            fsync(descriptor)

        os.fsync = counted

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        is_opened = event == "open" and isinstance(args[2], int) and bool(args[2] & _WRITES)
        if not is_opened and event not in _CHANGES:
            return
        path = next((path for path in args[:2] if self._is_inside(path)), None)
        if path is None:
            return
        name = f"{event} {os.path.relpath(os.fsdecode(path), self.folder)}"
        self._pass(name)
        if is_opened and not self.removes:
            self._pass(name, torn=True)

    def _is_inside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.folder)

    def _pass(self, name: str, torn: bool = False) -> None:
        self.count += 1
        if self.count != self.at:
            return
        if self.removes:
            self.tell(f"{REMOVE} {name}")
            _empty(self.folder)
        elif torn:
            self.tell(f"{TEAR} {name}")
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_TORN_BYTES, hard))
        else:
            self.tell(f"{KILL} {name}")
            os.kill(os.getpid(), signal.SIGKILL)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        error: What it raised, None where nothing.
        is_ours: Whether a command prints that in a line.
        was_killed: By a signal.
        count: Operations it made; 0 where it was killed.
        where: What was done to it.
        value: What it returned.
    """

    error: str | None = None
    is_ours: bool = False
    was_killed: bool = False
    count: int = 0
    where: str = ""
    value: Any = None


class Child:
    """A process that does something in a folder, forked from this one: what is imported is there at once.

    Args:
        act: What it does; what that returns must be expressible in JSON.
        folder: Where.
        at: The operation at which it is ended, from 1.
        removes: Empties the folder instead.
    """

    def __init__(
        self, act: Callable[[Path], Any], folder: Path, at: int | None = None, *, removes: bool = False
    ) -> None:
        self._inbox, outbox = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the child needs
            self._pid = os.fork()
        if self._pid == 0:
            os.close(self._inbox)
            _live(act, folder, at, removes, outbox)
        os.close(outbox)

    def outcome(self) -> Outcome:
        """Waits until it has ended."""
        with os.fdopen(self._inbox, "r", encoding="utf-8") as inbox:
            told = [json.loads(line) for line in inbox.read().splitlines()]
        _, status = os.waitpid(self._pid, 0)
        known = {name: value for message in told for name, value in message.items()}
        if os.WIFSIGNALED(status):
            known |= {"was_killed": True, "count": 0}
            if os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGXFSZ):
                known["error"] = f"it ended by signal {os.WTERMSIG(status)}"
        return Outcome(**known)


def _live(act: Callable[[Path], Any], folder: Path, at: int | None, removes: bool, outbox: int) -> None:
    """The whole life of a child."""

    def tell(**message: Any) -> None:
        os.write(outbox, (json.dumps(message) + "\n").encode())

    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        torch.set_num_threads(1)
        operations = Operations(folder, at, removes, lambda where: tell(where=where))
        operations.install()
        value = act(folder)
        tell(count=operations.count, value=value)
    except BaseException as error:
        is_ours = isinstance(error, DiamondGymError | OSError)
        tell(
            error=traceback.format_exc() if not is_ours else f"{type(error).__name__}: {error}",
            is_ours=is_ours,
        )
    finally:
        os._exit(0)


# --- what is left


def names(folder: Path) -> set[str]:
    """Names of all visible files, those that differ from run to run made alike."""
    return {_alike(path) for path in _files(folder) if not is_temporary(path)}


def _files(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def _alike(path: Path) -> str:
    name = str(path)
    for pattern, alike in _VARYING.items():
        name = re.sub(pattern, alike, name)
    return name


def is_temporary(path: Path) -> bool:
    """Whether nobody reads a file: it is hidden, a mark, or in a folder that is hidden or not complete."""
    return any(part.startswith(".") or part.endswith((".partial", ".stale")) for part in path.parts)


def num_temporary(folder: Path) -> int:
    """How many temporary files there are; the lock of a folder is none."""
    return sum(is_temporary(path) and path.name != ".lock" for path in _files(folder))


def damaged(folder: Path) -> list[str]:
    """Files that are visible and not whole; logs, to which libraries write as they go, may be cut."""
    found = []
    for path in _files(folder):
        if is_temporary(path) or any(part.startswith("log") for part in path.parts):
            continue
        try:
            _read_whole(folder / path)
        except Exception as error:
            found.append(f"{path} is damaged: {type(error).__name__} {error}")
    return found


def _read_whole(file: Path) -> None:
    """Reads a file by its suffix.

    Raises:
        Exception: It is not whole.
    """
    if file.suffix in (".pt", ".zip", ".npz"):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
    elif file.suffix == ".safetensors":
        untrusted.read_tensors(file)
    elif file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".jsonl":
        assert all(json.loads(line) for line in file.read_bytes().splitlines())
    elif file.suffix == ".png":
        assert cv2.imread(str(file)) is not None
    elif file.suffix in (".mp4", ".gif"):
        assert cv2.VideoCapture(str(file)).read()[0]
    elif file.suffix in (".sh", ".yaml", ".txt"):
        assert file.read_bytes().endswith(b"\n")


# --- trials


def spread(count: int, most: int) -> list[int]:
    """So many of the numbers from 1 to `count`, evenly spread; all with 0."""
    if most == 0 or most >= count:
        return list(range(1, count + 1))
    return sorted({1 + i * (count - 1) // max(1, most - 1) for i in range(most)})


class Trials:
    """All that happens to a writer.

    Args:
        writer: Which.
        place: An empty folder for everything.
        inputs: What `make_inputs` has made.
    """

    def __init__(self, writer: Writer, place: Path, inputs: Path) -> None:
        self.writer, self.place, self.inputs = writer, place, inputs
        self.row = Row(writer.name)
        self._number = 0
        self.template = place / "before" / "folder"
        self.template.mkdir(parents=True)
        self._expect(self._start(writer.prepare, self.template).outcome(), "it cannot be prepared")
        self.before = names(self.template)
        folder = self._copy()
        done = self._start(writer.write, folder).outcome()
        self._expect(done, "unharmed")
        self.row.operations = done.count
        self.after = names(folder)
        self.result = self._read(folder, "unharmed")
        folder = self._copy()
        self.num_changes = self._start(writer.write, folder, 10**9, removes=True).outcome().count
        shutil.rmtree(folder)

    def kill(self, at: int) -> None:
        """Ends the writer at an operation, looks at what is left, and writes again."""
        folder = self._copy()
        outcome = self._start(self.writer.write, folder, at).outcome()
        where = outcome.where or f"operation {at} was not reached"
        if not outcome.was_killed:
            self._expect(outcome, where)
        self.row.kills += outcome.was_killed
        left = num_temporary(folder)
        self._look(folder, where, self.before | self.after)
        self._read(folder, where)
        self._expect(self._start(self.writer.write, folder).outcome(), f"{where}, then again")
        self._look(folder, f"{where}, then again", self.before | self.after)
        result = self._read(folder, f"{where}, then again")
        if not self.writer.adds and result != self.result:
            self._fault(f"{where}, then again: {result} instead of {self.result}")
        was, is_left = self.row.temporary
        self.row.temporary = was + left, is_left + min(left, num_temporary(folder))
        shutil.rmtree(folder)

    def rob(self, at: int) -> None:
        """Empties the folder at an operation, and writes again."""
        folder = self._copy()
        outcome = self._start(self.writer.write, folder, at, removes=True).outcome()
        where = outcome.where or f"operation {at} was not reached"
        self._expect(outcome, where, or_ours=True)
        self.row.removals += bool(outcome.where)
        again = self._start(self.writer.write, folder).outcome()
        self._expect(again, f"{where}, then again", or_ours=self.writer.needs_before)
        shutil.rmtree(folder)

    def at_once(self, num_processes: int) -> None:
        """Several processes write into one folder."""
        self.row.processes = num_processes
        folder = self._copy()
        outcomes = [
            child.outcome()
            for child in [self._start(self.writer.write, folder) for _ in range(num_processes)]
        ]
        where = f"{num_processes} at once"
        for outcome in outcomes:
            self._expect(outcome, where, or_ours=self.writer.refuses_others)
        if all(outcome.error for outcome in outcomes):
            self._fault(f"{where}: none has succeeded")
        self._look(folder, where, self.before | self.after)
        value = self._read(folder, where)
        expected = self.result
        if self.writer.adds:
            expected += (num_processes - 1) * (self.result - self._read(self.template, "before"))
        if value != expected:
            self._fault(f"{where}: {value} instead of {expected}")
        shutil.rmtree(folder)

    def _start(
        self, act: Callable[[Path, Path], Any], folder: Path, at: int | None = None, *, removes: bool = False
    ) -> Child:
        return Child(lambda folder: act(folder, self.inputs), folder, at, removes=removes)

    def _copy(self) -> Path:
        """The folder as it was before, at a place of its own."""
        self._number += 1
        folder = self.place / f"trial-{self._number}" / "folder"
        shutil.copytree(self.template, folder)
        return folder

    def _fault(self, sentence: str) -> None:
        self.row.faults.append(f"{self.writer.name}, {sentence}")
        print(f"  fault: {self.row.faults[-1]}", file=sys.stderr, flush=True)

    def _expect(self, outcome: Outcome, where: str, *, or_ours: bool = False) -> None:
        if outcome.error is not None and not (or_ours and outcome.is_ours):
            self._fault(f"{where}: {outcome.error}")

    def _look(self, folder: Path, where: str, allowed: set[str]) -> None:
        for sentence in damaged(folder):
            self._fault(f"{where}: {sentence}")
        for name in sorted(names(folder) - allowed):
            self._fault(f"{where}: {name} is left behind")

    def _read(self, folder: Path, where: str) -> Any:
        outcome = self._start(self.writer.read, folder).outcome()
        self._expect(outcome, f"{where}, read")
        return outcome.value


def try_writer(writer: Writer, settings: Settings, place: Path, inputs: Path) -> Row:
    """Kills and robs a writer, and starts it twice at once."""
    trials = Trials(writer, place, inputs)
    for at in spread(trials.row.operations, settings.kills):
        trials.kill(at)
    for at in spread(trials.num_changes, settings.removals) if settings.removals else ():
        trials.rob(at)
    if settings.processes > 1 and not writer.is_alone:
        trials.at_once(settings.processes)
    return trials.row


# --- the command


def run(settings: Settings, about: dict[str, Any]) -> int:
    """Tries all writers, prints and writes the counts; returns 1 where there are faults, else 0."""
    heads = ("operations", "kills", "removals", "at once", "temporary", "faults")
    print(f"{'writer':<22}", *(f"{head:>10}" for head in heads), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        inputs = Path(place, "inputs")
        if any(writer.needs_inputs for writer in settings.chosen()):
            made = Child(make_inputs, inputs).outcome()
            if made.error is not None:
                raise DiamondGymError(f"the inputs cannot be made: {made.error}")
        for writer in settings.chosen():
            row = try_writer(writer, settings, Path(place, writer.name.replace(" ", "-")), inputs)
            rows.append(row)
            left = f"{row.temporary[1]}/{row.temporary[0]}"
            counts = (row.operations, row.kills, row.removals, row.processes, left, len(row.faults))
            print(f"{row.writer:<22}", *(f"{count:>10}" for count in counts), flush=True)
    if settings.json is not None:
        write_rows(settings.json, rows, about)
    faults = [fault for row in rows for fault in row.faults]
    kills, removals = sum(row.kills for row in rows), sum(row.removals for row in rows)
    print(f"{kills} kills, {removals} removals, {len(faults)} faults")
    return 1 if faults else 0


COMMAND = cli.Command(
    "python -m benchmarks.kills",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trials; returns the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
