"""Where the ball is after single predictions and after imagined bounces, grouped by what happens in them.

A world that is right in free flight and wrong at bounces has a high PSNR and teaches agents nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate.heldout import all_frames
from diamond_gym.players.vision import breakout_ball, breakout_paddle, pong_ball, pong_right_paddle
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
FATE_STEPS = 14
"""Steps within which it shows what has become of a ball that came to the paddle."""
_NEARER = 0.5
"""Pixels by which a ball comes nearer in a step."""
NEAR_MISS, EDGE_HIT = 7.0, 3.0
"""Distances in pixels, along the paddle, of the ball from its middle; half a paddle is about 3."""
_LONGEST_STEP = 4.0
"""Pixels by which a ball comes nearer in a step at most."""
_BATCH = 64

Kinds = dict[str, Bool[np.ndarray, " t"]]
Numbers = dict[str, dict[str, float | int]]


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
    rows = _measure(game, world_model, episodes, seed, num_before=0, num_after=0)
    return {kind: {"right": row["right"], "frames": row["starts"]} for kind, row in rows.items()}


def measure_bounces(
    game: str, world_model: WorldModelLike, episodes: Sequence[Episode], seed: int = 0
) -> Numbers:
    """Measure where the ball is `AFTER_BOUNCE` steps after a bounce imagined from `BEFORE_BOUNCE` before it.

    A world may foretell each step from real frames and still lose the ball, or send it elsewhere, when it
    continues from its own. Arguments are those of `measure_single_steps`.

    Returns:
        For each kind of step, free flight included, "right", the share in [0, 1] of the balls within
        `RADIUS` px of the real one, "there", that of the balls anywhere (NaN where there is none), and
        "starts", their number.
    """
    return _measure(game, world_model, episodes, seed, num_before=BEFORE_BOUNCE, num_after=AFTER_BOUNCE)


def count_fates(
    game: str,
    obs: UInt8[np.ndarray, "k t c h w"],
    rew: Float[np.ndarray, "k t"],
    end: Bool[np.ndarray, "k t"],
) -> dict[str, float | int]:
    """Count what becomes of the balls that come to the player's paddle, in games that somebody plays.

    A world in which a ball vanishes where it should be lost teaches agents to make it vanish.

    Args:
        game: The game's name; nothing is counted in games whose ball cannot be found.
        obs: The frame after each step.
        rew: Signs of the rewards.
        end: Whether the step ended the episode; later steps are left out.

    Returns:
        The shares of those that were "lost" (a point or a life within `FATE_STEPS` steps of the last frame
        in which the ball comes nearer), that "returned" (seen far from the paddle within as many), and that
        "vanished"; and the number of "balls".
    """
    if game not in _GAMES:
        return {}
    find_ball, _, toward = _GAMES[game]
    counts = dict.fromkeys(("lost", "returned", "vanished"), 0)
    for frames, rewards, ends in zip(obs, rew, end, strict=True):
        place = find_ball(_images(frames))[:, toward.axis]
        is_loss = ends | (rewards < 0)
        last = int(ends.argmax()) if ends.any() else len(ends) - FATE_STEPS
        nearer = np.diff(place) > _NEARER
        arrives = np.flatnonzero(nearer[:-1] & ~nearer[1:] & (place[1:-1] >= toward.near)) + 1
        for time in arrives[arrives < last].tolist():
            soon = slice(time + 1, time + 1 + FATE_STEPS)
            if is_loss[time : soon.stop].any():
                counts["lost"] += 1
            elif (place[soon] < toward.near).any():
                counts["returned"] += 1
            else:
                counts["vanished"] += 1
    balls = sum(counts.values())
    return {fate: count / balls if balls else math.nan for fate, count in counts.items()} | {"balls": balls}


def find_events(game: str, episode: Episode) -> tuple[Float[np.ndarray, "t1 2"], Kinds]:
    """Find the ball (x, y) in every frame of an episode, and what happens in each step.

    Args:
        game: One of `GAMES_WITH_BALL`.
        episode: A real episode. Where its final frame is unknown, the last one is used for it.
    """
    find_ball, kinds_of, _ = _GAMES[game]
    unknown = episode.final_observation is None
    frames = torch.cat([episode.obs, episode.obs[-1:]]) if unknown else all_frames(episode)
    ball = find_ball(_images(frames.numpy()))
    return ball, kinds_of(ball, episode.rew.numpy())


class AtPaddle(NamedTuple):
    """Steps in which the ball is at the player's paddle, and little decides between a hit and a miss in some.

    Attributes:
        miss: The ball passes the paddle.
        near_miss: It passes within `NEAR_MISS` px of the paddle's middle.
        edge_hit: It turns at least `EDGE_HIT` px from the middle, as it is in the frame before.
    """

    miss: Bool[np.ndarray, " t"]
    near_miss: Bool[np.ndarray, " t"]
    edge_hit: Bool[np.ndarray, " t"]


def find_misses(
    game: str, episode: Episode, ball: Float[np.ndarray, "t1 2"], hits: Bool[np.ndarray, " t"]
) -> AtPaddle:
    """Find the steps in which the ball passes the player's paddle, and in which little decides if it does.

    Args:
        game: One of `GAMES_WITH_BALL`.
        episode: A real episode.
        ball: The ball's place in its frames, as `find_events` returns it.
        hits: The steps in which it turns at the paddle, likewise.
    """
    toward = _GAMES[game][2]
    place = ball[:, toward.axis]
    before, after = place[:-1], np.nan_to_num(place[1:], nan=np.inf)
    miss = (before > toward.past - _LONGEST_STEP) & (before < toward.past) & (after >= toward.past)
    times = np.flatnonzero(miss | hits)
    paddle = toward.find_paddle(_images(episode.obs[times].numpy()))
    distance = np.full(len(miss), np.nan)
    distance[times] = np.abs(paddle - ball[times, 1 - toward.axis])
    return AtPaddle(miss, miss & (distance <= NEAR_MISS), hits & (distance >= EDGE_HIT))


def _measure(
    game: str,
    world_model: WorldModelLike,
    episodes: Sequence[Episode],
    seed: int,
    *,
    num_before: int,
    num_after: int,
) -> Numbers:
    """Measure the ball `num_after` steps after each kind of step, imagined from `num_before` before it."""
    if game not in _GAMES:
        return {}
    find_ball = _GAMES[game][0]
    events = [find_events(game, episode) for episode in episodes]
    found = [ball for ball, _ in events]
    first, num_steps = world_model.num_steps_conditioning - 1, num_before + 1 + num_after
    starts: dict[str, list[tuple[int, int]]] = {}
    for number, (episode, (_, kinds)) in enumerate(zip(episodes, events, strict=True)):
        for kind, happens in kinds.items():
            times = np.flatnonzero(happens) - num_before
            times = times[(times >= first) & (times + num_steps <= len(episode))]
            starts.setdefault(kind, []).extend((number, time) for time in times.tolist())
    results: Numbers = {}
    for kind, all_of_kind in starts.items():
        chosen = _spread_evenly(all_of_kind)
        ball = find_ball(_images(_imagined_frames(world_model, episodes, chosen, num_steps, seed)))
        real = np.array([found[e][t + num_steps] for e, t in chosen]).reshape(-1, 2)
        is_known = ~np.isnan(real).any(1)
        ball, real = ball[is_known], real[is_known]
        near = np.nan_to_num(np.abs(ball - real), nan=np.inf) <= RADIUS
        right, there = np.asarray(near.all(1)), np.asarray(~np.isnan(ball).any(1))
        results[kind] = {"right": _share(right), "there": _share(there), "starts": len(ball)}
    return results


def _spread_evenly(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chosen = np.unique(np.linspace(0, len(steps) - 1, MAX_OF_KIND).round().astype(int))
    return [steps[i] for i in chosen.tolist()] if steps else []


def _imagined_frames(
    world_model: WorldModelLike,
    episodes: Sequence[Episode],
    starts: Sequence[tuple[int, int]],
    num_steps: int,
    seed: int,
) -> UInt8[np.ndarray, "s c h w"]:
    """The frame after imagining `num_steps` steps from each start (episode, time) under the real actions."""
    n, device = world_model.num_steps_conditioning, world_model.device
    frames = [episodes[0].obs[:0]]
    for first in range(0, len(starts), _BATCH):
        part = starts[first : first + _BATCH]
        obs = torch.stack([episodes[e].obs[t - n + 1 : t + 1] for e, t in part]).to(device)
        act = torch.stack([episodes[e].act[t - n + 1 : t + num_steps] for e, t in part]).to(device)
        keys = torch.arange(first, first + len(part)) + (seed << 32)
        state, last = world_model.start(obs, act[:, :n], keys), obs[:, -1]
        for now in act[:, n - 1 :].unbind(1):
            state, step = world_model.step(state, now)
            last = step.obs
        frames.append(last.cpu())
    return torch.cat(frames).numpy()


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


class _Toward(NamedTuple):
    """Where the player's paddle is: in x (0) or y (1).

    Attributes:
        axis: The coordinate.
        near: The place from which on a ball is on the paddle's side.
        past: The place from which on it can no longer be hit.
        find_paddle: Finds the middle of the paddle in frames, in the other coordinate.
    """

    axis: int
    near: float
    past: float
    find_paddle: Callable[[NDArray[np.uint8]], NDArray[np.float64]]


_GAMES: dict[
    str,
    tuple[
        Callable[[NDArray[np.uint8]], NDArray[np.float64]],
        Callable[[NDArray[np.float64], NDArray[np.float64]], Kinds],
        _Toward,
    ],
] = {
    "Breakout": (
        breakout_ball,
        breakout_kinds,
        _Toward(axis=1, near=_PADDLE_FROM, past=56.5, find_paddle=breakout_paddle),
    ),
    "Pong": (pong_ball, pong_kinds, _Toward(axis=0, near=44.0, past=57.0, find_paddle=pong_right_paddle)),
}
GAMES_WITH_BALL = tuple(_GAMES)
"""The games whose ball can be found."""
