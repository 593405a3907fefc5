"""A player of Breakout that follows the ball it sees, with no learning.

It sees frames only, so it plays a real and an imagined game alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from diamond_gym.players.scripted import BallTrack, ScriptedPlayer, all_plans, cheapest, reflect
from diamond_gym.players.vision import breakout_ball, breakout_paddle

NOOP, FIRE, RIGHT, LEFT = range(4)

_FIELD_LEFT, _FIELD_RIGHT = 3.1, 59.9
"""Columns where the ball's centre turns at the side walls, in pixels."""
_PADDLE_LINE = 56.5
"""The row of the ball's centre when it meets the paddle."""
_FIRST_MOVE, _WHOLE_MOVE = 3.8, 8.8
"""Pixels that a RIGHT or LEFT of one step (4 raw frames) moves the paddle in that step, and by the next."""
_PLAN_STEPS = 4
_WANDER_STEPS = 7
"""Steps before the ball comes down; with more left, the paddle strolls."""
_LEAST_EAGER, _MOST_EAGER = 0.05, 0.7
"""Range of the probability of a serve at a step without a ball, which is drawn for each life."""


class ScriptedBreakout(ScriptedPlayer):
    """A player of Breakout's minimal action set (NOOP, FIRE, RIGHT, LEFT), 4 raw frames a step, from pixels.

    It serves at once or lets the paddle stroll first, so that games without a ball are seen, too. Then it
    predicts from two frames where the ball will come down, plans the paddle's moves for that time, and meets
    the ball with a random part of the paddle at each bounce, so that all angles occur.

    Args:
        seed: Fixes every random choice that follows.
        noise: 0 plays as well as it can, 1 very badly. Sets how often it falls into a burst of random or held
            actions and how often it misses a ball on purpose. Mean return over whole games (5 lives): about
            200 at 0, 50 at 0.15, 10 at 0.5; a random player gets 1 to 2.

    Raises:
        InvalidInputError: `noise` outside [0, 1].
    """

    blunder_rate = 0.1
    num_actions = 4

    def _forget(self) -> None:
        self._ball = BallTrack()
        self._paddle = 32.0
        self._last_move = 0
        self._stroll = float(self._rng.uniform(_FIELD_LEFT, _FIELD_RIGHT))
        self._eagerness = float(np.exp(self._rng.uniform(np.log(_LEAST_EAGER), np.log(_MOST_EAGER))))
        self._new_aim()

    def _remember(self, action: int) -> None:
        self._last_move = _direction(action)

    def _new_aim(self) -> None:
        """Choose which part of the paddle meets the next ball, or to miss it."""
        if self._rng.random() < 0.4 * self.noise:
            self._aim = float(self._rng.choice([-1, 1]) * self._rng.uniform(4.5, 10))
        else:
            self._aim = float(self._rng.uniform(-2.6, 2.6))

    def _look(self, frame: NDArray[np.uint8]) -> None:
        """Update ball and paddle from the frame."""
        paddle = float(breakout_paddle(frame)[0])
        if not math.isnan(paddle):
            self._paddle = paddle
        before = self._ball.velocity
        self._ball.see(breakout_ball(frame)[0])
        after = self._ball.velocity
        if before is not None and after is not None and before[1] > 0 > after[1]:
            self._new_aim()

    def _play(self) -> int:
        position, velocity = self._ball.position, self._ball.velocity
        if position is None:
            return FIRE if self._rng.random() < self._eagerness else self._go_to(self._stroll, _PLAN_STEPS)
        if velocity is None:
            return NOOP
        steps = self._steps_to_paddle(position, velocity)
        if steps > _WANDER_STEPS:
            if self._rng.random() < 0.2:
                self._stroll = float(self._rng.uniform(_FIELD_LEFT, _FIELD_RIGHT))
            return self._go_to(self._stroll, _PLAN_STEPS)
        x = float(position[0] + velocity[0] * (steps + self._ball.hidden))
        return self._go_to(reflect(x, _FIELD_LEFT, _FIELD_RIGHT) + self._aim, steps)

    def _steps_to_paddle(self, position: NDArray[np.float64], velocity: NDArray[np.float64]) -> float:
        """Predict the steps until the ball is at the paddle's height; infinite while it rises."""
        if velocity[1] <= 0.1:
            return math.inf
        return max((_PADDLE_LINE - position[1]) / velocity[1] - self._ball.hidden, 0.0)

    def _go_to(self, target: float, steps: float) -> int:
        """Return the first action of the plan that brings the paddle nearest to `target` in `steps` steps."""
        target = min(max(target, _FIELD_LEFT), _FIELD_RIGHT)
        length = min(max(math.ceil(steps), 1), _PLAN_STEPS)
        plans = _PLANS[length]
        gain = _travel(np.maximum(steps - np.arange(length), 0))
        coast = self._last_move * (_WHOLE_MOVE - _FIRST_MOVE) * min(steps, 1.0)
        end = np.clip(self._paddle + coast + plans @ gain, _FIELD_LEFT, _FIELD_RIGHT)
        cost = np.abs(end - target) + 0.3 * np.abs(plans).sum(1)
        return (LEFT, NOOP, RIGHT)[plans[cheapest(cost), 0] + 1]


_PLANS = {length: all_plans(length) for length in range(1, _PLAN_STEPS + 1)}


def _direction(action: int) -> int:
    return {RIGHT: 1, LEFT: -1}.get(action, 0)


def _travel(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far one move has taken the paddle `steps` steps after it was chosen."""
    return _FIRST_MOVE * np.minimum(steps, 1) + (_WHOLE_MOVE - _FIRST_MOVE) * np.clip(steps - 1, 0, 1)
