"""Frames in memory, numbered in the order in which they were added: as they are, or each compressed.

A game's frames are mostly still and plain: zlib makes one of Breakout 19 times smaller and takes 20
microseconds to unpack it, so that memory holds millions of steps.
"""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

_ZLIB_LEVEL = 1
"""Fastest; the best level saves another quarter and takes six times as long."""


class PlainFrames:
    """Frames in one growing array: one byte a pixel, one copy.

    Attributes:
        shape: Shape (c, h, w) of a frame.
        num_bytes: Memory that the frames take.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.num_bytes = shape, 0
        self._frames = np.zeros((0, *shape), np.uint8)

    def write(self, first: int, frames: UInt8[np.ndarray, "k c h w"], capacity: int) -> None:
        """Add frames after the first ones.

        Args:
            first: Number of the frames that there are.
            frames: The new ones.
            capacity: Number of frames to make room for, with those to come.
        """
        last = first + len(frames)
        if last > len(self._frames):
            self._frames = grown(self._frames, max(capacity, last))
        self._frames[first:last] = frames
        self.num_bytes += frames.nbytes

    def take(self, rows: Int64[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b c h w"]:
        """Return a copy of the frames with these numbers."""
        return self._frames.take(rows, axis=0)  # faster than self._frames[rows]


class CompressedFrames:
    """Frames that are compressed one by one, without loss; used as `PlainFrames` are.

    Attributes:
        shape: Shape (c, h, w) of a frame.
        num_bytes: Memory that the frames take.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.num_bytes = shape, 0
        self._frames: list[bytes] = []

    def write(self, first: int, frames: UInt8[np.ndarray, "k c h w"], capacity: int) -> None:
        """Add frames after the `first` ones; there is always room."""
        added = [zlib.compress(frame.tobytes(), _ZLIB_LEVEL) for frame in frames]
        self._frames[first:] = added
        self.num_bytes += sum(map(len, added))

    def take(self, rows: Int64[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b c h w"]:
        """Return a copy of the frames with these numbers."""
        taken = np.empty((*rows.shape, *self.shape), np.uint8)
        flat = taken.reshape(rows.size, -1)
        for i, row in enumerate(rows.ravel().tolist()):
            flat[i] = np.frombuffer(zlib.decompress(self._frames[row]), np.uint8)
        return taken


def grown(array: NDArray, capacity: int) -> NDArray:
    """A longer copy whose new rows are zero (and take no memory before they are written)."""
    larger = np.zeros((capacity, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
