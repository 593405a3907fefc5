"""Speed and latency of imagined games, of their wrappers and networks, and of the real game.

    python -m benchmarks.throughput --num-envs 1 8 32 --json rows.jsonl

Compared things are measured in turns, so that other work on the machine disturbs all of them alike. Ratios
are those of medians; an overhead is the time of the fastest step minus that of the fastest passes through the
networks. The plain baseline is the same weights in eager float32 PyTorch in its default memory layout; the
paper-size model has random weights, which cost the same. Resets of the single environments are not timed,
those of vector environments are.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from ale_py import AtariVectorEnv, roms
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from benchmarks.imagined import HORIZON, make_envs, random_player
from benchmarks.rows import (
    Took,
    WorldSettings,
    in_turns,
    median_and_p95,
    name_of,
    run_benchmark,
    time_step,
    write_rows,
)
from diamond_gym import cli, registration
from diamond_gym.adapters.sb3 import make_sb3_vec_env
from diamond_gym.backends.build import backend_of, build_world_model
from diamond_gym.backends.choose import pick_device
from diamond_gym.backends.cuda_graphs import GraphedWorldModel, Graphs
from diamond_gym.backends.memory import keep_freed_memory
from diamond_gym.checkpoints import load_world
from diamond_gym.cli import option
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.games.atari import AtariEnv
from diamond_gym.world.models import Agent, AgentConfig
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel

NUM_ENVS = [1, 32]
NUM_ENVS_ON_ACCELERATORS = [*NUM_ENVS, 256]
IMAGE_SHAPE = (3, 64, 64)


@dataclass
class Settings(WorldSettings):
    """What is measured."""

    num_envs: list[int] | None = option(
        None, "games at once; by default [1,32], and on accelerators 256 as well", least=1
    )
    baseline: bool = option(True, "measure the checkpoint in plain PyTorch as well")
    embedded: bool = option(True, "measure the checkpoint, its environments and wrappers")
    real: bool = option(True, "measure the real game")
    paper: bool = option(True, "measure a paper-size model with random weights as well")
    compilers: bool = option(
        False, "on a CPU, measure one game with inductor and openvino as well, and the rest with eager"
    )
    keep_memory: bool = option(False, "have the C library keep freed memory, as training does")
    seconds: float = option(3.0, "seconds for each row", above=0)


@dataclass(frozen=True)
class Case:
    """Something whose steps are measured.

    Attributes:
        model: The weights, or "the real game".
        name: Name of what is stepped.
        num_envs: Games per step.
        step: Makes one step of all games.
        prepare: Called before each step, and not timed.
        device: Device it runs on.
        dtype: Precision of its networks; "" without networks.
        backend: Backend of its networks; "" without networks.
    """

    model: str
    name: str
    num_envs: int
    step: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    device: str = "cpu"
    dtype: str = ""
    backend: str = ""


@dataclass(frozen=True)
class Row:
    """The measurement of a case: a line of the table and of the JSON file.

    `overhead_ms` is the fastest step minus the fastest passes through the networks alone, `speedup` the
    baseline's median divided by this one.
    """

    model: str
    name: str
    num_envs: int
    device: str
    dtype: str
    backend: str
    env_steps_per_second: float
    p50_ms: float
    p95_ms: float
    repeats: int
    overhead_ms: float | None = None
    speedup: float | None = None


def measure(cases: Sequence[Case], seconds: float) -> list[Row]:
    """Step the cases in turns; the first step of each does not count.

    Args:
        cases: The compared cases; those named "networks" and "baseline" give overheads and speedups.
        seconds: Time for each case; see `in_turns`.
    """
    all_took = in_turns([partial(timed_step, case) for case in cases], seconds)
    latencies = [[took.seconds for took in steps] for steps in all_took]
    by_name = {case.name: times for case, times in zip(cases, latencies, strict=True)}
    return [make_row(case, by_name) for case in cases]


def timed_step(case: Case) -> Took:
    """Make one step after its preparations, which are not timed."""
    case.prepare()
    return time_step(case.step, case.device)


def make_row(case: Case, seconds: dict[str, list[float]]) -> Row:
    """The row of one case; `seconds` are the latencies of all cases measured in the same turns, by name."""
    times = seconds[case.name]
    median, p95 = median_and_p95(times)
    has_overhead = "networks" in seconds and case.name not in ("networks", "baseline")
    has_speedup = "baseline" in seconds and case.name == "WorldModel"
    return Row(
        model=case.model,
        name=case.name,
        num_envs=case.num_envs,
        device=case.device,
        dtype=case.dtype,
        backend=case.backend,
        env_steps_per_second=case.num_envs / median,
        p50_ms=1e3 * median,
        p95_ms=1e3 * p95,
        repeats=len(times),
        overhead_ms=1e3 * (min(times) - min(seconds["networks"])) if has_overhead else None,
        speedup=float(np.median(seconds["baseline"])) / median if has_speedup else None,
    )


def env_case(model: str, name: str, env: gymnasium.Env[Any, Any], **about: Any) -> Case:
    """A single environment under random actions; it is reset where an episode is over."""
    rng = np.random.default_rng(0)
    num_actions = env.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    env.reset(seed=0)
    over = False

    def prepare() -> None:
        if over:
            env.reset()

    def step() -> None:
        nonlocal over
        _, _, terminated, truncated, _ = env.step(int(rng.integers(num_actions)))
        over = bool(terminated or truncated)

    return Case(model, name, 1, step, prepare, **about)


def vector_case(model: str, name: str, envs: gymnasium.vector.VectorEnv[Any, Any, Any], **about: Any) -> Case:
    """A vector environment under random actions."""
    return Case(model, name, envs.num_envs, random_player(envs), **about)


def sb3_case(model: str, name: str, envs: VecEnv, **about: Any) -> Case:
    """Games as Stable-Baselines3 steps them, under random actions."""
    rng = np.random.default_rng(0)
    num_actions = envs.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    envs.reset()
    return Case(
        model, name, envs.num_envs, lambda: envs.step(rng.integers(num_actions, size=envs.num_envs)), **about
    )


def wrapped(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """An environment under the wrappers agents commonly put on it."""
    env = RecordEpisodeStatistics(TimeLimit(env, HORIZON))
    return FrameStackObservation(GrayscaleObservation(env), 4)


def wrapped_vector(
    envs: gymnasium.vector.VectorEnv[Any, Any, Any],
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """A vector environment under the wrappers agents commonly put on it."""
    return vector_wrappers.GrayscaleObservation(vector_wrappers.RecordEpisodeStatistics(envs))


def world_model_case(model: str, name: str, world_model: WorldModel, num_envs: int, **about: Any) -> Case:
    """A world model alone: one step from the same random state again and again."""
    state = random_state(world_model, num_envs)
    act = state.act[:, -1]
    return Case(model, name, num_envs, lambda: world_model.step(state, act), **about)


def networks_case(model: str, world_model: WorldModel, num_envs: int, **about: Any) -> Case:
    """Only the passes through the networks that one step needs."""
    denoise = denoiser_passes(world_model, num_envs)
    judge = rew_end_pass(world_model, num_envs)

    def step() -> None:
        denoise()
        judge()

    return Case(model, "networks", num_envs, as_it_runs(step, world_model), **about)


def as_it_runs(step: Callable[[], None], world_model: WorldModel) -> Callable[[], None]:
    """Pass through networks as the world model makes them: as one CUDA graph if that is how it runs."""
    if not isinstance(world_model, GraphedWorldModel):
        return step
    graphs, nothing = Graphs(world_model.device), torch.zeros(0, device=world_model.device)

    def passes(x: Tensor) -> tuple[Tensor]:
        step()
        return (x,)

    def replay() -> None:
        graphs.run(passes, nothing)

    return replay


def denoiser_passes(world_model: WorldModel, num_envs: int) -> Callable[[], None]:
    """Make the passes through the denoiser's network that one step needs, and nothing else."""
    denoiser, act = world_model.denoiser, random_state(world_model, num_envs).act
    frame = torch.zeros(num_envs, *IMAGE_SHAPE, device=world_model.device)
    past = denoiser.fold_past(frame.repeat(1, world_model.num_steps_conditioning, 1, 1))
    noisy = denoiser.inner_model.fold(frame.to(denoiser.dtype))
    c_noise = torch.zeros(num_envs, device=world_model.device, dtype=denoiser.dtype)

    @torch.no_grad()
    def step() -> None:
        for _ in range(world_model.config.num_passes):
            denoiser.inner_model(noisy, c_noise, past, act)

    return step


