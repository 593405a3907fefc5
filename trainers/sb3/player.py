"""A saved or trained agent as a player of single games, for collecting episodes and for films.

It sees one frame at a time and remembers what it needs: the frames it stacks, its recurrent state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from trainers.sb3.agents import is_off_policy


class AgentPlayer:
    """An agent of Stable-Baselines3 as `diamond_gym.players.player.Player`.

    At the start of an episode the stack is filled up with black frames, as `ContextFrameStack` does in real
    games. An agent that learns values takes the best action, others draw theirs.

    Args:
        agent: Sees stacks of uint8 frames (64, 64, 3).
        frame_stack: How many frames it sees, at least 1.
    """

    name = "agent"
    entropy = value = None

    def __init__(self, agent: BaseAlgorithm, frame_stack: int) -> None:
        self.agent, self.deterministic = agent, is_off_policy(agent)
        self._stack = np.zeros((64, 64, 3 * frame_stack), np.uint8)
        self._memory: Any = None
        self._begins = True

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the last episode; the stack is black, whatever was before."""
        if seed is not None:
            set_random_seed(seed)
        self._stack[:] = 0
        self._memory, self._begins = None, True

    def act(self, obs: NDArray[np.uint8]) -> int:
        """Return the action at a frame."""
        self._stack[..., :-3] = self._stack[..., 3:].copy()
        self._stack[..., -3:] = obs
        act, self._memory = self.agent.predict(
            self._stack[None],
            state=self._memory,
            episode_start=np.array([self._begins]),
            deterministic=self.deterministic,
        )
        self._begins = False
        return int(act[0])
