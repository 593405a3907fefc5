"""Group norm, scale, shift and SiLU as one operator that reads images twice and writes them once.

PyTorch's group norm on CUDA needs another memory layout than its fastest convolutions, so that each norm
between two of them costs two conversions; and this operator replaces four. It is for inference on CUDA in
channels_last, where Triton is installed and works.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_BLOCK = 256
"""Number of pixels per program of a kernel."""


def applies_to(x: Tensor) -> bool:
    """Whether `norm_scale_shift_silu` can replace PyTorch's operators for these images."""
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_available(x.device)
    )


@functools.cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels run on a device; warns where Triton is installed but does not work."""
    try:
        import triton  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    ones = torch.ones(1, 32, device=device)
    try:
        norm_scale_shift_silu(torch.zeros(1, 32, 2, 2, device=device), 1, ones, ones, 1e-5)
    except Exception as error:  # any error of a compiler
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"Triton does not work here, group norms are slower without it: {reason}", stacklevel=2)
        return False
    return True


def norm_scale_shift_silu(
    x: Float[Tensor, "b c h w"],
    num_groups: int,
    scale: Float[Tensor, "b c"],
    shift: Float[Tensor, "b c"],
    eps: float,
) -> Float[Tensor, "b c h w"]:
    """Compute `silu(group_norm(x) * scale + shift)` in float32, in channels_last.

    Args:
        x: Images in any layout.
        num_groups: Number of groups, which divides the number of channels.
        scale: Scales of each image's channels; rows may have any stride, also 0.
        shift: As `scale`.
        eps: Added to the variance.
    """
    from diamond_gym.world.models import norm_kernels

    kernels: Any = norm_kernels
    x = x.contiguous(memory_format=torch.channels_last)
    b, c, h, w = x.shape
    pixels, width = h * w, c // num_groups
    block = min(_MAX_BLOCK, _power_of_two(pixels))
    num_blocks = -(-pixels // block)
    out = torch.empty_like(x)
    partial = torch.empty(b * num_groups, num_blocks, 2, dtype=torch.float32, device=x.device)
    grid, tile = (b * num_groups, num_blocks), {"BLOCK": block, "WIDTH": _power_of_two(width), "num_warps": 8}
    sizes = num_groups, pixels, c, width
    scale, shift = (v if v.stride(1) == 1 else v.contiguous() for v in (scale, shift))
    strides = scale.stride(0), shift.stride(0)
    with torch.cuda.device_of(x):
        kernels.moments[grid](x, partial, *sizes, **tile)
        kernels.normalize[grid](
            x, partial, scale, shift, out, *strides, *sizes, eps, **tile, BLOCKS=_power_of_two(num_blocks)
        )
    return out


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
