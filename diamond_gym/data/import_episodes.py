"""Import recorded episodes as a dataset to train on: `train` and `test` in the published layout.

The sources are recordings (see `diamond_gym.data.recorder`) and Minari datasets. Frames keep
their size unless another is asked for.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym import files as disk
from diamond_gym.cli import option
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.minari import MinariSource
from diamond_gym.data.recorder import RecordedEpisode, parse_size
from diamond_gym.errors import DatasetError, InvalidInputError
from diamond_gym.progress import Bar
from diamond_gym.world.action_space import ActionSpace

ABOUT = """\
Makes a dataset, train/ and test/, for `train static_dataset.path=FOLDER`.

Recorded episodes are one .npz file each (`record` and diamond_gym.data.recorder.RecordEpisodes write them; so
does numpy.savez_compressed), of these arrays:
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

A dataset of the published DIAMOND code needs no import: static_dataset.path=FOLDER, which holds train/."""

MAX_SIDE = 128
"""Largest height and width of frames that are not resized."""


@dataclass
class ImportOptions:
    """The settings of an import.

    Raises:
        InvalidInputError: Not exactly one source is given, or a number is out of range.
    """

    out: str = option(MISSING, "the folder to make; it must not exist, or be empty", is_path=True)
    episodes: str | None = option(None, "folder of recorded episodes", is_path=True)
    minari: str | None = option(
        None, "instead of episodes: id of a Minari dataset on this machine, or its folder", is_path=True
    )
    obs_key: str | None = option(None, "which observation to take where a Minari dataset has dictionaries")
    size: str | None = option(
        None, "resize frames by area: 64, or height and width, 48x64; none keeps those of up to 128x128"
    )
    test_every: int = option(10, "every N-th episode goes to test/; 0 for no test episodes")

    def __post_init__(self) -> None:
        if (self.episodes is None) == (self.minari is None):
            raise InvalidInputError("give one of episodes=FOLDER and minari=ID")
        if self.obs_key is not None and self.minari is None:
            raise InvalidInputError(f"obs_key={self.obs_key} is for minari=ID")
        self.target  # noqa: B018 (raises an error for a size that is none)
        if self.test_every < 0 or self.test_every == 1:
            raise InvalidInputError(
                f"test_every must be 0 for no test episodes, or at least 2, got {self.test_every}"
            )

    @property
    def target(self) -> tuple[int, int] | None:
        """Height and width that frames are resized to; None for those that they have."""
        return None if self.size is None else parse_size(self.size)


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
        note: A remark about the source.
    """

    out: Path
    frame_shape: tuple[int, ...] = ()
    num_actions: int = 0
    action_space: ActionSpace | None = None
    num_episodes: dict[str, int] = field(default_factory=dict)
    num_steps: dict[str, int] = field(default_factory=dict)
    rewards: dict[int, int] = field(default_factory=lambda: {-1: 0, 0: 0, 1: 0})
    num_ends: int = 0
    note: str | None = None

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
        lines += [] if self.note is None else [self.note]
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

    def count(self, recorded: RecordedEpisode) -> None:
        """Count an episode.

        Raises:
            DatasetError: Its action space is not that of the episodes before.
        """
        is_first = not any(self.rewards.values())
        if not is_first and recorded.action_space != self.action_space:
            raise DatasetError(
                f"episodes have actions {self.action_space or 'discrete'} and "
                f"{recorded.action_space or 'discrete'}: all must be of one space"
            )
        self.action_space = recorded.action_space
        if self.action_space is None:
            self.num_actions = max(self.num_actions, recorded.num_actions or int(recorded.act.max()) + 1)
        for sign in self.rewards:
            self.rewards[sign] += int((np.sign(recorded.rew) == sign).sum())
        self.num_ends += bool(recorded.terminated[-1])


class Source(Protocol):
    """Episodes to import."""

    @property
    def num_actions(self) -> int | None:
        """Number of actions; None when the source does not state it."""
        ...

    @property
    def note(self) -> str | None:
        """A remark about the source, in a sentence."""
        ...

    def __len__(self) -> int: ...

    def load(self, number: int) -> RecordedEpisode:
        """Read an episode."""
        ...


