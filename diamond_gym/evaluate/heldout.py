"""Held-out real episodes, and the starts of imagination in them. Knows nothing of world models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.data.episodes import Episode
from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players import loop
from diamond_gym.players.player import Player

HELD_OUT_SEED = 2**40
"""First seed of real games for evaluation: data for training comes from 32-bit seeds."""

_SEEDS_PER_RUN = 10_000
MAX_STEPS = 27_000
"""Default limit of an episode's steps; ALE itself stops a game after 108 000 raw frames."""


@dataclass(frozen=True)
class HeldOut:
    """Real episodes, and how to play them again.

    Attributes:
        episodes: Finished episodes, each with its final observation.
        seeds: Seed of the game that each episode begins; None where the episode continues a game after a
            lost life.
    """

    episodes: list[Episode]
    seeds: list[int | None]


@dataclass(frozen=True)
class Starts:
    """Contexts in real episodes and what followed, one row each.

    Attributes:
        episode: Index of the episode.
        time: Step of the episode.
        obs: The last n real frames, oldest first.
        act: The actions taken at them; the last one is the first of `future_act`.
        future_act: The actions taken from the start on; 0 after the episode's end.
        future_obs: The frame after each of these actions; black after the end.
        future_rew: The sign of the reward of each; 0 after the end.
        future_end: Whether the episode ended with it.
        valid: Whether the episode had not ended when the action was taken.
    """

    episode: Int64[Tensor, " b"]
    time: Int64[Tensor, " b"]
    obs: UInt8[Tensor, "b n c h w"]
    act: Int64[Tensor, "b n"]
    future_act: Int64[Tensor, "b t"]
    future_obs: UInt8[Tensor, "b t c h w"]
    future_rew: Float[Tensor, "b t"]
    future_end: Bool[Tensor, "b t"]
    valid: Bool[Tensor, "b t"]

    def __len__(self) -> int:
        return len(self.obs)


def play(game: str, player: Player, num_episodes: int, seed: int, max_steps: int = MAX_STEPS) -> HeldOut:
    """Play real episodes from seeds that training never uses; an episode ends with a lost life.

    A game is played until it is over, then the next one starts from its own seed.

    Args:
        game: The game's name.
        player: The player, reset with a seed of its own at every episode.
        num_episodes: Number of episodes.
        seed: An integer >= 0; different seeds have no game in common.
        max_steps: Steps after which an episode is cut short and the next game begins.
    """
    env = AtariEnv(game, training=True)
    held_out = HeldOut([], [])
    first = next_game = HELD_OUT_SEED + _SEEDS_PER_RUN * seed
    game_over = True
    try:
        for number in range(num_episodes):
            game_seed = next_game if game_over else None
            next_game += game_over
            obs, _ = env.reset(seed=game_seed)
            player.reset(first + number)
            episode, game_over = _play_episode(env, player, obs, max_steps)
            held_out.episodes.append(episode)
            held_out.seeds.append(game_seed)
    finally:
        env.close()
    return held_out


def _play_episode(env: AtariEnv, player: Player, obs: np.ndarray, max_steps: int) -> tuple[Episode, bool]:
    """Play one episode; return it and whether the game is over."""
    builder, step = EpisodeBuilder(), None
    for step in itertools.islice(loop.play(env, player, obs), max_steps):
        builder.add(step.obs, step.act, step.rew)
    assert step is not None, "an episode has a step"
    truncated = step.truncated or not step.terminated
    episode = builder.episode(end=step.terminated, trunc=truncated, final_obs=step.next_obs)
    return episode, truncated or bool(step.info["game_over"])


def all_frames(episode: Episode) -> UInt8[Tensor, "t1 c h w"]:
    """Return the frames of a finished episode, its final observation included."""
    assert episode.final_observation is not None
    return torch.cat([episode.obs, episode.final_observation[None]])


def choose_starts(
    episodes: Sequence[Episode], num_starts: int, num_conditioning: int, horizon: int
) -> Starts:
    """Choose starts, spread evenly over every episode.

    Every episode gives equally many, or fewer if it is too short. The earliest start has a full context, the
    latest has one step left. `valid` marks what lies after an episode's end.

    Args:
        episodes: Finished episodes.
        num_starts: Least number of starts, if the episodes are long enough.
        num_conditioning: Frames of context (n).
        horizon: Steps that follow.

    Raises:
        InvalidInputError: Every episode is shorter than the context.
    """
    per_episode = math.ceil(num_starts / len(episodes))
    rows = []
    for number, episode in enumerate(episodes):
        first, last = num_conditioning - 1, len(episode) - 1
        if last >= first:
            times = np.unique(np.linspace(first, last, per_episode).round().astype(int))
            rows += [
                (torch.tensor(number), *_start(episode, int(time), num_conditioning, horizon))
                for time in times
            ]
    if not rows:
        raise InvalidInputError(
            f"all {len(episodes)} episodes are shorter than the {num_conditioning} frames of a context; "
            "play more episodes"
        )
    return Starts(*(torch.stack(column) for column in zip(*rows, strict=True)))


def starts_before_ends(episodes: Sequence[Episode], num_steps: int, num_conditioning: int) -> Starts | None:
    """Choose the starts `num_steps` steps before episodes' ends; after these, NOOP follows for as many steps.

    Args:
        episodes: Finished episodes; those cut short do not end.
        num_steps: Steps up to the end, at least 1.
        num_conditioning: Frames of context (n); earlier ends are left out.

    Returns:
        The starts; None where no episode ends so late.
    """
    rows = [
        (torch.tensor(number), *_start(episode, len(episode) - num_steps, num_conditioning, 2 * num_steps))
        for number, episode in enumerate(episodes)
        if bool(episode.end[-1]) and len(episode) - num_steps >= num_conditioning - 1
    ]
    return Starts(*(torch.stack(column) for column in zip(*rows, strict=True))) if rows else None


def _start(episode: Episode, time: int, n: int, horizon: int) -> tuple[Tensor, ...]:
    frames = all_frames(episode)
    now, context = slice(time, time + horizon), slice(time - n + 1, time + 1)
    act, rew, end = episode.act[now], episode.rew[now].sign(), episode.end[now].bool()
    obs = frames[time + 1 : time + 1 + horizon]
    valid = torch.ones(len(act), dtype=torch.bool)
    future = tuple(_pad(x, horizon) for x in (act, obs, rew, end, valid))
    return (torch.tensor(time), episode.obs[context], episode.act[context], *future)


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])
