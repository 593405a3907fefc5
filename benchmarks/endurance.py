"""Check that imagination stays fast and small over time, and measure how it scales.

    python -m benchmarks.endurance --json endurance.jsonl --plot docs/scaling.png

1. Endurance. An environment is made, reset, stepped and closed, `cycles` times. Then one environment makes
   `steps` steps under random actions, and after it a vector environment of each of `num_envs` games. Every
   tenth prints a line: speed, memory, open files and threads. The first tenth is warm-up. The program fails
   (status 1) where the last tenth is worse than the second: where it occupies more memory or is slower by
   more than the tolerances, or holds more files or threads. On CUDA the memory that PyTorch has allocated
   there counts, too. `cycles=0` and `steps=0` leave these parts out.
2. Scaling. Games are doubled from 1 to `max_envs`, then the denoising steps are varied with `at` games. Every
   point is a fresh process, so that its peak memory is its own: on the CPU all that the process occupies
   (Python and PyTorch, too), on CUDA what PyTorch allocated there. `plot` draws it; `max_envs=0` and
   `denoising_steps=[]` leave it out.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from benchmarks import memory
from benchmarks.imagined import make_envs, random_player, single_player
from benchmarks.rows import (
    WorldSettings,
    check_output_file,
    in_turns,
    median_and_p95,
    name_of,
    run_benchmark,
    synchronize,
    time_step,
    write_rows,
)
from diamond_gym import cli
from diamond_gym.backends.choose import pick_device
from diamond_gym.cli import option
from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.evaluate import pictures
from diamond_gym.registration import env_id, game_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_TENTHS = 10
CYCLES = "make and close"
NUM_ENVS, DENOISING_STEPS = "num_envs", "num_denoising_steps"
LABELS = {NUM_ENVS: "games", DENOISING_STEPS: "denoising steps"}


@dataclass
class Settings(WorldSettings):
    """What is measured."""

    cycles: int = option(1_000, "environments made and closed", least=0)
    steps: int = option(1_000_000, "steps of all games together, for each number of games", least=0)
    num_envs: list[int] = option([1, 32], "games at once", least=1)
    memory_tolerance: float = option(
        0.02, "growth that is tolerated, as a share of the second tenth's memory", above=0
    )
    speed_tolerance: float = option(0.2, "loss of speed that is tolerated, as a share", above=0)
    max_envs: int = option(1024, "largest number of games of the scaling", least=0)
    denoising_steps: list[int] = option([1, 2, 3, 4], "denoising steps of the scaling", least=1)
    at: int = option(32, "games while the denoising steps are varied", least=1)
    plot: Path | None = option(None, "picture of the scaling")
    seconds: float = option(3.0, "seconds for each point of the scaling", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plot is not None:
            check_output_file("plot", self.plot)
        if 0 < self.cycles < NUM_TENTHS:
            raise InvalidInputError(f"cycles must be 0 or at least {NUM_TENTHS}, got {self.cycles}")
        for num_envs in self.num_envs if self.steps else ():
            least = NUM_TENTHS * num_envs
            if self.steps < least:
                raise InvalidInputError(
                    f"steps must be 0 or at least {least} for {num_envs} games, got {self.steps}"
                )


# --- endurance


@dataclass(frozen=True)
class Tenth:
    """A tenth of the repeated actions: a line of the table and of the JSON file.

    Attributes:
        what: The action: "make and close", "1 game" or "32 games".
        tenth: Number of the tenth, from 1.
        count: Number of cycles, or of steps of all games together.
        per_second: Rate of these, over the whole tenth.
        p50_ms: Median time of a cycle, or of a step of all games.
        resident_bytes: Peak memory of the process; None where the system does not report it.
        allocated_bytes: Peak memory that PyTorch allocated on CUDA; None elsewhere.
        open_files: File descriptors at the end; None where the system does not report them.
        threads: Threads at the end; None where the system does not report them.
    """

    what: str
    tenth: int
    count: int
    per_second: float
    p50_ms: float
    resident_bytes: int | None
    allocated_bytes: int | None
    open_files: int | None
    threads: int | None


def tenths(
    what: str, act: Callable[[], Any], each: int, num_acts: int, device: torch.device
) -> Iterator[Tenth]:
    """Do something `num_acts` times, at least 10; each time counts as `each`."""
    ends = [num_acts * i // NUM_TENTHS for i in range(NUM_TENTHS + 1)]
    for i in range(NUM_TENTHS):
        yield measure_tenth(what, i + 1, act, each, ends[i + 1] - ends[i], device)


def measure_tenth(
    what: str, tenth: int, act: Callable[[], Any], each: int, num_acts: int, device: torch.device
) -> Tenth:
    """Do something `num_acts` times, and look at the process after each time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    latencies, resident = np.empty(num_acts), 0
    start = time.perf_counter()
    for i in range(num_acts):
        before = time.perf_counter()
        act()
        synchronize(device.type)
        latencies[i] = time.perf_counter() - before
        resident = max(resident, memory.resident_bytes() or 0)
    return Tenth(
        what=what,
        tenth=tenth,
        count=each * num_acts,
        per_second=each * num_acts / (time.perf_counter() - start),
        p50_ms=1e3 * float(np.median(latencies)),
        resident_bytes=resident or None,
        allocated_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        open_files=memory.num_open_files(),
        threads=memory.num_threads(),
    )


