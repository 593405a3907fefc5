"""Crops of segments: where in a frame training looks when it does not look at all of it.

A frame of a game is mostly still, and what decides how it continues, a ball that meets a paddle, is small.
Training on crops around what moves costs a fraction of a whole frame (Patch Diffusion, arXiv 2304.12526).
This module sees pixels only: no game's objects, no networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray

MOTION_CELL = 4
"""Side, in pixels, of the squares among which a place that moves is drawn: all of them are equally likely, so
that a ball is drawn as often as a paddle."""
MOTION_THRESHOLD = 16
"""A change of a colour channel by less than this, of 255, is no motion."""


@dataclass(frozen=True)
class Crop:
    """Which crops are cut.

    Attributes:
        size: Side in pixels.
        multiple: Rows and columns of their upper left corners are multiples of this, so that the network
            divides a crop as it divides the frame around it.
    """

    size: int
    multiple: int

    def corners(
        self, rng: np.random.Generator, place: Int64[np.ndarray, "b 2"], frame: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Draws corners (b, 2) of crops that hold a place in their middle half, where the frame allows it.

        Args:
            rng: Source of the draw.
            place: Row and column.
            frame: Height and width of the frames.
        """
        low = -(-(place - 3 * self.size // 4) // self.multiple)
        high = (place - self.size // 4) // self.multiple
        corner = self.multiple * rng.integers(low, np.maximum(high, low), endpoint=True)
        return corner.clip(0, np.array(frame) - self.size)


def is_moving(
    before: UInt8[np.ndarray, "b c h w"], after: UInt8[np.ndarray, "b c h w"]
) -> Bool[np.ndarray, "b h2 w2"]:
    """Which squares of `MOTION_CELL` pixels change between two frames, without a narrower rest at an edge."""
    change = np.where(after > before, after - before, before - after).max(1) >= MOTION_THRESHOLD
    b, h, w = change.shape
    h, w = h // MOTION_CELL, w // MOTION_CELL
    cells = change[:, : h * MOTION_CELL, : w * MOTION_CELL]
    return np.asarray(cells.reshape(b, h, MOTION_CELL, w, MOTION_CELL).any((2, 4)))


def moving_places(rng: np.random.Generator, moves: Bool[np.ndarray, "b h w"]) -> Int64[np.ndarray, "b 2"]:
    """Draws a pixel (row, column) out of each frame's moving squares; any pixel where nothing moves."""
    b, _, w = moves.shape
    order = rng.random(moves.shape) + moves  # those that move come last
    cell = order.reshape(b, -1).argmax(1)
    inside = rng.integers(MOTION_CELL, size=(b, 2))
    return np.stack([cell // w, cell % w], axis=1) * MOTION_CELL + inside


def cut(
    frames: UInt8[np.ndarray, "b *t c h w"], corner: Int64[np.ndarray, "b 2"], size: int
) -> UInt8[np.ndarray, "b *t c s s"]:
    """Cuts a square out of every frame; all frames of a segment are cut alike."""
    windows = np.empty((*frames.shape[:-2], size, size), frames.dtype)
    for i, (row, column) in enumerate(corner.tolist()):
        windows[i] = frames[i, ..., row : row + size, column : column + size]
    return windows
