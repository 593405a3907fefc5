"""Counter-based random numbers: one stream per game, the same at any batch size and on any device.

Every number is a pure function of (key, step, draw, element), computed with Philox4x32-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) in integer tensor arithmetic. There is no state to
carry, to clone or to seed: whoever knows a game's key and how many steps it has made can repeat its future.
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
from enum import IntEnum

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_WORDS_PER_BLOCK = 4
_LOW_32_BITS = 0xFFFFFFFF


class Draw(IntEnum):
    """What a draw is for; two purposes never share a number.

    Denoising step i draws its churn under `Draw.CHURN + i`, so `CHURN` stays the last member.
    """

    FRAME = 0
    """The initial noise of a frame."""
    REW_END = 1
    """The categorical samples of the reward (element 0) and of the end (element 1)."""
    CHURN = 16
    """The noise that stochastic sampling adds (Karras et al. 2022, Algorithm 2), first of a row."""


def normal(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draw: int, shape: tuple[int, ...]
) -> Float32[Tensor, "b *shape"]:
    """Draws standard normal numbers by Box-Muller; every value is finite, |z| < 6.8.

    The transform is computed in float64 where the device has it and rounded once, so that devices agree
    although their logarithms and cosines differ in the last bit. Devices without float64 (Apple's MPS) agree
    to float32 rounding.

    Args:
        key: one stream per game, 0 <= key < 2**63; all bits count.
        step: steps since the game's start, 0 <= step < 2**63; same device as `key`.
        draw: purpose, a `Draw` or `Draw.CHURN + i`, 0 <= draw < 2**32.
        shape: shape of one game's numbers, at most 2**34 of them.

    Returns:
        float32 of shape (b, *shape), on the device of `key`.
    """
    count = math.prod(shape)
    even, odd = _philox_words(key, step, draw, count)
    real = _widest_float(key.device)
    radius = even.to(real).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = odd.to(real).mul_(2.0 * math.pi * 2.0**-32)
    return _arrange(angle.cos().mul_(radius), angle.sin_().mul_(radius), shape, count)


def uniform(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draw: int, shape: tuple[int, ...]
) -> Float32[Tensor, "b *shape"]:
    """Draws numbers uniform in [0, 1): multiples of 2**-24, bit for bit the same on every device.

    Args:
        key: one stream per game, 0 <= key < 2**63; all bits count.
        step: steps since the game's start, 0 <= step < 2**63; same device as `key`.
        draw: purpose, a `Draw` or `Draw.CHURN + i`, 0 <= draw < 2**32.
        shape: shape of one game's numbers, at most 2**34 of them.

    Returns:
        float32 of shape (b, *shape), on the device of `key`.
    """
    count = math.prod(shape)
    words = _philox_words(key, step, draw, count)
    even, odd = (w.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24) for w in words)
    return _arrange(even, odd, shape, count)


def _philox_words(
    key: Int64[Tensor, " b"], step: Int64[Tensor, " b"], draw: int, count: int
) -> tuple[Int64[Tensor, "2 b blocks"], Int64[Tensor, "2 b blocks"]]:
    """Runs the blocks that hold `count` elements of every game; returns words (0, 2) and words (1, 3)."""
    assert 0 <= draw <= _LOW_32_BITS, f"draw {draw} does not fit in 32 bits"
    batch, blocks = key.shape[0], -(-count // _WORDS_PER_BLOCK)
    even = torch.empty(2, batch, blocks, dtype=torch.int64, device=key.device)
    odd = torch.empty_like(even)
    even[0] = torch.arange(blocks, device=key.device)
    odd[0] = draw
    even[1] = (step & _LOW_32_BITS).unsqueeze(-1)
    odd[1] = (step >> 32).unsqueeze(-1)
    return philox4x32(even, odd, key)


def philox4x32(
    even: Int64[Tensor, "2 b blocks"], odd: Int64[Tensor, "2 b blocks"], key: Int64[Tensor, " b"]
) -> tuple[Int64[Tensor, "2 b blocks"], Int64[Tensor, "2 b blocks"]]:
    """Philox4x32-10 over many counters at once; the arguments `even` and `odd` are overwritten.

    A 32 x 32 bit product fits in the 64 bits of int64 when read as unsigned, so wrap-around multiplication
    and a masked shift give its halves. Words keep stray high bits until the mask that ends a round.

    Args:
        even: counter words (0, 2), each in [0, 2**32).
        odd: counter words (1, 3), each in [0, 2**32).
        key: key words as low + 2**32 * high, one per row.

    Returns:
        Output words (0, 2) and (1, 3), each in [0, 2**32).
    """
    word_0, word_2 = even.unbind(0)
    product = torch.empty_like(even)
    halves, odd_halves = product.unbind(0), odd.unbind(0)
    for round_key in _round_keys(key):
        torch.mul(word_2, _MULTIPLIERS[1], out=halves[0])
        torch.mul(word_0, _MULTIPLIERS[0], out=halves[1])
        torch.bitwise_right_shift(product, 32, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(_LOW_32_BITS)
        odd, product, odd_halves, halves = product, odd, halves, odd_halves
    return even, odd.bitwise_and_(_LOW_32_BITS)


def _round_keys(key: Int64[Tensor, " b"]) -> tuple[Int64[Tensor, "2 b 1"], ...]:
    """Returns each round's two key words (Weyl sequences), with stray bits above the 32nd."""
    keys = torch.empty(_NUM_ROUNDS, 2, key.shape[0], 1, dtype=torch.int64, device=key.device)
    rounds = torch.arange(_NUM_ROUNDS, device=key.device).view(-1, 1, 1)
    for i, (word, increment) in enumerate(zip((key & _LOW_32_BITS, key >> 32), _KEY_INCREMENTS, strict=True)):
        keys[:, i] = rounds * increment + word.unsqueeze(-1)
    return keys.unbind(0)


def _arrange(
    even: Float[Tensor, "2 b blocks"], odd: Float[Tensor, "2 b blocks"], shape: tuple[int, ...], count: int
) -> Float32[Tensor, "b *shape"]:
    """Puts values that stand at words (0, 2) and (1, 3) in order of elements; drops those not asked for."""
    _, batch, blocks = even.shape
    values = torch.empty(batch, blocks, 2, 2, dtype=torch.float32, device=even.device)
    by_word = values.permute(2, 0, 1, 3)
    by_word[..., 0] = even
    by_word[..., 1] = odd
    return values.view(batch, blocks * _WORDS_PER_BLOCK)[:, :count].reshape(batch, *shape)


def _widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
