"""A checkpoint's actor-critic as a player.

The module has one network and one stream of random numbers, and does not depend on games, files or training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diamond_gym.backends.threads import using_threads
from diamond_gym.errors import InvalidInputError
from diamond_gym.players.player import check_epsilon
from diamond_gym.world import policy
from diamond_gym.world.models import Agent
from diamond_gym.world.pixels import to_float


class ActorCriticPlayer:
    """A player with an agent's actor-critic; its memory lasts from one `reset` to the next.

    Args:
        agent: An agent with an actor-critic, which is used on its device and in its dtype.
        epsilon: Probability in [0, 1] of a uniformly random action.
        seed: Fixes every action that follows, >= 0.
        temperature: Divides the logits before an action is sampled; 0 takes the likeliest action.

    Attributes:
        value: The critic's expected return at the latest frame; None before the first.

    Raises:
        InvalidInputError: The agent has no actor-critic, or a number is out of range.
    """

    name = "actor-critic"

    def __init__(self, agent: Agent, epsilon: float = 0.0, seed: int = 0, temperature: float = 1.0) -> None:
        if agent.actor_critic is None:
            raise InvalidInputError("this agent has no actor-critic: its checkpoint holds a world model only")
        check_epsilon(epsilon)
        if not temperature >= 0:
            raise InvalidInputError(f"temperature must be >= 0, got {temperature!r}")
        self.actor_critic = agent.actor_critic
        self.epsilon = epsilon
        self.temperature = temperature
        self.reset(seed)

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Reset the memory and burn it in on `past`; with a seed, restart the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._hx_cx = self.actor_critic.initial_state(1)
        self._logits: NDArray[np.float64] | None = None
        self.value: float | None = None
        for frame in past:
            self.act(frame)

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Draw the action at a uint8 (h, w, c) frame: 0..n-1, or an array where it is not discrete."""
        self._logits, self.value = self._look_at(obs)
        return self._choose(self._logits)

    @property
    def entropy(self) -> float | None:
        """Entropy of the policy at the latest frame, in bits, at temperature 1; None before the first."""
        if self._logits is None:
            return None
        nats = policy.entropy(self.actor_critic.action_space, torch.from_numpy(self._logits))
        return float(nats / np.log(2))

    def __deepcopy__(self, memo: object) -> ActorCriticPlayer:
        """Return a player on the same networks, with memory and random numbers of its own."""
        other = copy.copy(self)  # the LSTM state is replaced, never modified
        other._rng = copy.deepcopy(self._rng)
        return other

    @torch.no_grad()
    def _look_at(self, obs: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
        """Compute logits and value."""
        frame = torch.from_numpy(np.ascontiguousarray(obs.transpose(2, 0, 1)))[None]
        x = to_float(frame.to(self._hx_cx[0].device))
        with using_threads(1):  # a frame is too little work for several
            logits, value, self._hx_cx = self.actor_critic.predict_act_value(x, self._hx_cx)
        return logits[0].double().cpu().numpy(), float(value)

    def _choose(self, logits: NDArray[np.float64]) -> Any:
        space = self.actor_critic.action_space
        u, explore = self._rng.random(2)
        if explore < self.epsilon:
            return int(u * len(logits)) if space.is_discrete else space.sample(self._rng)
        if not space.is_discrete:
            u = self._rng.random(space.size)
        choice = policy.draw(
            space, torch.from_numpy(logits)[None], torch.from_numpy(np.array([u])), self.temperature
        )
        act = policy.to_actions(space, choice)[0]
        return int(act) if space.is_discrete else act.numpy()
