"""Places a world model on a device so that it imagines fast: device, precision, memory layout, compilation.

Knows what measured well on which hardware; nothing of files, games or Gymnasium. Whatever is chosen here, the
same game is imagined, up to rounding.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from typing import Any

import torch
from torch import nn

from diamond_gym.backends.cuda_graphs import GraphedWorldModel
from diamond_gym.backends.memory import keep_freed_memory
from diamond_gym.backends.openvino import OpenVinoForward, require_openvino
from diamond_gym.backends.waiting import log_if_slow
from diamond_gym.errors import DeviceError, InvalidInputError
from diamond_gym.world.models import Agent
from diamond_gym.world.models.blocks import Upsample
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_DTYPES = ("float32", "bfloat16")


def build_world_model(
    agent: Agent,
    config: DiffusionSamplerConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool | str = "auto",
) -> WorldModel:
    """The world model of an agent, ready to imagine.

    The agent's denoiser and reward/end model are moved and converted in place; its actor-critic stays as is.

    Args:
        agent: The networks.
        config: How frames are sampled.
        device: "auto" (CUDA where available, else the CPU), "cpu", "cuda", "cuda:1", "mps", ...
        dtype: Precision of the networks: "float32", "bfloat16", on accelerators also "float16"; "auto" is
            bfloat16 where the hardware multiplies it (AMX, AVX-512 BF16, most CUDA), else float32. Noise,
            sampler, LSTM and frames are in float32 whatever is chosen.
        compile: True compiles the networks when they meet their first batch, which takes up to a minute and
            is told on standard error; without a C++ compiler it warns and does not. "openvino", on the CPU,
            runs single games in OpenVINO, see `OpenVinoForward`. "auto" does neither. On
            CUDA both run as CUDA graphs, see `GraphedWorldModel`; False is plain eager PyTorch everywhere.

    Raises:
        InvalidInputError: An argument is not one of those accepted.
        DeviceError: The device is not available.
        MissingDependencyError: OpenVINO is not installed.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    _check_compilation(compile, place)
    compiles = compile is True and can_compile(place)
    keep_freed_memory()
    networks: list[nn.Module] = [agent.denoiser.inner_model, agent.rew_end_model.encoder]
    for network in networks:
        network.__dict__.pop("forward", None)  # of an earlier placement
    for network in (agent.denoiser, agent.rew_end_model):
        network.eval().to(place, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    choose_upsampling(agent.denoiser, place)
    if compile == "openvino":
        for network in networks:
            network.forward = OpenVinoForward(network, precision)
    agent.denoiser.to(precision)
    agent.rew_end_model.encoder.to(precision)
    agent.rew_end_model.act_emb.to(precision)
    if compiles:
        for network in networks:
            network.forward = _CompiledForward(network)
    make = world_model_kind(place) if compile else WorldModel
    return make(agent.denoiser, agent.rew_end_model, config)


def world_model_kind(device: torch.device) -> type[WorldModel]:
    """The class that imagines fastest on a device."""
    return GraphedWorldModel if device.type == "cuda" else WorldModel


def choose_upsampling(network: nn.Module, device: torch.device) -> None:
    """Has a network upsample in the way that is faster on a device; both ways are equal up to rounding."""
    for module in network.modules():
        if isinstance(module, Upsample):
            module.merges_copies = device.type == "cpu"


def trains_fast_in_channels_last(device: torch.device) -> bool:
    """Whether the gradients of convolutions are faster in channels_last too, as the convolutions are.

    On CPUs without AVX-512 those of the weights take twice as long as in PyTorch's default layout. With it, a
    training step of the denoiser takes 0.92 of the time in float32, and 0.72 in bfloat16 on AMX.
    """
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def available_devices() -> list[str]:
    """Names of the devices this machine has, "cpu" first."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]


def pick_device(device: str) -> torch.device:
    """The device of a `device` argument.

    Raises:
        InvalidInputError: Not the name of a device.
        DeviceError: The device is not available.
    """
    device = str(device) if isinstance(device, torch.device) else device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = re.fullmatch(r"([a-z]+)(?::(\d+))?", device) if isinstance(device, str) else None
    if name is None:
        raise InvalidInputError(f'device is "auto", "cpu", "cuda", "cuda:1", ..., got {device!r}')
    kind, index = name[1], int(name[2] or 0)
    available = available_devices()
    if f"{kind}:{index}" not in [*available, "cpu:0"]:
        raise DeviceError(f"device {device!r} is not available: this machine has {', '.join(available)}")
    return torch.device("cpu") if kind == "cpu" else torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The precision of a `dtype` argument on a device.

    Raises:
        InvalidInputError: Not one of those accepted there.
    """
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else dtype
    accepted = _CPU_DTYPES if device.type == "cpu" else tuple(_DTYPES)
    if dtype == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if dtype not in accepted:
        raise InvalidInputError(
            f"dtype on {device.type} is one of {', '.join(('auto', *accepted))}, got {dtype!r}"
        )
    return _DTYPES[dtype]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    On CPUs that is AMX or AVX-512 BF16: there the embedded worlds imagine 1.6 to 2 times as fast as in
    float32, and frames imagined in either agree to 59 dB, about what rounding to 256 levels costs anyway.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(_cpu_has(unit) for unit in ("amx_tile", "avx512_bf16"))


def _cpu_has(unit: str) -> bool:
    is_supported = getattr(torch.cpu, f"_is_{unit}_supported", None)  # not public, so it may go
    return is_supported is not None and bool(is_supported())


def _check_compilation(compile: bool | str, device: torch.device) -> None:
    if not isinstance(compile, bool) and compile not in ("auto", "openvino"):
        raise InvalidInputError(f'compile is True, False, "auto" or "openvino", got {compile!r}')
    if compile == "openvino" and device.type != "cpu":
        raise InvalidInputError(
            f'compile="openvino" is for the CPU, and the device is {device}: pass device="cpu" too'
        )
    if compile == "openvino":
        require_openvino()


def how_compiled(world_model: WorldModel, num_games: int) -> bool | str:
    """What runs the networks for so many games: True (PyTorch's compiler), "openvino", or False."""
    forward = world_model.denoiser.inner_model.forward
    if isinstance(forward, OpenVinoForward):
        return "openvino" if num_games == 1 else False
    return isinstance(forward, _CompiledForward)


def can_compile(device: torch.device) -> bool:
    """Whether a device's compiler is there; warns where a CPU has none."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if device.type != "cpu" or shutil.which(compiler):
        return True
    warnings.warn(
        f"compilation needs a C++ compiler and {compiler} is not installed: going on uncompiled",
        stacklevel=3,
    )
    return False


class _CompiledForward:
    """A compiled forward pass of a network that tells how long compilation took.

    PyTorch compiles for the first batch size, then once more for any; 1 is always apart.
    """

    def __init__(self, network: nn.Module) -> None:
        self.name = type(network).__name__
        self.forward = torch.compile(network.forward)
        self.batch_sizes: set[int] = set()

    def __call__(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(x) in self.batch_sizes:
            return self.forward(x, *args)
        self.batch_sizes.add(len(x))
        with log_if_slow(f"compiled {self.name} for batches of {len(x)}"):
            return self.forward(x, *args)
