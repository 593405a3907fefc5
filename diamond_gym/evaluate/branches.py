"""Alternative futures: real episodes played again, and continued with other actions from some starts.

The module knows the real game and nothing of world models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.evaluate.heldout import HeldOut, Starts
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players import loop
from diamond_gym.players.player import Player, PolicyPlayer

NUM_STEPS = 4
"""Steps for which an action is held: most games take one or two to react."""
MAX_ACTIONS = 4
"""Most actions per start; in a game with more actions, they are drawn at each start."""
MAX_HOLD = 4
"""Longest hold of a random action; 1 to this many steps are equally likely."""

T = TypeVar("T")


@dataclass(frozen=True)
class Branches:
    """The same k starts under different actions, each held for `NUM_STEPS` steps.

    Attributes:
        start: Indices of the starts.
        act: The actions held.
        obs: The real frame at the end of each.
    """

    start: Int64[Tensor, " k"]
    act: Int64[Tensor, "k a"]
    obs: UInt8[Tensor, "k a c h w"]


@dataclass(frozen=True)
class Play:
    """Frames, rewards and ends that a player meets from k starts on.

    Attributes:
        start: Indices of the starts.
        obs: The frame after each step; black after a real end.
        rew: The sign of the reward of each step; 0 after a real end.
        end: Whether the episode ended with it.
    """

    start: Int64[Tensor, " k"]
    obs: UInt8[Tensor, "k t c h w"]
    rew: Float[Tensor, "k t"]
    end: Bool[Tensor, "k t"]


@dataclass(frozen=True)
class RandomPlay(Play):
    """Rewards and ends under random actions.

    Attributes:
        act: The actions, each held for 1 to `MAX_HOLD` steps.
    """

    act: Int64[Tensor, "k t"]


def branch(game: str, held_out: HeldOut, starts: Starts, num_starts: int, seed: int) -> Branches | None:
    """Return to some of the starts in the real game and take other actions there.

    Args:
        game: The game's name.
        held_out: The episodes.
        starts: Starts in them; those with fewer than `NUM_STEPS` steps left are skipped.
        num_starts: Number of starts, spread evenly.
        seed: Fixes which actions are taken, at least 0.

    Returns:
        The branches, without starts where one of the actions ended the episode; None if none is left.
    """
    rng = np.random.default_rng(seed)
    chosen = _spread_evenly(starts, num_starts, NUM_STEPS)
    env = AtariEnv(game, training=True)
    num_actions = len(env.action_meanings)
    size = min(num_actions, MAX_ACTIONS)
    acts = {row: np.sort(rng.choice(num_actions, size, replace=False)) for row in chosen}
    ends = _replay(env, held_out, starts, chosen, lambda row: _ends(env, acts[row]))
    kept = {row: frames for row, frames in sorted(ends.items()) if frames is not None}
    if not kept:
        return None
    rows = list(kept)
    frames = np.stack(list(kept.values())).transpose(0, 1, 4, 2, 3)
    act = torch.from_numpy(np.stack([acts[row] for row in rows]))
    return Branches(torch.tensor(rows), act, torch.from_numpy(frames.copy()))


def play_randomly(
    game: str, held_out: HeldOut, starts: Starts, num_starts: int, num_steps: int, seed: int
) -> RandomPlay:
    """Return to some of the starts in the real game and take random actions from there.

    Args:
        game: The game's name.
        held_out: The episodes.
        starts: Starts in them.
        num_starts: Number of starts, spread evenly.
        num_steps: Number of actions from each.
        seed: Fixes the actions, at least 0.
    """
    rng = np.random.default_rng(seed)
    chosen = _spread_evenly(starts, num_starts, 1)
    env = AtariEnv(game, training=True)
    acts = {row: _random_actions(rng, len(env.action_meanings), num_steps) for row in chosen}
    act = torch.from_numpy(np.stack([acts[row] for row in chosen]))
    met = _play_from(env, held_out, starts, chosen, lambda row: _one_by_one(acts[row]), num_steps)
    return RandomPlay(torch.tensor(chosen), *met, act)


def play_on(
    game: str, player: Player, held_out: HeldOut, starts: Starts, num_starts: int, num_steps: int
) -> Play:
    """Return to some of the starts in the real game and let a player continue from there.

    Args:
        game: The game's name.
        player: The player, without memory of earlier frames; its seed at a start is the start's index.
        held_out: The episodes.
        starts: Starts in them.
        num_starts: Number of starts, spread evenly.
        num_steps: Number of steps from each.
    """
    chosen = _spread_evenly(starts, num_starts, 1)
    env = AtariEnv(game, training=True)

    def at_start(row: int) -> Player:
        player.reset(row)
        return player

    return Play(torch.tensor(chosen), *_play_from(env, held_out, starts, chosen, at_start, num_steps))


def _spread_evenly(starts: Starts, num_starts: int, num_steps: int) -> list[int]:
    """Choose some of the starts that have enough steps left."""
    column = min(num_steps, starts.valid.shape[1]) - 1
    rows = starts.valid[:, column].nonzero().flatten().numpy()
    if not len(rows):
        return []
    return rows[np.unique(np.linspace(0, len(rows) - 1, num_starts).round().astype(int))].tolist()


def _random_actions(rng: np.random.Generator, num_actions: int, num_steps: int) -> NDArray[np.int64]:
    holds = rng.integers(1, MAX_HOLD + 1, num_steps)
    return rng.integers(num_actions, size=num_steps).repeat(holds)[:num_steps]


def _replay(
    env: AtariEnv, held_out: HeldOut, starts: Starts, chosen: list[int], look: Callable[[int], T]
) -> dict[int, T]:
    """Play the episodes again, call `look` at every chosen start, and close `env`."""
    rows = {(int(starts.episode[row]), int(starts.time[row])): row for row in chosen}
    last = max((episode for episode, _ in rows), default=-1)
    seen: dict[int, T] = {}
    with closing(env):
        for number in range(last + 1):
            env.reset(seed=held_out.seeds[number])
            for time, act in enumerate(held_out.episodes[number].act.tolist()):
                row = rows.get((number, time))
                if row is not None:
                    here = env.clone_state()
                    seen[row] = look(row)
                    env.restore_state(here)
                env.step(act)
    return seen


def _ends(env: AtariEnv, acts: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Return the frame after holding each action, (a, h, w, c); None if one of them ends the episode."""
    here = env.clone_state()
    frames = []
    for act in acts:
        frames.append(_hold(env, int(act)))
        env.restore_state(here)
    return None if any(frame is None for frame in frames) else np.stack(frames)