def rew_end_pass(world_model: WorldModel, num_envs: int) -> Callable[[], None]:
    """Make the pass through the reward/end model that one step needs, and nothing else."""
    state = random_state(world_model, num_envs)
    frame = torch.zeros(num_envs, 1, *IMAGE_SHAPE, device=world_model.device)

    @torch.no_grad()
    def step() -> None:
        hx_cx = state.hx[None], state.cx[None]
        world_model.rew_end_model.predict_rew_end(frame, state.act[:, -1:], frame, hx_cx)

    return step


def random_state(world_model: WorldModel, num_envs: int) -> Any:
    """A state with random frames."""
    n = world_model.num_steps_conditioning
    frames = torch.randint(0, 256, (num_envs, n, *IMAGE_SHAPE), generator=torch.Generator().manual_seed(0))
    act = torch.zeros(num_envs, n, dtype=torch.int64)
    return world_model.start(frames.to(torch.uint8), act, torch.arange(num_envs))


def plain_world_model(agent: Agent, config: DiffusionSamplerConfig, device: torch.device) -> WorldModel:
    """The baseline: the same weights in eager float32 PyTorch, in its default memory layout."""
    agent = copy.deepcopy(agent).eval().float().to(device)
    for weight in agent.parameters():
        weight.data = weight.data.contiguous()
    return WorldModel(agent.denoiser, agent.rew_end_model, config)


