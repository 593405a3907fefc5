"""Import episodes of others as a dataset to train on: `train` and `test` in the published layout.

The sources are recordings (see `diamond_gym.data.recorder`), Minari datasets, HDF5 files, folders of videos
and LeRobot datasets: each is a module of its own. Frames pass one by one and keep their size unless
another is asked for. An import that was stopped continues with the same command (see the module `journal`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.cli import option
from diamond_gym.data import journal
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.hdf5 import HDF5Source
from diamond_gym.data.journal import Entry, Journal
from diamond_gym.data.lerobot import LeRobotSource
from diamond_gym.data.minari import MinariSource
from diamond_gym.data.recorder import RecordedEpisode, parse_size
from diamond_gym.data.source import ActionRange, Source, StreamedEpisode, stamp
from diamond_gym.data.video_folder import VideoFolder
from diamond_gym.errors import CacheError, DatasetError, InvalidInputError
from diamond_gym.progress import Bar
from diamond_gym.world.action_space import ActionSpace

ABOUT = """\
Makes a dataset, train/ and test/, for `train static_dataset.path=FOLDER`, of one of these sources:

  episodes=FOLDER  recorded episodes, one .npz file each, which `record`,
                   diamond_gym.data.recorder.RecordEpisodes and numpy.savez_compressed write
  minari=ID        a Minari dataset
  hdf5=FILE        an HDF5 file as of robomimic (data/demo_0/actions ...) or D4RL (actions, terminals ...)
  videos=FOLDER    videos, each with a table beside it (a.mp4, a.csv; or Parquet), or one table actions.csv
                   with a column video; a row is a step: action, reward, terminated, truncated
  lerobot=FOLDER   a LeRobot dataset on this machine, version 2.0, 2.1 or 3.0

The arrays of an .npz file:
  obs          uint8 (t+1, h, w, 3), (t+1, h, w, 1) or (t+1, h, w); the last is after the end
  act          integers (t,), 0..n-1, or an array for each step where actions are not discrete; act[i] was
               taken at obs[i]
  rew          numbers (t,), raw rewards
  terminated   booleans (t,), true at most at the last step
  truncated    likewise
  num_actions  n, optional
  action_space text, where actions are not discrete: "box(-1.0..1.0, 0.0..1.0)", "multi_discrete(3, 2)" or
               "multi_binary(4)"
also found as observations, actions, rewards, terminations and truncations.

An import that was stopped continues where it was with the same command: until it is complete, what it has
made lies in OUT.partial. OUT/import.jsonl says what became of every episode.