def _play_from(
    env: AtariEnv,
    held_out: HeldOut,
    starts: Starts,
    chosen: list[int],
    player_at: Callable[[int], Player],
    num_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames, rewards and ends (k, num_steps) that a player meets from each chosen start on.

    It closes `env`.
    """

    def look(row: int) -> tuple[Tensor, Tensor, Tensor]:
        return _play(env, player_at(row), starts.obs[row, -1], num_steps)

    happened = _replay(env, held_out, starts, chosen, look)
    obs, rew, end = (torch.stack(column) for column in zip(*(happened[row] for row in chosen), strict=True))
    return obs, rew, end


def _one_by_one(acts: NDArray[np.int64]) -> Player:
    """Return a policy that takes these actions, whatever the frame."""
    left = iter(acts.tolist())
    return PolicyPlayer(lambda obs: next(left))


def _play(
    env: AtariEnv, player: Player, frame: Tensor, num_steps: int
) -> tuple[UInt8[Tensor, "t c h w"], Float[Tensor, " t"], Bool[Tensor, " t"]]:
    """Let a player play from this frame (c, h, w) on; return frames, signs of rewards, and ends."""
    obs = torch.zeros(num_steps, *frame.shape, dtype=torch.uint8)
    rew, end = torch.zeros(num_steps), torch.zeros(num_steps, dtype=torch.bool)
    steps = loop.play(env, player, frame.permute(1, 2, 0).numpy())
    for t, step in enumerate(itertools.islice(steps, num_steps)):
        obs[t] = torch.from_numpy(step.next_obs).permute(2, 0, 1)
        rew[t], end[t] = float(np.sign(step.rew)), step.is_over
    return obs, rew, end


def _hold(env: AtariEnv, act: int) -> NDArray[np.uint8] | None:
    obs = None
    for _ in range(NUM_STEPS):
        obs, _, terminated, truncated, _ = env.step(act)
        if terminated or truncated:
            return None
    return obs
