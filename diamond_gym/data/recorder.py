"""Record any Gymnasium environment with images, one .npz file per episode.

Example::

    env = RecordEpisodes(gymnasium.make("MyGame-v0"), "recordings")

`python -m trainers.diamond import-episodes` makes a dataset of such files from any source. A file has one
array for each field of `RecordedEpisode`. The module does not depend on the dataset's layout or on training.
"""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike, NDArray

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.errors import DatasetError, InvalidInputError
from diamond_gym.world.action_space import ActionSpace

MAX_SIZE = 1024
"""Largest side that frames can be resized to."""
_NAMES = {
    "obs": ("obs", "observations"),
    "act": ("act", "actions"),
    "rew": ("rew", "rewards"),
    "terminated": ("terminated", "terminations"),
    "truncated": ("truncated", "truncations"),
}
"""Fields of a file, and the names under which each is found."""


@dataclass
class RecordedEpisode:
    """The t recorded steps of an episode, from a reset to its end or to the end of the recording.

    Attributes:
        obs: uint8 (t+1, h, w, c) with c 1 or 3, or (t+1, h, w): frames, the one after the last step too.
        act: Actions: integers (t,), 0..n-1, or integers or floats (t, *shape of an action) where they are not
            discrete. `act[i]` was taken at `obs[i]` and led to `obs[i + 1]`.
        rew: Numbers (t,), raw rewards.
        terminated: Booleans (t,), True at most at the last step.
        truncated: Likewise.
        num_actions: Number of discrete actions (n); None when unknown.
        actions: The action space, as `str(ActionSpace)` writes it; None when unknown.

    Raises:
        DatasetError: A field has another shape or type, or the episode continues after its end.
    """

    obs: NDArray[np.uint8]
    act: NDArray[Any]
    rew: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    num_actions: int | None = None
    actions: str | None = None

    def __post_init__(self) -> None:
        self.obs = _frames(self.obs)
        length = len(self.obs) - 1
        space = self.action_space
        self.act = actions(self.act, self.num_actions) if space is None else actions_of(space, self.act)
        self.rew = rewards(self.rew)
        self.terminated = flags("terminated", self.terminated)
        self.truncated = flags("truncated", self.truncated)
        for name in ("act", "rew", "terminated", "truncated"):
            if len(getattr(self, name)) != length:
                raise DatasetError(
                    f"obs has {length + 1} frames and {name} has {len(getattr(self, name))} steps: t steps "
                    "need t+1 frames, including the one after the last step"
                )
        if length == 0:
            raise DatasetError("an episode needs at least one step")
        ends = np.flatnonzero(self.terminated[:-1] | self.truncated[:-1])
        if len(ends):
            raise DatasetError(
                f"the episode ends at step {ends[0]} and continues to step {length - 1}: one episode a file"
            )

    def __len__(self) -> int:
        return len(self.act)

    @property
    def action_space(self) -> ActionSpace | None:
        """The action space where the episode says it; None for actions without one, and for discrete ones."""
        return None if self.actions is None else ActionSpace.parse(self.actions)

    @property
    def is_finished(self) -> bool:
        """Whether the last step ended or truncated the episode."""
        return bool(self.terminated[-1] | self.truncated[-1])

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            CacheError: It cannot be written.
        """
        disk.write_file(path, self.content())

    def content(self) -> bytes:
        """Return the bytes of the file."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _NAMES}
        if self.num_actions is not None:
            fields["num_actions"] = np.int64(self.num_actions)
        if self.actions is not None:
            fields["action_space"] = np.array(self.actions)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **fields)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> RecordedEpisode:
        """Read a file; nothing in it is ever executed.

        Raises:
            DatasetError: It is missing, damaged, or no episode; the message names it.
        """
        arrays = untrusted.read_arrays(path, DatasetError, "an .npz file of plain arrays")
        with untrusted.reading(path, DatasetError, "a recorded episode"):
            fields = {name: _first(arrays, name) for name in _NAMES}
            num_actions = int(arrays["num_actions"]) if "num_actions" in arrays else None
            actions = str(arrays["action_space"]) if "action_space" in arrays else None
            return cls(**fields, num_actions=num_actions, actions=actions)


