"""The one loop in which a player plays an environment; collecting, scoring and filming use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diamond_gym.players.player import Player


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        obs: The frame that the player saw.
        act: The action that it chose: an int, or an array where actions are not discrete.
        rew: The reward.
        terminated: Whether the episode ended with the step.
        truncated: Whether the episode was truncated at the step.
        next_obs: The frame after the step.
        info: The environment's info.
    """

    obs: NDArray[np.uint8]
    act: Any
    rew: float
    terminated: bool
    truncated: bool
    next_obs: NDArray[np.uint8]
    info: dict[str, Any]

    @property
    def is_over(self) -> bool:
        """Whether the episode is over, either way."""
        return self.terminated or self.truncated


def play(env: gymnasium.Env[Any, Any], player: Player, obs: NDArray[np.uint8]) -> Iterator[Step]:
    """Let a player play from a frame on until the episode is over.

    Each step is made when the iterator advances, so the caller may stop at any time. Reset environment and
    player first.

    Args:
        env: The environment.
        player: The player.
        obs: The current frame of the environment.
    """
    while True:
        act = player.act(obs)
        next_obs, rew, terminated, truncated, info = env.step(act)
        frame = np.array(next_obs)  # a copy, because an environment may draw every frame into the same array
        step = Step(obs, act, float(rew), bool(terminated), bool(truncated), frame, info)
        yield step
        if step.is_over:
            return
        obs = step.next_obs
