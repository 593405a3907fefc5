"""The common parts of the scripted players: their procedure, blunders, a ball's track, plans.

Nothing here depends on a game.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diamond_gym.errors import InvalidInputError

DEFAULT_NOISE = 0.15

_HIDDEN_STEPS = 3
"""Steps after which a ball that is not seen counts as lost."""


class Blunders:
    """Bursts of 2 to 10 steps in which a player does not do what it should.

    Args:
        rng: The random numbers, which are used at every step.
        rate: Probability that a burst begins at a step outside of one.
        num_actions: Size of the game's action set.
    """

    def __init__(self, rng: np.random.Generator, rate: float, num_actions: int) -> None:
        self._rng, self._rate, self._num_actions = rng, rate, num_actions
        self._left: int = 0
        self._held: int | None = None

    def __call__(self) -> int | None:
        """Return a burst's action: one held action, or a random one each step. None outside of bursts."""
        if self._left == 0:
            if self._rng.random() >= self._rate:
                return None
            self._left = int(self._rng.integers(2, 11))
            self._held = self._draw() if self._rng.random() < 0.5 else None
        self._left -= 1
        return self._draw() if self._held is None else self._held

    def _draw(self) -> int:
        return int(self._rng.integers(self._num_actions))


class BallTrack:
    """The last position and velocity of a ball.

    Attributes:
        position: (2,), x and y in pixels; None when the ball is lost.
        velocity: (2,), pixels a step; None until the ball has been seen twice.
        hidden: Steps since it was last seen.
    """

    def __init__(self) -> None:
        self.position: NDArray[np.float64] | None = None
        self.velocity: NDArray[np.float64] | None = None
        self.hidden = 0

    def see(self, ball: NDArray[np.float64]) -> None:
        """Advance one step: the ball is at `ball` (2,), NaN where it is not visible."""
        if np.isnan(ball[0]):
            self.hidden += 1
            if self.hidden >= _HIDDEN_STEPS:
                self.position = self.velocity = None
            return
        if self.position is not None:
            self.velocity = (ball - self.position) / (self.hidden + 1)
        self.position, self.hidden = ball, 0


class ScriptedPlayer(ABC):
    """A player that looks, blunders now and then, and otherwise plays.

    Args:
        seed: Fixes every random choice that follows.
        noise: In [0, 1]; 0 plays as well as it can, 1 very badly.

    Attributes:
        blunder_rate: Probability per step, at noise 1, that a burst of blunders begins.
        num_actions: Size of the game's action set.

    Raises:
        InvalidInputError: `noise` outside [0, 1].
    """

    name = "scripted"
    blunder_rate: float
    num_actions: int

    def __init__(self, seed: int = 0, noise: float = DEFAULT_NOISE) -> None:
        if not 0 <= noise <= 1:
            raise InvalidInputError(f"noise must be in [0, 1], got {noise}")
        self.noise = noise
        self.reset(seed)

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget what was seen; with a seed, restart the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._blunder = Blunders(self._rng, self.blunder_rate * self.noise, self.num_actions)
        self._forget()

    def act(self, obs: NDArray[np.uint8]) -> int:
        """Return the action for the frame `obs`, uint8 (64, 64, 3)."""
        self._look(np.asarray(obs)[None])
        action = self._blunder()
        if action is None:
            action = self._play()
        self._remember(action)
        return action

    @abstractmethod
    def _forget(self) -> None:
        """Forget everything for a new game."""

    @abstractmethod
    def _look(self, frame: NDArray[np.uint8]) -> None:
        """Process the frame, uint8 (1, 64, 64, 3)."""

    @abstractmethod
    def _play(self) -> int:
        """Return the intended action."""

    @abstractmethod
    def _remember(self, action: int) -> None:
        """Note the action that was taken."""


def all_plans(length: int) -> NDArray[np.int64]:
    """Return every sequence of moves, int64 (3**length, length): 0 rests, 1 and -1 go either way."""
    return np.array(list(itertools.product((0, 1, -1), repeat=length)))


def cheapest(cost: NDArray[np.float64]) -> int:
    """Return the first plan of least cost; costs that differ only by the rounding of CPUs count as equal."""
    return int(cost.round(6).argmin())


def reflect(x: float, low: float, high: float) -> float:
    """Fold `x` into [low, high] as walls there would."""
    width = high - low
    return low + width - abs((x - low) % (2 * width) - width)
