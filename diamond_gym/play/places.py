"""The places where a game is played: the world model, or the real game as in training or in testing.

A place steps, keeps its last frames and actions, and can be saved and restored. It does not depend on who
plays or on what is shown.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.games import ImaginedState
from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import AtariEnv, AtariState

Frame = NDArray[np.uint8]
Context = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Attributes:
        reward: Raw in the real game, a sign in imagination.
        terminated: The game is over; in the world model and in training, a life is lost.
        truncated: The horizon or the emulator's limit is reached.
    """

    reward: float
    terminated: bool
    truncated: bool

    @property
    def is_over(self) -> bool:
        """Whether the episode has ended, either way."""
        return self.terminated or self.truncated


@dataclass(frozen=True)
class PlaceState:
    """The state of a place, from `Place.save`.

    Attributes:
        env: The environment's own state.
        trail: The last frames and actions.
        time: Steps since the reset.
    """

    env: AtariState | ImaginedState
    trail: Trail
    time: int


class Trail:
    """The last n frames, and the actions that led from one to the next."""

    def __init__(self, obs: NDArray[np.uint8], act: NDArray[Any]) -> None:
        self._obs = deque(obs, maxlen=len(obs))
        self._kind = act[:0]
        self._act = deque(act, maxlen=len(obs) - 1)

    @property
    def frame(self) -> Frame:
        """The latest frame, uint8 (h, w, c)."""
        return self._obs[-1]

    def add(self, action: Any, frame: Frame) -> None:
        """Add a step."""
        self._obs.append(frame)
        self._act.append(action)

    def context(self) -> Context:
        """Return the frames and actions as an environment's `reset(options={"context": ...})` takes them."""
        acts = np.array(self._act, self._kind.dtype).reshape(-1, *self._kind.shape[1:])
        return {"obs": np.stack(self._obs), "act": acts}

    def copy(self) -> Trail:
        """Return an independent copy."""
        obs, act = self.context().values()
        return Trail(obs, act)


class Place(Protocol):
    """A game that can be played.

    Attributes:
        name: Its name on the screen.
        slug: Its name in a folder's name.
        trail: Its last frames.
        time: Steps since the reset.
    """

    name: str
    slug: str
    trail: Trail
    time: int

    def reset(self) -> None:
        """Start an episode."""
        ...

    def step(self, action: Any) -> Outcome:
        """Take an action, after which `trail.frame` is the new frame."""
        ...

    def original(self) -> Frame | None:
        """The latest frame in its original size, uint8 (h, w, 3); None where that is the frame's own."""
        ...

    def save(self) -> PlaceState:
        """Return the state; restoring it gives the same future under the same actions."""
        ...

    def restore(self, state: PlaceState) -> None:
        """Restore a state of this place."""
        ...


class ImaginedPlace:
    """A game in the world model.

    Args:
        env: An environment without a time limit of its own.
        horizon: Steps after which an episode is truncated, at least 1.
        bank: Contexts that episodes start from; None for the environment's own.
        seed: Fixes everything random; None for another game every time.
    """

    name, slug = "world model", "wm"

    def __init__(
        self, env: DiamondEnv, horizon: int, bank: ContextBank | None = None, seed: int | None = None
    ) -> None:
        self.env, self.horizon, self.time = env, horizon, 0
        self._bank, self._rng = bank, np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        self.trail = Trail(info["context"]["obs"], info["context"]["act"][:-1])

    def reset(self) -> None:
        """Start from one of the contexts."""
        if self._bank is None:
            self.imagine_from(None)
        else:
            i = int(self._rng.integers(len(self._bank)))
            self.imagine_from({"obs": self._bank.obs[i], "act": self._bank.act[i]})

    def imagine_from(self, context: Context | None) -> None:
        """Start from given frames and actions; None draws one of the environment's contexts."""
        _, info = self.env.reset(options=None if context is None else {"context": context})
        self.trail = Trail(info["context"]["obs"], info["context"]["act"][:-1])
        self.time = 0

    def step(self, action: Any) -> Outcome:
        """Imagine a step."""
        frame, reward, terminated, _, _ = self.env.step(action)
        self.trail.add(action, frame)
        self.time += 1
        return Outcome(reward, terminated, self.time >= self.horizon and not terminated)

    def original(self) -> None:
        """None, because imagined frames have only one size."""

    def denoising(self) -> NDArray[np.float32] | None:
        """The denoising of the latest frame, see `DiamondEnv.denoising_trajectory`."""
        return self.env.denoising_trajectory()

    def save(self) -> PlaceState:
        """Return the state, random numbers included."""
        return PlaceState(self.env.clone_state(), self.trail.copy(), self.time)

    def restore(self, state: PlaceState) -> None:
        """Restore a state."""
        assert isinstance(state.env, ImaginedState)
        self.env.restore_state(state.env)
        self.trail, self.time = state.trail.copy(), state.time