class RecordEpisodes(gymnasium.Wrapper, RecordConstructorArgs):
    """A wrapper that writes every episode to `folder/episode_<number>.npz` when it ends.

    Numbers continue after those of existing files; any number of environments and processes may share a
    folder. An episode that `reset` or `close` cuts off is written too, as one that never ended.

    Example:
        >>> import gymnasium as gym, diamond_gym
        >>> from diamond_gym.data.recorder import RecordEpisodes, RecordedEpisode
        >>> env = RecordEpisodes(gym.make("DiamondRealBreakout-v0"), "recordings")
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> env.close()
        >>> RecordedEpisode.load("recordings/episode_000000.npz").obs.shape
        (2, 64, 64, 3)

    Args:
        env: The environment, with uint8 images (h, w), (h, w, 1) or (h, w, 3) and actions of a `Discrete`,
            `MultiDiscrete`, `MultiBinary` or bounded `Box` space. If its observations are not images, record
            what it renders: put `gymnasium.wrappers.AddRenderObservation(env)` inside this wrapper.
        folder: Folder of the files, made when the first one is written.

    Raises:
        InvalidInputError: The environment's observations or actions are of another kind.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], folder: str | Path) -> None:
        RecordConstructorArgs.__init__(self, folder=str(folder))
        super().__init__(env)
        self.folder = Path(folder).expanduser()
        _check_frames(env.observation_space)
        self._space = ActionSpace.of(env.action_space)
        self._first_action = self._space.first(env.action_space)
        self._number = 1 + max((_number(path) for path in self.folder.glob("episode_*.npz")), default=-1)
        self._builder, self._latest = EpisodeBuilder(), None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Write an unfinished episode, then start a new one."""
        self._write()
        obs, info = self.env.reset(seed=seed, options=options)
        self._latest = np.array(obs)  # a copy, as an environment may draw every frame into the same array
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; write the episode if it ends.

        Raises:
            InvalidInputError: The action is not in the environment's space; no step was taken.
        """
        act = self._checked(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._latest is None:
            return obs, reward, terminated, truncated, info  # a step after the end is left to the environment
        self._builder.add(self._latest, act, float(reward))
        self._latest = np.array(obs)
        if terminated or truncated:
            self._write(bool(terminated), bool(truncated))
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Write an unfinished episode and close the environment."""
        self._write()
        super().close()

    def _checked(self, action: Any) -> Any:
        """The action as it is recorded: choices counted from 0."""
        if self._space.is_discrete:
            return int(action) - self._first_action
        given = np.asarray(action) - (0 if self._space.is_continuous else self._first_action)
        act = self._space.convert(given)
        if act is None or act.shape != self._space.shape:
            raise InvalidInputError(
                f"cannot record the action {action!r}: accepted are {self._space.accepted()}; "
                "gymnasium.wrappers.ClipAction around RecordEpisodes clips numbers"
            )
        return act

    def _write(self, terminated: bool = False, truncated: bool = False) -> None:
        builder = self._builder
        if len(builder):
            frames: list[Any] = [*builder.obs, self._latest]
            ends = np.zeros((2, len(builder)), bool)
            ends[:, -1] = terminated, truncated
            episode = RecordedEpisode(
                obs=np.stack(frames),
                act=builder.actions(),
                rew=np.array(builder.rew),
                terminated=ends[0],
                truncated=ends[1],
                num_actions=self._space.num_actions,
                actions=None if self._space.is_discrete else str(self._space),
            )
            names = (self.folder / f"episode_{number:06d}.npz" for number in itertools.count(self._number))
            self._number = 1 + _number(disk.add_file(names, episode.content()))
        self._builder, self._latest = EpisodeBuilder(), None