A dataset of the published DIAMOND code needs no import: static_dataset.path=FOLDER, which holds train/."""

MAX_SIDE = 128
"""Largest height and width of frames that are not resized."""
_SOURCES = ("episodes", "minari", "hdf5", "videos", "lerobot")
_KEYS = {
    "obs_key": ("minari", "hdf5", "lerobot"),
    **dict.fromkeys(("act_key", "rew_key", "terminated_key", "truncated_key"), ("hdf5", "videos", "lerobot")),
    **dict.fromkeys(("action_low", "action_high"), ("hdf5", "videos", "lerobot")),
}
"""For which sources a key is."""
_INDEX_EVERY = 100
"""Episodes after which the index is written: a later start reads those that are not in it."""
_log = logging.getLogger(__name__)


@dataclass
class ImportOptions:
    """The settings of an import.

    Raises:
        InvalidInputError: Not exactly one source is given, or a key does not fit it or is out of range.
    """

    out: str = option(MISSING, "the folder to make; it must not exist, or be empty", is_path=True)
    episodes: str | None = option(None, "folder of recorded episodes", is_path=True)
    minari: str | None = option(
        None, "instead of episodes: id of a Minari dataset on this machine, or its folder", is_path=True
    )
    hdf5: str | None = option(None, "or: an HDF5 file", is_path=True)
    videos: str | None = option(None, "or: folder of videos with tables of actions", is_path=True)
    lerobot: str | None = option(None, "or: folder of a LeRobot dataset", is_path=True)
    obs_key: str | None = option(
        None,
        "where the frames are: the observation of a Minari dataset of dictionaries, the path in the group of "
        "an episode of an HDF5 file (obs/*_image, or observations of a flat file), the camera of LeRobot",
    )
    act_key: str | None = option(
        None,
        "where the actions are: a path in HDF5 (actions), columns of a table (action; x,y for two parts), a "
        "feature of LeRobot (action)",
    )
    rew_key: str | None = option(None, "the rewards, likewise (rewards; reward; next.reward)")
    terminated_key: str | None = option(
        None, "the ends, likewise (dones, or terminals of a flat file; terminated; next.done)"
    )
    truncated_key: str | None = option(
        None, "where episodes are cut short, likewise (timeouts of a flat file; truncated; next.truncated)"
    )
    action_low: list[float] = option(
        [], "the least action, a number or one for each part; integers are counted from it (0)"
    )
    action_high: list[float] = option([], "the greatest action, likewise (the greatest of single integers)")
    size: str | None = option(
        None, "resize frames by area: 64, or height and width, 48x64; none keeps those of up to 128x128"
    )
    test_every: int = option(10, "every N-th episode goes to test/; 0 for no test episodes")
    skip_bad: bool = option(
        False, "leave out episodes that cannot be read and report them, instead of stopping at the first"
    )

    def __post_init__(self) -> None:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInputError(
                "give one of episodes=FOLDER, minari=ID, hdf5=FILE, videos=FOLDER and lerobot=FOLDER; got "
                f"{' and '.join(given) or 'none'}"
            )
        for name, sources in _KEYS.items():
            value = getattr(self, name)
            if value not in (None, []) and given[0] not in sources:
                raise InvalidInputError(
                    f"{name}={value} is for {'=, '.join(sources)}=; {given[0]}= does not need it"
                )
        self.target  # noqa: B018 (raises an error for a size that is none)
        if self.test_every < 0 or self.test_every == 1:
            raise InvalidInputError(
                f"test_every must be 0 for no test episodes, or at least 2, got {self.test_every}"
            )

    @property
    def target(self) -> tuple[int, int] | None:
        """Height and width that frames are resized to; None for those that they have."""
        return None if self.size is None else parse_size(self.size)

    @property
    def mapping(self) -> dict[str, str]:
        """The keys that say what is where, by the fields of the mappings."""
        keys = {name.removesuffix("_key"): getattr(self, name) for name in _KEYS if name.endswith("_key")}
        return {name: value for name, value in keys.items() if value is not None}

    @property
    def action_range(self) -> ActionRange:
        """The least and greatest action."""
        return ActionRange(tuple(self.action_low), tuple(self.action_high))


@dataclass
class ImportReport:
    """A summary of the imported dataset.

    Attributes:
        out: Its folder.
        frame_shape: Shape (c, h, w) of the frames.
        num_actions: Number of actions that the source states, else the largest action that occurs plus 1; 0
            where actions are not discrete.
        action_space: The action space where it is not discrete.
        num_episodes: Number of episodes in each split that was written.
        num_steps: Number of steps, likewise.
        rewards: Number of steps with a reward of each sign, -1, 0 and 1.
        num_ends: Number of episodes that terminated.
        skipped: What was not imported, and why, a line each.
        notes: Remarks about the source.
    """

    out: Path
    frame_shape: tuple[int, ...] = ()
    num_actions: int = 0
    action_space: ActionSpace | None = None
    num_episodes: dict[str, int] = field(default_factory=dict)
    num_steps: dict[str, int] = field(default_factory=dict)
    rewards: dict[int, int] = field(default_factory=lambda: {-1: 0, 0: 0, 1: 0})
    num_ends: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, out: Path, splits: Sequence[str], log: Journal) -> ImportReport:
        """Sum up a journal."""
        report = cls(out, notes=list((log.about or {}).get("notes", [])))
        report.num_episodes, report.num_steps = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
        without_final = 0
        for entry in sorted(log.entries, key=lambda entry: entry.number):
            if entry.skipped or entry.left_out:
                report.skipped.append(f"{entry.name}: {entry.skipped or entry.left_out}")
            if entry.split:
                report.num_episodes[entry.split] += 1
                report.num_steps[entry.split] += entry.steps
                report.num_ends += entry.terminated
                without_final += entry.terminated and not entry.has_final
                for sign, count in zip(report.rewards, entry.rewards, strict=True):
                    report.rewards[sign] += count
            report.num_actions = max(report.num_actions, entry.num_actions)
        report.action_space, report.frame_shape = log.action_space, log.frame_shape
        if without_final:
            report.notes.append(
                f"{without_final} of {report.num_ends} ends lack the frame after them, so nothing is learned "
                "from these ends and their rewards: an end is recognised by the frame that follows"
            )
        return report

    def __str__(self) -> str:
        lines = [
            f"{self.out / split}: {self.num_episodes[split]} episodes, {self.num_steps[split]} steps"
            for split in self.num_episodes
        ]
        minus, zero, plus = self.rewards.values()
        lines.append(
            f"rewards: {plus} positive, {minus} negative, {zero} zero; {self.num_ends} episodes terminated; "
            + (f"{self.num_actions} actions" if self.action_space is None else f"actions {self.action_space}")
        )
        lines += [f"left out: {line}" for line in self.skipped[:_SHOWN]]
        if len(self.skipped) > _SHOWN:
            lines.append(f"left out: {len(self.skipped) - _SHOWN} more, see {self.out / journal.NAME}")
        lines += [f"note: {note.removeprefix('note: ')}" for note in self.notes]
        return "\n".join([*lines, f"to train on them: {shlex.join(self.train_command)}"])

    @property
    def train_command(self) -> list[str]:
        """The command that trains a world model on the dataset."""
        return [
            *("python", "-m", "trainers.diamond", "train", "preset=small"),
            f"static_dataset.path={self.out}",
            *([f"agent.num_actions={self.num_actions}"] if self.action_space is None else []),
            "training.parts=[denoiser,rew_end_model]",
        ]


_SHOWN = 10
"""Largest number of episodes that the printed report names."""


class FolderSource:
    """The .npz files of a folder, in the order of their names.

    Raises:
        DatasetError: There is no such folder, or there are no such files in it.
    """

    num_actions = num_steps = None
    notes: Sequence[str] = ()

    def __init__(self, folder: str) -> None:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise DatasetError(f"episodes={folder}: there is no such folder")
        if (path / "info.pt").is_file() or (path / "train" / "info.pt").is_file():
            dataset = path if (path / "train").is_dir() else path.parent
            raise DatasetError(
                f"episodes={folder} is a dataset already: train with static_dataset.path={dataset}"
            )
        self._files = disk.visible(path, "*.npz")
        if not self._files:
            names = [file.name for file in disk.visible(path)]
            found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
            raise DatasetError(f"episodes={folder} holds no .npz files, one an episode; found {found}")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, number: int) -> str:
        """Name an episode by its file."""
        return self._files[number].name

    def files(self, number: int) -> list[Path]:
        """Return the file of an episode."""
        return [self._files[number]]

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode."""
        return StreamedEpisode.of(RecordedEpisode.load(self._files[number]))


