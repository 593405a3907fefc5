"""A folder of videos with a table of actions: an episode a video.

The table lies beside its video under the same name (`a.mp4`, `a.csv`), or one table `actions.csv` holds the
rows of all, with their names in a column `video`. A row is a step: what was done at the picture of the same
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.data import tables, video
from diamond_gym.data.recorder import flags
from diamond_gym.data.source import MEANING_OF_MISSING, UNKNOWN, ActionRange, StreamedEpisode, natural
from diamond_gym.errors import DatasetError

_COMMON = "actions"
"""Name of the table of all videos, without its ending."""


@dataclass(frozen=True)
class VideoMapping:
    """Which columns of a table hold what.

    Attributes:
        act: The action; several columns, separated by commas, make an action of several parts.
        rew: The reward after it; 0 where there is no such column.
        terminated: 1 or true where the episode ended; never where there is no such column.
        truncated: Likewise, where it was cut short.
        video: In a table of all videos, the name of the video.
        action_range: The least and greatest action.
    """

    act: str = "action"
    rew: str = "reward"
    terminated: str = "terminated"
    truncated: str = "truncated"
    video: str = "video"
    action_range: ActionRange = UNKNOWN


class VideoFolder:
    """The videos of a folder, in the order of their names.

    Args:
        folder: The folder.
        given: Columns that have other names, by the fields of `VideoMapping`.
        action_range: The least and greatest action.

    Raises:
        MissingDependencyError: PyAV or pyarrow is not installed.
        DatasetError: There is no such folder, it holds no videos, or no table that can be read.
    """

    num_actions = num_steps = None

    def __init__(self, folder: str, given: dict[str, str], action_range: ActionRange) -> None:
        self.mapping, self._given = replace(VideoMapping(), **given, action_range=action_range), given
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise DatasetError(f"videos={folder}: there is no such folder")
        files = disk.visible(path)
        self._videos = {file.stem: file for file in files if file.suffix.lower() in video.FORMATS}
        self._tables = {file.stem: file for file in files if file.suffix in tables.SUFFIXES}
        if not self._videos:
            found = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
            raise DatasetError(
                f"videos={folder} holds no videos ({', '.join(video.FORMATS)}); found {found or 'nothing'}"
            )
        video.require_av(f"videos={folder}")
        self.folder = path
        self._common = _Common(self._tables.pop(_COMMON), self) if _COMMON in self._tables else None
        named = set(self._common.rows) if self._common else set()
        self._names = sorted({*self._videos, *self._tables, *named}, key=natural)
        self.notes = self._missing()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        """Name an episode: its video, or its table where it has none."""
        name = self._names[number]
        file = self._videos.get(name) or self._tables.get(name)
        return file.name if file else name

    def files(self, number: int) -> list[Path]:
        """Return the video and its table."""
        name = self._names[number]
        table = self._common.path if self._common else self._tables.get(name)
        return [file for file in (self._videos.get(name), table) if file is not None]

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode's table; its pictures are decoded as they are iterated over.

        Raises:
            DatasetError: The video or the table is missing, or the table is of another form.
        """
        name = self._names[number]
        if name not in self._videos:
            raise DatasetError(f"{self.folder}: {self.name(number)} has rows of actions but no video")
        path, columns = self._videos[name], self._columns(name)
        with untrusted.reading(path, DatasetError, "an episode"):
            act = columns["act"]
            over = [flags(key, columns[key]) for key in ("terminated", "truncated")]
            return StreamedEpisode.until_its_end(
                lambda num_steps: _checked(path, len(act), num_steps),
                act,
                columns["rew"],
                over[0],
                over[1],
                self.mapping.action_range,
            )

    def _columns(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of an episode by the fields of the mapping.

        Raises:
            DatasetError: It has no table, or the table has other columns.
        """
        if self._common is not None and name in self._common.rows:
            return {key: x[self._common.rows[name]] for key, x in self._common.columns.items()}
        if name in self._tables:
            return self.read(self._tables[name])
        expected = " or ".join(f"{name}{suffix}" for suffix in tables.SUFFIXES)
        raise DatasetError(
            f"{self._videos[name]} has no actions: expected a table {expected} beside it, or rows of it in "
            f"{_COMMON}.csv, column {self.mapping.video}"
        )

    def read(self, path: Path, also: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
        """Read a table.

        Args:
            path: The table.
            also: Further fields of the mapping to read.

        Returns:
            Arrays (rows,) or, for actions of several parts, (rows, parts), by the fields of the mapping.

        Raises:
            DatasetError: It cannot be read, or a column is missing.
        """
        names = tables.column_names(path)
        parts = [part.strip() for part in self.mapping.act.split(",")]
        others = {key: getattr(self.mapping, key) for key in ("rew", "terminated", "truncated", *also)}
        wanted = {k: x for k, x in others.items() if x in names or k in self._given or k in also}
        read = tables.read_columns(path, [*parts, *wanted.values()])
        act = read[parts[0]] if len(parts) == 1 else np.stack([read[part] for part in parts], axis=1)
        missing = {key: np.zeros(len(act), np.uint8) for key in others if key not in wanted}
        return {"act": act, **{key: read[x] for key, x in wanted.items()}, **missing}

    def _missing(self) -> list[str]:
        """Say which columns the first table does not have."""
        table = self._common.path if self._common else next(iter(self._tables.values()), None)
        names = tables.column_names(table) if table else []
        return [
            f"{table.name if table else ''} has no column {getattr(self.mapping, name)}: {meaning}"
            for name, meaning in MEANING_OF_MISSING.items()
            if table and getattr(self.mapping, name) not in names
        ]


class _Common:
    """A table of the steps of all videos.

    Attributes:
        path: The file.
        columns: Its arrays.
        rows: The rows of each video, by its name without ending.
    """

    def __init__(self, path: Path, folder: VideoFolder) -> None:
        self.path = path
        self.columns = folder.read(path, ("video",))
        names = [Path(str(name)).name for name in self.columns.pop("video")]
        stems = np.array([n if Path(n).suffix.lower() not in video.FORMATS else Path(n).stem for n in names])
        found, which = np.unique(stems, return_inverse=True)
        parts = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
        self.rows = dict(zip(found.tolist(), parts, strict=False))  # an empty table has one empty part


def _checked(path: Path, num_rows: int, num_steps: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the picture before each step and the one after the last, and check how many there are in all.

    Raises:
        DatasetError: There are neither as many pictures as rows of the table, nor one more.
    """
    count = 0
    for count, (_, picture) in enumerate(video.read_frames(path), 1):
        if count > num_rows + 1:
            break
        if count <= num_steps + 1:
            yield picture
    if count not in (num_rows, num_rows + 1):
        found = f"at least {count}" if count > num_rows else count
        raise DatasetError(
            f"{path} has {found} pictures and {num_rows} rows of actions: t actions need t or t+1 pictures"
        )
