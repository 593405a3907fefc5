"""What would have happened: real episodes played again, with another action at some moments of them.

Knows the real game and nothing of world models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diamond_gym.atari import AtariEnv
from diamond_gym.evaluate.heldout import HeldOut, Starts

NUM_STEPS = 4
"""An action is held for so many steps: most games take one or two to answer."""
MAX_ACTIONS = 4
"""Of a game with more, so many are drawn anew at each start."""


@dataclass(frozen=True)
class Branches:
    """The same k starts under different actions, each held for `NUM_STEPS` steps.

    Attributes:
        start: numbers of the starts.
        act: the actions held.
        obs: the real frame at the end of each.
    """

    start: Int64[Tensor, " k"]
    act: Int64[Tensor, "k a"]
    obs: UInt8[Tensor, "k a c h w"]


def branch(game: str, held_out: HeldOut, starts: Starts, num_starts: int, seed: int) -> Branches | None:
    """Goes back to some of the starts in the real game and takes other actions there.

    Args:
        game: the game's name.
        held_out: the episodes.
        starts: moments in them; those with less than `NUM_STEPS` steps to go are passed over.
        num_starts: how many, spread evenly.
        seed: fixes which actions are taken, at least 0.

    Returns:
        The branches, without starts where one of the actions ended the episode; None if none is left.
    """
    rng = np.random.default_rng(seed)
    long_enough = starts.valid[:, min(NUM_STEPS, starts.valid.shape[1]) - 1].nonzero().flatten().numpy()
    if not len(long_enough):
        return None
    chosen = long_enough[np.unique(np.linspace(0, len(long_enough) - 1, num_starts).round().astype(int))]
    env = AtariEnv(game, training=True)
    num_actions = len(env.action_meanings)
    size = min(num_actions, MAX_ACTIONS)
    acts = {int(row): np.sort(rng.choice(num_actions, size, replace=False)) for row in chosen}
    try:
        ends = dict(_replay(env, held_out, starts, acts))
    finally:
        env.close()
    kept = {row: frames for row, frames in sorted(ends.items()) if frames is not None}
    if not kept:
        return None
    rows = list(kept)
    frames = np.stack(list(kept.values())).transpose(0, 1, 4, 2, 3)
    act = torch.from_numpy(np.stack([acts[row] for row in rows]))
    return Branches(torch.tensor(rows), act, torch.from_numpy(frames.copy()))


def _replay(
    env: AtariEnv, held_out: HeldOut, starts: Starts, acts: dict[int, np.ndarray]
) -> Iterable[tuple[int, np.ndarray | None]]:
    """Plays the episodes again; yields the frames at the ends of the branches of each start among `acts`."""
    rows = {(int(starts.episode[row]), int(starts.time[row])): row for row in acts}
    last = max((episode for episode, _ in rows), default=-1)
    for number in range(last + 1):
        env.reset(seed=held_out.seeds[number])
        for time, act in enumerate(held_out.episodes[number].act.tolist()):
            row = rows.get((number, time))
            if row is not None:
                yield row, _ends(env, acts[row])
            env.step(act)


def _ends(env: AtariEnv, acts: np.ndarray) -> np.ndarray | None:
    """The frame after holding each action from here, (a, h, w, c); None if one of them ends the episode."""
    here = env.clone_state()
    frames = []
    for act in acts:
        frames.append(_hold(env, int(act)))
        env.restore_state(here)
    return None if any(frame is None for frame in frames) else np.stack(frames)


def _hold(env: AtariEnv, act: int) -> np.ndarray | None:
    obs = None
    for _ in range(NUM_STEPS):
        obs, _, terminated, truncated, _ = env.step(act)
        if terminated or truncated:
            return None
    return obs
