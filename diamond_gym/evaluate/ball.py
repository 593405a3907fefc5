"""What the ball does in games where it can be found: in each step, and at the player's paddle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate.heldout import all_frames
from diamond_gym.players.vision import breakout_ball, pong_ball

TURN = 1.0
"""Change of the ball's velocity, in pixels per step in x or y, that counts as a bounce."""
FATE_STEPS = 14
"""Steps within which it shows what has become of a ball that came to the paddle."""
_NEARER = 0.5
"""Pixels by which a ball comes nearer in a step."""

Kinds = dict[str, Bool[np.ndarray, " t"]]


def find_ball(game: str, frames: UInt8[np.ndarray, "t c h w"]) -> Float[np.ndarray, "t 2"]:
    """Find the ball (x, y) in frames of one of `GAMES_WITH_BALL`; NaN where it is hidden."""
    return _BALLS[game].find(_images(frames))


def count_fates(
    game: str,
    obs: UInt8[np.ndarray, "k t c h w"],
    rew: Float[np.ndarray, "k t"],
    end: Bool[np.ndarray, "k t"],
) -> dict[str, float | int]:
    """Count what becomes of the balls that come to the player's paddle.

    A world in which a ball vanishes where it should be lost teaches agents to make it vanish.

    Args:
        game: The game's name; nothing is counted in games whose ball cannot be found.
        obs: The frame after each step.
        rew: Signs of the rewards.
        end: Whether the step ended the episode; later steps are left out. So are balls that come within the
            last `FATE_STEPS` steps, whatever becomes of them.

    Returns:
        The shares of those that were "lost" (a point or a life within `FATE_STEPS` steps of the last frame in
        which the ball comes nearer), that "returned" (seen far from the paddle within as many), and that
        "vanished", NaN where no ball came; and the number of "balls".
    """
    if game not in _BALLS:
        return {}
    toward = _BALLS[game].toward
    counts = dict.fromkeys(("lost", "returned", "vanished"), 0)
    for frames, rewards, ends in zip(obs, rew, end, strict=True):
        place = find_ball(game, frames)[:, toward.axis]
        is_far, is_loss = place < toward.near, ends | (rewards < 0)
        last = min(int(ends.argmax()) if ends.any() else len(ends), len(ends) - FATE_STEPS)
        for time in _arrivals(place, is_far | is_loss, toward.near):
            if time >= last:
                continue
            soon = slice(time, time + 1 + FATE_STEPS)
            if is_loss[soon].any():
                counts["lost"] += 1
            elif is_far[soon].any():
                counts["returned"] += 1
            else:
                counts["vanished"] += 1
    balls = sum(counts.values())
    return {fate: count / balls if balls else math.nan for fate, count in counts.items()} | {"balls": balls}


def _arrivals(place: Float[np.ndarray, " t"], is_over: Bool[np.ndarray, " t"], near: float) -> Iterator[int]:
    """The last frame in which each ball comes nearer to the paddle, on its side.

    A ball that is hidden or still for a moment arrives once: the same one arrives until `is_over` in between.
    """
    nearer = np.diff(place) > _NEARER
    times = np.flatnonzero(nearer[:-1] & ~nearer[1:] & (place[1:-1] >= near)) + 1
    for time, following in itertools.pairwise([*times.tolist(), len(place)]):
        if following == len(place) or is_over[time:following].any():
            yield time


def find_events(game: str, episode: Episode) -> tuple[Float[np.ndarray, "t1 2"], Kinds]:
    """Find the ball (x, y) in every frame of an episode, and what happens in each step.

    Args:
        game: One of `GAMES_WITH_BALL`.
        episode: A real episode. Where its final frame is unknown, the last one is used for it.
    """
    unknown = episode.final_observation is None
    frames = torch.cat([episode.obs, episode.obs[-1:]]) if unknown else all_frames(episode)
    ball = find_ball(game, frames.numpy())
    return ball, _BALLS[game].kinds(ball, episode.rew.numpy())


def _images(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1))


def _turns(ball: Float[np.ndarray, "t1 2"]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Change of the ball's velocity in each step (t, 2), and whether the ball is visible there."""
    before, now, after = ball[:-2], ball[1:-1], ball[2:]
    change = np.abs((after - now) - (now - before))
    change = np.concatenate([np.full((1, 2), np.nan), change])  # nothing is known of the first step
    seen = np.asarray(~np.isnan(change).any(1))
    return np.where(seen[:, None], change, 0), seen


def breakout_kinds(ball: Float[np.ndarray, "t1 2"], rew: Float[np.ndarray, " t"]) -> Kinds:
    """Classify what the ball of Breakout does in each step.

    Args:
        ball: Its place (x, y) in the frame before each step and after the last one; NaN where it is hidden.
        rew: Rewards of the steps.
    """
    change, seen = _turns(ball)
    lowest = np.fmax(ball[:-1, 1], ball[1:, 1])
    is_free = seen & (change <= TURN).all(1) & (rew == 0)
    is_paddle = seen & (change[:, 1] > TURN) & (lowest > _PADDLE_FROM) & (rew == 0)
    is_brick = seen & (rew > 0)
    is_wall = seen & (change > TURN).any(1) & (lowest <= _PADDLE_FROM) & (rew == 0)
    return {"free flight": is_free, "paddle": is_paddle, "bricks": is_brick, "walls": is_wall}


def pong_kinds(ball: Float[np.ndarray, "t1 2"], rew: Float[np.ndarray, " t"]) -> Kinds:
    """Classify what the ball of Pong does in each step; see `breakout_kinds`."""
    change, seen = _turns(ball)
    seen &= rew == 0
    is_right = np.fmax(ball[:-1, 0], ball[1:, 0]) > _PONG_MIDDLE
    turns_back = seen & (change[:, 0] > TURN)
    return {
        "free flight": seen & (change <= TURN).all(1),
        "paddle": turns_back & is_right,
        "opponent": turns_back & ~is_right,
        "walls": seen & (change[:, 0] <= TURN) & (change[:, 1] > TURN),
    }


_PADDLE_FROM = 44.0
"""Row below which a ball of Breakout that turns has hit the paddle."""
_PONG_MIDDLE = 32.0


class _Toward(NamedTuple):
    """Where the player's paddle is: in x (0) or y (1), and the place from which on a ball is on its side."""

    axis: int
    near: float


class _Ball(NamedTuple):
    """How to find the ball of a game, what it does in each step, and where the player's paddle is."""

    find: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    kinds: Callable[[NDArray[np.float64], NDArray[np.float64]], Kinds]
    toward: _Toward


_BALLS = {
    "Breakout": _Ball(breakout_ball, breakout_kinds, _Toward(axis=1, near=_PADDLE_FROM)),
    "Pong": _Ball(pong_ball, pong_kinds, _Toward(axis=0, near=44.0)),
}
GAMES_WITH_BALL = tuple(_BALLS)
"""The games whose ball can be found."""
