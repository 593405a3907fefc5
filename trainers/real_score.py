"""What an agent of a single-file trainer is worth in the real game: whole games, and how sure one can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diamond_gym.errors import UnknownGameError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.progress import Bar
from diamond_gym.registration import check_imagined, game_name

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

Policy = Callable[[NDArray[np.uint8]], int]
"""The action at a stack of frames (n, 3, 64, 64), the latest last."""


def real_game(env_id: str) -> str | None:
    """The Atari game that an id imagines; None where it imagines something else.

    Raises:
        DiamondGymError: No such id, or not that of an imagined game.
    """
    check_imagined(env_id)
    try:
        return game_name(gym.spec(env_id).kwargs.get("game") or env_id)
    except UnknownGameError:
        return None


def real_scores(
    policy: Policy, game: str, *, num_games: int, num_frames: int, seed: int, max_steps: int
) -> list[float]:
    """Scores of real games, from their start to game over.

    Args:
        policy: Who plays.
        game: Canonical name.
        num_games: How many, at least 0.
        num_frames: Frames in a stack; at the start of a game its first one, repeated.
        seed: That of the first game, the next one has the next.
        max_steps: Steps after which a game is cut short.
    """
    env, scores = AtariEnv(game, training=False), []
    for number in Bar(range(num_games), desc="real games", unit="game"):
        obs, _ = env.reset(seed=seed + number)
        stack = np.stack([obs.transpose(2, 0, 1)] * num_frames)
        total = 0.0
        for _ in range(max_steps):
            obs, rew, terminated, truncated, _ = env.step(policy(stack))
            stack = np.concatenate([stack[1:], obs.transpose(2, 0, 1)[None]])
            total += float(rew)
            if terminated or truncated:
                break
        scores.append(total)
    env.close()
    return scores


def bootstrap_interval(returns: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap (Efron 1979), the same for the same returns."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(returns), (NUM_RESAMPLES, len(returns))).mean(axis=1)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [outside, 1 - outside])
    return float(low), float(high)


def in_words(scores: Sequence[float]) -> str:
    """Mean, interval and median of at least one score."""
    low, high = bootstrap_interval(scores)
    mean, median = np.mean(scores), np.median(scores)
    return (
        f"mean score of {len(scores)} real games: {mean:.2f} (95 % interval {low:.2f} to {high:.2f}), "
        f"median {median:.2f}"
    )
