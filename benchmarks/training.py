"""Speed of each network's training and of collection beside plain PyTorch, and the cost of the replay.

    python -m benchmarks.training --preset paper small --json rows.jsonl
    python -m benchmarks.training --preset paper --parts denoiser denoiser.training.batch_size=8
    python -m benchmarks.training --preset embedded --parts denoiser rew_end_model --no-collection

Every step is the trainer's own, on made-up episodes. The plain baseline makes the same steps (same weights,
same batches) in eager float32, in PyTorch's default memory layout, with its default AdamW and the C library's
default memory settings. Both run in processes of their own and make their steps in turns; the ratio is that
of the medians. Collection is the actor-critic playing the real Breakout as in every epoch, its episodes
written to disk. "CPU s" is the CPU time of all threads, for machines that do other work at the same time.
Arguments `key=value` change the presets, as in `python -m trainers.diamond train`.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory import resident_bytes
from benchmarks.rows import (
    BenchmarkSettings,
    Took,
    in_turns,
    median_and_p95,
    run_benchmark,
    time_step,
    write_rows,
)
from diamond_gym import cli
from diamond_gym.backends.memory import keep_freed_memory
from diamond_gym.cli import option
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import DiamondGymError
from diamond_gym.progress import Bar
from diamond_gym.world.models import Agent
from trainers.diamond import config as settings
from trainers.diamond.config import PARTS, TrainerConfig
from trainers.diamond.learner import Learner
from trainers.diamond.networks import find_device, new_agent, place
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import Collector, RealGames
from trainers.diamond.run import build
from trainers.diamond.run_folder import RunFolder

GAME = "Breakout"
NUM_ACTIONS = 4
COLLECTION = "collection"
EPISODE_LENGTH = 500
NUM_TRAINING_FRAMES = 4_000
NUM_REPLAY_FRAMES = 100_000
NUM_DRAWS = 100


@dataclass
class Settings(BenchmarkSettings):
    """What is measured."""

    preset: list[str] = option(["paper", "small"], "presets to measure", choices=settings.PRESETS)
    parts: list[str] = option(list(PARTS), "networks to measure", choices=PARTS)
    device: str = option("auto", "auto, cpu, cuda, ...")
    frames: int = option(NUM_REPLAY_FRAMES, "frames in the replay", least=1)
    replay: bool = option(True, "measure the replay as well")
    collection: bool = option(True, "measure collection as well")
    seconds: float = option(10.0, "seconds for each row", above=0)
    overrides: list[str] = option([], "changes to the presets: all keys besides these")


class ProcessEndedError(DiamondGymError):
    """A measured process ended before it was asked to."""


@dataclass(frozen=True)
class Case:
    """A network whose steps are measured, or collection.

    Attributes:
        config: How it is trained.
        part: Its name, or "collection".
        is_plain: Whether it is the baseline.
        threads: CPU threads of PyTorch; None for its own choice.
    """

    config: TrainerConfig
    part: str
    is_plain: bool
    threads: int | None


@dataclass(frozen=True)
class StepRow:
    """Optimiser steps of a network: a line of the table and of the JSON file."""

    preset: str
    part: str
    device: str
    batch_size: int
    steps_per_second: float
    baseline_steps_per_second: float
    ratio: float
    cpu_seconds: float
    baseline_cpu_seconds: float
    cpu_ratio: float
    repeats: int


@dataclass(frozen=True)
class CollectRow:
    """An epoch's collection, a line of the JSON file: `num_steps` steps of the real game take `seconds`."""

    preset: str
    part: str
    device: str
    num_steps: int
    seconds: float
    baseline_seconds: float
    ratio: float
    repeats: int


@dataclass(frozen=True)
class ReplayRow:
    """A replay in memory, and drawing batches from it.

    `resident_bytes` is the growth of the process; None where the system does not report it.
    """

    preset: str
    part: str
    num_frames: int
    resident_bytes: int | None
    batch_size: int
    segment_length: int
    draw_ms: float
    draw_p95_ms: float


