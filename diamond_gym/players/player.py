"""Policies that play from pixels with no learning, so that collected data covers more than random play.

`RandomPolicy` works for every game. The scripted players of `SCRIPTED_GAMES` follow the ball they see in
the frame, meet it with another part of the paddle every time, and blunder on purpose now and then. A player
is called with one frame and returns one action; it sees neither the emulator's memory nor rewards nor lives,
so it plays a real and an imagined game alike. This module does not know environments.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diamond_gym.errors import InvalidInputError
from diamond_gym.players.scripted import DEFAULT_NOISE
from diamond_gym.players.scripted_breakout import ScriptedBreakout
from diamond_gym.players.scripted_pong import ScriptedPong

PLAYER_NAMES = ("random", "scripted")
_SCRIPTED = {"Breakout": ScriptedBreakout, "Pong": ScriptedPong}
SCRIPTED_GAMES = tuple(_SCRIPTED)


class Player(Protocol):
    """Plays from frames alone; what it remembers and draws is its own."""

    def reset(self, seed: int | None = None) -> None:
        """Forget what was seen; with a seed, restart the random numbers."""
        ...

    def __call__(self, obs: NDArray[np.uint8], /) -> int:
        """The action for the frame `obs`, uint8 (64, 64, 3)."""
        ...


class RandomPolicy:
    """Uniformly random actions, each held for a random number of steps.

    Args:
        num_actions: size of the game's action set, at least 1.
        seed: fixes every action that follows.
        repeat: longest hold in steps; an action is held for 1 to `repeat` steps, all equally likely. 1 draws
            a new action each step.

    Raises:
        InvalidInputError: `num_actions` or `repeat` below 1.
    """

    def __init__(self, num_actions: int, seed: int = 0, repeat: int = 1) -> None:
        if num_actions < 1:
            raise InvalidInputError(f"num_actions must be at least 1, got {num_actions}")
        if repeat < 1:
            raise InvalidInputError(f"repeat must be at least 1, got {repeat}")
        self.num_actions = num_actions
        self.repeat = repeat
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Drop the held action; with a seed, restart the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._action, self._left = 0, 0

    def __call__(self, obs: NDArray[np.uint8]) -> int:
        """An action in `range(num_actions)`; the frame is not looked at."""
        if self._left == 0:
            self._action = int(self._rng.integers(self.num_actions))
            self._left = int(self._rng.integers(1, self.repeat + 1))
        self._left -= 1
        return self._action


def usual_player(game: str) -> str:
    """The name of the player that a game gets if nobody asks for one: the scripted one where it has one."""
    return "scripted" if game in SCRIPTED_GAMES else "random"


def scripted_player(game: str, seed: int = 0, noise: float = DEFAULT_NOISE) -> Player:
    """The scripted player of a game.

    Args:
        game: a name of `SCRIPTED_GAMES`.
        seed: fixes every action that follows.
        noise: in [0, 1]; 0 is the best play.

    Raises:
        InvalidInputError: the game has no scripted player, or `noise` is out of range.
    """
    if game not in SCRIPTED_GAMES:
        raise InvalidInputError(
            f"there is no scripted player for {game!r}, only for {', '.join(SCRIPTED_GAMES)}; "
            "use the random player"
        )
    return _SCRIPTED[game](seed, noise)


def player(
    name: str, game: str, num_actions: int, seed: int = 0, noise: float = DEFAULT_NOISE, repeat: int = 1
) -> Player:
    """A player by name.

    Args:
        name: one of `PLAYER_NAMES`.
        game: the game it will play.
        num_actions: size of the game's action set.
        seed: fixes every action that follows.
        noise: of the scripted player, in [0, 1].
        repeat: longest hold of the random player's actions, in steps.

    Raises:
        InvalidInputError: an unknown name, or what the player itself refuses.
    """
    if name == "random":
        return RandomPolicy(num_actions, seed, repeat)
    if name == "scripted":
        return scripted_player(game, seed, noise)
    raise InvalidInputError(f"unknown player {name!r}; known: {', '.join(PLAYER_NAMES)}")
