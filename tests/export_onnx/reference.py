"""The whole game of an exported folder without PyTorch: integers, NumPy and ONNX Runtime.

What `docs/onnx.md` says in words, as a model for programs in other languages. A seed is the same game as in
`gymnasium.make(...).reset(seed=...)`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MASK_32, MASK_64, MASK_128 = 2**32 - 1, 2**64 - 1, 2**128 - 1


# --- a seed's context and key: NumPy's SeedSequence and PCG64


def seed_words(seed: int, count: int) -> Iterator[int]:
    """Yield the 32-bit words that `numpy.random.SeedSequence(seed)` generates."""
    entropy = [seed >> shift & MASK_32 for shift in range(0, max(1, seed.bit_length()), 32)]
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & MASK_32
        value = value * constant & MASK_32
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & MASK_32
        return value ^ value >> 16

    pool = [hashed(entropy[i] if i < len(entropy) else 0) for i in range(4)]
    for i in range(4):
        for j in range(4):
            if i != j:
                pool[j] = mixed(pool[j], hashed(pool[i]))
    for word in entropy[4:]:
        pool = [mixed(x, hashed(word)) for x in pool]
    constant = 0x8B51F9DD
    for i in range(count):
        value = pool[i % 4] ^ constant
        constant = constant * 0x58F38DED & MASK_32
        value = value * constant & MASK_32
        yield value ^ value >> 16


class Pcg64:
    """`numpy.random.PCG64(seed)`."""

    def __init__(self, seed: int) -> None:
        w = list(seed_words(seed, 8))
        high_state, low_state, high_inc, low_inc = (w[i] | w[i + 1] << 32 for i in range(0, 8, 2))
        self.increment = (((high_inc << 64 | low_inc) << 1) | 1) & MASK_128
        self.state = self.increment
        self.state = (self.state + (high_state << 64 | low_state)) & MASK_128
        self._advance()

    def _advance(self) -> None:
        self.state = (self.state * 0x2360ED051FC65DA44385DF649FCCF645 + self.increment) & MASK_128

    def next_64(self) -> int:
        self._advance()
        value, turn = (self.state >> 64) ^ (self.state & MASK_64), self.state >> 122
        return (value >> turn | value << (64 - turn)) & MASK_64


def context_and_key(seed: int, num_contexts: int) -> tuple[int, int]:
    """Return the index of a seed's context, and the key of its noise.

    That is `rng.integers(num_contexts)` and `rng.integers(2**63)` for `rng = numpy.random.default_rng(seed)`.
    """
    pcg, index = Pcg64(seed), 0
    if num_contexts > 1:
        # a 32-bit number is the low half of a 64-bit one, and the next its high half (Lemire's method)
        halves = (word for number in iter(pcg.next_64, None) for word in (number & MASK_32, number >> 32))
        product = next(halves) * num_contexts
        while product & MASK_32 < 2**32 % num_contexts:
            product = next(halves) * num_contexts
        index = product >> 32
    return index, pcg.next_64() >> 1


# --- noise: Philox4x32-10


def philox(key: int, step: int, draw: int, num_blocks: int) -> NDArray[np.uint64]:
    """Return four 32-bit words of each block, (num_blocks, 4)."""
    low = np.uint64(MASK_32)
    c0 = np.arange(num_blocks, dtype=np.uint64)
    c1, c2, c3 = (np.full_like(c0, x) for x in (draw, step & MASK_32, step >> 32))
    k0, k1 = key & MASK_32, key >> 32
    for _ in range(10):
        product_0, product_2 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            product_2 >> np.uint64(32) ^ c1 ^ np.uint64(k0),
            product_2 & low,
            product_0 >> np.uint64(32) ^ c3 ^ np.uint64(k1),
            product_0 & low,
        )
        k0, k1 = k0 + 0x9E3779B9 & MASK_32, k1 + 0xBB67AE85 & MASK_32
    return np.stack([c0, c1, c2, c3], axis=1)


def normal(key: int, step: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers: Box-Muller in float64 on words (0, 1) and (2, 3), then rounded to float32."""
    count = math.prod(shape)
    words = philox(key, step, draw, -(-count // 4)).reshape(-1, 2).astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[:, 0] + 0.5) * 2.0**-32))
    angle = words[:, 1] * (2 * math.pi * 2.0**-32)
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values.reshape(-1)[:count].reshape(shape).astype(np.float32)


def uniform(key: int, step: int, draw: int, count: int) -> NDArray[np.float32]:
    """Numbers in [0, 1), from the upper 24 bits of each word."""
    words = philox(key, step, draw, -(-count // 4)).reshape(-1)[:count]
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


# --- the game


class Game:
    """One game, from the files of a folder alone."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "world.json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.denoiser, self.rew_end_model = (
            onnxruntime.InferenceSession(folder / self.about[name]["file"], options, ["CPUExecutionProvider"])
            for name in ("denoiser", "rew_end_model")
        )
        contexts = self.about["contexts"]
        k, n, h, w, c = contexts["shape"]
        rows = np.frombuffer(zlib.decompress((folder / contexts["file"]).read_bytes()), np.uint8)
        self.frames = rows.reshape(h, k, n, w, c).transpose(1, 2, 0, 3, 4)
        self.acts = np.array(contexts["act"], np.int32)
        self.num_steps = n

    def reset(self, seed: int) -> NDArray[np.uint8]:
        """Start the game of a seed; return its first observation."""
        index, self.key = context_and_key(seed, len(self.frames))
        self.start(self.frames[index], self.acts[index])
        return self.obs[-1]

    def start(self, frames: NDArray[np.uint8], acts: NDArray[np.int32]) -> None:
        """Start from a context."""
        self.obs, self.act, self.time = np.ascontiguousarray(frames), acts.copy(), 0
        width = self.about["rew_end_model"]["inputs"]["hx"]["shape"][1]
        self.hx = self.cx = np.zeros((1, width), np.float32)
        for i in range(self.num_steps - 1):
            self._rew_end(self.obs[i], self.act[i], self.obs[i + 1], np.zeros((1, 2), np.float32))

    def step(self, action: int) -> tuple[NDArray[np.uint8], int, bool]:
        """Return the next frame, reward in {-1, 0, 1} and whether the game ended."""
        self.act[-1] = action
        shape, draws = self.about["denoiser"]["inputs"]["noise"]["shape"][2:], self.about["noise"]
        noise = np.stack([normal(self.key, self.time, draw, tuple(shape)) for draw in draws["frame"]])
        u = uniform(self.key, self.time, draws["rew_end"], 2)[None]
        feeds: dict[str, Any] = {"obs": self.obs[None], "act": self.act[None], "noise": noise[None]}
        frame = self.denoiser.run(["next_obs"], feeds)[0][0]
        rew, end = self._rew_end(self.obs[-1], action, frame, u)
        self.obs = np.concatenate([self.obs[1:], frame[None]])
        self.act = np.append(self.act[1:], self.act[-1:])
        self.time += 1
        return frame, rew, end

    def _rew_end(
        self, obs: NDArray[np.uint8], act: int, next_obs: NDArray[np.uint8], u: NDArray[np.float32]
    ) -> tuple[int, bool]:
        act_of_game = np.array([act], np.int32)
        feeds = {"obs": obs[None], "act": act_of_game, "next_obs": next_obs[None], "uniform": u}
        names = ["rew", "end", "next_hx", "next_cx"]
        rew, end, self.hx, self.cx = self.rew_end_model.run(names, feeds | {"hx": self.hx, "cx": self.cx})
        return int(rew[0]), bool(end[0])
