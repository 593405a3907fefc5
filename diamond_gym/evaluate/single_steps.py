"""Single predictions from real frames, grouped by what happens in them: free flight, or which bounce.

A world that is right in free flight and wrong at bounces has a high PSNR and teaches agents nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
_BATCH = 64

Kinds = dict[str, Bool[np.ndarray, " t"]]


def measure_single_steps(
    game: str, world_model: WorldModelLike, episodes: Sequence[Episode], seed: int = 0
) -> dict[str, dict[str, float | int]]:
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
    find_ball, kinds_of = _GAMES[game]
    found = [find_ball(_images(all_frames(episode).numpy())) for episode in episodes]
    n = world_model.num_steps_conditioning
    steps: dict[str, list[tuple[int, int]]] = {}
    for number, (episode, ball) in enumerate(zip(episodes, found, strict=True)):
        for kind, happens in kinds_of(ball, episode.rew.numpy()).items():
            times = [time for time in np.flatnonzero(happens).tolist() if time >= n - 1]
            steps.setdefault(kind, []).extend((number, time) for time in times)
    results: dict[str, dict[str, float | int]] = {}
    for kind, all_of_kind in steps.items():
        chosen = np.unique(np.linspace(0, len(all_of_kind) - 1, MAX_OF_KIND).round().astype(int))
        places = [all_of_kind[i] for i in chosen.tolist()] if all_of_kind else []
        right = _right(world_model, episodes, found, places, find_ball, seed)
        results[kind] = {"right": float(np.mean(right)) if len(right) else np.nan, "frames": len(right)}
    return results


def _right(
    world_model: WorldModelLike,
    episodes: Sequence[Episode],
    found: Sequence[NDArray[np.float64]],
    places: Sequence[tuple[int, int]],
    find_ball: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    seed: int,
) -> list[bool]:
    """Whether the ball after each step (episode, time) is predicted in the right place."""
    n, device = world_model.num_steps_conditioning, world_model.device
    right: list[bool] = []
    for first in range(0, len(places), _BATCH):
        part = places[first : first + _BATCH]
        obs = torch.stack([episodes[e].obs[t - n + 1 : t + 1] for e, t in part]).to(device)
        act = torch.stack([episodes[e].act[t - n + 1 : t + 1] for e, t in part]).to(device)
        keys = torch.arange(first, first + len(part)) + (seed << 32)
        _, step = world_model.step(world_model.start(obs, act, keys), act[:, -1])
        ball = find_ball(_images(step.obs.cpu().numpy()))
        real = np.stack([found[e][t + 1] for e, t in part])
        near = np.nan_to_num(np.abs(ball - real), nan=np.inf) <= RADIUS
        right += (near[:, 0] & near[:, 1]).tolist()
    return right


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
