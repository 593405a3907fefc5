"""Episodes of an HDF5 file, in robomimic's layout, D4RL's, or a similar one. Only this module imports h5py.

Robomimic keeps a group for each episode, `data/demo_0` and so on; D4RL keeps one array for the steps of all
episodes. Frames are read in blocks, so a file may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym import untrusted
from diamond_gym.data.recorder import flags
from diamond_gym.data.source import (
    MEANING_OF_MISSING,
    UNKNOWN,
    ActionRange,
    StreamedEpisode,
    check_frame,
    natural,
)
from diamond_gym.errors import DatasetError, require

_BLOCK = 2**24
"""Bytes of the frames that are read at a time."""
_MAX_CHUNK = 2**28
"""Largest chunk in bytes, which the library unpacks as a whole."""
_EPISODES = "data"
"""Robomimic's group of episodes."""


@dataclass(frozen=True)
class HDF5Mapping:
    """Where an HDF5 file holds what: paths from the group of an episode, or from the root of a flat file.

    Attributes:
        obs: The frames; "" takes the only dataset `obs/*_image`. The frame after each step is taken from
            `next_` and this path, where there is one.
        act: The actions.
        rew: The rewards.
        terminated: Where episodes end.
        truncated: Where they are cut short.
        action_range: The least and greatest action.
    """

    obs: str
    act: str = "actions"
    rew: str = "rewards"
    terminated: str = ""
    truncated: str = ""
    action_range: ActionRange = UNKNOWN


ROBOMIMIC = HDF5Mapping(obs="", terminated="dones")
D4RL = HDF5Mapping(obs="observations", terminated="terminals", truncated="timeouts")


@dataclass(frozen=True)
class _Part:
    """Steps `first` to `last` of a group, the first one included."""

    group: str
    first: int = 0
    last: int | None = None


