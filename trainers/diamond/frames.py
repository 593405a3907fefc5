"""Frames in memory, numbered in the order in which they were added: as they are, or each compressed.

A game's frames are mostly still and plain: zlib makes one of Breakout 19 times smaller and takes 20
microseconds to unpack it, so that memory holds millions of steps.
"""

from __future__ import annotations

import zlib
from typing import Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

_ZLIB_LEVEL = 1
"""Fastest; the best level saves another quarter and takes six times as long."""


class Frames(Protocol):
    """A growing array of frames (c, h, w)."""

    shape: tuple[int, ...]
    """Shape (c, h, w) of a frame."""

    def write(self, first: int, frames: UInt8[np.ndarray, "k c h w"], capacity: int) -> None:
        """Add frames; `first` is the number of those there are, `capacity` that of all to make room for."""

    def take(self, rows: Int64[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b c h w"]:
        """A copy of the frames with these numbers."""

    @property
    def num_bytes(self) -> int:
        """Memory that the frames take."""


class PlainFrames:
    """Frames in one array: one byte a pixel, one copy."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._frames = np.zeros((0, *shape), np.uint8)
        self._count = 0

    def write(self, first: int, frames: UInt8[np.ndarray, "k c h w"], capacity: int) -> None:
        """See `Frames`."""
        self._count = first + len(frames)
        if self._count > len(self._frames):
            self._frames = grown(self._frames, max(capacity, self._count))
        self._frames[first : self._count] = frames

    def take(self, rows: Int64[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b c h w"]:
        """See `Frames`."""
        return self._frames.take(rows, axis=0)  # faster than self._frames[rows]

    @property
    def num_bytes(self) -> int:
        """See `Frames`."""
        return self._count * int(np.prod(self.shape))


class CompressedFrames:
    """Frames that are compressed one by one, without loss."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._frames: list[bytes] = []
        self.num_bytes = 0

    def write(self, first: int, frames: UInt8[np.ndarray, "k c h w"], capacity: int) -> None:
        """See `Frames`."""
        added = [zlib.compress(np.ascontiguousarray(frame), _ZLIB_LEVEL) for frame in frames]
        self._frames[first:] = added
        self.num_bytes += sum(map(len, added))

    def take(self, rows: Int64[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b c h w"]:
        """See `Frames`."""
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