def random_episodes(num_frames: int, shape: tuple[int, ...]) -> Iterator[Episode]:
    """Episodes of noise, with a reward in one step of fifty."""
    rng = np.random.default_rng(0)
    for first in range(0, num_frames, EPISODE_LENGTH):
        n = min(EPISODE_LENGTH, num_frames - first)
        frames = np.frombuffer(bytearray(rng.bytes(n * int(np.prod(shape)))), np.uint8)
        end = torch.zeros(n, dtype=torch.uint8)
        end[-1] = 1
        yield Episode(
            obs=torch.from_numpy(frames).reshape(n, *shape),
            act=torch.from_numpy(rng.integers(NUM_ACTIONS, size=n)),
            rew=torch.from_numpy((rng.random(n) < 0.02).astype(np.float32)),
            end=end,
            trunc=torch.zeros(n, dtype=torch.uint8),
            info={"final_observation": torch.zeros(shape, dtype=torch.uint8)},
        )


def configuration(preset: str, overrides: Sequence[str], device: str) -> TrainerConfig:
    """A preset on made-up data; nothing is collected, but batches are drawn as from collected data.

    Raises:
        InvalidInputError: An override is wrong.
    """
    made_up = ["static_dataset.path=made-up", "static_dataset.ignore_sample_weights=false"]
    config = settings.parse([f"preset={preset}", f"common.device={device}", *made_up, *overrides])
    find_device(config.common.device)
    return config


def build_agent(case: Case) -> Agent:
    """The networks on their device, placed as the trainer does it, or for the baseline as PyTorch does."""
    config = case.config
    device = find_device(config.common.device)
    sizes = config.agent.with_num_actions(NUM_ACTIONS)
    agent = new_agent(
        sizes,
        seed=config.common.seed,
        with_actor_critic=config.learns_to_play,
        difference_init=config.rew_end_model.training.difference_init,
    )
    if case.is_plain:
        config.training.autocast, config.training.backend = None, "eager"
        agent.to(device)
    else:
        keep_freed_memory()
        place(agent, device, config.training.backend)
    return agent


def build_part(case: Case) -> tuple[Learner, Replay]:
    """The network, ready to be trained by the trainer's own steps."""
    config, agent = case.config, build_agent(case)
    replay = Replay(random_episodes(NUM_TRAINING_FRAMES, config.frame_shape), NUM_TRAINING_FRAMES)
    trainer = build(config, RunFolder(Path("nothing-is-saved")), agent, replay, Replay())
    part = next(part for part in trainer.learners if part.name == case.part)
    if case.is_plain:
        part.optimizer = plain_optimizer(part.optimizer)
    return part, replay


@contextmanager
def training_steps(case: Case) -> Iterator[Callable[[], Any]]:
    """Make an optimiser step of a network."""
    part, replay = build_part(case)
    seed = case.config.common.seed
    with part.as_trained():
        yield lambda: part.step(replay, seed=seed, lr_factor=1.0)


@contextmanager
def collecting(case: Case, folder: Path) -> Iterator[Callable[[], Any]]:
    """Collect the steps of an epoch from the real game, into a dataset in `folder`."""
    sampling, seed = case.config.collection.train, case.config.common.seed
    actor_critic = build_agent(case).eval().actor_critic
    assert actor_critic is not None
    games = RealGames(GAME, sampling.num_envs, training=True, seed=seed)
    collector = Collector(actor_critic, games, sampling, seed=seed)
    dataset, replay = EpisodeDataset(folder, create=True), Replay()
    bar = Bar(disable=True)
    yield lambda: collector.collect(
        dataset, replay, sampling.steps_per_epoch, bar=bar, should_stop=lambda: False
    )


def plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """AdamW of the same parameters and settings, computed as PyTorch does by default."""
    names = ("params", "lr", "betas", "eps", "weight_decay")
    return torch.optim.AdamW([{name: group[name] for name in names} for group in optimizer.param_groups])


def serve(case: Case, folder: Path, connection: Connection) -> None:
    """Make a step whenever one is asked for and send what it took; a measured process runs this."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    device = find_device(case.config.common.device).type
    steps = collecting(case, folder) if case.part == COLLECTION else training_steps(case)
    with steps as step:
        while connection.recv():
            connection.send(time_step(step, device))


class Measured:
    """A case in a process of its own, with the C library's settings of its own.

    The process ends with the context.
    """

    def __init__(self, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.case = case
        self._connection, theirs = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        arguments = case, Path(self._folder.name), theirs
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> Took:
        """Make one step.

        Raises:
            ProcessEndedError: The process has ended.
        """
        try:
            self._connection.send(True)
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ProcessEndedError(
                f"the process that measures the {self.case.part} ended with status {self._process.exitcode}; "
                "if memory ran out, try a smaller PART.training.batch_size=... or smaller networks"
            ) from None

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()
        self._folder.cleanup()


def measure_in_turns(config: TrainerConfig, part: str, args: Settings) -> list[list[Took]]:
    """Make steps, of a network or of collection, and those of the baseline in turns."""
    with ExitStack() as stack:
        measured = [
            stack.enter_context(Measured(Case(config, part, is_plain, args.threads)))
            for is_plain in (False, True)
        ]
        return in_turns([m.step for m in measured], args.seconds)


def first_batch_size(training: settings.PartTrainingConfig) -> int:
    """Segments of the first steps, which are on crops where a preset begins with them."""
    if isinstance(training, settings.DenoiserTrainingConfig) and training.is_on_crops(0):
        return training.crop_batch_size
    return training.batch_size


def measure_steps(preset: str, config: TrainerConfig, part: str, args: Settings) -> StepRow:
    """Measure a network's steps and those of its baseline."""
    took, baseline = measure_in_turns(config, part, args)
    seconds, plain_seconds = (float(np.median([t.seconds for t in steps])) for steps in (took, baseline))
    cpu, plain_cpu = (float(np.median([t.cpu_seconds for t in steps])) for steps in (took, baseline))
    return StepRow(
        preset=preset,
        part=part,
        device=find_device(config.common.device).type,
        batch_size=first_batch_size(getattr(config, part).training),
        steps_per_second=1 / seconds,
        baseline_steps_per_second=1 / plain_seconds,
        ratio=plain_seconds / seconds,
        cpu_seconds=cpu,
        baseline_cpu_seconds=plain_cpu,
        cpu_ratio=plain_cpu / cpu,
        repeats=min(len(took), len(baseline)),
    )


def measure_collection(preset: str, config: TrainerConfig, args: Settings) -> CollectRow:
    """Measure an epoch's collection, with the trainer's actor-critic and with the plain one."""
    took, baseline = measure_in_turns(config, COLLECTION, args)
    seconds, plain_seconds = (float(np.median([t.seconds for t in steps])) for steps in (took, baseline))
    return CollectRow(
        preset=preset,
        part=COLLECTION,
        device=find_device(config.common.device).type,
        num_steps=config.collection.train.steps_per_epoch,
        seconds=seconds,
        baseline_seconds=plain_seconds,
        ratio=plain_seconds / seconds,
        repeats=min(len(took), len(baseline)),
    )


