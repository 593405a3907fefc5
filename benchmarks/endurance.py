"""Whether imagination stays as fast and as small as it is: memory and speed over many steps, by tenths.

    python -m benchmarks.endurance --steps 200000 --json endurance.jsonl

Games of a vector environment go on under random actions, and are reset where they are over. The first tenth
is warm-up. Fails (status 1) if the last tenth occupies more memory than the second by more than a tolerance,
or its median step is slower by more than another. Memory is the largest of the tenth: all that the process
occupies, and on CUDA also what PyTorch has allocated there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.imagined import make_envs, random_player
from benchmarks.memory import resident_bytes
from benchmarks.rows import (
    WorldSettings,
    run_benchmark,
    synchronize,
    write_rows,
)
from diamond_gym import cli
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.registration import game_name

NUM_TENTHS = 10


@dataclass
class Settings(WorldSettings):
    """What is measured."""

    steps: int = option(200_000, "of all games together", least=1)
    num_envs: int = option(32, "games at once", least=1)
    memory_tolerance: float = option(
        0.02, "growth that is no failure, as a share of the second tenth's memory", above=0
    )
    speed_tolerance: float = option(0.2, "loss of steps a second that is no failure, as a share", above=0)


@dataclass(frozen=True)
class Tenth:
    """A tenth of the steps: a line of the table and of the JSON file.

    Attributes:
        tenth: From 1.
        env_steps: Steps of all games together.
        seconds: On the clock.
        env_steps_per_second: Over the whole tenth.
        p50_ms: Median latency of a step of all games.
        resident_bytes: The most that the process occupied; None where the system does not tell.
        allocated_bytes: The most that PyTorch had allocated on CUDA; None elsewhere.
    """

    tenth: int
    env_steps: int
    seconds: float
    env_steps_per_second: float
    p50_ms: float
    resident_bytes: int | None
    allocated_bytes: int | None


def measure(step: Callable[[], Any], num_envs: int, num_steps: int, device: torch.device) -> Iterator[Tenth]:
    """Makes `num_steps` steps of all games, at least 10."""
    ends = [num_steps * i // NUM_TENTHS for i in range(NUM_TENTHS + 1)]
    for i in range(NUM_TENTHS):
        yield measure_tenth(step, i + 1, num_envs, ends[i + 1] - ends[i], device)


def measure_tenth(
    step: Callable[[], Any], tenth: int, num_envs: int, num_steps: int, device: torch.device
) -> Tenth:
    """Makes the steps of one tenth."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    latencies, resident = np.empty(num_steps), 0
    start = time.perf_counter()
    for i in range(num_steps):
        before = time.perf_counter()
        step()
        synchronize(device.type)
        latencies[i] = time.perf_counter() - before
        resident = max(resident, resident_bytes() or 0)
    seconds = time.perf_counter() - start
    return Tenth(
        tenth=tenth,
        env_steps=num_envs * num_steps,
        seconds=seconds,
        env_steps_per_second=num_envs * num_steps / seconds,
        p50_ms=1e3 * float(np.median(latencies)),
        resident_bytes=resident or None,
        allocated_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def failures(tenths: Sequence[Tenth], memory_tolerance: float, speed_tolerance: float) -> list[str]:
    """What has become worse from the second tenth to the last, in sentences."""
    second, last = tenths[1], tenths[-1]
    memory = {
        "the process": (second.resident_bytes, last.resident_bytes),
        "PyTorch on CUDA": (second.allocated_bytes, last.allocated_bytes),
    }
    found = []
    for what, (before, after) in memory.items():
        if before is not None and after is not None and after > before * (1 + memory_tolerance):
            found.append(
                f"memory of {what} grew from {before / 1e6:.1f} MB in the second tenth to {after / 1e6:.1f} "
                f"MB in the last, by {100 * (after / before - 1):.1f} % "
                f"(tolerated: {100 * memory_tolerance:g} %)"
            )
    slowdown = 1 - second.p50_ms / last.p50_ms
    if slowdown > speed_tolerance:
        found.append(
            f"a step took {second.p50_ms:.2f} ms in the second tenth and {last.p50_ms:.2f} ms in the last: "
            f"{100 * slowdown:.1f} % fewer a second (tolerated: {100 * speed_tolerance:g} %)"
        )
    return found


def print_header() -> None:
    """Prints the column names of `print_tenth`."""
    print(
        f"{'tenth':>5} {'env-steps':>10} {'steps/s':>9} {'p50 ms':>9} {'memory MB':>10} {'CUDA MB':>9}",
        flush=True,
    )


def print_tenth(row: Tenth) -> None:
    """Prints a line of the table."""
    resident, allocated = (
        "-" if size is None else f"{size / 1e6:.1f}" for size in (row.resident_bytes, row.allocated_bytes)
    )
    print(
        f"{row.tenth:>5} {row.env_steps:>10} {row.env_steps_per_second:>9.1f} {row.p50_ms:>9.2f} "
        f"{resident:>10} {allocated:>9}",
        flush=True,
    )


def run(args: Settings, about: dict[str, Any]) -> int:
    """Measures, prints and writes everything; returns 1 where something has become worse, else 0."""
    num_steps = args.steps // args.num_envs
    if num_steps < NUM_TENTHS:
        raise InvalidInputError(
            f"{args.num_envs} games need at least steps={NUM_TENTHS * args.num_envs}, got {args.steps}"
        )
    game = game_name(args.game)
    envs = make_envs(game, args.num_envs, args.world_options())
    print_header()
    tenths = []
    for row in measure(random_player(envs), args.num_envs, num_steps, envs.world.world_model.device):
        print_tenth(row)
        tenths.append(row)
    if args.json is not None:
        asked = {"game": game, "checkpoint": args.checkpoint, "num_envs": args.num_envs}
        write_rows(args.json, tenths, about | asked)
    found = failures(tenths, args.memory_tolerance, args.speed_tolerance)
    for failure in found:
        print(f"failed: {failure}", file=sys.stderr)
    if not found:
        print("memory and speed of the last tenth are those of the second, within the tolerances")
    return 1 if found else 0


COMMAND = cli.Command(
    "python -m benchmarks.endurance",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