class HDF5Source:
    """The episodes of a file, in the order of their numbers.

    Args:
        path: The file.
        given: Paths that differ from those of its layout, by the fields of `HDF5Mapping`.
        action_range: The least and greatest action.

    Raises:
        MissingDependencyError: h5py is not installed.
        DatasetError: It is no HDF5 file, holds no episodes, or a given path is not in it.
    """

    num_actions = None

    def __init__(self, path: str, given: dict[str, str], action_range: ActionRange) -> None:
        self.path, self._given = Path(path).expanduser(), given
        _h5py(path)
        with self._opened("a file of episodes") as file:
            groups = _groups(file, given.get("act", ROBOMIMIC.act))
            layout = ROBOMIMIC if groups else D4RL
            self.mapping = replace(layout, **given, action_range=action_range)
            self._parts = [_Part(group) for group in groups] or self._flat_parts(file)
            first = self._parts[0]
            if not self.mapping.obs:
                self.mapping = replace(self.mapping, obs=_only_camera(file[first.group]))
            self.notes = list(self._missing(file[first.group]))
            self.num_steps = sum(self._length(file, part) for part in self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def name(self, number: int) -> str:
        """Name an episode: its group, or its first step in a flat file."""
        part = self._parts[number]
        return part.group.strip("/") or f"steps {part.first} to {part.last}"

    def files(self, number: int) -> list[Path]:
        """Return the file."""
        return [self.path]

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode's short arrays; its frames are read as they are iterated over.

        Raises:
            DatasetError: It is damaged, or of another form.
        """
        part, what = self._parts[number], f"an episode ({self.name(number)})"
        with self._opened(what) as file:
            group = file[part.group]
            act = _rows(group, self.mapping.act, part)
            rew = _rows(group, self.mapping.rew, part, "rew" in self._given, len(act))
            over = [self._flags(group, name, part, len(act)) for name in ("terminated", "truncated")]
            num_frames = self._count_frames(group, part, len(act))

            def frames(num_steps: int) -> Iterator[NDArray[np.uint8]]:
                return self._frames(part, num_steps, num_frames, what)

            return StreamedEpisode.until_its_end(
                frames, act, rew, over[0], over[1], self.mapping.action_range
            )

    @contextmanager
    def _opened(self, what: str) -> Iterator[Any]:
        with untrusted.reading(self.path, DatasetError, what):
            with untrusted.opened(self.path):  # a regular file
                pass
            with _h5py(self.path).File(self.path, "r", locking="best-effort") as file:
                yield file

    def _flat_parts(self, file: Any) -> list[_Part]:
        """The episodes of a flat file: they end where a step terminates or truncates."""
        act = _find(file, self.mapping.act)
        if act is None:
            raise ValueError(
                f"it holds no episodes: there is neither a group of episodes with {self.mapping.act!r} in "
                f"{_EPISODES!r} (robomimic), nor {self.mapping.act!r} at its root (D4RL); found "
                f"{', '.join(list(file)[:8]) or 'nothing'}. obs_key=, act_key= and others say what is where"
            )
        length, whole = len(act), _Part("/")
        over = [self._flags(file, name, whole, length) for name in ("terminated", "truncated")]
        lasts = (np.flatnonzero(over[0] | over[1]) + 1).tolist()
        lasts += [] if lasts[-1:] == [length] else [length]
        return [_Part("/", first, last) for first, last in zip([0, *lasts[:-1]], lasts, strict=True)]

    def _missing(self, group: Any) -> Iterator[str]:
        """Say which arrays the file does not have; those that were asked for must be there."""
        for field in fields(HDF5Mapping)[:-1]:
            path = getattr(self.mapping, field.name)
            if path and _find(group, path) is None:
                if field.name in ("obs", "act") or field.name in self._given:
                    raise ValueError(
                        f"there is no {path!r} ({field.name}_key) in {group.name}; found {_names(group)}"
                    )
                if field.name in MEANING_OF_MISSING:
                    yield f"there are no {path!r}: {MEANING_OF_MISSING[field.name]}"

    def _length(self, file: Any, part: _Part) -> int:
        if part.last is not None:
            return part.last - part.first
        act = _find(file[part.group], self.mapping.act)
        return 0 if act is None or not act.shape else len(act)

    def _flags(self, group: Any, name: str, part: _Part, length: int) -> NDArray[np.bool_]:
        path = getattr(self.mapping, name)
        return flags(path, _rows(group, path, part, name in self._given, length))

    def _count_frames(self, group: Any, part: _Part, length: int) -> int:
        """Return how many frames of its own an episode has, at most one more than steps."""
        obs = _dataset(group, self.mapping.obs)
        if part.last is not None:
            total = _dataset(group, self.mapping.act).shape[0]
            if len(obs) != total:
                raise ValueError(f"there are {total} actions and {len(obs)} frames, which must be as many")
            return length
        if len(obs) not in (length, length + 1):
            raise ValueError(
                f"there are {length} actions and {len(obs)} frames: t actions need t or t+1 frames"
            )
        return len(obs)

    def _frames(self, part: _Part, num_steps: int, num_frames: int, what: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the frame before each step, then the one after the last step if there is one."""
        with self._opened(what) as file:
            group = file[part.group]
            yield from _read_frames(
                _dataset(group, self.mapping.obs), part.first, min(num_steps + 1, num_frames)
            )
            following = _find(group, f"next_{self.mapping.obs.lstrip('/')}")
            if num_frames <= num_steps and following is not None:
                last = part.first + num_steps - 1
                yield from _read_frames(_dataset(group, f"next_{self.mapping.obs.lstrip('/')}"), last, 1)


def _h5py(path: object) -> Any:
    return require("h5py", "h5py", f"hdf5={path}", "data")


def _groups(file: Any, act: str) -> list[str]:
    """Return the groups that are episodes: those in `data` or, failing that, at the root."""
    for parent in (_EPISODES, "/"):
        at = file if parent == "/" else _find(file, parent)
        if not _is_group(at):
            continue
        names = [name for name in sorted(at, key=natural) if _is_group(_find(at, name))]
        if any(_find(at[name], act) is not None for name in names):
            return [f"{parent.rstrip('/')}/{name}" for name in names]
    return []


def _is_group(found: Any) -> bool:
    return hasattr(found, "keys")


def _find(group: Any, path: str) -> Any:
    """Return what is at a path, None for nothing; links to other places are not followed.

    Raises:
        ValueError: There is a link in the path.
    """
    at = group
    for name in filter(None, path.split("/")):
        if not _is_group(at) or name not in at:
            return None
        if type(at.get(name, getlink=True)).__name__ != "HardLink":
            raise ValueError(f"{name} in it is a link to another place, which is not followed")
        at = at[name]
    return at


def _dataset(group: Any, path: str) -> Any:
    """Return the dataset at a path, checked to lie in this file and to be of numbers.

    Raises:
        ValueError: There is none, or it is of another kind.
    """
    found = _find(group, path)
    if found is None or _is_group(found):
        raise ValueError(f"there is no dataset {path!r} in {group.name}; found {_names(group)}")
    if found.is_virtual or found.external:
        raise ValueError(f"{path} takes its numbers from another file, which is not read")
    if found.dtype.kind not in "biuf" or not found.shape:
        raise ValueError(f"{path} must be an array of numbers, got {found.dtype} {found.shape}")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > _MAX_CHUNK:
        size = math.prod(found.chunks) * found.dtype.itemsize / 1e6
        raise ValueError(f"{path} has chunks of {size:.0f} MB, accepted are {_MAX_CHUNK / 1e6:.0f}")
    return found


def _rows(
    group: Any, path: str, part: _Part, is_required: bool = True, length: int | None = None
) -> NDArray[Any]:
    """Read the rows of an episode as a whole; zeros where there is no such array and none is required.

    Raises:
        ValueError: There is none, it has another number of rows, or it is too large.
    """
    if length is not None and not is_required and (not path or _find(group, path) is None):
        return np.zeros(length, np.uint8)
    found = _dataset(group, path)
    last = len(found) if part.last is None else part.last
    size = (last - part.first) * math.prod(found.shape[1:]) * found.dtype.itemsize
    if size > untrusted.MAX_UNPACKED:
        raise ValueError(
            f"{path} would unpack to {size / 1e6:.0f} MB, accepted are {untrusted.MAX_UNPACKED / 1e6:.0f}"
        )
    rows = found[part.first : last]
    if length is not None and len(rows) != length:
        raise ValueError(f"there are {length} actions and {len(rows)} rows of {path}, which must be as many")
    if length is not None and rows.ndim == 2 and rows.shape[1] == 1:
        rows = rows[:, 0]
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows


def _only_camera(group: Any) -> str:
    """Return the only camera of a robomimic episode.

    Raises:
        ValueError: There is none, or several.
    """
    obs = _find(group, "obs")
    cameras = [name for name in obs if name.endswith("_image")] if _is_group(obs) else []
    if len(cameras) == 1:
        return f"obs/{cameras[0]}"
    found = " or ".join(f"obs_key=obs/{name}" for name in cameras)
    raise ValueError(
        f"{group.name} has {len(cameras)} cameras, choose one: {found}"
        if cameras
        else f"{group.name} has no frames in obs/*_image; obs_key= says where they are; found {_names(group)}"
    )


def _names(group: Any) -> str:
    """Name the datasets of a group, and of the groups in it."""
    names = []
    for name in list(group)[:20]:
        inner = group.get(name) if type(group.get(name, getlink=True)).__name__ == "HardLink" else None
        names += (
            [f"{name}/{x}" for x in list(inner)[:20]] if inner is not None and _is_group(inner) else [name]
        )
    return ", ".join(names[:20]) or "nothing"


def _read_frames(obs: Any, first: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames, channels last, from blocks of bounded size.

    Raises:
        ValueError: They are no frames.
    """
    shape = obs.shape[1:]
    is_channels_first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
    last_to: Callable[[Any], Any] = (lambda x: np.moveaxis(x, 1, -1)) if is_channels_first else lambda x: x
    check_frame((*shape[1:], shape[0]) if is_channels_first else shape, obs.dtype)
    step = max(1, _BLOCK // max(1, math.prod(shape)))
    if obs.chunks:  # a chunk is unpacked as a whole, so read the frames of a chunk together
        step = max(obs.chunks[0], step // obs.chunks[0] * obs.chunks[0])
    for at in range(first, first + count, step):
        yield from last_to(obs[at : min(at + step, first + count)])
