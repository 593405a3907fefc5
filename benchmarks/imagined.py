"""Imagined games under random actions, for benchmarks; this module imports only what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from diamond_gym.envs.vector_env import DiamondVectorEnv

HORIZON = 50
"""Steps after which imagined games are truncated: the registered default."""


def make_envs(game: str, num_envs: int, options: dict[str, Any]) -> DiamondVectorEnv:
    """Make imagined games of a world model.

    Args:
        game: Name of the game.
        num_envs: Number of games at once, at least 1.
        options: Keyword arguments of the environment.

    Raises:
        DiamondGymError: The errors of `DiamondVectorEnv`.
    """
    return DiamondVectorEnv(num_envs, game, max_episode_steps=HORIZON, **options)


def random_player(envs: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Callable[[], Any]:
    """Start the games; return a function that takes one random action in each of them."""
    rng = np.random.default_rng(0)
    num_actions = envs.single_action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    envs.reset(seed=0)
    return lambda: envs.step(rng.integers(num_actions, size=envs.num_envs))


def single_player(env: gymnasium.Env[Any, Any]) -> Callable[[], None]:
    """Start a game; return a function that takes one random action in it, and resets it when it is over."""
    rng = np.random.default_rng(0)
    num_actions = env.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(int(rng.integers(num_actions)))
        if terminated or truncated:
            env.reset()

    return step
