"""Frames: conversion between uint8 [0, 255] and the networks' float32 [-1, 1], and PSNR.

`quantize` rounds *down*: the released DIAMOND weights were trained on frames truncated to 256 levels.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

PSNR_CAP = 60.0
"""Largest PSNR in dB: without a cap, one exact frame would make a mean infinite."""


def to_float(frames: UInt8[Tensor, "..."], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Map uint8 levels 0..255 to [-1, 1].

    The result is bit for bit `frames / 255 * 2 - 1`, since doubling is exact, with one pass less over memory.
    """
    return frames.to(dtype).div_(127.5).sub_(1)


def to_uint8(frames: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Map already quantised frames in [-1, 1] to their uint8 level (nearest: inverts `to_float`)."""
    return frames.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def truncate_to_uint8(frames: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Map any frames to uint8 levels, clamped to [-1, 1] first and truncated, as the published code does."""
    return frames.float().clamp(-1, 1).add_(1).div_(2).mul_(255).to(torch.uint8)


def quantize(frames: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamp to [-1, 1] and truncate to 256 levels: `floor((x + 1) / 2 * 255)`, back in [-1, 1], float32."""
    return to_float(truncate_to_uint8(frames))


def mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared difference of frames (..., c, h, w), in levels of 0..255 squared."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.asarray(np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64))


def psnr(mse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB for 8-bit frames, `10 log10(255^2 / mse)`, at most `PSNR_CAP`."""
    floor = 255.0**2 / 10 ** (PSNR_CAP / 10)
    return np.asarray(10 * np.log10(255.0**2 / np.maximum(mse, floor)))
