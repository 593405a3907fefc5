"""Find the ball and the paddles in 64x64 frames of Breakout and Pong.

It works from pixels, on real frames and on slightly imperfect imagined ones: each pixel becomes a *fill*
(the fraction of it covered by something of the ball's colour), walls and bricks are taken away, and the ball
is the strongest small blob left. Coordinates are in pixels of the 64x64 frame; the centre of the pixel in
column i and row j is (i, j). This module knows nothing of ALE, environments or models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diamond_gym.errors import InvalidInputError

Frames = NDArray[np.uint8]
Points = NDArray[np.float64]

FRAME_SHAPE = (64, 64, 3)
_RAW_HEIGHT, _RAW_WIDTH = 210, 160

_MIN_BALL = 0.35
"""Least area of a blob in pixels; the sharp ball (2 x 4 raw pixels) has 0.98, in motion up to twice that."""
_MAX_BALL = 3.0
"""Largest area of a ball; a larger blob is something else, such as a brick that fades."""
_FAINT = 0.08
"""Fill below this value is noise."""
_CHUNK = 512


def _area_weights(raw: int, small: int) -> NDArray[np.float32]:
    """Return the (small, raw) matrix with which area resizing averages pixels."""
    scale = raw / small
    edges = np.arange(raw)
    start = np.arange(small)[:, None] * scale
    overlap = np.minimum(edges + 1, start + scale) - np.maximum(edges, start)
    return (np.clip(overlap, 0, None) / scale).astype(np.float32)


_ROWS = _area_weights(_RAW_HEIGHT, 64)
_COLUMNS = _area_weights(_RAW_WIDTH, 64)

# Breakout, in raw pixels: the field is rows 32 to 192 and columns 8 to 152; 6 rows of 18 bricks, 6 high and
# 8 wide, start at row 57. The ball (4 high, 2 wide) takes the colour of the row it is in: grey above the
# bricks, red below.
_BRICK_COLOURS = ((200, 72, 72), (198, 108, 58), (180, 122, 48), (162, 162, 42), (72, 160, 72), (66, 72, 200))
_GREY, _RED = (142, 142, 142), (200, 72, 72)
_TOP, _BOTTOM, _LEFT, _RIGHT = 10, 57, 3, 61  # the field in the small frame: rows 10..56, columns 3..60
_PADDLE_ROW = 58
_PADDLE_WIDTH = 7


def _breakout_ink() -> NDArray[np.float32]:
    """Return the colour (64, 3) of a pixel in each row that is fully covered by the ball's colour."""
    raw = np.zeros((_RAW_HEIGHT, 3), np.float32)
    raw[32:57] = _GREY
    for i, colour in enumerate(_BRICK_COLOURS):
        raw[57 + 6 * i : 63 + 6 * i] = colour
    raw[93:193] = _RED
    return _ROWS @ raw


_INK = _breakout_ink()
_INK_SQUARED = (_INK**2).sum(1)

_BRICK_ROWS = np.array([18, 20, 21, 23, 25, 27])  # the small row that best shows each row of bricks
_BRICK_X = np.stack(
    [_COLUMNS[:, 8 + 8 * k : 16 + 8 * k].sum(1) for k in range(18)]
)  # (brick, column) covered
_BRICK_Y = np.stack(
    [_ROWS[:, 57 + 6 * k : 63 + 6 * k].sum(1) for k in range(6)]
)  # (row of bricks, row) covered
_WALL_X = _COLUMNS[:, :8].sum(1) + _COLUMNS[:, 152:].sum(1)


def _brick_share() -> NDArray[np.float32]:
    """Return each brick row's part (brick row, 64) of a pixel row's ink, for rows with two colours."""
    share = np.zeros((6, 64), np.float32)
    for i, colour in enumerate(_BRICK_COLOURS):
        amount = np.outer(_BRICK_Y[i], colour)
        share[i] = (amount * _INK).sum(1) / np.maximum(_INK_SQUARED, 1)
    return share


_BRICK_INK = _brick_share()
_WALL_INK = (np.array(_GREY, np.float32) * _INK).sum(1) / np.maximum(_INK_SQUARED, 1)


def _checked(frames: Frames) -> Frames:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[1:] != FRAME_SHAPE or frames.dtype != np.uint8:
        raise InvalidInputError(
            f"frames must be uint8 of shape (b, 64, 64, 3), got {frames.dtype} of shape {frames.shape}"
        )
    return frames