def import_episodes(options: ImportOptions, *, progress: bool = True) -> ImportReport:
    """Make the dataset; its folder appears once it is complete.

    What was imported before the process was stopped is kept beside it, in a folder `.partial`, and not read
    again. The same command after the end only tells the report.

    Raises:
        DatasetError: There are no episodes, one is damaged or of another form (unless `skip_bad`), or a file
            was changed meanwhile; the message names it.
        MissingDependencyError: A package is needed and not installed.
        InvalidInputError: The Minari dataset is of another kind, or a part of another import is there.
        FolderInUseError: Another process is importing into the folder.
        CacheError: The folder is not empty, or cannot be written.
    """
    source = _source(options)
    splits = split(len(source), options.test_every)
    out = Path(options.out).expanduser().absolute()
    about = _about(options, source)
    done = _finished(out, about)
    if done is None:
        if source.num_steps is not None:
            num_bytes = source.num_steps * 3 * math.prod(options.target or (64, 64))
            disk.check_space(out, num_bytes, f"{source.num_steps} steps")
        partial = out.with_name(f"{out.name}.partial")
        with _working_in(partial):
            done = _Import(source, options, partial, about).run(splits, progress)
            _publish(partial, out)
    return ImportReport.of(Path(options.out), list(splits), done)


def _about(options: ImportOptions, source: Source) -> dict[str, Any]:
    """Say what is imported: the same command on the same source says the same."""
    given = {name: value for name, value in asdict(options).items() if name != "out"}
    return {"options": given, "num_episodes": len(source), "notes": list(source.notes)}


