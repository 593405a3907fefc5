"""The square pictures: a game, real beside imagined, a film strip of denoising."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from diamond_gym.play import text

Picture = UInt8[np.ndarray, "h w 3"]

GAIN = 2
"""Factor by which differences are enlarged."""
_MAX_STRIP_SHARE = 5
"""A film strip takes at most this fraction of the picture's height: 1 / N."""


def scaled(frame: Picture, side: int) -> Picture:
    """Enlarge a colour or grey frame with sharp pixels as far as it fits into a black square of this side."""
    h, w = frame.shape[:2]
    frame = np.repeat(frame, 3 // frame.shape[2], axis=2)
    scale = side / max(h, w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    picture = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return _centred(picture, side, side)


def difference(real: Picture, imagined: Picture) -> Picture:
    """Return the difference of two frames, `GAIN` times as bright."""
    return np.clip(GAIN * np.abs(real.astype(int) - imagined), 0, 255).astype(np.uint8)


def quarters(panels: list[tuple[str, Picture]], lines: list[str], side: int) -> Picture:
    """Draw three labelled frames and some lines of text in the quarters of a square."""
    half = side // 2
    canvas = np.full((side, side, 3), text.BACKGROUND, np.uint8)
    corners = [(0, 0), (0, half), (half, 0)]
    size = max(8, side // 42)
    for (label, frame), (y, x) in zip(panels, corners, strict=True):
        room = half - text.height(size) - 4
        canvas[y + half - room : y + half, x : x + half] = _centred(scaled(frame, room), room, half)
        text.write(canvas, x + (half - room) // 2, y + 2, label, size)
    _write_lines(canvas[half:, half:], lines, round(1.2 * size))
    return canvas


def with_strip(picture: Picture, strip: list[Picture]) -> Picture:
    """Draw a square picture, made smaller, above a row of frames."""
    side = picture.shape[0]
    cell = min(side // _MAX_STRIP_SHARE, side // len(strip))
    canvas = np.zeros_like(picture)
    main = side - cell
    canvas[:main] = _centred(scaled(picture, main), main, side)
    left = (side - cell * len(strip)) // 2
    for i, frame in enumerate(strip):
        x = left + i * cell
        canvas[main : main + cell, x : x + cell] = scaled(frame, cell)
    return canvas


def visible(trajectory: Float32[np.ndarray, "s h w 3"]) -> list[Picture]:
    """Convert frames in about [-1, 1] to pictures, clipping values beyond."""
    return list(((trajectory.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


def _centred(picture: Picture, height: int, width: int) -> Picture:
    h, w = picture.shape[:2]
    canvas = np.zeros((height, width, 3), np.uint8)
    y, x = (height - h) // 2, (width - w) // 2
    canvas[y : y + h, x : x + w] = picture
    return canvas


def _write_lines(canvas: Picture, lines: list[str], size: int) -> None:
    margin = size
    for i, line in enumerate(lines):
        fitted, fitting = text.fitted(line, size, canvas.shape[1] - 2 * margin)
        text.write(canvas, margin, margin + round(1.6 * i * size), fitted, fitting)
