"""A player of Pong that follows the ball it sees, with no learning.

It sees frames only, so it plays a real and an imagined game alike.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from diamond_gym.players.scripted import BallTrack, ScriptedPlayer, all_plans, cheapest, reflect
from diamond_gym.players.vision import pong_ball, pong_right_paddle

NOOP, FIRE, UP, DOWN, UP_FIRE, DOWN_FIRE = range(6)
"""ALE calls moving up RIGHT and moving down LEFT."""

_TOP, _BOTTOM = 9.7, 58.6
"""Rows where the ball's centre turns at the walls, in pixels."""
_PADDLE_TOP, _PADDLE_BOTTOM = 9.8, 59.4
"""Range of the paddle's centre; at its ends the walls hide about half of it or more."""
_WHOLE_TOP, _WHOLE_BOTTOM = 12.3, 56.2
"""Range of the paddle's centre in which the whole paddle is visible."""
_PADDLE_COLUMN = 55.7
"""The column of the ball's centre when it meets the paddle."""
_TRAVEL = np.array((0, 0.75, 2.85, 4.95, 5.85, 6.3, 6.6, 6.7, 6.8))
"""Pixels that one step's move has taken the paddle 0, 0.5, 1, ... steps after it was chosen: it has inertia,
and steady moves make 6.8 pixels a step."""
_LONGEST = 4
"""Steps until a move has its whole effect."""
_BALL_LAG, _PADDLE_LAG = 0.2, 0.25
"""Steps by which a frame, pooled from two raw ones, shows ball and paddle late."""
_PLAN_STEPS = 5
_MOVE_COST = 0.03
"""Pixels by which a move must bring the paddle nearer to its target; otherwise it rests."""
_WANDER_STEPS = 9
"""Steps before the ball arrives; with more left, the paddle strolls."""
_STROLL = 22.0, 47.0
"""Range in which it strolls; from there it reaches the fastest returns (6.4 pixels a step)."""
_REACH = 2.1
"""Largest intended distance of the ball from the paddle's centre, in pixels; beyond 2.8 it would miss."""
_EDGE = 1.4, 2.2
"""Intended distance from the centre for a steep return, which needs more than 1.6."""
_STEEP = 2.44
"""Speed of a steep return up or down, in pixels a step."""
_CUNNING = 0.8
"""Share of returns that are meant to win, without noise: the opponent mostly misses steep rising balls."""
_COURT = 47.4
"""Distance from paddle to paddle, in pixels."""
_SMASH_STEPS = 1.5
"""Steps before the ball's arrival for which FIRE is held, to smash."""
_SPEED_STEP, _TOP_SPEED = 1.6, 6.4
"""Pixels per step by which a smash makes the ball faster; other returns keep its speed."""
_SMASHES_OF_SLOW, _SMASHES_OF_FAST = 0.9, 0.2
"""Shares of balls that are smashed: at the slowest speed, and at faster ones. The opponent misses most at the
second slowest."""
_WALL_ERROR = 1.5
"""Pixels by which a ball near a wall may differ from its expected place."""
_WITH_FIRE = {NOOP: FIRE, UP: UP_FIRE, DOWN: DOWN_FIRE}


