"""Text on pictures. Each text is drawn once and cached, because headers repeat."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import UInt8

Colour = tuple[int, int, int]

WHITE: Colour = (240, 240, 240)
GREY: Colour = (150, 150, 160)
YELLOW: Colour = (250, 210, 90)
RED: Colour = (250, 110, 100)
GREEN: Colour = (120, 220, 130)
BACKGROUND: Colour = (18, 18, 24)

_SMALLEST = 7
_SPELLED_OUT = str.maketrans({"π": "pi"})
"""Replacements for Greek letters, which Pillow's own font does not have."""


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=4096)
def _mask(text: str, size: int) -> UInt8[np.ndarray, "h w"]:
    """Return how much of each pixel the text covers, in a box as high as any text of the size."""
    from PIL import Image, ImageDraw

    font, text = _font(size), text.translate(_SPELLED_OUT).encode("ascii", "replace").decode()
    image = Image.new("L", (max(1, round(font.getlength(text)) + 1), height(size)))
    ImageDraw.Draw(image).text((0, 0), text, font=font, fill=255)
    return np.asarray(image)


def height(size: int) -> int:
    """Return the height of a text in pixels, descenders included."""
    ascent, descent = _font(size).getmetrics()
    return ascent + descent


def width(text: str, size: int) -> int:
    """Return the width of a text in pixels."""
    return _mask(text, size).shape[1]


def fitted(text: str, size: int, room: int) -> tuple[str, int]:
    """Make a text fit into a width, by a smaller size and, if needed, fewer letters; return text and size."""
    while size > _SMALLEST and width(text, size) > room:
        size -= 1
    short = text
    while short and width(short, size) > room:
        text = text[:-1]
        short = f"{text}..." if text else ""
    return short, size


def write(
    canvas: UInt8[np.ndarray, "h w 3"], x: int, y: int, text: str, size: int, colour: Colour = WHITE
) -> int:
    """Draw a text on a picture, its upper left corner at (x, y); return the x after it.

    Parts outside the picture are clipped.
    """
    mask = _mask(text, size)[: max(0, canvas.shape[0] - y), : max(0, canvas.shape[1] - x)]
    h, w = mask.shape
    below = canvas[y : y + h, x : x + w]
    alpha = mask[..., None].astype(np.uint16)
    below[...] = (alpha * np.array(colour, np.uint16) + (255 - alpha) * below) // 255
    return x + w
