"""Imagined games under random actions, to be stepped again and again. Loads no more than they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from diamond_gym.envs.vector_env import DiamondVectorEnv

HORIZON = 50
"""Steps after which imagined games are truncated: the registered default."""


def make_envs(game: str, num_envs: int, options: dict[str, Any]) -> DiamondVectorEnv:
    """Games of a world model.

    Args:
        game: A game.
        num_envs: Games at once, at least 1.
        options: Keyword arguments of the environment.

    Raises:
        DiamondGymError: As `DiamondVectorEnv` does.
    """
    return DiamondVectorEnv(num_envs, game, max_episode_steps=HORIZON, **options)


def random_player(envs: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Callable[[], Any]:
    """Starts the games; returns what takes one random action in each of them."""
    rng = np.random.default_rng(0)
    num_actions = envs.single_action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    envs.reset(seed=0)
    return lambda: envs.step(rng.integers(num_actions, size=envs.num_envs))


def single_player(env: gymnasium.Env[Any, Any]) -> Callable[[], None]:
    """Starts a game; returns what takes one random action in it, and resets it where it is over."""
    rng = np.random.default_rng(0)
    num_actions = env.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(int(rng.integers(num_actions)))
        if terminated or truncated:
            env.reset()

    return step
