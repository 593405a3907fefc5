"""The protocol of players, and players that need no learning.

A policy is any callable from a frame to an action; a player is one with memory and random numbers of its own.
It sees neither the emulator's memory nor rewards nor lives, so it can play real and imagined games.

`RandomPlayer` works for every game. The scripted players of `SCRIPTED_GAMES` follow the ball they see in
the frame, meet it with another part of the paddle every time, and blunder on purpose now and then, so that
collected data cover more than random play. This module does not depend on environments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from diamond_gym.errors import InvalidInputError
from diamond_gym.players.scripted import DEFAULT_NOISE
from diamond_gym.players.scripted_breakout import ScriptedBreakout
from diamond_gym.players.scripted_pong import ScriptedPong
from diamond_gym.world.action_space import ActionSpace

PLAYER_NAMES = ("random", "scripted")
_SCRIPTED = {"Breakout": ScriptedBreakout, "Pong": ScriptedPong}
SCRIPTED_GAMES = tuple(_SCRIPTED)


Policy = Callable[[NDArray[np.uint8]], Any]
"""Maps a frame, uint8 (64, 64, 3), to an action: 0..n-1, or an array where actions are not discrete."""


@runtime_checkable
class Player(Protocol):
    """A player that sees only frames, with memory and random numbers of its own.

    `copy.deepcopy` makes an independent player that continues from here; networks are shared, not copied. A
    player may also have a `name`, the `entropy` of its choice at the latest frame, in bits, and the `value`,
    the return that it expected there: floats, or None.
    """

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the last episode.

        Args:
            seed: Restarts the random numbers; None lets them continue.
            past: Frames before the next one, oldest first, for a player that begins in the middle of a game;
                one without a memory ignores them.
        """
        ...

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Return the action at a frame, uint8 (64, 64, 3): 0..n-1, or an array where it is not discrete."""
        ...


class PolicyPlayer:
    """A policy as a player.

    Args:
        policy: Chooses the actions. Its `reset(seed)`, if it has one, is called at every reset with a seed.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Reset the policy."""
        reset = getattr(self.policy, "reset", None)
        if seed is not None and reset is not None:
            reset(seed)

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Return what the policy returns."""
        return self.policy(obs)


class FrameStackPlayer:
    """A policy that sees the latest frames as a player.

    Args:
        policy: Returns the action at frames, uint8 (n, 3, 64, 64), the latest last.
        num_frames: How many it sees (n), at least 1; before a game its first frame is repeated.
    """

    def __init__(self, policy: Policy, num_frames: int) -> None:
        self.policy, self.num_frames = policy, num_frames
        self.reset()

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the frames; those of `past` come before the next one."""
        self._frames = deque(past, maxlen=self.num_frames)

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Return what the policy returns."""
        self._frames.append(obs)
        missing = [self._frames[0]] * (self.num_frames - len(self._frames))
        return self.policy(np.ascontiguousarray(np.stack([*missing, *self._frames]).transpose(0, 3, 1, 2)))


class RandomPlayer:
    """Uniformly random actions, each held for a random number of steps.

    Args:
        actions: The action space, or the number of discrete actions, at least 1.
        seed: Fixes every action that follows.
        repeat: Longest hold in steps; an action is held for 1 to `repeat` steps, all equally likely. 1 draws
            a new action each step.

    Raises:
        InvalidInputError: There is no action, or `repeat` is below 1.
    """

    name = "random"

    def __init__(self, actions: int | ActionSpace, seed: int = 0, repeat: int = 1) -> None:
        if isinstance(actions, int) and actions < 1:
            raise InvalidInputError(f"num_actions must be at least 1, got {actions}")
        if repeat < 1:
            raise InvalidInputError(f"repeat must be at least 1, got {repeat}")
        self.actions = actions if isinstance(actions, ActionSpace) else ActionSpace.discrete(actions)
        self.repeat = repeat
        self.reset(seed)

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Drop the held action; with a seed, restart the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._action: Any = 0
        self._left = 0

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Return an action of the space; the frame is ignored."""
        if self._left == 0:
            self._action = self.actions.sample(self._rng)
            self._left = int(self._rng.integers(1, self.repeat + 1))
        self._left -= 1
        return self._action


def check_epsilon(epsilon: float) -> None:
    """Raise `InvalidInputError` unless it is a probability in [0, 1], such as that of a random action."""
    if not isinstance(epsilon, Real) or not 0 <= epsilon <= 1:
        raise InvalidInputError(f"epsilon must be a probability in [0, 1], got {epsilon!r}")


def usual_player(game: str) -> str:
    """Return the name of a game's default player: the scripted one if it has one."""
    return "scripted" if game in SCRIPTED_GAMES else "random"


def scripted_player(game: str, seed: int = 0, noise: float = DEFAULT_NOISE) -> Player:
    """Make the scripted player of a game.

    Args:
        game: A name of `SCRIPTED_GAMES`.
        seed: Fixes every action that follows.
        noise: In [0, 1]; 0 is the best play.

    Raises:
        InvalidInputError: The game has no scripted player, or `noise` is out of range.
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
    """Make a player by name.

    Args:
        name: One of `PLAYER_NAMES`.
        game: The game it will play.
        num_actions: Size of the game's action set.
        seed: Fixes every action that follows.
        noise: Noise of the scripted player, in [0, 1].
        repeat: Longest hold of the random player's actions, in steps.

    Raises:
        InvalidInputError: The name is unknown, or the player itself refuses an argument.
    """
    if name == "random":
        return RandomPlayer(num_actions, seed, repeat)
    if name == "scripted":
        return scripted_player(game, seed, noise)
    raise InvalidInputError(f"unknown player {name!r}; known: {', '.join(PLAYER_NAMES)}")