def make_and_close(game: str, options: dict[str, Any]) -> None:
    """Make, reset, step and close an environment, as briefly as possible."""
    env = gymnasium.make(env_id(game), **options)
    env.reset(seed=0)
    env.step(0)
    env.close()


def endured(args: Settings, device: torch.device) -> Iterator[Iterator[Tenth]]:
    """The repeated actions, one after the other."""
    game, options = game_name(args.game), args.world_options()
    if args.cycles:
        yield tenths(CYCLES, partial(make_and_close, game, options), 1, args.cycles, device)
    for num_envs in args.num_envs if args.steps else ():
        if num_envs == 1:
            envs = gymnasium.make(env_id(game), **options)
            player = single_player(envs)
        else:
            envs = make_envs(game, num_envs, options)
            player = random_player(envs)
        what = "1 game" if num_envs == 1 else f"{num_envs} games"
        yield tenths(what, player, num_envs, args.steps // num_envs, device)
        envs.close()


def failures(rows: Sequence[Tenth], memory_tolerance: float, speed_tolerance: float) -> list[str]:
    """Sentences about what has become worse from the second tenth to the last."""
    second, last = rows[1], rows[-1]
    found = []
    for name, unit, size, tolerance in (
        ("resident_bytes", "MB of memory", 1e6, memory_tolerance),
        ("allocated_bytes", "MB of memory on CUDA", 1e6, memory_tolerance),
        ("open_files", "open files", 1, 0),
        ("threads", "threads", 1, 0),
        ("p50_ms", "ms each", 1, 1 / (1 - min(speed_tolerance, 0.999)) - 1),
    ):
        before, after = getattr(second, name), getattr(last, name)
        if before is not None and after is not None and after > before * (1 + tolerance):
            found.append(
                f"{second.what}: {before / size:.4g} {unit} in the second tenth, {after / size:.4g} in the "
                f"last, {100 * (after / before - 1):.1f} % more (tolerated: {100 * tolerance:.3g} %)"
            )
    return found


def print_tenth(row: Tenth) -> None:
    """Print a line of the table."""
    sizes = (row.resident_bytes, row.allocated_bytes)
    resident, allocated = ("-" if size is None else f"{size / 1e6:.1f}" for size in sizes)
    files, threads = ("-" if number is None else str(number) for number in (row.open_files, row.threads))
    print(
        f"{row.what:<14} {row.tenth:>5} {row.count:>8} {row.per_second:>9.1f} {row.p50_ms:>9.2f} "
        f"{resident:>10} {allocated:>9} {files:>6} {threads:>8}",
        flush=True,
    )


def measure_endurance(args: Settings, device: torch.device) -> tuple[list[Tenth], list[str]]:
    """Measure and print all tenths; the second list says what became worse."""
    print(
        f"{'what':<14} {'tenth':>5} {'count':>8} {'a second':>9} {'p50 ms':>9} {'memory MB':>10} "
        f"{'CUDA MB':>9} {'files':>6} {'threads':>8}",
        flush=True,
    )
    rows: list[Tenth] = []
    found: list[str] = []
    for measured in endured(args, device):
        own = []
        for row in measured:
            print_tenth(row)
            own.append(row)
        found += failures(own, args.memory_tolerance, args.speed_tolerance)
        rows += own
    return rows, found


# --- scaling


class MemoryEndedError(DiamondGymError):
    """A process was killed, or could not allocate the memory that it asked for."""


@dataclass(frozen=True)
class Point:
    """A measurement in a process of its own.

    Attributes:
        against: What is varied: "num_envs" or "num_denoising_steps".
        game: The game.
        num_envs: Games at once.
        options: Keyword arguments of the environment.
        seconds: Length of the measurement, see `in_turns`.
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
    """The measurement of a point; `peak_bytes` is None where the system does not report it."""

    against: str
    num_envs: int
    num_denoising_steps: int
    device: str
    dtype: str
    env_steps_per_second: float
    p50_ms: float
    p95_ms: float
    peak_bytes: int | None
    repeats: int


def points(args: Settings) -> Iterator[list[Point]]:
    """The points of each varied quantity, from small to large."""
    game, options = game_name(args.game), args.world_options()
    rest = args.seconds, args.threads
    doubled = [2**i for i in range(args.max_envs.bit_length())]
    yield [Point(NUM_ENVS, game, num_envs, options, *rest) for num_envs in doubled]
    yield [
        Point(DENOISING_STEPS, game, args.at, options | {DENOISING_STEPS: num_steps}, *rest)
        for num_steps in args.denoising_steps
    ]


def measure_point(point: Point) -> ScalingRow:
    """Step the games of a point. The peak of memory is that of this process since it started."""
    if point.threads is not None:
        torch.set_num_threads(point.threads)
    envs = make_envs(point.game, point.num_envs, point.options)
    step, world_model = random_player(envs), envs.world.diffusion_model
    device = world_model.device
    (took,) = in_turns([lambda: time_step(step, device.type)], point.seconds)
    median, p95 = median_and_p95([t.seconds for t in took])
    on_cuda = device.type == "cuda"
    return ScalingRow(
        against=point.against,
        num_envs=point.num_envs,
        num_denoising_steps=world_model.config.num_steps_denoising,
        device=str(device),
        dtype=name_of(world_model.denoiser.dtype),
        env_steps_per_second=point.num_envs / median,
        p50_ms=1e3 * median,
        p95_ms=1e3 * p95,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_cuda else memory.peak_resident_bytes(),
        repeats=len(took),
    )


def in_fresh_process(point: Point) -> ScalingRow:
    """Run `measure_point` in a process of its own; its exceptions are raised here.

    Raises:
        MemoryEndedError: The process was killed, or could not allocate.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_point, point).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryEndedError(f"{type(error).__name__}: {error}") from None
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise MemoryEndedError(str(error)) from None