class FolderSource:
    """The .npz files of a folder, in the order of their names.

    Raises:
        DatasetError: There is no such folder, or there are no such files in it.
    """

    def __init__(self, folder: str) -> None:
        self.num_actions = self.note = None
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise DatasetError(f"episodes={folder}: there is no such folder")
        if (path / "info.pt").is_file() or (path / "train" / "info.pt").is_file():
            dataset = path if (path / "train").is_dir() else path.parent
            raise DatasetError(
                f"episodes={folder} is a dataset already: train with static_dataset.path={dataset}"
            )
        self.files = disk.visible(path, "*.npz")
        if not self.files:
            names = [file.name for file in disk.visible(path)]
            found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
            raise DatasetError(f"episodes={folder} holds no .npz files, one an episode; found {found}")

    def __len__(self) -> int:
        return len(self.files)

    def load(self, number: int) -> RecordedEpisode:
        """Read an episode."""
        return RecordedEpisode.load(self.files[number])


def import_episodes(options: ImportOptions, *, progress: bool = True) -> ImportReport:
    """Make the dataset; its folder appears once it is complete.

    Raises:
        DatasetError: There are no episodes, or one is damaged or of another form; the message names it.
        MissingDependencyError: Minari is needed and not installed.
        InvalidInputError: The Minari dataset is of another kind.
        CacheError: The folder is not empty, or cannot be written.
    """
    source = _source(options)
    splits = split(len(source), options.test_every)
    report = ImportReport(Path(options.out), num_actions=source.num_actions or 0, note=source.note)
    with disk.new_folder(Path(options.out)) as folder:
        for name, numbers in splits.items():
            dataset = EpisodeDataset(folder / name, create=True)
            dataset.extend(_converted(source, numbers, options.target, report, progress, name))
            if report.action_space is not None:
                dataset.save_action_space(report.action_space)
            report.num_episodes[name], report.num_steps[name] = len(dataset), dataset.num_steps
    return report


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


def convert(recorded: RecordedEpisode, size: tuple[int, int] | None) -> Episode:
    """Convert an episode to what the models see: frames (c, h, w), with three channels or one.

    The frame after the last step of an unfinished episode is dropped: the layout has no place for it.

    Args:
        recorded: The episode.
        size: Height and width that frames are resized to; None keeps them.

    Raises:
        DatasetError: Frames are to be kept and are larger than `MAX_SIDE`.
    """
    h, w = recorded.obs.shape[1:3]
    if size is None and max(h, w) > MAX_SIDE:
        num_bytes = math.prod(recorded.obs.shape[1:]) * 10_000
        raise DatasetError(
            f"frames of {h}x{w} are too large to learn from (10 000 steps take {num_bytes / 1e9:.1f} GB of "
            f"memory): give size=64, or another height and width of up to {MAX_SIDE}x{MAX_SIDE}"
        )
    frames = torch.stack([_resized(frame, size) for frame in recorded.obs])
    return Episode(
        obs=frames[:-1],
        act=torch.from_numpy(recorded.act),
        rew=torch.from_numpy(recorded.rew),
        end=torch.from_numpy(recorded.terminated.astype(np.uint8)),
        trunc=torch.from_numpy(recorded.truncated.astype(np.uint8)),
        info={"final_observation": frames[-1].clone()} if recorded.is_finished else {},
    )


def _source(options: ImportOptions) -> Source:
    if options.episodes is not None:
        return FolderSource(options.episodes)
    assert options.minari is not None
    return MinariSource(options.minari, options.obs_key)


def _converted(
    source: Source,
    numbers: list[int],
    size: tuple[int, int] | None,
    report: ImportReport,
    progress: bool,
    name: str,
) -> Iterator[Episode]:
    """Yield the episodes of a split, counted in the report."""
    for number in Bar(numbers, desc=name, unit="episode", disable=not progress):
        recorded = source.load(number)
        report.count(recorded)
        episode = convert(recorded, size)
        if report.frame_shape and report.frame_shape != episode.obs.shape[1:]:
            raise DatasetError(
                f"episodes have frames (c, h, w) of {report.frame_shape} and {tuple(episode.obs.shape[1:])}: "
                "give size=64 to make them alike"
            )
        report.frame_shape = tuple(episode.obs.shape[1:])
        yield episode


def _resized(frame: NDArray[np.uint8], size: tuple[int, int] | None) -> Tensor:
    """Return a frame as uint8 (c, h, w), resized to a height and width unless they are None."""
    if size is not None:
        h, w = size
        frame = np.asarray(cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    channels_last = frame if frame.ndim == 3 else frame[..., None]
    return torch.from_numpy(channels_last.transpose(2, 0, 1).copy())
