"""Where the time of an imagined step must go: the floor that this machine sets, and how far above it we are.

    python -m benchmarks.floor --num-envs 1 32 --readme docs/performance.md

For the paper-size model (random weights) and the embedded one, a step's work is counted, the machine's rates
are measured in turns with the step, and

    floor = the longer of   FLOPs / rate of large matrix products, in each precision
                      and   bytes moved / rate of copying large arrays.

FLOPs are those of convolutions, matrix products, attention and LSTM, as they are computed here (a product
and a sum are two); others are few. Bytes moved are an estimate: the same operators read each of their weights
and inputs once, and write their outputs once, as if all between them were fused into them. "All operators" is
what moves where nothing is: every operator reads its inputs and writes its outputs. What stays in the caches
moves faster than a copy of large arrays, so a step may take less than its bytes say.

Rates are those of the fastest repeat, steps are medians. "Calls" are the operators that a step calls one
after the other; they alone would take "call ms", at the price of the smallest of operators. On CUDA the rate
of float32 is that of products in TF32 where convolutions may use it, which is PyTorch's default; operators
are counted without CUDA graphs, and steps measured with them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.markers import read_around, replace_section
from benchmarks.rows import (
    PlacedSettings,
    in_turns,
    name_of,
    run_benchmark,
    short_commit,
    time_step,
    write_rows,
)
from benchmarks.throughput import (
    denoiser_passes,
    num_denoiser_passes,
    paper_agent,
    random_state,
    rew_end_pass,
)
from diamond_gym import cli
from diamond_gym.backends.build import build_world_model, world_model_kind
from diamond_gym.backends.choose import fastest_backend
from diamond_gym.checkpoints import load_world
from diamond_gym.cli import option
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel

SECTION = "floor"
LSTMS = ("aten.mkldnn_rnn_layer", "aten._cudnn_rnn", "aten.miopen_rnn")
"""LSTMs that are one operator, which PyTorch's own counter of FLOPs leaves out."""
NUM_CALLS = 1_000
"""Calls of the smallest operator that are timed together."""


@dataclass
class Settings(PlacedSettings):
    """What is measured."""

    num_envs: list[int] = option([1, 32], "games at once", least=1)
    paper: bool = option(True, "measure a paper-size model with random weights, too")
    matmul_size: int | None = option(
        None,
        "rows of the square matrices whose product gives the rate; without it 1024, on accelerators 8192",
        least=1,
    )
    copy_megabytes: int = option(
        256, "size of the array whose copy gives the rate, far above the caches", least=1
    )
    readme: Path | None = option(
        None, f"text to put the table into, between <!-- {SECTION} --> and <!-- /{SECTION} -->"
    )
    seconds: float = option(3.0, "for each row", above=0)


@dataclass
class Work:
    """What operators had to do.

    Attributes:
        flops: By the precision of their factors.
        weight_bytes: Weights that convolutions, products, attention and LSTM read.
        activation_bytes: What else those read and wrote.
        all_bytes: What all operators read and wrote.
    """

    flops: Counter[torch.dtype]
    weight_bytes: int = 0
    activation_bytes: int = 0
    all_bytes: int = 0

    @property
    def total_flops(self) -> int:
        """In all precisions."""
        return sum(self.flops.values())


class WorkCounter(TorchDispatchMode):
    """Counts the work of the operators called in its context.

    Args:
        weights: Tensors that count as weights.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.work = Work(Counter())
        self._weights = {weight.data_ptr() for weight in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._count(func, args, kwargs or {}, out)
        return out

    def _count(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        self.work.all_bytes += num_bytes([*inputs, *outputs])
        flops = count_flops(func, args, kwargs, out)
        if flops is None:
            return
        weights = [x for x in inputs if x.data_ptr() in self._weights]
        self.work.flops[inputs[0].dtype] += flops
        self.work.weight_bytes += num_bytes(weights)
        self.work.activation_bytes += num_bytes([*inputs, *outputs]) - num_bytes(weights)


def count_flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of an operator; None of those that are not counted."""
    packet = func.overloadpacket
    if str(packet) in LSTMS:
        inputs = tensors(args)
        time_and_batch = inputs[0].shape[0] * inputs[0].shape[1]
        weights = [x for x in inputs[1:5] if x.ndim == 2]  # then come the biases, then the state
        return 2 * time_and_batch * sum(x.numel() for x in weights)
    formula = flop_registry.get(packet)
    return None if formula is None else formula(*args, **kwargs, out_val=out)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested sequences and dicts."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def num_bytes(some: Iterable[Tensor]) -> int:
    """Bytes of tensors' elements."""
    return sum(x.numel() * x.element_size() for x in some)


