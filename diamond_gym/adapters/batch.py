"""The batched environment that every adapter is built on."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from diamond_gym.registration import check_imagined


def make_batch(env_id: str, num_envs: int, max_episode_steps: int | None, **kwargs: Any) -> VectorEnv:
    """Make imagined games that advance together.

    Args:
        env_id: The id of an imagined game.
        num_envs: How many, at least 1.
        max_episode_steps: Imagination horizon; None is the registered one.
        kwargs: Keyword arguments of `DiamondVectorEnv`.

    Raises:
        InvalidInputError: The id is not that of an imagined game, or an argument is wrong.
        DiamondGymError: A keyword argument cannot be met; the subclass says how.
    """
    check_imagined(env_id)
    if max_episode_steps is not None:
        kwargs["max_episode_steps"] = max_episode_steps
    return gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs)
