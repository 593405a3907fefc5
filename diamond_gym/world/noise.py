"""Counter-based random numbers: one stream per game, the same at any batch size and on any device.

Every number is a pure function of (key, step, draw, element), computed with Philox4x32-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) in integer tensor arithmetic. There is no state to
carry, to clone or to seed: a game's key and number of steps are enough to repeat its future.
Nothing here synchronises with the device, so it can be captured in a CUDA graph or traced by `torch.compile`.

This module does not know what the numbers are for, nor how a key is derived from a seed.

A Philox block has 128 bits of counter and 64 bits of key, and gives four 32-bit words:

    counter = (element // 4, draw, low word of step, high word of step)
    key = (low word of key, high word of key)

Element e is made of word e % 4 (uniform), or of words 0 and 1 or 2 and 3, a Box-Muller pair (normal). So
no two (key, step, draw) share a block, and an element's value does not depend on how many are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_WORDS_PER_BLOCK = 4
_LOW_32_BITS = 0xFFFFFFFF

_Words = tuple[Int64[Tensor, "2 b blocks"], Int64[Tensor, "2 b blocks"]]
"""Words (0, 2) and words (1, 3) of blocks, each in [0, 2**32)."""


class Draw(IntEnum):
    """The purpose of a draw; two purposes never share a number.

    Denoising step i draws its churn under `Draw.CHURN + i`, so `CHURN` stays the last member.
    """

    FRAME = 0
    """The initial noise of a frame."""
    REW_END = 1
    """The categorical samples of the reward (element 0) and of the end (element 1)."""
    CHURN = 16
    """The first draw of noise of stochastic sampling (Karras et al. 2022, Algorithm 2; DDPM)."""


def normal(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draw: int, shape: tuple[int, ...]
) -> Float32[Tensor, "b *shape"]:
    """Draw standard normal numbers by Box-Muller; every value is finite, between -6.8 and 6.8.

    The transform is computed in float64 where the device has it and rounded once, so that devices agree
    although their logarithms and cosines differ in the last bit. Devices without float64 (Apple's MPS) agree
    to float32 rounding.

    Args:
        key: One stream per game, 0 <= key < 2**63; all bits count.
        step: Steps since the game's start, 0 <= step < 2**63; same device as `key`.
        draw: Purpose, a `Draw` or `Draw.CHURN + i`, 0 <= draw < 2**32.
        shape: Shape of one game's numbers, at most 2**34 of them.

    Returns:
        float32 of shape `(b, *shape)`, on the device of `key`.
    """
    (words,) = _philox_words(key, step, [(draw, math.prod(shape))])
    return _normal(words, shape)


def uniform(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draw: int, shape: tuple[int, ...]
) -> Float32[Tensor, "b *shape"]:
    """Draw numbers uniform in [0, 1): multiples of 2**-24, bit for bit the same on every device.

    Args:
        key: One stream per game, 0 <= key < 2**63; all bits count.
        step: Steps since the game's start, 0 <= step < 2**63; same device as `key`.
        draw: Purpose, a `Draw` or `Draw.CHURN + i`, 0 <= draw < 2**32.
        shape: Shape of one game's numbers, at most 2**34 of them.

    Returns:
        float32 of shape `(b, *shape)`, on the device of `key`.
    """
    (words,) = _philox_words(key, step, [(draw, math.prod(shape))])
    return _uniform(words, shape)


def normal_and_uniform(
    key: Int64[Tensor, " b"],
    step: Int64[Tensor, " b"],
    normal_draw: int,
    normal_shape: tuple[int, ...],
    uniform_draw: int,
    uniform_shape: tuple[int, ...],
) -> tuple[Float32[Tensor, "b *normal_shape"], Float32[Tensor, "b *uniform_shape"]]:
    """Draw the numbers of `normal` and of `uniform` in one run of the generator, for the cost of one."""
    draws = [(normal_draw, math.prod(normal_shape)), (uniform_draw, math.prod(uniform_shape))]
    normal_words, uniform_words = _philox_words(key, step, draws)
    return _normal(normal_words, normal_shape), _uniform(uniform_words, uniform_shape)


def _normal(words: _Words, shape: tuple[int, ...]) -> Float32[Tensor, "b *shape"]:
    even, odd = words
    real = _widest_float(even.device)
    radius = even.to(real).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = odd.to(real).mul_(2.0 * math.pi * 2.0**-32)
    return _arrange(angle.cos().mul_(radius), angle.sin_().mul_(radius), shape)


def _uniform(words: _Words, shape: tuple[int, ...]) -> Float32[Tensor, "b *shape"]:
    even, odd = (w.bitwise_right_shift(8).to(torch.float32).mul_(2.0**-24) for w in words)
    return _arrange(even, odd, shape)


def _philox_words(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draws: list[tuple[int, int]]
) -> list[_Words]:
    """Run the blocks that hold `count` elements of every game for each (draw, count).

    Returns:
        Words (0, 2) and words (1, 3) of each draw's blocks.
    """
    for draw, _ in draws:
        assert 0 <= draw <= _LOW_32_BITS, f"draw {draw} does not fit in 32 bits"
    sizes = [-(-count // _WORDS_PER_BLOCK) for _, count in draws]
    device, shape = key.device, (2, key.shape[0], sum(sizes))
    even = torch.empty(shape, dtype=torch.int64, device=device)
    odd = torch.empty_like(even)
    column = 0
    for (draw, _), size in zip(draws, sizes, strict=True):
        even[0, :, column : column + size] = torch.arange(size, device=device)
        odd[0, :, column : column + size] = draw
        column += size
    even[1] = (step & _LOW_32_BITS).unsqueeze(-1)
    odd[1] = (step >> 32).unsqueeze(-1)
    even, odd = philox4x32(even, odd, key)
    return list(zip(even.split(sizes, dim=-1), odd.split(sizes, dim=-1), strict=True))


def philox4x32(
    even: Int64[Tensor, "2 b blocks"], odd: Int64[Tensor, "2 b blocks"], key: Int64[Tensor, " b"]
) -> tuple[Int64[Tensor, "2 b blocks"], Int64[Tensor, "2 b blocks"]]:
    """Philox4x32-10 over many counters at once; the arguments `even` and `odd` are overwritten.

    A 32 x 32 bit product fits in the 64 bits of int64 when read as unsigned, so wrap-around multiplication
    and a masked shift give its halves. Words keep stray high bits until the mask that ends a round.

    Args:
        even: Counter words (0, 2), each in [0, 2**32).
        odd: Counter words (1, 3), each in [0, 2**32).
        key: Key words as low + 2**32 * high, one per row.

    Returns:
        Output words (0, 2) and (1, 3), each in [0, 2**32).
    """
    keys = _round_keys(key)
    if even.device.type == "cpu" and not torch.compiler.is_compiling():
        # the same operations on the same memory, for which NumPy needs half the time
        words = _philox_rounds(even.numpy(), odd.numpy(), [k.numpy() for k in keys], np)
        even, odd = (torch.from_numpy(w) for w in words)
    else:
        even, odd = _philox_rounds(even, odd, keys, torch)
    return even, odd.bitwise_and_(_LOW_32_BITS)


def _philox_rounds(even: Any, odd: Any, round_keys: Sequence[Any], library: Any) -> tuple[Any, Any]:
    """Run the rounds on arrays of torch or NumPy; the odd words keep stray high bits."""
    product = library.empty_like(even)
    for round_key in round_keys:
        library.multiply(even[1], _MULTIPLIERS[1], out=product[0])
        library.multiply(even[0], _MULTIPLIERS[0], out=product[1])
        even = product >> 32
        even ^= odd
        even ^= round_key
        even &= _LOW_32_BITS
        odd, product = product, odd
    return even, odd


def _round_keys(key: Int64[Tensor, " b"]) -> tuple[Int64[Tensor, "2 b 1"], ...]:
    """Return each round's two key words (Weyl sequences), with stray bits above the 32nd."""
    words = torch.stack([key & _LOW_32_BITS, key >> 32]).unsqueeze(-1)
    rounds = torch.arange(_NUM_ROUNDS, device=key.device).view(-1, 1, 1)
    increments = torch.stack([rounds * increment for increment in _KEY_INCREMENTS], dim=1)
    return (increments + words).unbind(0)


def _arrange(
    even: Float[Tensor, "2 b blocks"], odd: Float[Tensor, "2 b blocks"], shape: tuple[int, ...]
) -> Float32[Tensor, "b *shape"]:
    """Put values at words (0, 2) and (1, 3) in the order of elements; drop those not needed."""
    _, batch, blocks = even.shape
    values = torch.empty(batch, blocks, 2, 2, dtype=torch.float32, device=even.device)
    by_word = values.permute(2, 0, 1, 3)
    by_word[..., 0] = even
    by_word[..., 1] = odd
    return values.view(batch, blocks * _WORDS_PER_BLOCK)[:, : math.prod(shape)].reshape(batch, *shape)


def _widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
