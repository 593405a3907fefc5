"""Speed, latency and memory of imagined games against how many there are, and against denoising steps.

    python -m benchmarks.scaling --max-envs 1024 --json scaling.jsonl --plot docs/scaling.png

Games are doubled from 1 on, under random actions, in `DiamondVectorEnv`; then the denoising steps are varied
with `--at` games. Every point is a fresh process, so that its peak memory is its own: on the CPU all that the
process occupies (Python and PyTorch, too), on CUDA what PyTorch allocated there. Doubling stops early where
the next size would not fit into the memory that is left, as far as that grows as it did for the last sizes.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks import memory
from benchmarks.imagined import make_envs, random_player
from benchmarks.rows import (
    WorldSettings,
    check_output_file,
    in_turns,
    median_and_p95,
    name_of,
    run_benchmark,
    time_step,
    write_rows,
)
from diamond_gym import cli
from diamond_gym.backends.choose import pick_device
from diamond_gym.cli import option
from diamond_gym.errors import DiamondGymError
from diamond_gym.evaluate import pictures
from diamond_gym.registration import game_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_T = TypeVar("_T")

NUM_ENVS, DENOISING_STEPS = "num_envs", "num_denoising_steps"
LABELS = {NUM_ENVS: "games", DENOISING_STEPS: "denoising steps"}


@dataclass
class Settings(WorldSettings):
    """What is measured."""

    max_envs: int = option(1024, "most games", least=1)
    denoising_steps: list[int] = option([1, 2, 3, 4], "to vary, [] for not at all", least=1)
    at: int = option(32, "games then", least=1)
    plot: Path = option(Path("docs", "scaling.png"), "picture to write")
    seconds: float = option(3.0, "for each row", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output_file("plot", self.plot)


class MemoryEndedError(DiamondGymError):
    """A process ended, or could not get the memory that it asked for."""


@dataclass(frozen=True)
class Point:
    """What is measured in a process.

    Attributes:
        against: What is varied: "num_envs" or "num_denoising_steps".
        game: The game.
        num_envs: Games at once.
        options: Keyword arguments of the environment.
        seconds: How long, see `in_turns`.
        threads: CPU threads of PyTorch; None for its own choice.
    """

    against: str
    game: str
    num_envs: int
    options: dict[str, Any]
    seconds: float
    threads: int | None


@dataclass(frozen=True)
class ScalingRow:
    """What was measured of a point; `peak_bytes` is None where the system does not tell."""

    against: str
    game: str
    checkpoint: str
    num_envs: int
    num_denoising_steps: int
    device: str
    dtype: str
    env_steps_per_second: float
    p50_ms: float
    p95_ms: float
    peak_bytes: int | None
    repeats: int


def measure(point: Point) -> ScalingRow:
    """Steps the games of a point. The peak of memory is that of this process since it started."""
    if point.threads is not None:
        torch.set_num_threads(point.threads)
    envs = make_envs(point.game, point.num_envs, point.options)
    step, world_model = random_player(envs), envs.world.world_model
    device = world_model.device
    (took,) = in_turns([lambda: time_step(step, device.type)], point.seconds)
    median, p95 = median_and_p95([t.seconds for t in took])
    return ScalingRow(
        against=point.against,
        game=point.game,
        checkpoint=point.options["checkpoint"],
        num_envs=point.num_envs,
        num_denoising_steps=world_model.config.num_steps_denoising,
        device=str(device),
        dtype=name_of(world_model.denoiser.dtype),
        env_steps_per_second=point.num_envs / median,
        p50_ms=1e3 * median,
        p95_ms=1e3 * p95,
        peak_bytes=peak_bytes(device),
        repeats=len(took),
    )


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process has taken of a device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return memory.peak_resident_bytes() if device.type == "cpu" else None


def available_bytes(device: torch.device) -> int | None:
    """Memory that a device has left; None where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory.available_bytes() if device.type == "cpu" else None


def in_fresh_process(function: Callable[[Point], _T], point: Point) -> _T:
    """What a function returns in a process of its own; its exceptions arrive here.

    Raises:
        MemoryEndedError: The process was killed, or could not allocate.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, point).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryEndedError(f"{type(error).__name__}: {error}") from None
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise MemoryEndedError(str(error)) from None


def expected_bytes(rows: Sequence[ScalingRow]) -> int | None:
    """Memory of twice the last row's games, if it grows as between the last two sizes; None if unknown."""
    peaks = [row.peak_bytes for row in rows[-2:]]
    if not peaks or None in peaks:
        return None
    last = peaks[-1] or 0
    before = peaks[0] if len(peaks) == 2 else last
    return last + 2 * max(0, last - (before or 0))


def does_not_fit(rows: Sequence[ScalingRow], num_envs: int, available: int | None) -> str | None:
    """Why so many games should not be tried; None where nothing speaks against it."""
    expected = expected_bytes(rows)
    if expected is None or available is None or expected <= available:
        return None
    return f"{num_envs} games would take about {expected / 1e9:.1f} GB, {available / 1e9:.1f} GB are left"


