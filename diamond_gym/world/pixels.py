"""The only place that converts frames between uint8 [0, 255] and the networks' float32 [-1, 1].

`quantize` rounds *down*: the released DIAMOND weights were trained on frames truncated to 256 levels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(frames: UInt8[Tensor, "..."], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Maps uint8 levels 0..255 to [-1, 1].

    To the last bit `frames / 255 * 2 - 1`, since doubling is exact, in one pass over memory less.
    """
    return frames.to(dtype).div_(127.5).sub_(1)


def to_uint8(frames: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Maps already quantised frames in [-1, 1] to their uint8 level (nearest: inverts `to_float`)."""
    return frames.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def truncate_to_uint8(frames: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Maps any frames to uint8 levels, clamped to [-1, 1] first and truncated, as the published code does."""
    return frames.float().clamp(-1, 1).add_(1).div_(2).mul_(255).to(torch.uint8)


def quantize(frames: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamps to [-1, 1] and truncates to 256 levels: `floor((x + 1) / 2 * 255)`, back in [-1, 1], float32."""
    return to_float(truncate_to_uint8(frames))
