"""Episodes on disk in the published DIAMOND dataset layout: written, read, indexed and checked.

A dataset is a folder::

    action_space.txt    the action space, such as "box(-1.0..1.0)"; absent where actions are discrete
    info.pt             the index: number of episodes and steps, lengths, start indices, counts of rewards
                        and ends
    000/00/0/0.pt       one file per episode, in sub-folders by hundreds, tens and units of its number
    200/30/4/1234.pt

Episodes written here can be read by the published code, and vice versa. Every file is replaced atomically,
episodes before the index, so a process killed at any time leaves a dataset that can be opened. Any number of
processes may append and read; one at a time may replace. The module does not depend on games,
policies or training segments.
"""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.errors import CacheError, DatasetError
from diamond_gym.world import pixels
from diamond_gym.world.action_space import ActionSpace

_FINAL = "final_observation"
_INDEX_KEYS = {"is_static", "num_episodes", "num_steps", "start_idx", "lengths", "counter_rew", "counter_end"}
# info.pt holds two arrays of int64. Rebuilding an array runs no code from the file.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ARRAY_GLOBALS: list[Any] = [
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # written with numpy 1
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
    bytes,  # the contents of an empty array
]


@dataclass
class Episode:
    """An episode, from a reset to its end, on the CPU.

    `act[t]` was taken at `obs[t]` and resulted in `rew[t]`, `end[t]`, `trunc[t]`.

    Attributes:
        obs: Frames, 0..255.
        act: Actions: int64 (t,) where they are discrete, else int64 or float32 (t, *shape of an action).
        rew: Raw rewards.
        end: 1 where the episode terminated (the last step only), else 0.
        trunc: 1 where it was cut short (the last step only), else 0.
        info: `final_observation`, uint8 (c, h, w), is the frame after the last step; absent when the episode
            is unfinished.

    Raises:
        DatasetError: A field has the wrong shape or dtype, or the episode continues after an end.
    """

    obs: UInt8[Tensor, "t c h w"]
    act: Shaped[Tensor, "t *a"]
    rew: Float32[Tensor, " t"]
    end: UInt8[Tensor, " t"]
    trunc: UInt8[Tensor, " t"]
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_tensor("obs", self.obs, torch.uint8, 4)
        length = len(self.obs)
        if length == 0:
            raise DatasetError("an episode needs at least one step")
        _require_actions(self.act)
        for name, dtype in (("rew", torch.float32), ("end", torch.uint8), ("trunc", torch.uint8)):
            _require_tensor(name, getattr(self, name), dtype, 1)
        for name in ("act", "rew", "end", "trunc"):
            if len(getattr(self, name)) != length:
                raise DatasetError(f"obs has {length} steps, {name} has {len(getattr(self, name))}")
        if bool((self.end[:-1] | self.trunc[:-1]).any()):
            raise DatasetError("end and trunc may be set on an episode's last step only")
        if _FINAL in self.info:
            _require_tensor(_FINAL, self.info[_FINAL], torch.uint8, 3)
            if self.info[_FINAL].shape != self.obs.shape[1:]:
                raise DatasetError(
                    f"frames are {_shape(self.obs[0])}, {_FINAL} is {_shape(self.info[_FINAL])}"
                )

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def is_finished(self) -> bool:
        """Whether the last step ended or truncated the episode."""
        return bool(self.end[-1] | self.trunc[-1])

    @property
    def final_observation(self) -> UInt8[Tensor, "c h w"] | None:
        """The frame after the last step; None when unknown."""
        return self.info.get(_FINAL)

    @property
    def total_reward(self) -> float:
        """Sum of the raw rewards."""
        return float(self.rew.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the episode; `path` holds either the old file or all of the new one.

        Raises:
            CacheError: The file cannot be written.
        """
        disk.write_torch(Path(path), self._content())

    def _content(self) -> dict[str, Any]:
        """Return the content of the file."""
        info = dict(self.info)
        if _FINAL in info:
            info[_FINAL] = pixels.to_float(info[_FINAL])  # the layout stores this one frame in [-1, 1]
        fields = {
            name: getattr(self, name).contiguous().clone() for name in ("obs", "act", "rew", "end", "trunc")
        }
        return {**fields, "info": info}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Episode:
        """Read an episode, written here or by the published code.

        `end` and `trunc` may be of any integer or boolean type: the published viewer records int64.

        Raises:
            DatasetError: The file is missing, corrupt, holds anything but plain data, or is not an episode.
        """
        path = Path(path)
        content = _read(path, "an episode", [])
        names = {"obs", "act", "rew", "end", "trunc", "info"}
        if not isinstance(content, dict) or set(content) != names or not isinstance(content["info"], dict):
            raise DatasetError(f"{path} is not an episode: expected the fields {', '.join(sorted(names))}")
        with untrusted.reading(path, DatasetError, "an episode"):
            final = content["info"].get(_FINAL)
            if isinstance(final, Tensor) and final.is_floating_point():
                content["info"][_FINAL] = pixels.to_uint8(final)
            flags = {name: _flags(name, content[name]) for name in ("end", "trunc")}
            episode = cls(**{**content, **flags})  # pyright: ignore[reportArgumentType]
            for name in ("rew", "act"):
                if not getattr(episode, name).isfinite().all():
                    raise DatasetError(f"{name} holds a number that is not finite")
            for name, x in episode.info.items():
                if isinstance(x, Tensor) and x.dtype == torch.bfloat16:
                    raise DatasetError(f"{name} in its info is of {x.dtype}, which NumPy does not know")
            return episode


def channels_first(frames: NDArray[Any] | Tensor) -> Tensor:
    """Turn arrays of frames (..., h, w, c) into tensors (..., c, h, w); tensors stay as they are."""
    if isinstance(frames, Tensor):
        return frames
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3)))


class EpisodeDataset:
    """A folder of episodes, read one at a time.

    `len(dataset)` is the number of episodes, `dataset[i]` reads the i-th from disk.

    Args:
        path: The folder that holds `info.pt`.
        create: Make the folder (when the first episode is written) if it is not there.

    Raises:
        DatasetError: There is no dataset at `path` and `create` is false, or its index is corrupt.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._clear_index()
        if self._index_path.is_file() and not self._stale_mark.exists():
            self._load_index()
        self._index_new_files()
        if self.num_episodes == 0 and not create and not self._index_path.is_file():
            raise DatasetError(self._nothing_here())

    def __repr__(self) -> str:
        return f"EpisodeDataset({str(self.path)!r}): {self.num_episodes} episodes, {self.num_steps} steps"

    def __len__(self) -> int:
        return self.num_episodes

    def __getitem__(self, episode_id: int) -> Episode:
        return self.load(episode_id)

    def __iter__(self) -> Iterator[Episode]:
        return (self.load(episode_id) for episode_id in range(self.num_episodes))

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._lengths)

    @property
    def num_steps(self) -> int:
        """Number of steps in all episodes."""
        return self._num_steps

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of steps of each episode, (num_episodes,)."""
        return np.array(self._lengths, np.int64)

    @property
    def start_indices(self) -> NDArray[np.int64]:
        """Number of steps in all episodes before each one, (num_episodes,)."""
        return self.lengths.cumsum() - self.lengths

    @property
    def reward_counts(self) -> dict[int, int]:
        """Number of steps with a reward of each sign: keys -1, 0, 1."""
        return {sign: self._counter_rew[sign] for sign in (-1, 0, 1)}

    @property
    def end_counts(self) -> dict[int, int]:
        """Number of steps that end their episode (1) and that do not (0)."""
        return {end: self._counter_end[end] for end in (0, 1)}

    def episode_path(self, episode_id: int) -> Path:
        """Return the path of an episode, which may not be written yet."""
        hundreds, tens, units = (episode_id // 100 % 10 * 100, episode_id // 10 % 10 * 10, episode_id % 10)
        return self.path / f"{hundreds:03d}" / f"{tens:02d}" / f"{units}" / f"{episode_id}.pt"

    @property
    def action_space(self) -> ActionSpace | None:
        """The action space; None where the dataset does not say it, as those of discrete actions.

        Raises:
            DatasetError: The file holds none.
        """
        if not self._space_path.is_file():
            return None
        text = untrusted.read_text(self._space_path, DatasetError, "an action space")
        with untrusted.reading(self._space_path, DatasetError, "an action space"):
            return ActionSpace.parse(text)

    def save_action_space(self, space: ActionSpace) -> None:
        """Write down the action space.

        Raises:
            CacheError: The folder cannot be written.
        """
        disk.write_file(self._space_path, f"{space}\n".encode())

    def load(self, episode_id: int) -> Episode:
        """Read one episode from disk.

        Raises:
            IndexError: There is no such episode.
            DatasetError: Its file is missing or corrupt.
        """
        if not 0 <= episode_id < self.num_episodes:
            raise IndexError(f"episode {episode_id} of {self.num_episodes}")
        return Episode.load(self.episode_path(episode_id))

    def append(self, episode: Episode) -> int:
        """Write another episode and the index; return the episode's number.

        Episodes that other processes have added since are taken in.

        Raises:
            CacheError: The folder cannot be written.
        """
        self.extend([episode])
        return self.num_episodes - 1

    def extend(self, episodes: Iterable[Episode]) -> None:
        """Write several episodes, then the index once.

        Episodes that other processes have added since are taken in.

        Raises:
            CacheError: The folder cannot be written.
        """
        for episode in episodes:
            with disk.adding(self._free_paths()) as new:
                disk.save_torch(episode._content(), new.file)
            self._count(episode)
        self._write_index()

    def replace(self, episode_id: int, episode: Episode) -> None:
        """Write another version of an episode, for example one that has more steps now.

        Raises:
            IndexError: There is no such episode.
            CacheError: The folder cannot be written.
        """
        old = self.load(episode_id)
        disk.write_torch(self._stale_mark, {})
        episode.save(self.episode_path(episode_id))
        self._counter_rew.subtract(_reward_signs(old))
        self._counter_end.subtract(old.end.tolist())
        self._counter_rew.update(_reward_signs(episode))
        self._counter_end.update(episode.end.tolist())
        self._num_steps += len(episode) - self._lengths[episode_id]
        self._lengths[episode_id] = len(episode)
        self._write_index()
        self._stale_mark.unlink()

    def check(self) -> None:
        """Read every file and compare it with the index.

        Raises:
            DatasetError: Files are missing or corrupt, or the index disagrees with them; names every one.
        """
        problems: list[str] = []
        rewards: Counter[float] = Counter()
        ends: Counter[int] = Counter()
        for episode_id, length in enumerate(self._lengths):
            path = self.episode_path(episode_id)
            try:
                episode = Episode.load(path)
                _verify_checksums(path)
            except DatasetError as error:
                problems.append(str(error))
                continue
            if len(episode) != length:
                problems.append(f"{path} has {len(episode)} steps, the index says {length}")
            rewards.update(_reward_signs(episode))
            ends.update(episode.end.tolist())
        if not problems and (+rewards != +self._counter_rew or +ends != +self._counter_end):
            problems.append(
                f"{self._index_path}: its counts of rewards or ends are not those of the episodes"
            )
        if problems:
            raise DatasetError(f"{len(problems)} problem(s) in {self.path}:\n" + "\n".join(problems))

    @property
    def _index_path(self) -> Path:
        return self.path / "info.pt"

    @property
    def _space_path(self) -> Path:
        return self.path / "action_space.txt"

    @property
    def _stale_mark(self) -> Path:
        """Path of a file that exists while an episode is replaced and the index may be wrong."""
        return self.path / "info.stale"

    def _clear_index(self) -> None:
        self._lengths: list[int] = []
        self._num_steps = 0
        self._counter_rew: Counter[float] = Counter()
        self._counter_end: Counter[int] = Counter()

    def _count(self, episode: Episode) -> None:
        self._lengths.append(len(episode))
        self._num_steps += len(episode)
        self._counter_rew.update(_reward_signs(episode))
        self._counter_end.update(episode.end.tolist())

    def _free_paths(self) -> Iterator[Path]:
        """Yield paths for the next episode; when one is taken, count the episode that took it."""
        while True:
            path, before = self.episode_path(self.num_episodes), self.num_episodes
            yield path
            self._index_new_files()
            if self.num_episodes == before:
                raise CacheError(f"{path} is in the way of an episode but is not one: remove it")

    def _index_new_files(self) -> None:
        """Add episodes that were written after the index was."""
        for episode_id in itertools.count(self.num_episodes):
            path = self.episode_path(episode_id)
            if not path.is_file():
                return
            self._count(Episode.load(path))

    def _load_index(self) -> None:
        index = _read(self._index_path, "the index of a dataset", _ARRAY_GLOBALS)
        if not isinstance(index, dict) or not _INDEX_KEYS.issubset(index):
            raise DatasetError(
                f"{self._index_path} is not a dataset index: expected {', '.join(sorted(_INDEX_KEYS))}"
            )
        with untrusted.reading(self._index_path, DatasetError, "the index of a dataset"):
            self._lengths = [int(length) for length in index["lengths"]]
            self._num_steps = sum(self._lengths)
            self._counter_rew = _counts(index["counter_rew"])
            self._counter_end = _counts(index["counter_end"])
            if not all(1 <= length < 2**40 for length in self._lengths):
                raise ValueError(f"it has episodes of {min(self._lengths)} to {max(self._lengths)} steps")
        if (self.num_episodes, self.num_steps) != (index["num_episodes"], index["num_steps"]):
            raise DatasetError(
                f"{self._index_path} contradicts itself: {index['num_episodes']} episodes and "
                f"{index['num_steps']} steps, but {self.num_episodes} lengths that add up to {self.num_steps}"
            )

    def _write_index(self) -> None:
        index = {
            "is_static": False,
            "num_episodes": self.num_episodes,
            "num_steps": self.num_steps,
            "start_idx": self.start_indices,
            "lengths": self.lengths,
            "counter_rew": self._counter_rew,
            "counter_end": self._counter_end,
        }
        disk.write_torch(self._index_path, index)

    def _nothing_here(self) -> str:
        inner = [path.name for path in disk.visible(self.path) if (path / "info.pt").is_file()]
        hint = f"; did you mean {' or '.join(str(self.path / name) for name in inner)}?" if inner else ""
        return (
            f"no dataset at {self.path}: expected info.pt, or episodes such as {self.episode_path(0)}{hint}"
        )


def _reward_signs(episode: Episode) -> list[float]:
    return episode.rew.sign().tolist()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _require_tensor(name: str, value: object, dtype: torch.dtype, num_dims: int) -> None:
    if not isinstance(value, Tensor):
        raise DatasetError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != dtype or value.ndim != num_dims:
        raise DatasetError(
            f"{name} must be {dtype} with {num_dims} dimension(s), got {value.dtype} {_shape(value)}"
        )


def _require_actions(act: object) -> None:
    """Raise `DatasetError` unless actions are discrete, int64 (t,), or of another space, (t, *shape)."""
    if not isinstance(act, Tensor):
        raise DatasetError(f"act must be a tensor, got {type(act).__name__}")
    if act.ndim < {torch.int64: 1, torch.float32: 2}.get(act.dtype, math.inf):
        raise DatasetError(
            "act must be torch.int64 of shape (t,), or where actions are not discrete torch.int64 or "
            f"torch.float32 of shape (t, *shape of an action), got {act.dtype} {_shape(act)}"
        )


def _flags(name: str, value: Any) -> Any:
    """Turn zeros and ones of any integer or boolean type into uint8; return anything else unchanged."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return value
    numbers = value.long()  # some integer types cannot be compared
    if numbers.numel() and not bool(((numbers == 0) | (numbers == 1)).all()):
        raise DatasetError(f"{name} must be 0 or 1, got values from {numbers.min()} to {numbers.max()}")
    return numbers.to(torch.uint8)


def _counts(found: Any) -> Counter[Any]:
    """Count the steps with each number."""
    counts = Counter({float(number): int(count) for number, count in found.items()})
    if any(count < 0 for count in counts.values()):
        raise ValueError("it counts negative numbers of steps")
    return counts


def _read(path: Path, what: str, safe_globals: list[Any]) -> Any:
    """Read plain data and tensors; a file that holds anything else is refused."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    return untrusted.read_torch(path, DatasetError, what, safe_globals)


def _verify_checksums(path: Path) -> None:
    """Compare the file's contents with their stored checksums, which torch does not do."""
    if not zipfile.is_zipfile(path):
        return  # torch's older format has no checksums
    with untrusted.reading(path, DatasetError, "an episode"), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise DatasetError(f"{path} is corrupt: the checksum of {damaged} is wrong")
