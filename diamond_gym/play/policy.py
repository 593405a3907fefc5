"""Who plays when no person does: a checkpoint's actor-critic, else the game's usual player."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diamond_gym.checkpoints import World
from diamond_gym.players.actor_critic import AgentPolicy
from diamond_gym.players.player import Player, RandomPolicy, player, usual_player

_RANDOM_HOLD = 4
"""Steps for which the random player holds an action at most; one a step looks like trembling."""


@dataclass(frozen=True)
class Opinion:
    """What a policy makes of a frame.

    Attributes:
        action: What it would do.
        entropy: Of its choice, in bits; None where it does not choose by probabilities.
        value: The return it expects; None where it has no idea.
    """

    action: int
    entropy: float | None = None
    value: float | None = None


class Policy(Protocol):
    """Plays from frames.

    Attributes:
        name: Who it is, in a word or two.
    """

    name: str

    def start(self, frames: NDArray[np.uint8]) -> None:
        """A new episode begins: the last one is forgotten, uint8 (n, h, w, 3) came before the first frame."""
        ...

    def look(self, frame: NDArray[np.uint8]) -> Opinion:
        """What to do at a frame; remembers it."""
        ...

    def fork(self) -> Policy:
        """One that goes on from here by itself."""
        ...


class ActorCriticPolicy:
    """The actor-critic that came with a world model."""

    name = "actor-critic"

    def __init__(self, agent_policy: AgentPolicy) -> None:
        self._agent = agent_policy

    def start(self, frames: NDArray[np.uint8]) -> None:
        """Forgets, and burns in its memory on the frames."""
        self._agent.reset()
        for frame in frames:
            self._agent.decide(frame)

    def look(self, frame: NDArray[np.uint8]) -> Opinion:
        """Draws an action."""
        decision = self._agent.decide(frame)
        return Opinion(decision.action, decision.entropy, decision.value)

    def fork(self) -> ActorCriticPolicy:
        """Shares the networks, not the memory."""
        return ActorCriticPolicy(self._agent.fork())


class ScriptedPolicy:
    """A player without networks."""

    def __init__(self, name: str, player: Player) -> None:
        self.name, self._player = name, player

    def start(self, frames: NDArray[np.uint8]) -> None:
        """Forgets."""
        self._player.reset()

    def look(self, frame: NDArray[np.uint8]) -> Opinion:
        """Follows its script."""
        return Opinion(self._player(frame))

    def fork(self) -> ScriptedPolicy:
        """A copy."""
        return ScriptedPolicy(self.name, copy.deepcopy(self._player))


def policy_of(world: World, seed: int) -> Policy:
    """The checkpoint's actor-critic, else the game's scripted player, else a random one."""
    if world.agent.actor_critic is not None:
        return ActorCriticPolicy(AgentPolicy(world.agent, seed=seed))
    num_actions = len(world.action_meanings)
    if world.game is None:
        return ScriptedPolicy("random", RandomPolicy(num_actions, seed, _RANDOM_HOLD))
    name = usual_player(world.game)
    return ScriptedPolicy(name, player(name, world.game, num_actions, seed, repeat=_RANDOM_HOLD))
