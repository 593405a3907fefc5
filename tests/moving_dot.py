"""A small environment that is not an Atari game: a dot moves left and right on a grey line."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

SIZE = 64
DOT = 8


class MovingDot(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Actions are left, stay, right; the right edge gives +1 and the end, the left one -1 and the end."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, *, grey: bool = False, start: int = 0, render_mode: str | None = None) -> None:
        self.grey, self.render_mode = grey, render_mode
        self.observation_space = Box(0, 255, (SIZE, SIZE) if grey else (SIZE, SIZE, 3), np.uint8)
        self.action_space = Discrete(3, start=start)
        self._frame = np.zeros(self.observation_space.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = int(self.np_random.integers(16, SIZE - DOT - 16))
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        self.x += 8 * (int(action) - int(self.action_space.start) - 1)  # pyright: ignore
        right, left = self.x > SIZE - DOT, self.x < 0
        return self._draw(), float(right) - float(left), right or left, False, {}

    def render(self) -> Any:
        frame = self._draw()
        return np.repeat(frame[..., None], 3, axis=2) if self.grey else frame.copy()

    def _draw(self) -> NDArray[np.uint8]:
        """Draw into the same array each time, as many environments do."""
        self._frame[:] = 40
        self._frame[30:38, max(0, self.x) : max(0, self.x + DOT)] = 255 if self.grey else (250, 200, 30)
        return self._frame


gymnasium.register("MovingDot-v0", entry_point="tests.moving_dot:MovingDot", max_episode_steps=20)


class SteeredDot(gymnasium.Env[NDArray[np.uint8], Any]):
    """A dot that moves in the plane; the lower right edges give +1 and the end, the upper left ones -1.

    Args:
        kind: "multi_discrete" (two choices, from 1 on, of less, same, more), "multi_binary" (four buttons) or
            "box" (a speed in each direction).
        shape: Shape of the frames, (h, w, 3), (h, w, 1) or (h, w).
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self, kind: str, shape: tuple[int, ...] = (SIZE, SIZE, 3), render_mode: str | None = None
    ) -> None:
        self.kind, self.render_mode = kind, render_mode
        self.observation_space = Box(0, 255, shape, np.uint8)
        self.action_space = {
            "multi_discrete": MultiDiscrete([3, 3], start=[1, 1]),
            "multi_binary": MultiBinary(4),
            "box": Box(np.array([-1, -1], np.float32), np.array([1, 2], np.float32)),
        }[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._room = np.array(self.observation_space.shape[:2]) - DOT  # pyright: ignore
        self._place = self._room * self.np_random.uniform(0.3, 0.7, 2)
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        act = np.asarray(action, np.float64)
        offsets = {"multi_discrete": -2, "multi_binary": -act[2:], "box": 0}
        speed = act[:2] + offsets[self.kind]
        self._place = self._place + 6 * speed
        rew = float((self._place > self._room).any()) - float((self._place < 0).any())
        return self._draw(), rew, rew != 0, False, {}

    def render(self) -> Any:
        return self._draw()

    def _draw(self) -> NDArray[np.uint8]:
        frame = np.full(self.observation_space.shape, 40, np.uint8)  # pyright: ignore
        top, left = self._place.clip(0, self._room).astype(int)
        frame[top : top + DOT, left : left + DOT] = 250
        return frame


for _kind in ("multi_discrete", "multi_binary", "box"):
    gymnasium.register(
        f"SteeredDot-{_kind}-v0",
        entry_point="tests.moving_dot:SteeredDot",
        kwargs={"kind": _kind},
        max_episode_steps=20,
    )
