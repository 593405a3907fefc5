"""Shared parts of the benchmarks: measuring in turns, the machine, rows as JSON lines, common settings."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.backends.names import BACKENDS, backend_of_compile
from diamond_gym.backends.trial import cpu_name
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError

MIN_REPEATS = 3


@dataclass(frozen=True)
class Took:
    """Duration of one step: seconds on the clock, and CPU seconds of all threads of the process."""

    seconds: float
    cpu_seconds: float


def time_step(step: Callable[[], Any], device: str) -> Took:
    """Make one step, and wait until it is done."""
    synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return Took(time.perf_counter() - start, time.process_time() - cpu_start)


def synchronize(device: str) -> None:
    """Wait until an accelerator has finished its work."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


def in_turns(timed: Sequence[Callable[[], Took]], seconds: float) -> list[list[Took]]:
    """Make timed steps in turns, so that whatever else the machine does disturbs all of them alike.

    Args:
        timed: Functions that each make one step; the first step of each does not count.
        seconds: Time for each; at least `MIN_REPEATS` steps are made.
    """
    for step in timed:
        step()
    all_took: list[list[Took]] = [[] for _ in timed]
    unfinished = list(zip(timed, all_took, strict=True))
    while unfinished:
        for step, took in unfinished:
            took.append(step())
        unfinished = [(s, took) for s, took in unfinished if not is_enough(took, seconds)]
    return all_took


def is_enough(took: Sequence[Took], seconds: float) -> bool:
    """Whether steps were made for long enough."""
    return len(took) >= MIN_REPEATS and sum(t.seconds for t in took) >= seconds


def median_and_p95(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    median, p95 = np.percentile(values, [50, 95])
    return float(median), float(p95)


def name_of(dtype: torch.dtype) -> str:
    """Name of a precision, without "torch."."""
    return str(dtype).removeprefix("torch.")


def machine() -> dict[str, Any]:
    """Description of the machine, the versions and the commit."""
    return {
        "torch": torch.__version__,
        "gymnasium": version("gymnasium"),
        "openvino": openvino_version(),
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "commit": commit(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def openvino_version() -> str | None:
    """Version of the optional package OpenVINO."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this code, with "-dirty" where Python files differ; None outside a repository."""
    hash, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ":(top)*.py")
    return (hash + "-dirty" * bool(changes)) or None


def short_commit(about: dict[str, Any]) -> str:
    """The commit in `machine()`, or in a row, as people write it."""
    hash, dash, dirty = (about["commit"] or "unknown").partition("-")
    return hash[:10] + dash + dirty


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip()


def print_machine(about: dict[str, Any]) -> None:
    """Print what `machine` found."""
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None), flush=True)


def run_benchmark(run: Callable[[dict[str, Any]], int | None], *, threads: int | None) -> int | None:
    """Print the machine, then measure.

    Args:
        run: Called with the result of `machine`; returns the exit code, None for 0.
        threads: CPU threads of PyTorch; None for its own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    about = machine()
    print_machine(about)
    return run(about)


def write_rows(file: Path, rows: Sequence[Any], about: dict[str, Any]) -> None:
    """Write dataclasses, one JSON object a line, whole or not at all.

    Args:
        file: The file, which is replaced.
        rows: The dataclasses.
        about: Keys that are added to every row.

    Raises:
        CacheError: The file cannot be written.
    """
    lines = [json.dumps(asdict(row) | about) + "\n" for row in rows]
    disk.write_file(file, "".join(lines).encode())


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote.

    Raises:
        InvalidInputError: The file does not exist, cannot be read, or holds no such rows.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InvalidInputError(f"cannot read the rows {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidInputError(f"{file} does not hold one JSON object a line: {error}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidInputError(f"{file} does not hold rows of a benchmark, one JSON object a line")
    return rows


@dataclass
class BenchmarkSettings:
    """Settings of all benchmarks.

    Raises:
        InvalidInputError: A value is not accepted.
    """

    threads: int | None = option(None, "CPU threads of PyTorch; by default PyTorch chooses", least=1)
    json: Path | None = option(None, "file for the rows, one JSON object a line")

    def __post_init__(self) -> None:
        cli.check(self)
        if self.json is not None:
            check_output_file("json", self.json)


@dataclass
class PlacedSettings(BenchmarkSettings):
    """Which world model imagines, and where."""

    game: str = option("Breakout", "an Atari game")
    checkpoint: str = option("auto", "the world model, as in gymnasium.make", is_path=True)
    device: str = option("auto", "auto, cpu, cuda, ...")
    dtype: str = option("auto", "auto, float32, bfloat16, ...")
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )


@dataclass
class WorldSettings(PlacedSettings):
    """Which world model imagines, where, and what runs it."""

    backend: str = option("auto", "what runs the networks", choices=BACKENDS)
    compile: str | None = option(None, "deprecated, see backend")

    def __post_init__(self) -> None:
        if self.compile is not None:
            self.backend, self.compile = backend_of_compile(self.compile), None
        super().__post_init__()

    def world_options(self) -> dict[str, Any]:
        """Keyword arguments of both environments."""
        names = ("checkpoint", "device", "dtype", "backend", "num_denoising_steps")
        return {name: getattr(self, name) for name in names}


def check_output_file(name: str, file: Path) -> None:
    """Check that a file can be written: its folder exists, and it is not a folder itself.

    Raises:
        InvalidInputError: There is no such folder, or the file is a folder.
        CacheError: The folder cannot be written.
    """
    if not file.parent.is_dir():
        raise InvalidInputError(f"{name}: there is no folder {file.parent}")
    if file.is_dir():
        raise InvalidInputError(f"{name}: {file} is a folder, not a file")
    disk.prepare_folder(file.parent)