class RealPlace:
    """The real game; its emulator is loaded by the first reset.

    Args:
        game: Its name.
        training: Whether a lost life ends an episode, as in training; else only the end of the game does.
        num_frames: Frames to keep, as many as the world model is conditioned on.
        seed: Fixes the emulator and its no-ops; None for another game every time.
    """

    def __init__(self, game: str, *, training: bool, num_frames: int, seed: int | None = None) -> None:
        self.slug = "train" if training else "test"
        self.name = f"real game ({self.slug})"
        self.time, self._num_frames = 0, num_frames
        self._game, self._training, self._seed = game, training, seed

    @functools.cached_property
    def env(self) -> AtariEnv:
        """The environment, made at the first use."""
        return AtariEnv(self._game, training=self._training, render_mode="rgb_array")

    def reset(self) -> None:
        """Start a game; in training, continue the one in which a life was lost."""
        frame, _ = self.env.reset(seed=self._seed)
        self._seed = None
        # For the world model, the console stood still before the first frame.
        self.trail = Trail(
            np.repeat(frame[None], self._num_frames, axis=0), np.zeros(self._num_frames - 1, int)
        )
        self.time = 0

    def step(self, action: Any) -> Outcome:
        """Play a step, four raw frames."""
        frame, reward, terminated, truncated, _ = self.env.step(action)
        self.trail.add(action, frame)
        self.time += 1
        return Outcome(reward, terminated, truncated)

    def original(self) -> Frame | None:
        """The console's screen, uint8 (210, 160, 3) in most games."""
        return self.env.render()

    def save(self) -> PlaceState:
        """Return the state, the emulator's random numbers included."""
        return PlaceState(self.env.clone_state(), self.trail.copy(), self.time)

    def restore(self, state: PlaceState) -> None:
        """Restore a state."""
        assert isinstance(state.env, AtariState)
        self.env.restore_state(state.env)
        self.trail, self.time = state.trail.copy(), state.time


class Comparison:
    """Imagination beside a real game, under the same actions.

    Imagination is forked from the real game's last frames, and again when it is over or the horizon is
    reached; in between it gets only the actions.

    Attributes:
        outcome: Result of the latest imagined step; None right after a fork.
        imagined_return: Sum of imagined rewards since the fork.
    """

    def __init__(self, real: RealPlace, imagined: ImaginedPlace) -> None:
        self.real, self.imagined = real, imagined
        self.fork()

    def fork(self) -> None:
        """Restart imagination from the real game's last frames."""
        self.imagined.imagine_from(self.real.trail.context())
        self.outcome: Outcome | None = None
        self.imagined_return = 0.0

    def step(self, action: Any) -> Outcome:
        """Take an action in both; return the outcome of the real step."""
        if self.outcome is not None and self.outcome.is_over:
            self.fork()
        self.outcome = self.imagined.step(action)
        self.imagined_return += self.outcome.reward
        return self.real.step(action)


def check_horizon(horizon: int) -> int:
    """Return a horizon if it is valid.

    Raises:
        InvalidInputError: It is below 1.
    """
    if horizon < 1:
        raise InvalidInputError(f"the horizon must be at least 1 step, got {horizon}")
    return horizon