def _finished(out: Path, about: dict[str, Any]) -> Journal | None:
    """Return the journal of the same import if it is complete.

    Raises:
        CacheError: Something else is there.
    """
    if not out.exists() or (out.is_dir() and disk.is_empty(out)):
        return None
    log = Journal(out) if out.is_dir() else None
    if log is None or log.about != about or _changed(log.stamps):
        raise CacheError(f"out={out} is there already and not empty: choose a new folder")
    _log.info("%s is complete already", out)
    return log


def _changed(stamps: dict[str, list[int]]) -> str | None:
    """Return a file that is not what it was."""
    for path, before in stamps.items():
        with contextlib.suppress(DatasetError):
            if stamp(Path(path)) == before:
                continue
        return path
    return None


@contextlib.contextmanager
def _working_in(partial: Path) -> Iterator[None]:
    """Make the folder of an unfinished import and keep others from it; remove it if it stays empty."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot write {partial}: {error.strerror or error}") from error
    with disk.locked(partial, "the import"):
        try:
            yield
        finally:
            if partial.is_dir() and not any(partial.glob("t*/*/*/*/*.pt")):
                shutil.rmtree(partial, ignore_errors=True)
            elif partial.is_dir():
                _log.info("%s keeps what was imported: the same command continues there", partial)


def _publish(partial: Path, out: Path) -> None:
    try:
        disk.fill_folder(partial, out)
        (out / disk.LOCK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot write {out}: {error}") from error


class _Import:
    """An import at work, in the folder of what is unfinished."""

    def __init__(self, source: Source, options: ImportOptions, folder: Path, about: dict[str, Any]) -> None:
        self.source, self.options, self.folder, self.about = source, options, folder, about
        self.datasets: dict[str, EpisodeDataset] = {}

    def run(self, splits: dict[str, list[int]], progress: bool) -> Journal:
        """Import what is not there yet; return the journal."""
        self.datasets = {name: EpisodeDataset(self.folder / name, create=True) for name in splits}
        log = self.log = Journal(self.folder, self._is_written)
        if log.about not in (None, self.about):
            raise InvalidInputError(
                f"{self.folder} holds a part of another import: give the same arguments to continue it, "
                "choose another out=FOLDER, or remove it to begin anew"
            )
        if changed := _changed(log.stamps):
            raise DatasetError(
                f"{changed} was changed since a part of it was imported: remove {self.folder} to begin anew"
            )
        log.begin(self.about)
        self.seen = log.stamps
        done = {entry.number for entry in log.entries}
        for name, numbers in splits.items():
            left = [number for number in numbers if number not in done]
            with Bar(
                total=len(numbers),
                initial=len(numbers) - len(left),
                desc=name,
                unit="episode",
                disable=not progress,
            ) as bar:
                for at in range(0, len(left), _INDEX_EVERY):
                    some = left[at : at + _INDEX_EVERY]
                    self.datasets[name].extend(self._converted(some, name, bar))
        if not self.datasets["train"].num_episodes:
            raise DatasetError(f"no episode could be imported; the first: {log.entries[0].skipped}")
        for dataset in self.datasets.values():
            if log.action_space is not None:
                dataset.save_action_space(log.action_space)
        return log

    def _is_written(self, entry: Entry) -> bool:
        dataset = self.datasets.get(entry.split)
        return dataset is not None and dataset.episode_path(entry.index).is_file()

    def _converted(self, numbers: Sequence[int], name: str, bar: Bar) -> Iterator[Episode]:
        """Yield the episodes of a split, each after its line in the journal."""
        index = self.datasets[name].num_episodes
        for number in numbers:
            entry = Entry(number, self.source.name(number))
            episode = self._read(entry)
            if episode is not None:
                entry.split, entry.index = name, index
                index += 1
            self.log.add(entry)
            if episode is not None:
                yield episode
            bar.update()

    def _read(self, entry: Entry) -> Episode | None:
        """Read and convert an episode, described in the entry; None where it is skipped.

        Raises:
            DatasetError: It is bad, or a file was changed while it was read.
        """
        files = self.source.files(entry.number)
        for path in files:
            self.seen.setdefault(str(path), stamp(path))
        entry.stamps = {str(path): self.seen[str(path)] for path in files}
        try:
            streamed = self.source.load(entry.number)
            episode = convert(streamed, self.options.target)
            self._check_alike(streamed, tuple(episode.obs.shape[1:]))
        except DatasetError as error:
            self._check_unchanged(files)
            if not self.options.skip_bad:
                raise
            entry.skipped = str(error)
            return None
        self._check_unchanged(files)
        entry.steps, entry.left_out = len(episode), streamed.left_out
        if streamed.space is None:
            entry.num_actions = streamed.num_actions or int(streamed.act.max()) + 1
        entry.frame_shape = list(episode.obs.shape[1:])
        entry.action_space = "" if streamed.space is None else str(streamed.space)
        entry.rewards = [int((episode.rew.sign() == sign).sum()) for sign in (-1, 0, 1)]
        entry.terminated = streamed.terminated
        entry.has_final = episode.final_observation is not None
        return episode

    def _check_alike(self, streamed: StreamedEpisode, frame_shape: tuple[int, ...]) -> None:
        """Raise `DatasetError` unless actions and frames are as those of the episodes before."""
        before = self.log.frame_shape
        if before and before != frame_shape:
            raise DatasetError(
                f"episodes have frames (c, h, w) of {before} and {frame_shape}: give size=64 to make them "
                "alike"
            )
        if before and streamed.space != self.log.action_space:
            raise DatasetError(
                f"episodes have actions {self.log.action_space or 'discrete'} and "
                f"{streamed.space or 'discrete'}: all must be of one space"
            )

    def _check_unchanged(self, files: Sequence[Path]) -> None:
        if changed := _changed({str(path): self.seen[str(path)] for path in files}):
            raise _ChangedError(f"{changed} was changed while it was read: import it when it is complete")


class _ChangedError(DatasetError):
    """A file is not what it was, which is never skipped."""


def split(num_episodes: int, test_every: int) -> dict[str, list[int]]:
    """Choose the indices of the train and test episodes; a test split leaves at least one in each.

    Raises:
        DatasetError: There are too few.
    """
    if num_episodes == 0:
        raise DatasetError("there are no episodes to import")
    if test_every == 0:
        return {"train": list(range(num_episodes))}
    if num_episodes == 1:
        raise DatasetError(
            "there is one episode, to train on or to test on: record more, or give test_every=0"
        )
    test = range(min(test_every, num_episodes) - 1, num_episodes, test_every)
    return {"train": [i for i in range(num_episodes) if i not in test], "test": list(test)}


def convert(episode: StreamedEpisode | RecordedEpisode, size: tuple[int, int] | None) -> Episode:
    """Convert an episode to what the models see: frames (c, h, w), with three channels or one.

    The frame after the last step of an unfinished episode is dropped: the layout has no place for it.

    Args:
        episode: The episode.
        size: Height and width that frames are resized to; None keeps them.

    Raises:
        DatasetError: Frames are to be kept and are larger than `MAX_SIDE` or not alike, or the episode would
            take too much memory, has too few frames, or its source is damaged.
    """
    streamed = StreamedEpisode.of(episode) if isinstance(episode, RecordedEpisode) else episode
    length, frames, num_frames = len(streamed), torch.empty(0, 0, 0, 0, dtype=torch.uint8), 0
    for frame in streamed.frames:
        assert num_frames <= length, "sources yield at most t+1 frames"
        resized = _resized(frame, size)
        if num_frames == 0:
            frames = _room(length, resized)
        if resized.shape != frames.shape[1:]:
            raise DatasetError(
                f"frames of an episode are {tuple(frames.shape[1:])} and {tuple(resized.shape)}"
            )
        frames[num_frames] = resized
        num_frames += 1
    if num_frames < length:
        raise DatasetError(f"an episode has {length} actions and {num_frames} frames")
    flags = torch.zeros(2, length, dtype=torch.uint8)
    flags[0, -1], flags[1, -1] = streamed.terminated, streamed.truncated
    has_final = streamed.is_finished and num_frames > length
    return Episode(
        obs=frames[:length],
        act=torch.from_numpy(streamed.act),
        rew=torch.from_numpy(streamed.rew),
        end=flags[0],
        trunc=flags[1],
        info={"final_observation": frames[-1].clone()} if has_final else {},
    )


def _room(length: int, frame: Tensor) -> Tensor:
    """Return room for the frames of an episode of `length` steps.

    Raises:
        DatasetError: They would take too much memory.
    """
    num_bytes = frame.numel() * (length + 1)
    if num_bytes > untrusted.MAX_UNPACKED:
        raise DatasetError(
            f"an episode of {length} steps takes {num_bytes / 1e6:.0f} MB, accepted are "
            f"{untrusted.MAX_UNPACKED / 1e6:.0f}: cut it into several, or give a smaller size"
        )
    return torch.empty((length + 1, *frame.shape), dtype=torch.uint8)


def _source(options: ImportOptions) -> Source:
    if options.episodes is not None:
        return FolderSource(options.episodes)
    if options.minari is not None:
        return MinariSource(options.minari, options.obs_key)
    if options.hdf5 is not None:
        return HDF5Source(options.hdf5, options.mapping, options.action_range)
    if options.videos is not None:
        return VideoFolder(options.videos, options.mapping, options.action_range)
    assert options.lerobot is not None
    return LeRobotSource(options.lerobot, options.mapping, options.action_range)


def _resized(frame: NDArray[np.uint8], size: tuple[int, int] | None) -> Tensor:
    """Return a frame as uint8 (c, h, w), resized to a height and width unless they are None.

    Raises:
        DatasetError: It is to be kept and larger than `MAX_SIDE`.
    """
    if size is not None:
        h, w = size
        frame = np.asarray(cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    elif max(frame.shape[:2]) > MAX_SIDE:
        raise DatasetError(
            f"frames of {frame.shape[0]}x{frame.shape[1]} are too large to learn from (10 000 steps take "
            f"{frame.size * 1e-5:.1f} GB of memory): give size=64, or another height and width of up to "
            f"{MAX_SIDE}x{MAX_SIDE}"
        )
    channels_last = frame if frame.ndim == 3 else frame[..., None]
    return torch.from_numpy(channels_last.transpose(2, 0, 1).copy())
