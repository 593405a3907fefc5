"""Datasets of LeRobot, read from their files: Parquet and MP4, versions 2.0, 2.1 and 3.0 of the layout.

LeRobot's own package needs huggingface_hub below 1.0, so it cannot be installed beside this one.
An episode has a picture for each step and none after the last one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.data import tables, video
from diamond_gym.data.recorder import flags
from diamond_gym.data.source import MEANING_OF_MISSING, UNKNOWN, ActionRange, StreamedEpisode, check_frame
from diamond_gym.errors import DatasetError

_MAX_EPISODES = 10**7
_FORMATS = ("PNG", "JPEG")
"""Formats of pictures inside of Parquet files."""


@dataclass(frozen=True)
class LeRobotMapping:
    """Which features of a dataset hold what.

    Attributes:
        obs: The camera; "" takes the only one.
        act: The action.
        rew: The reward after it; 0 where there is no such feature.
        terminated: Where the episode ended; never where there is no such feature.
        truncated: Where it was cut short, likewise.
        action_range: The least and greatest action.
    """

    obs: str = ""
    act: str = "action"
    rew: str = "next.reward"
    terminated: str = "next.done"
    truncated: str = "next.truncated"
    action_range: ActionRange = UNKNOWN


@dataclass(frozen=True)
class _Place:
    """Where an episode lies.

    Attributes:
        index: Its number.
        table: The Parquet file of its steps.
        first: Its first row there.
        last: The row after its last one; None for all rows.
        film: The file of its pictures; None where they lie in the table.
        second: When it begins in the film.
    """

    index: int
    table: Path
    first: int = 0
    last: int | None = None
    film: Path | None = None
    second: float = 0.0


class LeRobotSource:
    """The episodes of a dataset on this machine.

    Args:
        folder: Its folder, which holds `meta/info.json`.
        given: Features that have other names, by the fields of `LeRobotMapping`.
        action_range: The least and greatest action.

    Raises:
        MissingDependencyError: PyAV or pyarrow is not installed.
        DatasetError: It is no such dataset, of another version, damaged, or a given feature is not in it.
    """

    num_actions = None

    def __init__(self, folder: str, given: dict[str, str], action_range: ActionRange) -> None:
        self.folder, self._given = Path(folder).expanduser(), given
        path = self.folder / "meta" / "info.json"
        if not path.is_file():
            found = ", ".join(x.name for x in disk.visible(self.folder)[:5]) if self.folder.is_dir() else ""
            raise DatasetError(
                f"lerobot={folder} is no dataset of LeRobot: there is no {path}; found {found or 'nothing'}"
            )
        tables.require_pyarrow(f"lerobot={folder}")
        info = untrusted.read_json(path, DatasetError, "the description of a dataset of LeRobot")
        with untrusted.reading(path, DatasetError, "the description of a dataset of LeRobot"):
            self._info = _Info.parse(info)
            self.mapping = replace(LeRobotMapping(), **given, action_range=action_range)
            self.mapping = replace(self.mapping, obs=self._info.camera(self.mapping.obs))
            self.notes = list(self._missing())
            if action_range == UNKNOWN:
                self.mapping = replace(self.mapping, action_range=self._range_of_statistics())
        if self._info.is_video(self.mapping.obs):
            video.require_av(f"lerobot={folder}")
        self._places = self._places_of_version_3() if self._info.version >= 3 else self._places_of_version_2()
        self.num_steps = self._info.num_steps

    def __len__(self) -> int:
        return len(self._places)

    def name(self, number: int) -> str:
        """Name an episode by its number."""
        return f"episode {self._places[number].index}"

    def files(self, number: int) -> list[Path]:
        """Return the files of its steps and of its pictures."""
        place = self._places[number]
        return [file for file in (place.table, place.film) if file is not None]

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode's short columns; its pictures are decoded as they are iterated over.

        Raises:
            DatasetError: A file is missing, damaged or of another form.
        """
        place, m = self._places[number], self.mapping
        names = {key: getattr(m, key) for key in ("act", "rew", "terminated", "truncated")}
        there = {key: name for key, name in names.items() if name in self._info.features}
        with untrusted.reading(place.table, DatasetError, f"an episode ({self.name(number)})"):
            columns = tables.read_columns(
                place.table, [*there.values(), "episode_index"], place.first, place.last
            )
            if (columns["episode_index"] != place.index).any() or not len(columns["episode_index"]):
                raise ValueError("its rows are not where the dataset says")
            act = columns[m.act]
            rest = {
                key: columns[there[key]].reshape(len(act)) if key in there else np.zeros(len(act), np.uint8)
                for key in ("rew", "terminated", "truncated")
            }
            over = [flags(names[key], rest[key]) for key in ("terminated", "truncated")]
            return StreamedEpisode.until_its_end(
                lambda num_steps: self._frames(place, len(act), num_steps),
                act,
                rest["rew"],
                over[0],
                over[1],
                m.action_range,
            )

    def _range_of_statistics(self) -> ActionRange:
        """The least and greatest action of all episodes, where they are several numbers and it says them."""
        path, feature = self.folder / "meta" / "stats.json", self._info.features[self.mapping.act]
        if (feature.get("shape") in ([1], []) and "int" in str(feature.get("dtype"))) or not path.is_file():
            return UNKNOWN
        found = untrusted.read_json(path, DatasetError, "statistics").get(self.mapping.act, {})
        low, high = (np.array(found.get(name, []), np.float64).ravel() for name in ("min", "max"))
        return ActionRange(tuple(low.tolist()), tuple(high.tolist()))

    def _missing(self) -> Iterator[str]:
        """Say which features the dataset does not have; those that were asked for must be there."""
        for key in ("act", "rew", "terminated", "truncated"):
            name = getattr(self.mapping, key)
            if name not in self._info.features:
                if key == "act" or key in self._given:
                    found = ", ".join(self._info.features)
                    raise ValueError(f"there is no feature {name} ({key}_key); found {found}")
                if key in MEANING_OF_MISSING:
                    yield f"there is no feature {name}: {MEANING_OF_MISSING[key]}"

    # --- where episodes lie

    def _places_of_version_2(self) -> list[_Place]:
        """A file of steps and a film for each episode."""
        info, places = self._info, []
        for index in range(info.num_episodes):
            numbers = {"episode_chunk": index // info.chunks_size, "episode_index": index}
            table = self._inside(info.data_path, numbers)
            film = self._film(numbers) if info.is_video(self.mapping.obs) else None
            places.append(_Place(index, table, film=film))
        return places

    def _places_of_version_3(self) -> list[_Place]:
        """Several episodes in a file; `meta/episodes` says where each one begins."""
        camera, is_video = self.mapping.obs, self._info.is_video(self.mapping.obs)
        steps = ["episode_index", "dataset_from_index", "dataset_to_index"]
        steps += ["data/chunk_index", "data/file_index"]
        film = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        rows: list[tuple[Any, ...]] = []
        for path in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            read = tables.read_columns(path, [*steps, *(film if is_video else [])])
            rows += zip(*(column.tolist() for column in read.values()), strict=True)
        if not rows:
            raise DatasetError(f"{self.folder / 'meta' / 'episodes'} holds no episodes: it is incomplete")
        begins: dict[tuple[int, int], int] = {}
        for _, first, _, *file in sorted(rows):
            begins[file[0], file[1]] = min(first, begins.get((file[0], file[1]), first))
        return [self._place_of_row(row, begins) for row in sorted(rows)]

    def _place_of_row(self, row: tuple[Any, ...], begins: Mapping[tuple[int, int], int]) -> _Place:
        index, first, last, chunk, file, *film = row
        table = self._inside(self._info.data_path, {"chunk_index": chunk, "file_index": file})
        at = first - begins[chunk, file]
        if not film:
            return _Place(index, table, at, at + last - first)
        film_path = self._film({"chunk_index": film[0], "file_index": film[1]})
        return _Place(index, table, at, at + last - first, film_path, float(film[2]))

    def _film(self, numbers: Mapping[str, int]) -> Path:
        return self._inside(self._info.video_path, {**numbers, "video_key": self.mapping.obs})

    def _inside(self, template: str, values: Mapping[str, Any]) -> Path:
        """Fill in a template of paths; the result must lie in the folder.

        Raises:
            DatasetError: It does not, or has a place for something else.
        """

        def filled(place: re.Match[str]) -> str:
            return format(values[place[1]], place[2] or "")

        with untrusted.reading(self.folder, DatasetError, "a dataset of LeRobot"):
            text = re.sub(r"\{(\w+)(?::(0\dd))?\}", filled, template)
            path = Path(text)
            if path.is_absolute() or ".." in path.parts or "{" in text:
                raise ValueError(f"its path {template!r} does not lie in its folder")
            return self.folder / path

    # --- pictures

    def _frames(self, place: _Place, num_rows: int, num_steps: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the picture before each step, and the one after the last if more were recorded."""
        count = min(num_steps + 1, num_rows)
        pictures = self._stored(place, count) if place.film is None else self._filmed(place, num_rows)
        yield from pictures if count == num_rows else islice(pictures, count)

    def _stored(self, place: _Place, count: int) -> Iterator[NDArray[np.uint8]]:
        values = tables.read_values(place.table, self.mapping.obs, place.first, place.first + count)
        for value in values:
            with untrusted.reading(place.table, DatasetError, f"pictures (episode {place.index})"):
                yield _picture(value)

    def _filmed(self, place: _Place, num_rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the pictures of an episode, each at its time.

        Raises:
            DatasetError: One is missing, or the film of a single episode holds more.
        """
        assert place.film is not None
        at, seconds = 0, 1 / self._info.fps
        for at, (second, picture) in enumerate(video.read_frames(place.film, place.second), 1):
            if at > num_rows:
                break
            if abs(second - place.second - (at - 1) * seconds) > seconds / 2:
                raise DatasetError(
                    f"{place.film}, episode {place.index}: picture {at} of {num_rows} is at {second:.3f} s, "
                    f"expected at {place.second + (at - 1) * seconds:.3f} s: pictures are missing"
                )
            yield picture
        if at < num_rows or (at > num_rows and place.last is None):
            found = f"more than {num_rows}" if at > num_rows else at
            raise DatasetError(
                f"{place.film}, episode {place.index}: it has {found} pictures and {num_rows} actions, which "
                "must be as many"
            )


@dataclass(frozen=True)
class _Info:
    """What `meta/info.json` says."""

    version: int
    fps: float
    num_episodes: int
    num_steps: int
    chunks_size: int
    data_path: str
    video_path: str
    features: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, info: Any) -> _Info:
        """Check the description.

        Raises:
            ValueError: It is of another form or version.
        """
        version = re.fullmatch(r"v([23])\.\d+", str(info.get("codebase_version")))
        if version is None:
            raise ValueError(
                f"its version is {info.get('codebase_version')}, accepted are v2.0, v2.1 and v3.0: "
                "LeRobot converts older datasets"
            )
        parsed = cls(
            version=int(version[1]),
            fps=float(info["fps"]),
            num_episodes=int(info["total_episodes"]),
            num_steps=int(info["total_frames"]),
            chunks_size=int(info.get("chunks_size", 1000)),
            data_path=str(info["data_path"]),
            video_path=str(info.get("video_path")),
            features={str(name): dict(feature) for name, feature in info["features"].items()},
        )
        if not (
            0 < parsed.fps < 1e4 and 0 <= parsed.num_episodes <= _MAX_EPISODES and parsed.chunks_size > 0
        ):
            raise ValueError(
                f"it has {parsed.num_episodes} episodes at {parsed.fps} pictures a second in chunks of "
                f"{parsed.chunks_size}"
            )
        return parsed

    def is_video(self, camera: str) -> bool:
        """Whether a camera's pictures are films; else they lie in the tables."""
        return self.features[camera].get("dtype") == "video"

    def camera(self, asked: str) -> str:
        """Return the camera that was asked for, or the only one.

        Raises:
            ValueError: There is none, or several.
        """
        cameras = [name for name, x in self.features.items() if x.get("dtype") in ("video", "image")]
        if asked in cameras or (not asked and len(cameras) == 1):
            return asked or cameras[0]
        if not cameras:
            raise ValueError("it has no pictures")
        raise ValueError(
            f"its cameras are {', '.join(cameras)}: choose one with obs_key=; got {asked or 'none'}"
        )


def _picture(value: Any) -> NDArray[np.uint8]:
    """Decode a picture that lies in a table, of bounded size.

    Raises:
        ValueError: It is not there, or not of `_FORMATS`.
    """
    from PIL import Image

    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes):
        raise ValueError("its pictures do not lie in the table")
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        check_frame((image.height, image.width, 3), np.uint8)
        return np.asarray(image.convert("RGB"))