def describe(world_model: WorldModel, num_envs: int) -> dict[str, Any]:
    """The columns of a case that say how its networks run, after a step that may choose it."""
    state = random_state(world_model, num_envs)
    world_model.step(state, state.act[:, -1])
    dtype, backend = name_of(world_model.denoiser.dtype), backend_of(world_model, num_envs)
    return {"device": str(world_model.device), "dtype": dtype, "backend": backend}


def checkpoint_cases(args: Settings, num_envs: int) -> list[Case]:
    """The environments around a checkpoint, its world model, its networks, and the plain baseline."""
    options = args.world_options()
    world_model = load_world(args.game, **options).world_model
    about, cases = {"device": str(world_model.device), "backend": "custom"}, []
    if isinstance(world_model, WorldModel):
        about = describe(world_model, num_envs)
        cases.append(networks_case(args.checkpoint, world_model, num_envs, **about))
        cases.append(world_model_case(args.checkpoint, "WorldModel", world_model, num_envs, **about))
    if num_envs == 1:
        env = DiamondEnv(args.game, **options)
        cases.append(env_case(args.checkpoint, "DiamondEnv", env, **about))
        env = wrapped(DiamondEnv(args.game, **options))
        cases.append(env_case(args.checkpoint, "DiamondEnv + wrappers", env, **about))
    envs = make_envs(args.game, num_envs, options)
    cases.append(vector_case(args.checkpoint, "DiamondVectorEnv", envs, **about))
    env_id = registration.env_id(registration.game_name(args.game))
    for_sb3 = make_sb3_vec_env(env_id, num_envs, max_episode_steps=HORIZON, seed=0, **options)
    cases.append(sb3_case(args.checkpoint, "BatchedVecEnv (SB3)", for_sb3, **about))
    envs = wrapped_vector(make_envs(args.game, num_envs, options))
    cases.append(vector_case(args.checkpoint, "DiamondVectorEnv + wrappers", envs, **about))
    if args.baseline and isinstance(world_model, WorldModel):
        agent = load_world(args.game, **{**options, "dtype": "float32", "backend": "eager"}).agent
        assert agent is not None
        plain = plain_world_model(agent, world_model.config, world_model.device)
        cases.append(
            world_model_case(args.checkpoint, "baseline", plain, num_envs, **describe(plain, num_envs))
        )
    return cases