def work_of(step: Callable[[], Any], world_model: WorldModel) -> Work:
    """What a step has to do."""
    step()  # what is computed once and kept
    weights = [*world_model.denoiser.parameters(), *world_model.rew_end_model.parameters()]
    with WorkCounter(weights) as counter:
        step()
    return counter.work


def count_calls(step: Callable[[], Any]) -> int:
    """Operators that a step calls one after the other; what they call in turn does not count."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = profiled.events() or []
    return sum(event.name.startswith("aten::") and event.cpu_parent is None for event in events)


def product(dtype: torch.dtype, size: int, device: torch.device) -> Callable[[], Any]:
    """Multiplies two square matrices, in TF32 where convolutions use it: 2 size^3 FLOPs."""
    # random: a GPU multiplies ones faster than it ever does anything else
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    cuda = torch.backends.cuda.matmul

    def step() -> None:
        before, cuda.allow_tf32 = cuda.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.mm(a, b, out=out)
        cuda.allow_tf32 = before

    return step


def copy(megabytes: int, device: torch.device) -> Callable[[], Any]:
    """Copies so many megabytes, which reads and writes them."""
    source = torch.ones(megabytes * 10**6, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def small_calls(device: torch.device) -> Callable[[], Any]:
    """Calls the smallest of operators again and again."""
    x = torch.zeros(1, device=device)

    def step() -> None:
        for _ in range(NUM_CALLS):
            x.add_(1)

    return step


@dataclass(frozen=True)
class FloorRow:
    """The floor of a world model's step beside what it takes: a line of the tables and of the JSON file.

    Attributes:
        model: "paper size", or the checkpoint.
        num_envs: Games at once.
        device: Where it runs.
        dtype: Precision of the networks.
        denoiser_passes: Passes through the denoiser in a step.
        denoiser_flops: Of all its passes.
        rew_end_flops: Of the reward/end model.
        weight_bytes: Weights read.
        activation_bytes: Activations read and written, an estimate, see `Work`.
        all_operators_bytes: What all operators read and write, if nothing is fused.
        num_calls: Operators called one after the other.
        flops_per_second: Of large matrix products, by precision.
        bytes_per_second: Read and written by copies of large arrays.
        seconds_per_call: Of the smallest operator.
        flops_ms: What the FLOPs take at that rate.
        bytes_ms: What weights and activations take at that rate.
        calls_ms: What the calls alone take.
        floor_ms: The longer of `flops_ms` and `bytes_ms`.
        measured_ms: Median of a step.
        gap: `measured_ms / floor_ms`.
        repeats: Steps measured.
    """

    model: str
    num_envs: int
    device: str
    dtype: str
    denoiser_passes: int
    denoiser_flops: int
    rew_end_flops: int
    weight_bytes: int
    activation_bytes: int
    all_operators_bytes: int
    num_calls: int
    flops_per_second: dict[str, float]
    bytes_per_second: float
    seconds_per_call: float
    flops_ms: float
    bytes_ms: float
    calls_ms: float
    floor_ms: float
    measured_ms: float
    gap: float
    repeats: int


def measure(model: str, world_model: WorldModel, num_envs: int, args: Settings) -> FloorRow:
    """Counts a step's work, and measures it in turns with the machine's rates."""
    device, state = world_model.device, random_state(world_model, num_envs)
    act = state.act[:, -1]
    step = partial(world_model.step, state, act)
    as_it_runs = partial(fastest(world_model).step, state, act)
    work = work_of(step, world_model)
    parts = [
        work_of(passes(world_model, num_envs), world_model).total_flops
        for passes in (denoiser_passes, rew_end_pass)
    ]
    size = args.matmul_size or (1024 if device.type == "cpu" else 8192)
    timed = {dtype: product(dtype, size, device) for dtype in work.flops}
    others = [copy(args.copy_megabytes, device), small_calls(device), as_it_runs]
    runs = [partial(time_step, one, device.type) for one in (*timed.values(), *others)]
    seconds = [[took.seconds for took in repeats] for repeats in in_turns(runs, args.seconds)]
    rates = {dtype: 2 * size**3 / min(times) for dtype, times in zip(timed, seconds, strict=False)}
    copied, called, stepped = seconds[-3:]
    bandwidth, per_call = 2 * args.copy_megabytes * 10**6 / min(copied), min(called) / NUM_CALLS
    flops_ms = 1e3 * sum(flops / rates[dtype] for dtype, flops in work.flops.items())
    bytes_ms = 1e3 * (work.weight_bytes + work.activation_bytes) / bandwidth
    num_calls, measured_ms = count_calls(step), 1e3 * float(np.median(stepped))
    return FloorRow(
        model=model,
        num_envs=num_envs,
        device=str(device),
        dtype=name_of(world_model.denoiser.dtype),
        denoiser_passes=num_denoiser_passes(world_model.config),
        denoiser_flops=parts[0],
        rew_end_flops=parts[1],
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
        all_operators_bytes=work.all_bytes,
        num_calls=num_calls,
        flops_per_second={name_of(dtype): rate for dtype, rate in rates.items()},
        bytes_per_second=bandwidth,
        seconds_per_call=per_call,
        flops_ms=flops_ms,
        bytes_ms=bytes_ms,
        calls_ms=1e3 * num_calls * per_call,
        floor_ms=max(flops_ms, bytes_ms),
        measured_ms=measured_ms,
        gap=measured_ms / max(flops_ms, bytes_ms),
        repeats=len(stepped),
    )


def fastest(world_model: WorldModel) -> WorldModel:
    """The same networks as they imagine by default on their device; their operators cannot be counted."""
    kind = world_model_kind(fastest_backend(world_model.device), world_model.device)
    return kind(world_model.denoiser, world_model.rew_end_model, world_model.config)


def world_models(args: Settings) -> Iterator[tuple[str, WorldModel]]:
    """The world models that are asked for, and their names, one after the other."""
    placed: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "backend": "eager"}
    if args.paper:
        config = DiffusionSamplerConfig(num_steps_denoising=args.num_denoising_steps or 3)
        yield "paper size", build_world_model(paper_agent(), config, **placed)
    steps = args.num_denoising_steps
    world = load_world(args.game, args.checkpoint, num_denoising_steps=steps, **placed)
    yield args.checkpoint, world.world_model


def table(rows: Sequence[FloorRow]) -> str:
    """What is counted and measured, in Markdown."""
    names = (
        "model, games",
        "GFLOP denoiser",
        "reward/end",
        "MB weights",
        "activations",
        "all operators",
        "calls",
        "call ms",
        "FLOP ms",
        "byte ms",
        "floor ms",
        "measured ms",
        "gap",
    )
    lines = [f"| {' | '.join(names)} |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in rows:
        values = [
            row.denoiser_flops / 1e9,
            row.rew_end_flops / 1e9,
            row.weight_bytes / 1e6,
            row.activation_bytes / 1e6,
            row.all_operators_bytes / 1e6,
        ]
        times = [row.calls_ms, row.flops_ms, row.bytes_ms, row.floor_ms, row.measured_ms]
        cells = [f"{Path(row.model).name}, {row.num_envs} ({row.dtype})", *map(number, values)]
        cells += [str(row.num_calls), *map(number, times), f"{row.gap:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rates_text(rows: Sequence[FloorRow], about: dict[str, Any]) -> str:
    """The machine, and its fastest rates while any of the rows were measured."""
    products = {name: 0.0 for row in rows for name in row.flops_per_second}
    for row in rows:
        for name, rate in row.flops_per_second.items():
            products[name] = max(products[name], rate)
    rates = ", ".join(f"{number(rate / 1e9)} GFLOP/s in {name}" for name, rate in products.items())
    place = f"{about['cpu']}, threads: {about['num_threads']}"
    place += f", {about['gpu']}" if rows[0].device != "cpu" else ""
    bandwidth = number(max(row.bytes_per_second for row in rows) / 1e9)
    call = number(1e6 * min(row.seconds_per_call for row in rows))
    return (
        f"One run of `python -m benchmarks.floor` on {place}; PyTorch {about['torch']}, commit "
        f"{short_commit(about)}.\n"
        f"Matrix products {rates}; copies read and write {bandwidth} GB/s; the smallest call takes "
        f"{call} microseconds. Bytes are an estimate, see above."
    )


def number(x: float) -> str:
    """Three significant digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:#.3g}".rstrip(".")


def run(args: Settings, about: dict[str, Any]) -> None:
    """Measures, prints and writes everything."""
    if args.readme is not None:
        read_around(args.readme, SECTION)
    rows = []
    for model, world_model in world_models(args):
        for num_envs in args.num_envs:
            print(f"{model}, {num_envs} games", file=sys.stderr)
            rows.append(measure(model, world_model, num_envs, args))
            print(f"{rows[-1].flops_ms / rows[-1].measured_ms:.1%} of the rate of products", file=sys.stderr)
    section = f"{table(rows)}\n\n{rates_text(rows, about)}"
    print(section)
    if args.json is not None:
        write_rows(args.json, rows, about)
    if args.readme is not None:
        replace_section(args.readme, SECTION, section)


COMMAND = cli.Command(
    "python -m benchmarks.floor",
    __doc__ or "",
    Settings,
    lambda settings: run_benchmark(partial(run, settings), threads=settings.threads),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