def doubled(args: Settings, options: dict[str, Any], device: torch.device) -> Iterator[ScalingRow]:
    """Rows of 1, 2, 4, ... games up to `--max-envs`; says so where it stops before."""
    rows: list[ScalingRow] = []
    for num_envs in powers_of_two(args.max_envs):
        reason = does_not_fit(rows, num_envs, available_bytes(device))
        try:
            if reason is None:
                rows.append(in_fresh_process(measure, point(args, NUM_ENVS, num_envs, options)))
        except MemoryEndedError as error:
            if not rows:
                raise
            reason = f"the process of {num_envs} games ended ({error})"
        if reason is not None:
            print(f"stopped at {rows[-1].num_envs} games: {reason}", file=sys.stderr)
            return
        yield rows[-1]


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to a number."""
    return [2**i for i in range(largest.bit_length())]


def denoised(args: Settings, options: dict[str, Any]) -> Iterator[ScalingRow]:
    """Rows of every number of denoising steps; says so where memory ends before."""
    for num_steps in args.denoising_steps:
        changed = options | {"num_denoising_steps": num_steps}
        try:
            yield in_fresh_process(measure, point(args, DENOISING_STEPS, args.at, changed))
        except MemoryEndedError as error:
            print(f"stopped before {num_steps} denoising steps: its process ended ({error})", file=sys.stderr)
            return


def point(args: Settings, against: str, num_envs: int, options: dict[str, Any]) -> Point:
    """A point of the command line's world."""
    return Point(against, game_name(args.game), num_envs, options, args.seconds, args.threads)


def plot(rows: Sequence[ScalingRow]) -> Figure:
    """Speed, latency and memory, a row of panels for each thing that was varied."""
    varied = [name for name in LABELS if any(row.against == name for row in rows)]
    figure = pictures.new_figure((13, 3.6 * len(varied)))
    for name, panels in zip(varied, figure.subplots(len(varied), 3, squeeze=False), strict=True):
        own = [row for row in rows if row.against == name]
        plot_row(panels, own, name)
    return figure


def plot_row(panels: Sequence[Axes], rows: Sequence[ScalingRow], name: str) -> None:
    """Speed, latency and memory against one thing."""
    x = [getattr(row, name) for row in rows]
    speed, latency, peak = panels
    speed.plot(x, [row.env_steps_per_second for row in rows], marker="o")
    speed.set(ylabel="env-steps/s")
    latency.plot(x, [row.p50_ms for row in rows], marker="o", label="median")
    latency.plot(x, [row.p95_ms for row in rows], ":", marker="o", label="95th percentile")
    latency.set(ylabel="latency of a step (ms)")
    latency.legend()
    known = [
        (at, row.peak_bytes / 1e9) for at, row in zip(x, rows, strict=True) if row.peak_bytes is not None
    ]
    peak.plot(*zip(*known, strict=True) if known else ([], []), marker="o")
    peak.set(ylabel="peak memory (GB)")
    setting = f", {rows[0].num_envs} games" if name == DENOISING_STEPS else ""
    for axes in panels:
        axes.set(xlabel=LABELS[name] + setting)
        axes.grid(alpha=0.3)
        if name == NUM_ENVS:
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(n) for n in x])
    if name == NUM_ENVS:
        latency.set_yscale("log")
    for axes in (speed, peak):
        axes.set_ylim(bottom=0)


def print_header() -> None:
    """Prints the column names of `print_row`."""
    print(
        f"{'envs':>5} {'denoising':>9} {'device':<7} {'dtype':<9} {'steps/s':>9} {'p50 ms':>9} {'p95 ms':>9} "
        f"{'peak GB':>8} {'repeats':>7}",
        flush=True,
    )


def print_row(row: ScalingRow) -> None:
    """Prints a line of the table."""
    peak = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.3f}"
    print(
        f"{row.num_envs:>5} {row.num_denoising_steps:>9} {row.device:<7} {row.dtype:<9} "
        f"{row.env_steps_per_second:>9.1f} {row.p50_ms:>9.2f} {row.p95_ms:>9.2f} {peak:>8} {row.repeats:>7}",
        flush=True,
    )


def run(args: Settings, about: dict[str, Any]) -> None:
    """Measures, prints and writes everything."""
    pictures.require_matplotlib()
    options, device = args.world_options(), pick_device(args.device)
    print_header()
    rows: list[ScalingRow] = []
    for measured in (doubled(args, options, device), denoised(args, options)):
        for row in measured:
            print_row(row)
            rows.append(row)
    if args.json is not None:
        write_rows(args.json, rows, about)
    pictures.write_figure(plot(rows), args.plot)
    print(f"wrote {args.plot}")


COMMAND = cli.Command(
    "python -m benchmarks.scaling",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
