"""What benchmarks share: measuring in turns, the machine, rows as JSON lines, common arguments."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diamond_gym.options import positive_int

MIN_REPEATS = 3


@dataclass(frozen=True)
class Took:
    """What one step took: seconds on the clock, and of all the process's threads on the CPU together."""

    seconds: float
    cpu_seconds: float


def time_step(step: Callable[[], Any], device: str) -> Took:
    """Makes one step, and waits until it is done."""
    synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return Took(time.perf_counter() - start, time.process_time() - cpu_start)


def synchronize(device: str) -> None:
    """Waits until an accelerator has done what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


def in_turns(timed: Sequence[Callable[[], Took]], seconds: float) -> list[list[Took]]:
    """Makes timed steps in turns, so that whatever else the machine does disturbs all of them alike.

    Args:
        timed: Each makes one step; the first step of each does not count.
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


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code, and which code it was."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_machine(about: dict[str, Any]) -> None:
    """Prints what `machine` found."""
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None), flush=True)


def write_rows(file: Path, rows: Sequence[Any], about: dict[str, Any]) -> None:
    """Writes dataclasses, one JSON object a line, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(asdict(row) | about) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def add_common_arguments(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """Arguments that all benchmarks have."""
    parser.add_argument(
        "--seconds", type=positive_float, default=seconds, help=f"for each row (default: {seconds:g})"
    )
    parser.add_argument(
        "--threads", type=positive_int, help="CPU threads of PyTorch (default: its own choice)"
    )
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="write the rows here, one JSON object a line"
    )


def positive_float(text: str) -> float:
    """A finite number > 0 from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def json_file(text: str) -> Path:
    """A file from the command line, in a folder that exists."""
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return Path(text)
