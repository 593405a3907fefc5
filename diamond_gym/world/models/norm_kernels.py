"""Triton kernels of `diamond_gym.world.models.fused_norm`; importing this module needs Triton.

Images are in channels_last: pixel after pixel, with all channels of a pixel beside each other.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_tile(x, image, group, block, pixels, channels, width, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Load pixels of a group's channels as float32, with their offsets in the image and which exist."""
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH)
    offsets = pixel[:, None] * channels + group * width + channel[None, :]
    exists = (pixel < pixels)[:, None] & (channel < width)[None, :]
    first = x + image.to(tl.int64) * pixels * channels
    return tl.load(first + offsets, mask=exists, other=0.0).to(tl.float32), offsets, exists


@triton.jit
def moments(x, out, groups, pixels, channels, width, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Compute each block's mean and sum of squared deviations, for each group of channels.

    Program (i * groups + g, k) writes its two numbers to `out` (images * groups, blocks, 2).
    """
    row, block = tl.program_id(0), tl.program_id(1)
    image, group = row // groups, row % groups
    tile, _, exists = _load_tile(x, image, group, block, pixels, channels, width, BLOCK, WIDTH)
    count = tl.minimum(pixels - block * BLOCK, BLOCK) * width
    mean = tl.sum(tile) / count
    deviation = tl.where(exists, tile - mean, 0.0)
    target = out + (row * tl.num_programs(1) + block) * 2
    tl.store(target, mean)
    tl.store(target + 1, tl.sum(deviation * deviation))


@triton.jit
def normalize(
    x,
    partial,
    scale,
    shift,
    out,
    scale_stride,
    shift_stride,
    groups,
    pixels,
    channels,
    width,
    eps,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute SiLU of the normalised images, scaled and shifted; `partial` is the output of `moments`."""
    row, block = tl.program_id(0), tl.program_id(1)
    image, group = row // groups, row % groups
    tile, offsets, exists = _load_tile(x, image, group, block, pixels, channels, width, BLOCK, WIDTH)
    num_blocks = tl.num_programs(1)
    k = tl.arange(0, BLOCKS)
    counts = tl.minimum(tl.maximum(pixels - k * BLOCK, 0), BLOCK) * width
    means = tl.load(partial + (row * num_blocks + k) * 2, mask=k < num_blocks, other=0.0)
    squares = tl.load(partial + (row * num_blocks + k) * 2 + 1, mask=k < num_blocks, other=0.0)
    mean = tl.sum(means * counts) / (pixels * width)
    variance = (tl.sum(squares) + tl.sum(counts * (means - mean) * (means - mean))) / (pixels * width)
    channel = tl.arange(0, WIDTH)
    column = group * width + channel
    a = tl.load(scale + image * scale_stride + column, mask=channel < width, other=0.0).to(tl.float32)
    b = tl.load(shift + image * shift_stride + column, mask=channel < width, other=0.0).to(tl.float32)
    y = (tile - mean) * (1.0 / tl.sqrt(variance + eps)) * a[None, :] + b[None, :]
    y = y * (1.0 / (1.0 + tl.exp(-y)))
    first = out + image.to(tl.int64) * pixels * channels
    tl.store(first + offsets, y.to(out.dtype.element_ty), mask=exists)