def paper_agent() -> Agent:
    """Denoiser and reward/end model of the published sizes, with random weights."""
    torch.manual_seed(0)
    return Agent(AgentConfig(num_actions=4), with_actor_critic=False)


def paper_cases(args: Settings, num_envs: int) -> list[Case]:
    """The paper-size model with random weights, beside the plain baseline."""
    config = DiffusionSamplerConfig(num_steps_denoising=args.num_denoising_steps or 3)
    agent = paper_agent()
    plain_agent = copy.deepcopy(agent)
    world_model = build_world_model(agent, config, device=args.device, dtype=args.dtype, backend=args.backend)
    plain = plain_world_model(plain_agent, config, world_model.device)
    about = describe(world_model, num_envs)
    return [
        networks_case("paper size", world_model, num_envs, **about),
        world_model_case("paper size", "WorldModel", world_model, num_envs, **about),
        world_model_case("paper size", "baseline", plain, num_envs, **describe(plain, num_envs)),
    ]


def real_cases(game: str, num_envs: int) -> list[Case]:
    """The real game, as its world models saw it and as ale_py steps it fastest."""
    game = registration.game_name(game)
    rom_id = next(rom for rom in roms.get_all_rom_ids() if rom.title().replace("_", "") == game)
    cases = [vector_case("the real game", "AtariVectorEnv", AtariVectorEnv(rom_id, num_envs))]
    if num_envs == 1:
        cases.append(env_case("the real game", "AtariEnv", AtariEnv(game, training=True)))
    return cases


def print_header() -> None:
    """Print the column names of `print_row`."""
    print(
        f"{'model':<14} {'what':<28} {'envs':>5} {'device':<7} {'dtype':<9} {'backend':<10} "
        f"{'steps/s':>9} {'p50 ms':>8} {'p95 ms':>8} {'overhead':>9} {'speedup':>8}"
    )


def print_row(row: Row) -> None:
    """Print a line of the table."""
    overhead = "" if row.overhead_ms is None else f"{row.overhead_ms:.2f} ms"
    speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
    print(
        f"{Path(row.model).name[:14]:<14} {row.name:<28} {row.num_envs:>5} {row.device:<7} {row.dtype:<9} "
        f"{row.backend:<10} {row.env_steps_per_second:>9.1f} {row.p50_ms:>8.2f} {row.p95_ms:>8.2f} "
        f"{overhead:>9} {speedup:>8}",
        flush=True,
    )


def rounds(args: Settings) -> list[tuple[Settings, int]]:
    """The rounds of measurements: what is measured, and for how many games."""
    is_cpu = pick_device(args.device).type == "cpu"
    numbers = args.num_envs or (NUM_ENVS if is_cpu else NUM_ENVS_ON_ACCELERATORS)
    if args.compilers and is_cpu:
        args = replace(args, backend="eager")
    asked = [(args, num_envs) for num_envs in numbers]
    if args.compilers and is_cpu:
        asked += [(replace(args, backend=name, real=False), 1) for name in ("inductor", "openvino")]
    return asked


def wanted_cases(args: Settings, num_envs: int) -> Iterator[list[Case]]:
    """The groups of cases that are compared with each other."""
    if args.embedded:
        yield checkpoint_cases(args, num_envs)
    if args.real:
        yield real_cases(args.game, num_envs)
    if args.paper:
        yield paper_cases(args, num_envs)


def run(args: Settings, about: dict[str, Any]) -> None:
    """Measures, prints and writes everything."""
    if args.keep_memory:
        keep_freed_memory()
    print_header()
    rows: list[Row] = []
    for asked, num_envs in rounds(args):
        for cases in wanted_cases(asked, num_envs):
            measured = measure(cases, args.seconds)
            for row in measured:
                print_row(row)
            rows += measured
    if args.json is not None:
        asked = {"game": registration.game_name(args.game), "checkpoint": args.checkpoint}
        write_rows(args.json, rows, about | asked)


COMMAND = cli.Command(
    "python -m benchmarks.throughput",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