def measure_scaling(args: Settings) -> list[ScalingRow]:
    """Measure and print all points; say so where memory runs out first."""
    print(
        f"{'games':>5} {'denoising':>9} {'device':<7} {'dtype':<9} {'steps/s':>9} {'p50 ms':>9} "
        f"{'p95 ms':>9} {'peak GB':>8} {'repeats':>7}",
        flush=True,
    )
    rows: list[ScalingRow] = []
    for varied in points(args):
        for point in varied:
            try:
                rows.append(in_fresh_process(point))
            except MemoryEndedError as error:
                at = f"{point.num_envs} games, {point.options[DENOISING_STEPS] or 'default'} denoising steps"
                print(f"stopped at {at}: {error}", file=sys.stderr)
                break
            print_point(rows[-1])
    return rows


def print_point(row: ScalingRow) -> None:
    """Print a line of the table."""
    peak = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.3f}"
    print(
        f"{row.num_envs:>5} {row.num_denoising_steps:>9} {row.device:<7} {row.dtype:<9} "
        f"{row.env_steps_per_second:>9.1f} {row.p50_ms:>9.2f} {row.p95_ms:>9.2f} {peak:>8} {row.repeats:>7}",
        flush=True,
    )


def plot(rows: Sequence[ScalingRow]) -> Figure:
    """Speed, latency and memory, a row of panels for each thing that was varied."""
    varied = [name for name in LABELS if any(row.against == name for row in rows)]
    figure = pictures.new_figure((8.5, 2.6 * len(varied)))
    for name, panels in zip(varied, figure.subplots(len(varied), 3, squeeze=False), strict=True):
        plot_row(panels, [row for row in rows if row.against == name], name)
    return figure


def plot_row(panels: Sequence[Axes], rows: Sequence[ScalingRow], name: str) -> None:
    """Speed, latency and memory against one thing."""
    x = [getattr(row, name) for row in rows]
    speed, latency, peak = panels
    speed.plot(x, [row.env_steps_per_second for row in rows], marker="o")
    speed.set(ylabel="env-steps/s")
    latency.plot(x, [row.p50_ms for row in rows], marker="o", label="median")
    latency.plot(x, [row.p95_ms for row in rows], ":", marker="o", label="95th percentile")
    latency.set(ylabel="ms a step")
    if name == NUM_ENVS:
        latency.legend()
    peak.plot(
        x, [float("nan") if row.peak_bytes is None else row.peak_bytes / 1e9 for row in rows], marker="o"
    )
    peak.set(ylabel="peak memory (GB)")
    setting = f", {rows[0].num_envs} games" if name == DENOISING_STEPS else ""
    for axes in panels:
        axes.set(xlabel=LABELS[name] + setting)
        axes.grid(alpha=0.3)
        if name == NUM_ENVS:
            axes.set_xscale("log", base=2)
            axes.set_xticks(x[::2], [str(n) for n in x[::2]])
        else:
            axes.set_xticks(x)
    if name == NUM_ENVS:
        latency.set_yscale("log")
    for axes in (speed, peak):
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)


# --- the command


def run(args: Settings, about: dict[str, Any]) -> int:
    """Measures, prints and writes everything; returns 1 where something has become worse, else 0."""
    if args.plot is not None:
        pictures.require_matplotlib()
    endured, found = measure_endurance(args, pick_device(args.device))
    scaled = measure_scaling(args)
    if args.json is not None:
        asked = {"game": game_name(args.game), "checkpoint": args.checkpoint}
        write_rows(args.json, [*endured, *scaled], about | asked)
    if args.plot is not None and scaled:
        pictures.write_figure(plot(scaled), args.plot)
        print(f"wrote {args.plot}")
    for failure in found:
        print(f"failed: {failure}", file=sys.stderr)
    if endured and not found:
        print("the last tenths equal the second ones, within the tolerances")
    return 1 if found else 0


COMMAND = cli.Command(
    "python -m benchmarks.endurance",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
