"""A saved or trained agent as a policy of batches of games, and as a player of single ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from diamond_gym.backends.threads import using_threads
from trainers.sb3.agents import is_off_policy

Policy = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[Any]]
"""Actions at observations; the flags say which games have just begun."""


class AgentPolicy:
    """An agent as a policy of a batch of games, with the memory of each.

    Args:
        agent: The agent. One that learns values takes the best action without exploring; others draw theirs.
        deterministic: Whether the others take their likeliest action instead.
    """

    def __init__(self, agent: BaseAlgorithm, *, deterministic: bool = False) -> None:
        self.agent, self.deterministic = agent, deterministic or is_off_policy(agent)
        self._memory: Any = None

    def __call__(self, obs: NDArray[np.uint8], begins: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the actions; games that have just begun are not remembered."""
        with using_threads(1 if len(begins) == 1 else torch.get_num_threads()):
            act, self._memory = self.agent.predict(
                obs, state=self._memory, episode_start=begins, deterministic=self.deterministic
            )
        return act


class AgentPlayer:
    """An agent of Stable-Baselines3 as `diamond_gym.players.player.Player`.

    It is given one frame at a time and stacks them itself. At the start of an episode the stack is filled up
    with black frames, as `ContextFrameStack` does in real games.

    Args:
        agent: An agent that sees stacks of uint8 frames (64, 64, 3).
        frame_stack: Number of frames that it sees, at least 1.
        deterministic: As for `AgentPolicy`.
    """

    def __init__(self, agent: BaseAlgorithm, frame_stack: int, *, deterministic: bool = False) -> None:
        self._policy = AgentPolicy(agent, deterministic=deterministic)
        self._stack = np.zeros((64, 64, 3 * frame_stack), np.uint8)
        self._begins = True

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the last episode and fill the stack with black frames."""
        if seed is not None:
            set_random_seed(seed % 2**32)  # NumPy takes no larger one
        self._stack[:] = 0
        self._begins = True

    def act(self, obs: NDArray[np.uint8]) -> int:
        """Return the action at a frame."""
        self._stack[..., :-3] = self._stack[..., 3:].copy()
        self._stack[..., -3:] = obs
        act = self._policy(self._stack[None], np.array([self._begins]))
        self._begins = False
        return int(act[0])