def parse_size(text: str) -> tuple[int, int]:
    """Read a height and width: "64" means 64x64, "48x64" is 48 high and 64 wide.

    Raises:
        InvalidInputError: It has another form, or a side is out of range.
    """
    sides = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    h, w = (0, 0) if sides is None else (int(sides[1]), int(sides[2] or sides[1]))
    if not 1 <= min(h, w) <= max(h, w) <= MAX_SIZE:
        raise InvalidInputError(f"size must be a number in 1..{MAX_SIZE}, or two, such as 48x64, got {text}")
    return h, w


def _first(arrays: dict[str, NDArray[Any]], field: str) -> NDArray[Any]:
    for name in _NAMES[field]:
        if name in arrays:
            return arrays[name]
    raise DatasetError(
        f"it has no {' or '.join(_NAMES[field])}; expected {', '.join(_NAMES)}, found "
        f"{', '.join(arrays) or 'nothing'}"
    )


def _frames(obs: ArrayLike) -> NDArray[np.uint8]:
    frames = np.asarray(obs)
    if frames.dtype != np.uint8:
        raise DatasetError(f"obs must be uint8, 0..255, got {frames.dtype}: scale and convert it")
    is_image = frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] in (1, 3))
    if not is_image or 0 in frames.shape[1:]:
        raise DatasetError(
            f"obs must be (t+1, h, w), (t+1, h, w, 1) or (t+1, h, w, 3), channels last, got {frames.shape}"
        )
    return frames


def actions(act: ArrayLike, num_actions: int | None) -> NDArray[np.int64]:
    """Return discrete actions as int64 (t,).

    Raises:
        DatasetError: They are no integers (t,), or one is not in 0..num_actions-1.
    """
    found = np.asarray(act)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DatasetError(
            f"act must be integers (t,), got {found.dtype} {found.shape}: where actions are not discrete "
            'add an array action_space with text such as "box(-1.0..1.0, 0.0..1.0)", "multi_discrete(3, 2)" '
            'or "multi_binary(4)"'
        )
    found = found.astype(np.int64)
    wrong = found[(found < 0) | (found >= (num_actions or np.inf))]
    if len(wrong):
        accepted = "0 and more" if num_actions is None else f"0..{num_actions - 1}"
        raise DatasetError(f"act holds {wrong[0]}: accepted are {accepted}")
    return found


def actions_of(space: ActionSpace, act: ArrayLike) -> NDArray[Any]:
    """Return actions (t, *shape) as the type of their space, int64 or float32.

    Raises:
        DatasetError: One is not in the space.
    """
    found = np.asarray(act)
    converted = space.convert(found) if found.shape[1:] == space.shape else None
    if converted is None:
        raise DatasetError(
            f"act must be actions of {space}, {space.accepted()}, one for each step, got {found.dtype} "
            f"{found.shape}" + (f" from {found.min()} to {found.max()}" if found.size else "")
        )
    return converted


def rewards(rew: ArrayLike) -> NDArray[np.float32]:
    """Return rewards as float32 (t,).

    Raises:
        DatasetError: They are not finite numbers (t,).
    """
    found = np.asarray(rew)
    if found.ndim != 1 or found.dtype.kind not in "biuf":
        raise DatasetError(f"rew must be numbers (t,), got {found.dtype} {found.shape}")
    if not np.isfinite(found).all():
        raise DatasetError("rew holds a number that is not finite")
    return found.astype(np.float32)


def flags(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    """Return booleans (t,), which may be given as zeros and ones.

    Raises:
        DatasetError: They are something else.
    """
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise DatasetError(f"{name} must be booleans (t,), got {found.dtype} {found.shape}")
    return found.astype(np.bool_)


def _check_frames(space: gymnasium.Space[Any]) -> None:
    shape = space.shape or ()
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    if not isinstance(space, Box) or space.dtype != np.uint8 or not is_image:
        raise InvalidInputError(
            "only uint8 images (h, w), (h, w, 1) or (h, w, 3) can be recorded, the environment gives "
            f"{' '.join(str(space).split())}: wrap it in gymnasium.wrappers.AddRenderObservation (for the "
            "command `record`: render=true) to record what it draws"
        )


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("episode_")
    return int(digits) if digits.isdecimal() else -1