def _in_chunks(detect: Callable[[Frames], Points], frames: Frames) -> Points:
    parts = [detect(frames[i : i + _CHUNK]) for i in range(0, max(len(frames), 1), _CHUNK)]
    return np.concatenate(parts)


def _windows_sum(fill: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Sum over centred windows of odd size; same shape as `fill` (b, h, w)."""
    up, left = height // 2, width // 2
    padded = np.pad(fill, ((0, 0), (up + 1, up), (left + 1, left)))
    total = padded.cumsum(1, dtype=np.float64).cumsum(2)
    h, w = fill.shape[1:]
    corners = total[:, height:, width:] - total[:, :h, width:] - total[:, height:, :w] + total[:, :h, :w]
    return corners.astype(np.float32)


def _blob(fill: NDArray[np.float32], reach_y: int = 2, reach_x: int = 2) -> Points:
    """Find the centroid (b, 2) of the strongest small blob of `fill` (b, h, w), NaN where there is none."""
    fill = np.where(fill > _FAINT, fill, 0)
    core = _windows_sum(fill, 3, 3)
    whole = _windows_sum(fill, 2 * reach_y + 1, 2 * reach_x + 1)
    core = np.where(whole < _MAX_BALL, core, 0)
    b, h, w = fill.shape
    best = core.reshape(b, h * w).argmax(1)
    row, column = best // w, best % w
    padded = np.pad(fill, ((0, 0), (reach_y, reach_y), (reach_x, reach_x)))
    dy, dx = np.arange(-reach_y, reach_y + 1), np.arange(-reach_x, reach_x + 1)
    index = np.arange(b)[:, None, None]
    patch = padded[
        index, (row[:, None] + dy + reach_y)[:, :, None], (column[:, None] + dx + reach_x)[:, None, :]
    ]
    mass = patch.sum((1, 2))
    seen = core.reshape(b, h * w).max(1) > _MIN_BALL
    safe = np.where(seen, mass, 1)
    x = column + (patch * dx[None, None, :]).sum((1, 2)) / safe
    y = row + (patch * dy[None, :, None]).sum((1, 2)) / safe
    return np.where(seen[:, None], np.stack([x, y], 1), np.nan)


def _breakout_fill(frames: Frames) -> NDArray[np.float32]:
    """Compute the fraction of every pixel covered by ink of its row, (b, 64, 64), without walls."""
    ink = np.divide(_INK, _INK_SQUARED[:, None], out=np.zeros_like(_INK), where=_INK_SQUARED[:, None] > 0)
    fill = np.einsum("bhwc,hc->bhw", frames.astype(np.float32), ink)
    return fill - _WALL_INK[:, None] * _WALL_X


def _without_bricks(fill: NDArray[np.float32]) -> NDArray[np.float32]:
    """Remove the standing bricks: those that fill the whole width of their place."""
    inside = _BRICK_X > 0.99
    shown = fill[:, _BRICK_ROWS]  # (b, 6, 64)
    lowest = np.where(inside, shown[:, :, None, :], np.inf).min(-1)
    level = (shown @ inside.T.astype(np.float32)) / inside.sum(1)
    standing = np.where(lowest > 0.5, np.minimum(level, 1), 0).astype(np.float32)  # (b, 6, 18)
    bricks = np.einsum("brk,rh,kw->bhw", standing, _BRICK_INK, _BRICK_X, optimize=True)
    return fill - bricks


def _breakout_ball(frames: Frames) -> Points:
    fill = _without_bricks(_breakout_fill(frames))
    return _blob(fill[:, _TOP:_BOTTOM, _LEFT:_RIGHT]) + np.array([_LEFT, _TOP])


def breakout_ball(frames: Frames) -> Points:
    """Find the ball's centre in frames of Breakout.

    Args:
        frames: uint8 (b, 64, 64, 3).

    Returns:
        float64 (b, 2): x and y in pixels, NaN where no ball is visible. A ball over standing bricks, at or
        below the paddle's height, or with less than about a third of the real one's intensity is not
        visible. A ball smeared over two positions counts as one, half way.

    Raises:
        InvalidInputError: The frames have another shape or dtype.
    """
    return _in_chunks(_breakout_ball, _checked(frames))


def _breakout_paddle(frames: Frames) -> Points:
    fill = _breakout_fill(frames)[:, _PADDLE_ROW, _LEFT:_RIGHT]
    fill = np.where(fill > _FAINT, fill, 0)[:, None, :]
    window = _windows_sum(fill, 1, _PADDLE_WIDTH)[:, 0]
    column = window.argmax(1)
    near = np.abs(np.arange(fill.shape[2]) - column[:, None]) <= _PADDLE_WIDTH // 2 + 1
    weight = np.where(near, fill[:, 0], 0)
    mass = weight.sum(1)
    x = (weight * np.arange(weight.shape[1])).sum(1) / np.where(mass > 0, mass, 1) + _LEFT
    return np.where((window.max(1) > 1) & (mass > 0.6 * fill[:, 0].sum(1)), x, np.nan)


def breakout_paddle(frames: Frames) -> Points:
    """Find the paddle's centre in frames of Breakout.

    Args:
        frames: uint8 (b, 64, 64, 3).

    Returns:
        float64 (b,): x in pixels, NaN where there is no paddle. Behind a wall, the centre of what is visible.

    Raises:
        InvalidInputError: The frames have another shape or dtype.
    """
    return _in_chunks(_breakout_paddle, _checked(frames))


# Pong, in raw pixels: the field is rows 34 to 194; the paddles (16 high, 4 wide) are at columns 16 and 140;
# the ball (4 high, 2 wide) is as white as the walls above and below.
_PONG_BACKGROUND = np.array((144, 72, 17), np.float32)
_PONG_COLOURS = np.array(((236, 236, 236), (213, 130, 74), (92, 186, 92)), np.float32)  # ball, left, right
_PONG_UNMIX = np.linalg.inv(_PONG_COLOURS - _PONG_BACKGROUND).astype(np.float32)
_PONG_TOP, _PONG_BOTTOM = 11, 59
_PONG_PADDLES = {1: slice(5, 9), 2: slice(55, 59)}
_MIN_PONG_PADDLE = 2.5
"""Least area of a paddle in pixels, a third of the whole."""


def _pong_fill(frames: Frames, thing: int) -> NDArray[np.float32]:
    """Compute the fraction of every pixel of the field covered by one of `_PONG_COLOURS`, (b, 48, 64)."""
    field = frames[:, _PONG_TOP:_PONG_BOTTOM].astype(np.float32)
    return np.asarray((field - _PONG_BACKGROUND) @ _PONG_UNMIX[:, thing], np.float32)


def _pong_ball(frames: Frames) -> Points:
    return _blob(_pong_fill(frames, 0)) + np.array([0, _PONG_TOP])


def pong_ball(frames: Frames) -> Points:
    """Find the ball's centre in frames of Pong.

    Args:
        frames: uint8 (b, 64, 64, 3).

    Returns:
        float64 (b, 2): x and y in pixels, NaN where no ball is visible; as for Breakout, a faint one is not.

    Raises:
        InvalidInputError: The frames have another shape or dtype.
    """
    return _in_chunks(_pong_ball, _checked(frames))


def _pong_paddle(frames: Frames, thing: int) -> Points:
    fill = _pong_fill(frames, thing)[:, :, _PONG_PADDLES[thing]]
    weight = np.where(fill > _FAINT, fill, 0).sum(2)
    mass = weight.sum(1)
    seen = mass > _MIN_PONG_PADDLE
    y = (weight * np.arange(_PONG_TOP, _PONG_BOTTOM)).sum(1) / np.where(seen, mass, 1)
    return np.where(seen, y, np.nan)


def pong_left_paddle(frames: Frames) -> Points:
    """Find the height of the opponent's paddle in frames of Pong.

    Args:
        frames: uint8 (b, 64, 64, 3).

    Returns:
        float64 (b,): y of the centre of what is visible, in pixels; NaN where there is no paddle.

    Raises:
        InvalidInputError: The frames have another shape or dtype.
    """
    return _in_chunks(lambda part: _pong_paddle(part, 1), _checked(frames))


def pong_right_paddle(frames: Frames) -> Points:
    """Find the height of the player's own paddle in frames of Pong.

    Args:
        frames: uint8 (b, 64, 64, 3).

    Returns:
        float64 (b,): y of the centre of what is visible, in pixels; NaN where there is no paddle.

    Raises:
        InvalidInputError: The frames have another shape or dtype.
    """
    return _in_chunks(lambda part: _pong_paddle(part, 2), _checked(frames))
