"""Policies that play from pixels with no learning, so that collected data covers more than random play.

`RandomPolicy` works for every game. `ScriptedBreakout` follows the ball it sees in the frame, meets it with
another part of the paddle at every bounce, and blunders on purpose now and then. A player is called with one
frame and returns one action; it sees neither the emulator's memory nor rewards nor lives, so it plays a real
and an imagined game alike. This module does not know environments.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError
from .objects import breakout_ball, breakout_paddle

PLAYER_NAMES = ("random", "scripted")
SCRIPTED_GAMES = ("Breakout",)
DEFAULT_NOISE = 0.15

NOOP, FIRE, RIGHT, LEFT = range(4)

_FIELD_LEFT, _FIELD_RIGHT = 3.1, 59.9
"""Where the ball's centre turns at the side walls, in pixels."""
_PADDLE_LINE = 56.5
"""The row of the ball's centre when it meets the paddle."""
_FIRST_MOVE, _WHOLE_MOVE = 3.8, 8.8
"""A RIGHT or LEFT of one step (4 raw frames) moves the paddle so far in that step, and so far with the
next."""
_PLAN_STEPS = 4
_WANDER_STEPS = 7
"""With more steps than this before the ball comes down, the paddle strolls."""
_HIDDEN_STEPS = 3
"""A ball unseen for so many steps is taken as lost: serve."""


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


class ScriptedBreakout:
    """Plays Breakout's minimal action set (NOOP, FIRE, RIGHT, LEFT) at 4 raw frames a step, from pixels.

    It predicts from two frames where the ball will come down, plans the paddle's moves for that moment, and
    meets the ball with a part of the paddle drawn anew for each bounce, so that all angles occur.

    Args:
        seed: fixes every random choice that follows.
        noise: 0 plays as well as it can, 1 very badly. Sets how often it falls into a burst of random or held
            actions and how often it misses a ball on purpose. Mean return over whole games (5 lives): about
            200 at 0, 50 at 0.15, 10 at 0.5; a random player gets 1 to 2.

    Raises:
        InvalidInputError: `noise` outside [0, 1].
    """

    def __init__(self, seed: int = 0, noise: float = DEFAULT_NOISE) -> None:
        if not 0 <= noise <= 1:
            raise InvalidInputError(f"noise must be in [0, 1], got {noise}")
        self.noise = noise
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forget ball and paddle; with a seed, restart the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._ball: NDArray[np.float64] | None = None
        self._velocity: NDArray[np.float64] | None = None
        self._hidden = 0
        self._paddle = 32.0
        self._last_move = 0
        self._burst_left, self._burst_action = 0, None
        self._stroll = float(self._rng.uniform(_FIELD_LEFT, _FIELD_RIGHT))
        self._new_aim()

    def __call__(self, obs: NDArray[np.uint8]) -> int:
        """The action for the frame `obs`, uint8 (64, 64, 3)."""
        self._look(np.asarray(obs)[None])
        action = self._blunder()
        if action is None:
            action = self._play()
        self._last_move = _direction(action)
        return action

    def _new_aim(self) -> None:
        """Choose which part of the paddle meets the next ball, or to miss it."""
        if self._rng.random() < 0.4 * self.noise:
            self._aim = float(self._rng.choice([-1, 1]) * self._rng.uniform(4.5, 10))
        else:
            self._aim = float(self._rng.uniform(-2.6, 2.6))

    def _look(self, frame: NDArray[np.uint8]) -> None:
        """Update ball, velocity and paddle from the frame."""
        paddle = float(breakout_paddle(frame)[0])
        if not math.isnan(paddle):
            self._paddle = paddle
        ball = breakout_ball(frame)[0]
        if np.isnan(ball[0]):
            self._hidden += 1
            if self._hidden >= _HIDDEN_STEPS:
                self._ball = self._velocity = None
            return
        if self._ball is not None:
            velocity = (ball - self._ball) / (self._hidden + 1)
            if self._velocity is not None and self._velocity[1] > 0 > velocity[1]:
                self._new_aim()
            self._velocity = velocity
        self._ball, self._hidden = ball, 0

    def _blunder(self) -> int | None:
        """In a burst, its action: one held action, or a random one each step. None outside of bursts."""
        if self._burst_left == 0:
            if self._rng.random() >= 0.1 * self.noise:
                return None
            self._burst_left = int(self._rng.integers(2, 11))
            self._burst_action = int(self._rng.integers(4)) if self._rng.random() < 0.5 else None
        self._burst_left -= 1
        return int(self._rng.integers(4)) if self._burst_action is None else self._burst_action

    def _play(self) -> int:
        if self._ball is None:
            return FIRE if self._rng.random() < 0.5 else self._go_to(self._stroll, _PLAN_STEPS)
        if self._velocity is None:
            return NOOP
        steps = self._steps_to_paddle()
        if steps > _WANDER_STEPS:
            if self._rng.random() < 0.2:
                self._stroll = float(self._rng.uniform(_FIELD_LEFT, _FIELD_RIGHT))
            return self._go_to(self._stroll, _PLAN_STEPS)
        x = _reflect(self._ball[0] + self._velocity[0] * (steps + self._hidden))
        return self._go_to(x + self._aim, steps)

    def _steps_to_paddle(self) -> float:
        """Steps until the ball is at the paddle's height; infinite while it rises."""
        assert self._ball is not None and self._velocity is not None
        if self._velocity[1] <= 0.1:
            return math.inf
        return max((_PADDLE_LINE - self._ball[1]) / self._velocity[1] - self._hidden, 0.0)

    def _go_to(self, target: float, steps: float) -> int:
        """The first action of the plan that brings the paddle nearest to `target` in `steps` steps."""
        target = min(max(target, _FIELD_LEFT), _FIELD_RIGHT)
        length = min(max(math.ceil(steps), 1), _PLAN_STEPS)
        plans = _PLANS[length]
        gain = _travel(np.maximum(steps - np.arange(length), 0))
        coast = self._last_move * (_WHOLE_MOVE - _FIRST_MOVE) * min(steps, 1.0)
        end = np.clip(self._paddle + coast + plans @ gain, _FIELD_LEFT, _FIELD_RIGHT)
        cost = np.abs(end - target) + 0.3 * np.abs(plans).sum(1)
        return (LEFT, NOOP, RIGHT)[int(plans[cost.argmin(), 0]) + 1]


def _all_plans(length: int) -> NDArray[np.int64]:
    return np.array(list(itertools.product((0, 1, -1), repeat=length)))


_PLANS = {length: _all_plans(length) for length in range(1, _PLAN_STEPS + 1)}


def _direction(action: int) -> int:
    return {RIGHT: 1, LEFT: -1}.get(action, 0)


def _travel(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far one move has taken the paddle `steps` steps after it was chosen."""
    return _FIRST_MOVE * np.minimum(steps, 1) + (_WHOLE_MOVE - _FIRST_MOVE) * np.clip(steps - 1, 0, 1)


def _reflect(x: float) -> float:
    """Fold `x` into the field as the side walls would."""
    width = _FIELD_RIGHT - _FIELD_LEFT
    return _FIELD_LEFT + width - abs((x - _FIELD_LEFT) % (2 * width) - width)


def scripted_player(game: str, seed: int = 0, noise: float = DEFAULT_NOISE) -> ScriptedBreakout:
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
    return ScriptedBreakout(seed, noise)


def player(
    name: str, game: str, num_actions: int, seed: int = 0, noise: float = DEFAULT_NOISE, repeat: int = 1
) -> RandomPolicy | ScriptedBreakout:
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
