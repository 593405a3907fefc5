"""The real game, preprocessed exactly as the world models saw it.

`AtariEnv` is a plain `gymnasium.Env` over the Arcade Learning Environment: no sticky actions, the game's
minimal action set, 1 to 30 no-ops at the start, every action repeated for 4 raw frames, the pixelwise
maximum of the last two, 64x64 RGB. The preprocessing is that of the published DIAMOND models (arXiv
2405.12399, appendix).

ale_py is imported when a game is first looked up, not together with this module. The module knows nothing of
world models, of torch, or of how episodes are stored.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from numpy.typing import NDArray

from diamond_gym.errors import (
    ClosedEnvironmentError,
    InvalidInputError,
    ResetNeededError,
    UnknownGameError,
    first_line,
)
from diamond_gym.registration import game_name

if TYPE_CHECKING:
    import ale_py

SCREEN_SIZE = 64
FRAME_SKIP = 4
MAX_NOOPS = 30
MAX_RAW_FRAMES = 108_000
"""Raw frames after which ALE truncates a game: 30 minutes at 60 Hz."""


def action_meanings(game: str) -> list[str]:
    """Return the names of a game's minimal actions, such as `["NOOP", "FIRE", "RIGHT", "LEFT"]` for Breakout.

    Raises:
        UnknownGameError: ale_py has no such game.
    """
    return list(_action_meanings(game_name(game)))


def num_actions(game: str) -> int:
    """Return the size of a game's minimal action set.

    Raises:
        UnknownGameError: ale_py has no such game.
    """
    return len(_action_meanings(game_name(game)))


@functools.cache
def _action_meanings(game: str) -> tuple[str, ...]:
    ale = _new_ale()
    _load_rom(ale, game)
    return tuple(action.name for action in ale.getMinimalActionSet())


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _new_ale() -> ale_py.ALEInterface:
    """Make a silent emulator without sticky actions and without a game."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(
        ale_py.LoggerMode.Error
    )  # before the constructor, which prints a banner
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("max_num_frames_per_episode", MAX_RAW_FRAMES)
    return ale


def _load_rom(ale: ale_py.ALEInterface, game: str) -> None:
    from ale_py import roms

    if game not in _rom_ids():
        raise UnknownGameError(f"the installed ale-py has no ROM of {game}: pip install --upgrade ale-py")
    path = roms.get_rom_path(_rom_ids()[game])
    assert path is not None, "every listed game has a ROM"
    ale.loadROM(path)


@functools.cache
def _rom_ids() -> dict[str, str]:
    """Map CamelCase names to ROM ids, such as MsPacman to ms_pacman."""
    from ale_py import roms

    return {rom_id.title().replace("_", ""): rom_id for rom_id in roms.get_all_rom_ids()}


@dataclass(frozen=True)
class AtariState:
    """The state of a real game, from `AtariEnv.clone_state`.

    It can be pickled, and restored in any `AtariEnv` of the same game.

    Attributes:
        game: Canonical name.
        emulator: ALE's own state, random numbers included.
        screens: uint8 (2, height, width, 3), the raw screens that the next frame may still be pooled from.
        lives: Lives left.
        phase: Whether the game is new, playing, has lost a life, or is over.
        rng: State of the generator that draws the no-ops.
    """

    game: str
    emulator: ale_py.ALEState
    screens: NDArray[np.uint8]
    lives: int
    phase: str
    rng: dict[str, Any]


def _check_state(state: AtariState, screens: tuple[int, ...]) -> None:
    """Raise an error unless the fields of a state are what `clone_state` gives."""
    import ale_py

    if not isinstance(state.emulator, ale_py.ALEState):
        raise InvalidInputError(f"its emulator is of type {type(state.emulator).__name__}")
    if state.screens.dtype != np.uint8 or state.screens.shape != screens:
        raise InvalidInputError(f"its screens are {state.screens.dtype} {state.screens.shape}")
    if not _is_integer(state.lives) or state.phase not in (_NEW, _PLAYING, _LIFE_LOST, _GAME_OVER):
        raise InvalidInputError(f"it has lives={state.lives!r} and phase={state.phase!r}")
    np.random.Generator(np.random.PCG64(0)).bit_generator.state = state.rng


_NEW, _PLAYING, _LIFE_LOST, _GAME_OVER, _CLOSED = ("new", "playing", "life lost", "game over", "closed")


class AtariEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One real Atari game.

    Observations are uint8 (64, 64, 3) in 0..255, actions are indices into the minimal action set, rewards are
    the raw sum over the 4 repeated frames, unclipped. `info` holds ALE's `lives`, `episode_frame_number` and
    `frame_number` (raw frames), and whether this step had `life_lost` and `game_over`.

    With `training=True` an episode also ends (`terminated`) when a life is lost. The game itself is not
    reset then: `reset()` continues it and returns the last frame of the previous episode, without no-ops.
    With `training=False` episodes last until game over. In both cases ALE truncates a game after 108 000 raw
    frames. The loss of a bonus life ends an episode like any other; the published code misses it.

    Example:
        >>> from diamond_gym.games.atari import AtariEnv
        >>> env = AtariEnv("Breakout", training=False)
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(1)
        >>> env.action_meanings[1], info["lives"]
        ('FIRE', 5)

    Args:
        game: Any single-player game of ale_py, in any spelling that `game_name` understands.
        training: Whether a lost life ends the episode.
        render_mode: None, or "rgb_array": `render()` returns the raw screen, 210x160 pixels for most games.

    Raises:
        UnknownGameError: ale_py has no such game.
        InvalidInputError: Another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 60 // FRAME_SKIP}

    def __init__(self, game: str, *, training: bool, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InvalidInputError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.game = game_name(game)
        self.training = training
        self.render_mode = render_mode
        self.ale = _new_ale()
        _load_rom(self.ale, self.game)
        self._actions = self.ale.getMinimalActionSet()
        self.observation_space = Box(0, 255, (SCREEN_SIZE, SCREEN_SIZE, 3), np.uint8)
        self.action_space = Discrete(len(self._actions))
        self._screens = np.zeros((2, *self.ale.getScreenDims(), 3), np.uint8)
        self._lives = 0
        self._phase = _NEW

    @property
    def action_meanings(self) -> list[str]:
        """Names of the actions, in order."""
        return [action.name for action in self._actions]

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions in order, under the name that other libraries use."""
        return self.action_meanings

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode: a new game, or the rest of this one after a lost life in training.

        Args:
            seed: A non-negative integer starts a new game and fixes everything that follows, as the same
                seed does in ale_py's own environment. None continues the present random numbers.
            options: Accepted because Gymnasium's interface has it, and ignored.

        Returns:
            The observation, uint8 (64, 64, 3), and the info.

        Raises:
            InvalidInputError: The seed is not a non-negative integer; the game is unchanged.
        """
        self._require_open()
        if seed is not None and not (_is_integer(seed) and seed >= 0):
            raise InvalidInputError(f"seed must be a non-negative integer or None, got {seed!r}")
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or self._phase == _NEW:
            self._seed_emulator(seed)
        elif self._phase == _LIFE_LOST:
            self._phase = _PLAYING
            return self._observe(), self._info(life_lost=False)
        self._start_game()
        return self._observe(), self._info(life_lost=False)

    def step(self, action: int | np.integer) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Repeat one action for 4 raw frames, fewer when the game ends.

        Args:
            action: An integer in 0..n-1.

        Returns:
            Observation, raw reward, terminated, truncated and info.

        Raises:
            InvalidInputError: It is not an action of the game; the game is unchanged.
            ResetNeededError: The episode has not begun, or is over.
        """
        self._require_open()
        if self._phase != _PLAYING:
            raise ResetNeededError(f"call reset() before step(): {self._why_not_playing()}")
        reward, life_lost = self._repeat(self._actions[self._action_index(action)])
        game_over = self.ale.game_over(with_truncation=False)
        truncated = self.ale.game_truncated() and not game_over
        terminated = game_over or (self.training and life_lost)
        if game_over or truncated:
            self._phase = _GAME_OVER
        elif terminated:
            self._phase = _LIFE_LOST
        return self._observe(), reward, terminated, truncated, self._info(life_lost)

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the raw screen, uint8 (height, width, 3), or None without a render mode."""
        self._require_open()
        if self._phase == _NEW:
            raise ResetNeededError("call reset() before render()")
        return self._screens[1].copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Forbid further use. Closing twice is harmless."""
        self._phase = _CLOSED

    def clone_state(self) -> AtariState:
        """Copy the state of the game. Restoring it gives the same future under the same actions.

        Raises:
            ResetNeededError: No game has been started.
        """
        self._require_open()
        if self._phase == _NEW:
            raise ResetNeededError("call reset() before clone_state()")
        emulator = self.ale.cloneState(include_rng=True)
        rng = self.np_random.bit_generator.state
        return AtariState(self.game, emulator, self._screens.copy(), self._lives, self._phase, dict(rng))

    def restore_state(self, state: AtariState) -> NDArray[np.uint8]:
        """Restore a cloned state, here or in another `AtariEnv` of the same game.

        Returns:
            The observation in that state, uint8 (64, 64, 3).

        Raises:
            InvalidInputError: It is not an `AtariState`, or one of another game; the game is unchanged.
        """
        self._require_open()
        if not isinstance(state, AtariState):
            raise InvalidInputError(f"expected an AtariState from clone_state(), got {type(state).__name__}")
        if state.game != self.game:
            raise InvalidInputError(f"this is {self.game}, the state is of {state.game}")
        try:
            _check_state(state, self._screens.shape)
        except Exception as error:  # any error that states made by hand can cause
            raise InvalidInputError(f"the state is not one of clone_state(): {first_line(error)}") from error
        self.ale.restoreState(state.emulator)
        self._screens[...] = state.screens
        self._lives, self._phase = state.lives, state.phase
        self.np_random.bit_generator.state = state.rng
        return self._observe()

    def _seed_emulator(self, seed: int | None) -> None:
        """Seed as `ale_py.AtariEnv` does, so that one seed means one game in both."""
        noop_seed, emulator_seed = np.random.SeedSequence(seed).generate_state(2)
        self._np_random, _ = seeding.np_random(int(noop_seed))
        self.ale.setInt("random_seed", int(emulator_seed.astype(np.int32)))
        _load_rom(self.ale, self.game)  # ALE reads its seed only when a ROM is loaded

    def _start_game(self) -> None:
        import ale_py

        self.ale.reset_game()
        for _ in range(self.np_random.integers(1, MAX_NOOPS + 1)):
            self.ale.act(ale_py.Action.NOOP)
            if self.ale.game_over():
                self.ale.reset_game()
        self._lives = self.ale.lives()
        self._phase = _PLAYING
        self._screens[0] = 0
        self.ale.getScreenRGB(self._screens[1])

    def _repeat(self, action: ale_py.Action) -> tuple[float, bool]:
        """Run up to 4 raw frames; leave their pooled screen in `_screens[1]`.

        When the game ends, its last raw screen is not read and the pooled screen keeps what it held: a quirk
        of the published preprocessing that the released models were trained with.

        Returns:
            The summed reward, and whether a life was lost.
        """
        reward, life_lost = 0.0, False
        for frame in range(FRAME_SKIP):
            reward += self.ale.act(action)
            lives = self.ale.lives()
            life_lost |= lives < self._lives
            self._lives = lives
            if self.ale.game_over():
                break
            if frame >= FRAME_SKIP - 2:
                self.ale.getScreenRGB(self._screens[frame - (FRAME_SKIP - 2)])
        np.maximum(self._screens[0], self._screens[1], out=self._screens[1])
        return reward, life_lost

    def _observe(self) -> NDArray[np.uint8]:
        resized = cv2.resize(self._screens[1], (SCREEN_SIZE, SCREEN_SIZE), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)

    def _info(self, life_lost: bool) -> dict[str, Any]:
        return {
            "lives": self.ale.lives(),
            "episode_frame_number": self.ale.getEpisodeFrameNumber(),
            "frame_number": self.ale.getFrameNumber(),
            "life_lost": life_lost,
            "game_over": self._phase == _GAME_OVER,
        }

    def _action_index(self, action: Any) -> int:
        is_odd = isinstance(action, bool) or getattr(action, "ndim", 0) > 0  # `operator.index` accepts both
        try:
            index = -1 if is_odd else operator.index(action)
        except TypeError:
            index = -1
        if not 0 <= index < len(self._actions):
            meanings = ", ".join(f"{i} {name}" for i, name in enumerate(self.action_meanings))
            raise InvalidInputError(f"{self.game} takes an integer action ({meanings}), got {action!r}")
        return index

    def _why_not_playing(self) -> str:
        return "no game has been started" if self._phase == _NEW else f"the episode is over ({self._phase})"

    def _require_open(self) -> None:
        if self._phase == _CLOSED:
            raise ClosedEnvironmentError("this AtariEnv has been closed")
