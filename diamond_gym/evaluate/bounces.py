"""Where the ball is after single predictions and after imagined bounces, grouped by what happens in them.

A world that is right in free flight and wrong at bounces has a high PSNR and teaches agents nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate.ball import GAMES_WITH_BALL, find_ball, find_events
from diamond_gym.world.interface import WorldModelLike

RADIUS = 2.0
"""Distance in pixels, in x and in y, within which a predicted ball is right."""
MAX_OF_KIND = 400
"""Largest number of predicted steps of each kind, spread evenly over the episodes."""
BEFORE_BOUNCE = 2
"""Steps before a bounce from which it is imagined."""
AFTER_BOUNCE = 5
"""Steps after a bounce at which the imagined ball is judged."""
_BATCH = 64

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
    if game not in GAMES_WITH_BALL:
        return {}
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
        ball = find_ball(game, _imagined_frames(world_model, episodes, chosen, num_steps, seed))
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
