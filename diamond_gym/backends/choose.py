"""Choose how a world model runs: its device, its precision and its backend. This is the only place that does.

The backends, all of which imagine the same game up to rounding:

- "eager": PyTorch, operation by operation.
- "inductor": PyTorch's compiler, which takes up to a minute at the first batch; on CUDA what it compiled is
  recorded as CUDA graphs.
- "openvino": OpenVINO on the CPU for a single game and for up to 16 games of a vector environment, eager
  PyTorch for other batches; the first conversion takes seconds.
- "cuda_graph": on CUDA, a whole step is recorded once and launched again as a graph.

The rules follow measurements (`docs/performance.md`). The module does not depend on files, games or
Gymnasium, or on how a choice is carried out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from diamond_gym.backends.inductor import require_inductor
from diamond_gym.backends.names import BACKENDS, WHY_NO_INT8, Backend
from diamond_gym.backends.openvino import require_openvino
from diamond_gym.errors import DeviceError, InvalidInputError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENVIRONMENT_VARIABLE = "DIAMOND_GYM_BACKEND"
"""Names the backend that "auto" stands for in world models."""
_CPU_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Placement:
    """How a world model runs.

    Attributes:
        device: Where its networks are.
        dtype: Their precision.
        backend: What runs them; never "auto".
        tries_openvino: Whether OpenVINO is used instead where it turns out to be faster.
    """

    device: torch.device
    dtype: torch.dtype
    backend: Backend
    tries_openvino: bool = False


def choose(device: str = "auto", dtype: str = "auto", backend: str = "auto") -> Placement:
    """Check the device, precision and backend asked for, and choose those that are "auto".

    Args:
        device: "auto" (CUDA where available, else the CPU), "cpu", "cuda", "cuda:1", "mps", ...
        dtype: "float32", "bfloat16", on accelerators also "float16"; "auto" is bfloat16 where the hardware
            multiplies it (AMX, AVX-512 BF16, most CUDA), else float32.
        backend: "eager", "inductor", "openvino", "cuda_graph"; "auto" is what the environment variable
            `DIAMOND_GYM_BACKEND` names, else CUDA graphs on CUDA, and on CPUs eager PyTorch, or OpenVINO for
            up to 16 games where it is installed and a trial finds it faster.

    Raises:
        InvalidInputError: An argument is not one of those accepted.
        DeviceError: The device is not available, or the backend needs another one.
        MissingDependencyError: What the backend needs is not installed.
    """
    place = pick_device(device)
    backend = _automatic() if backend == "auto" else backend
    tries_openvino = backend == "auto" and place.type == "cpu" and find_spec("openvino") is not None
    return Placement(place, pick_dtype(dtype, place), pick_backend(backend, place), tries_openvino)


def _automatic() -> str:
    """What "auto" stands for: the backend that the environment variable names, else still "auto"."""
    backend = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if backend not in BACKENDS:
        raise InvalidInputError(
            f"the variable {ENVIRONMENT_VARIABLE} is one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    return backend


def pick_backend(backend: str, device: torch.device) -> Backend:
    """The backend of a `backend` argument on a device.

    Raises:
        InvalidInputError: Not one of those accepted.
        DeviceError: It needs another device.
        MissingDependencyError: What it needs is not installed.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise InvalidInputError(f"backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cuda_graph" and device.type != "cuda":
        raise DeviceError(_needs(backend, "a CUDA device", device, "cuda"))
    if backend == "openvino" and device.type != "cpu":
        raise DeviceError(_needs(backend, "the CPU", device, "cpu"))
    if backend == "openvino":
        require_openvino()
    if backend == "inductor":
        require_inductor(device)
    return fastest_backend(device) if backend == "auto" else backend


def fastest_backend(device: torch.device) -> Backend:
    """Return the choice of "auto" before any trial: CUDA graphs on CUDA, elsewhere eager PyTorch.

    PyTorch's compiler is faster only for a single game on a CPU, after up to a minute of compilation, so it
    is used only on request.
    """
    return "cuda_graph" if device.type == "cuda" else "eager"


def records_cuda_graphs(backend: Backend, device: torch.device) -> bool:
    """Whether steps are recorded as CUDA graphs, as those of compiled networks are too."""
    return device.type == "cuda" and backend != "eager"


def merges_copies_in_upsampling(device: torch.device) -> bool:
    """Whether upsampling is faster with the copies of a pixel merged; both ways are equal up to rounding."""
    return device.type == "cpu"


def has_onednn_convolutions(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes convolutions of a precision on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def trains_fast_in_channels_last(device: torch.device) -> bool:
    """Whether the gradients of convolutions are faster in channels_last too, as the convolutions are.

    On CPUs without AVX-512 those of the weights take twice as long as in PyTorch's default layout. With it, a
    training step of the denoiser takes 0.92 of the time in float32, and 0.72 in bfloat16 on AMX.
    """
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def available_devices() -> list[str]:
    """Return the names of this machine's devices, "cpu" first."""
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
        why = f"; in int8 {WHY_NO_INT8}" if dtype == "int8" else ""
        raise InvalidInputError(
            f"dtype on {device.type} is one of {', '.join(('auto', *accepted))}, got {dtype!r}{why}"
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
    is_supported = getattr(torch.cpu, f"_is_{unit}_supported", None)  # not public, so it may disappear
    return is_supported is not None and bool(is_supported())


def _needs(backend: str, needed: str, device: torch.device, kind: str) -> str:
    others = ", ".join(other for other in BACKENDS if other != backend)
    return (
        f'backend="{backend}" needs {needed}, and the device is {device}: pass device="{kind}" where it is '
        f"available, or choose another backend ({others})"
    )
