"""Where the ball is after single predictions and after imagined bounces, grouped by what happens in them.

A world that is right in free flight and wrong at bounces has a high PSNR and teaches agents nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate.heldout import all_frames
from diamond_gym.players.vision import breakout_ball, pong_ball
from diamond_gym.world.interface import WorldModelLike

TURN = 1.0
"""Change of the ball's velocity, in pixels per step in x or y, that counts as a bounce."""
RADIUS = 2.0
"""Distance in pixels, in x and in y, within which a predicted ball is right."""
MAX_OF_KIND = 400
"""Largest number of predicted steps of each kind, spread evenly over the episodes."""
BEFORE_BOUNCE = 2
"""Steps before a bounce from which it is imagined."""
AFTER_BOUNCE = 5
"""Steps after a bounce at which the imagined ball is judged."""
_BATCH = 64

Kinds = dict[str, Bool[np.ndarray, " t"]]
Numbers = dict[str, dict[str, float | int]]


@dataclass(frozen=True)
class _Balls:
    """Episodes, where their ball is in every frame (NaN where it is hidden), and how it is found."""

    episodes: Sequence[Episode]
    found: Sequence[NDArray[np.float64]]
    find: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    kinds_of: Callable[[NDArray[np.float64], NDArray[np.float64]], Kinds]

    @classmethod
    def of(cls, game: str, episodes: Sequence[Episode]) -> _Balls:
        """Find the balls of a game that has detectors."""
        find, kinds_of = _GAMES[game]
        found = [find(_images(all_frames(episode).numpy())) for episode in episodes]
        return cls(episodes, found, find, kinds_of)

    def steps_by_kind(self, num_before: int, num_after: int) -> dict[str, list[tuple[int, int]]]:
        """Steps (episode, time) of each kind with so many steps before and after them in their episode.

        Of each kind there are `MAX_OF_KIND` at most, spread evenly over the episodes.
        """
        steps: dict[str, list[tuple[int, int]]] = {}
        for number, (episode, ball) in enumerate(zip(self.episodes, self.found, strict=True)):
            for kind, happens in self.kinds_of(ball, episode.rew.numpy()).items():
                times = np.flatnonzero(happens)
                times = times[(times >= num_before) & (times + num_after < len(episode))]
                steps.setdefault(kind, []).extend((number, time) for time in times.tolist())
        return {kind: _spread_evenly(of_kind) for kind, of_kind in steps.items()}


def measure_single_steps(
    game: str, world_model: WorldModelLike, episodes: Sequence[Episode], seed: int = 0
) -> Numbers:
    """Measure how often the predicted ball is within `RADIUS` px of the real one, by what happens.

    Args:
        game: The game's name; nothing is measured in games whose ball cannot be found.
        world_model: The world model, in eval mode.
        episodes: Finished real episodes.
        seed: At least 0; fixes the noise.

    Returns:
        For each kind of step, "right" in [0, 1] (NaN where there is none) and "frames", their number.
    """
    if game not in _GAMES:
        return {}
    balls = _Balls.of(game, episodes)
    results: Numbers = {}
    for kind, steps in balls.steps_by_kind(world_model.num_steps_conditioning - 1, 0).items():
        ball, real = _imagined_balls(world_model, balls, steps, 1, seed)
        results[kind] = {"right": _share(_near(ball, real)), "frames": len(steps)}
    return results


def measure_bounces(
    game: str, world_model: WorldModelLike, episodes: Sequence[Episode], seed: int = 0
) -> Numbers:
    """Measure where the ball is `AFTER_BOUNCE` steps after a bounce imagined from `BEFORE_BOUNCE` before it.

    A world may foretell each step from real frames and still lose the ball, or send it elsewhere, when it
    continues from its own.

    Args:
        game: The game's name; nothing is measured in games whose ball cannot be found.
        world_model: The world model, in eval mode.
        episodes: Finished real episodes.
        seed: At least 0; fixes the noise.

    Returns:
        For each kind of step, free flight included, "right", the share in [0, 1] of the balls within
        `RADIUS` px of the real one, "there", that of the balls anywhere (NaN where there is none), and
        "starts", their number.
    """
    if game not in _GAMES:
        return {}
    balls = _Balls.of(game, episodes)
    results: Numbers = {}
    first = world_model.num_steps_conditioning - 1 + BEFORE_BOUNCE
    for kind, steps in balls.steps_by_kind(first, AFTER_BOUNCE).items():
        starts = [(number, time - BEFORE_BOUNCE) for number, time in steps]
        ball, real = _imagined_balls(world_model, balls, starts, BEFORE_BOUNCE + 1 + AFTER_BOUNCE, seed)
        is_known = ~np.isnan(real).any(1)
        ball, real = ball[is_known], real[is_known]
        there = _share(np.asarray(~np.isnan(ball).any(1)))
        results[kind] = {"right": _share(_near(ball, real)), "there": there, "starts": len(ball)}
    return results


def _spread_evenly(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chosen = np.unique(np.linspace(0, len(steps) - 1, MAX_OF_KIND).round().astype(int))
    return [steps[i] for i in chosen.tolist()] if steps else []


def _imagined_balls(
    world_model: WorldModelLike,
    balls: _Balls,
    starts: Sequence[tuple[int, int]],
    num_steps: int,
    seed: int,
) -> tuple[Float[np.ndarray, "s 2"], Float[np.ndarray, "s 2"]]:
    """Where the ball is after imagining `num_steps` steps from each start (episode, time), and really is."""
    n, device, episodes = world_model.num_steps_conditioning, world_model.device, balls.episodes
    found = [np.zeros((0, 2))]
    for first in range(0, len(starts), _BATCH):
        part = starts[first : first + _BATCH]
        obs = torch.stack([episodes[e].obs[t - n + 1 : t + 1] for e, t in part]).to(device)
        act = torch.stack([episodes[e].act[t - n + 1 : t + num_steps] for e, t in part]).to(device)
        keys = torch.arange(first, first + len(part)) + (seed << 32)
        state = world_model.start(obs, act[:, :n], keys)
        frames = obs[:, -1]
        for now in act[:, n - 1 :].unbind(1):
            state, step = world_model.step(state, now)
            frames = step.obs
        found.append(balls.find(_images(frames.cpu().numpy())))
    real = [balls.found[e][t + num_steps] for e, t in starts]
    return np.concatenate(found), np.stack(real) if real else np.zeros((0, 2))


def _near(ball: Float[np.ndarray, "s 2"], real: Float[np.ndarray, "s 2"]) -> Bool[np.ndarray, " s"]:
    """Whether each ball is there, and near the real one."""
    return np.asarray((np.nan_to_num(np.abs(ball - real), nan=np.inf) <= RADIUS).all(1))


def _share(values: Bool[np.ndarray, " s"]) -> float:
    return float(values.mean()) if len(values) else math.nan


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

_GAMES: dict[
    str,
    tuple[
        Callable[[NDArray[np.uint8]], NDArray[np.float64]],
        Callable[[NDArray[np.float64], NDArray[np.float64]], Kinds],
    ],
] = {"Breakout": (breakout_ball, breakout_kinds), "Pong": (pong_ball, pong_kinds)}