def measure_replay(preset: str, config: TrainerConfig, num_frames: int) -> list[ReplayRow]:
    """Fill a replay and draw the batches that the denoiser and the reward/end model learn from."""
    gc.collect()
    before = resident_bytes()
    replay = Replay(random_episodes(num_frames, config.frame_shape), num_frames)
    gc.collect()
    after = resident_bytes()
    grown = None if before is None or after is None else after - before
    inner, training = config.agent.denoiser.inner_model, config.denoiser.training
    lengths = {
        "denoiser": inner.num_steps_conditioning + 1 + training.num_autoregressive_steps,
        "rew_end_model": config.rew_end_model.training.seq_length,
    }
    rows = []
    for part, length in lengths.items():
        batch_size = getattr(config, part).training.batch_size
        times = [1e3 * took.seconds for took in draw_batches(replay, config, part, length)]
        median, p95 = median_and_p95(times)
        rows.append(ReplayRow(preset, part, num_frames, grown, batch_size, length, median, p95))
    return rows


def draw_batches(replay: Replay, config: TrainerConfig, part: str, length: int) -> list[Took]:
    """Draw batches as the trainer does; the first one, which builds the index, does not count."""
    training = getattr(config, part).training

    def draw(i: int) -> None:
        replay.draw(
            np.random.default_rng(i),
            training.batch_size,
            length,
            sample_weights=training.sample_weights,
            pad_after=part == "rew_end_model",
            event_fraction=training.event_fraction,
        )

    return [time_step(lambda i=i: draw(i), "cpu") for i in range(1 + NUM_DRAWS)][1:]


def print_step_header() -> None:
    """Print the column names of `print_step_row`."""
    print(
        f"{'preset':<8} {'part':<14} {'device':<7} {'batch':>5} {'steps/s':>9} {'baseline':>9} {'ratio':>6} "
        f"{'CPU s':>8} {'baseline':>9} {'ratio':>6} {'repeats':>7}",
        flush=True,
    )


def print_step_row(row: StepRow) -> None:
    """Print a line of the table of steps."""
    print(
        f"{row.preset:<8} {row.part:<14} {row.device:<7} {row.batch_size:>5} {row.steps_per_second:>9.3f} "
        f"{row.baseline_steps_per_second:>9.3f} {row.ratio:>5.2f}x {row.cpu_seconds:>8.3f} "
        f"{row.baseline_cpu_seconds:>9.3f} {row.cpu_ratio:>5.2f}x {row.repeats:>7}",
        flush=True,
    )


def print_collect_row(row: CollectRow) -> None:
    """Print how long an epoch's collection takes."""
    print(
        f"{row.preset}: collecting {row.num_steps} steps of {GAME} in {row.seconds:.3f} s, "
        f"baseline {row.baseline_seconds:.3f} s, ratio {row.ratio:.2f}x, repeats {row.repeats}",
        flush=True,
    )


def print_replay_row(row: ReplayRow) -> None:
    """Print the cost of a replay."""
    size = "unknown" if row.resident_bytes is None else f"{row.resident_bytes / 1e9:.3f} GB"
    print(
        f"{row.preset}: replay of {row.num_frames} frames, {size} resident; {row.batch_size} segments of "
        f"{row.segment_length} steps for the {row.part} in {row.draw_ms:.2f} ms (p95 {row.draw_p95_ms:.2f})",
        flush=True,
    )


def run(args: Settings, about: dict[str, Any]) -> None:
    """Measures, prints and writes everything."""
    configs = {preset: configuration(preset, args.overrides, args.device) for preset in args.preset}
    rows: list[StepRow | CollectRow | ReplayRow] = []
    for preset, config in configs.items() if args.replay else ():
        for row in measure_replay(preset, config, args.frames):
            print_replay_row(row)
            rows.append(row)
    for preset, config in configs.items() if args.collection else ():
        row = measure_collection(preset, config, args)
        print_collect_row(row)
        rows.append(row)
    print_step_header()
    for preset, config in configs.items():
        for part in args.parts:
            row = measure_steps(preset, config, part, args)
            print_step_row(row)
            rows.append(row)
    if args.json is not None:
        write_rows(args.json, rows, about | {"overrides": args.overrides})


COMMAND = cli.Command(
    "python -m benchmarks.training",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
    rest="overrides",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