class ScriptedPong(ScriptedPlayer):
    """A player of Pong's right paddle, minimal action set, at 4 raw frames a step, from pixels.

    It predicts from two frames where the ball will arrive, plans the paddle's moves for that time, and meets
    the ball with a random part of the paddle at each approach. Most returns are meant to win: they use the
    edge that makes the ball rise where the opponent meets it. While the ball flies away the paddle
    strolls.

    Args:
        seed: Fixes every random choice that follows.
        noise: 0 plays as well as it can, 1 very badly. Sets how often it falls into a burst of random or held
            actions, how often it misses a ball on purpose and how seldom a return is meant to be won. Mean
            return over 5 whole games (up to 21 points, 2600 to 6700 steps): 16 at 0, 3 at 0.15, -8 at 0.5; a
            random player gets -21.

    Raises:
        InvalidInputError: `noise` outside [0, 1].
    """

    blunder_rate = 0.04
    num_actions = 6

    def _forget(self) -> None:
        self._ball = _PongBall()
        self._paddle = (_PADDLE_TOP + _PADDLE_BOTTOM) / 2
        self._moves = deque([0] * _LONGEST, maxlen=_LONGEST)
        self._new_stroll()
        self._aim: float | None = None
        self._smash = False

    def _remember(self, action: int) -> None:
        self._moves.appendleft(_direction(action))

    def _new_stroll(self) -> None:
        self._stroll = float(self._rng.uniform(*_STROLL))

    def _choose_return(self, steps: float) -> tuple[float, bool]:
        """Choose how to return the ball that arrives in `steps`.

        Returns:
            How far below the ball the paddle's centre should be, in pixels (the ball then leaves upwards),
            and whether to smash.
        """
        slow = self._ball.speed < 1.5 * _SPEED_STEP
        smash = bool(self._rng.random() < (_SMASHES_OF_SLOW if slow else _SMASHES_OF_FAST))
        side = float(self._rng.choice([-1, 1]))
        if self._rng.random() < 0.15 * self.noise:
            return side * float(self._rng.uniform(6, 12)), smash
        if self._rng.random() >= _CUNNING * (1 - self.noise):
            return side * _REACH * math.sqrt(self._rng.random()), smash
        y, flight = self._ball.height_in(steps), _COURT / _return_speed(self._ball.speed, smash)
        if not _ends_rising(y, -side * _STEEP, flight) and _ends_rising(y, side * _STEEP, flight):
            side = -side
        return side * float(self._rng.uniform(*_EDGE)), smash

    def _look(self, frame: NDArray[np.uint8]) -> None:
        """Update ball and paddle from the frame."""
        self._paddle = _whole_paddle(float(pong_right_paddle(frame)[0]), self._paddle)
        self._ball.see(pong_ball(frame)[0])
        if not self._ball.comes:
            self._aim = None

    def _play(self) -> int:
        if self._ball.position is None:
            return FIRE if self._rng.random() < 0.5 else self._go_to(self._stroll, _PLAN_STEPS)
        if self._ball.velocity is None:
            return NOOP
        steps = self._ball.steps_to(_PADDLE_COLUMN)
        if steps > _WANDER_STEPS:
            if self._rng.random() < 0.1:
                self._new_stroll()
            return self._go_to(self._stroll, _PLAN_STEPS)
        if self._aim is None:
            self._aim, self._smash = self._choose_return(steps)
        action = self._go_to(self._ball.height_in(steps) + self._aim, max(steps - _BALL_LAG, 0.0))
        return _WITH_FIRE[action] if self._smash and steps < _SMASH_STEPS else action

    def _go_to(self, target: float, steps: float) -> int:
        """Return the first action of the plan that brings the paddle nearest to `target` in `steps` steps."""
        target = min(max(target, _PADDLE_TOP), _PADDLE_BOTTOM)
        length = min(max(math.ceil(steps), 1), _PLAN_STEPS)
        plans = _PLANS[length]
        gain = _travel(np.maximum(steps - np.arange(length), 0))
        ages = 1.0 + np.arange(_LONGEST)
        coast = np.array(self._moves) @ (_travel(ages + steps) - _travel(ages - _PADDLE_LAG))
        end = np.clip(self._paddle + coast + plans @ gain, _PADDLE_TOP, _PADDLE_BOTTOM)
        cost = np.abs(end - target) + _MOVE_COST * np.abs(plans).sum(1)
        return (UP, NOOP, DOWN)[plans[cheapest(cost), 0] + 1]


class _PongBall(BallTrack):
    """The ball, which keeps its speed up and down when it turns at a wall."""

    def see(self, ball: NDArray[np.float64]) -> None:
        """Advance one step: the ball is at `ball` (2,), NaN where it is not visible.

        A velocity measured across a turn at a wall would be wrong: the former one, turned, replaces it.
        """
        expected, before = self._unfolded_height(1), self.velocity
        super().see(ball)
        if self.velocity is None or before is None or self.hidden or _TOP <= expected <= _BOTTOM:
            return
        if abs(ball[1] - reflect(expected, _TOP, _BOTTOM)) < _WALL_ERROR:
            self.velocity = np.array((self.velocity[0], -before[1]))

    @property
    def speed(self) -> float:
        """Speed to the right, in pixels per step; 0 while unknown."""
        return 0.0 if self.velocity is None else float(self.velocity[0])

    @property
    def comes(self) -> bool:
        """Whether the ball flies to the right."""
        return self.speed > 0.1

    def steps_to(self, column: float) -> float:
        """Predict the steps until its centre is in the column; infinite while it flies away."""
        if self.position is None or not self.comes:
            return math.inf
        return max((column - float(self.position[0])) / self.speed - self.hidden, 0.0)

    def height_in(self, steps: float) -> float:
        """Predict its y, in pixels, after some steps; NaN while its velocity is unknown."""
        return reflect(self._unfolded_height(steps), _TOP, _BOTTOM)

    def _unfolded_height(self, steps: float) -> float:
        """Predict its y as if there were no walls."""
        if self.position is None or self.velocity is None:
            return math.nan
        return float(self.position[1] + self.velocity[1] * (steps + self.hidden))


_PLANS = {length: all_plans(length) for length in range(1, _PLAN_STEPS + 1)}


def _direction(action: int) -> int:
    return {DOWN: 1, DOWN_FIRE: 1, UP: -1, UP_FIRE: -1}.get(action, 0)


def _travel(steps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how far one move has taken the paddle `steps` steps after it was chosen."""
    return np.interp(steps, np.linspace(0, _LONGEST, len(_TRAVEL)), _TRAVEL)


def _return_speed(speed: float, smash: bool) -> float:
    return min(speed + _SPEED_STEP * smash, _TOP_SPEED)


def _ends_rising(y: float, velocity: float, steps: float) -> bool:
    """Whether a ball that leaves height `y` with `velocity` (downwards) flies upwards after `steps` steps."""
    turns = math.floor((y + velocity * steps - _TOP) / (_BOTTOM - _TOP))
    return (velocity < 0) == (turns % 2 == 0)


def _whole_paddle(seen: float, last: float) -> float:
    """Compute the paddle's centre from that of its visible part (NaN for none) and its last place."""
    if math.isnan(seen):
        return _PADDLE_TOP if last < (_PADDLE_TOP + _PADDLE_BOTTOM) / 2 else _PADDLE_BOTTOM
    if seen < _WHOLE_TOP:
        return 2 * seen - _WHOLE_TOP
    return 2 * seen - _WHOLE_BOTTOM if seen > _WHOLE_BOTTOM else seen
