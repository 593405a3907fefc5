"""The dataset mode, which shows recorded episodes one time step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import DatasetError
from diamond_gym.files import visible
from diamond_gym.play import pictures
from diamond_gym.play.keys import DATASET_SHORTCUTS, Command, Slider, named_parts
from diamond_gym.play.recording import TRAJECTORY
from diamond_gym.play.view import Facts, View


def find_datasets(folder: Path) -> list[EpisodeDataset]:
    """Find the non-empty datasets in a folder and its subfolders, or the folder itself if it is one.

    Raises:
        DatasetError: There are none, or one has a corrupt index.
    """
    if not folder.is_dir():
        raise DatasetError(f"no datasets: there is no folder {folder}. {_HOW_TO_GET}")
    candidates = [folder, *visible(folder), *visible(folder, "*/*")]
    datasets = [EpisodeDataset(path) for path in candidates if (path / "info.pt").is_file()]
    datasets = [dataset for dataset in datasets if len(dataset) > 0]
    if not datasets:
        names = ", ".join([path.name for path in visible(folder)][:5]) or "nothing"
        raise DatasetError(
            f"no datasets in {folder}: no folder in it has an info.pt; found {names}. {_HOW_TO_GET}"
        )
    return datasets


_HOW_TO_GET = (
    "Record episodes with `python -m diamond_gym.play -r`, or give a training run's folder or "
    "a folder of datasets: `python -m diamond_gym.play -d FOLDER`"
)


@dataclass
class Position:
    """A position in the datasets.

    Attributes:
        dataset: Index of the dataset.
        episode: Index of the episode in it.
        step: Index of the time step; after the last one comes the final frame, if there is one.
    """

    dataset: int = 0
    episode: int = 0
    step: int = 0


class DatasetBrowser:
    """Shows recorded episodes.

    Args:
        datasets: One or more datasets, none of them empty.
        action_meanings: Names of the actions; None shows numbers.
        size: Pictures are size x size.
    """

    def __init__(
        self, datasets: Sequence[EpisodeDataset], action_meanings: Sequence[str] | None, *, size: int
    ) -> None:
        self.title = datasets[0].path.parent.name or "datasets"
        self.shortcuts = DATASET_SHORTCUTS
        self.message = ""
        self.datasets, self.action_meanings, self.size = datasets, action_meanings, size
        self.position = Position()
        self.episode = self._load()
        self._commands = self._table()

    @property
    def dataset(self) -> EpisodeDataset:
        """The dataset on the screen."""
        return self.datasets[self.position.dataset]

    @property
    def num_frames(self) -> int:
        """Number of frames of the episode, including the one after its last step where it is known."""
        return len(self.episode) + (self.episode.final_observation is not None)

    def command(self, command: Command, value: float | None = None) -> None:
        """See `Session.command`; no command needs a value."""
        if command in self._commands:
            self._commands[command]()

    def advance(self, held: Sequence[str]) -> None:
        """Do nothing, because nothing moves by itself."""

    def instructions(self) -> list[tuple[str, str]]:
        """Return nothing: there are no keys except shortcuts."""
        return []

    def held_keys(self) -> list[tuple[str, str]]:
        """Return no keys, because nothing moves by itself."""
        return []

    def sliders(self) -> list[Slider]:
        """Return no sliders, because nothing moves by itself."""
        return []

    def close(self) -> str:
        """Do nothing, because there is nothing to save."""
        return ""

    def _table(self) -> dict[Command, Callable[[], None]]:
        return {
            Command.NEXT_DATASET: self._next_dataset,
            Command.NEXT_EPISODE: lambda: self._change_episode(1),
            Command.PREVIOUS_EPISODE: lambda: self._change_episode(-1),
            Command.FORWARD: lambda: self._move(1),
            Command.BACK: lambda: self._move(-1),
            Command.FORWARD_TEN: lambda: self._move(10),
            Command.BACK_TEN: lambda: self._move(-10),
            Command.FIRST: lambda: self._move(-self.position.step),
        }

    def _next_dataset(self) -> None:
        self._go_to(Position((self.position.dataset + 1) % len(self.datasets)))
        self.message = str(self.dataset.path)

    def _change_episode(self, change: int) -> None:
        episode = (self.position.episode + change) % len(self.dataset)
        self._go_to(Position(self.position.dataset, episode))

    def _go_to(self, position: Position) -> None:
        """Show another episode, or keep the current one if it cannot be read."""
        before, self.position = self.position, position
        try:
            self.episode = self._load()
        except DatasetError:
            self.position = before
            raise

    def _load(self) -> Episode:
        return self.dataset.load(self.position.episode)

    def _move(self, steps: int) -> None:
        self.position.step = min(max(self.position.step + steps, 0), self.num_frames - 1)

    def view(self) -> View:
        """The frame and its facts, and below it its denoising where that was recorded."""
        picture = pictures.scaled(self._frame(self.position.step), self.size)
        trajectories = self.episode.info.get(TRAJECTORY)
        if trajectories is not None:
            picture = pictures.with_strip(picture, self._strip(trajectories))
        return View(picture, (self._place_facts(), self._step_facts(), self._return_facts()), self.message)

    def _strip(self, trajectories: Tensor) -> list[pictures.Picture]:
        """The denoising of the frame; black for the first frame."""
        step = self.position.step
        trajectory = trajectories[max(0, step - 1)].permute(0, 2, 3, 1).float().numpy()
        return pictures.visible(trajectory if step > 0 else np.full_like(trajectory, -1))

    def _frame(self, step: int) -> pictures.Picture:
        final = self.episode.final_observation
        frame = self.episode.obs[step] if step < len(self.episode) or final is None else final
        return np.ascontiguousarray(frame.permute(1, 2, 0).numpy())

    def _place_facts(self) -> Facts:
        position = self.position
        return (
            ("Dataset", f"{self.dataset.path.name} ({position.dataset + 1} of {len(self.datasets)})"),
            ("Episode", f"{position.episode} of {len(self.dataset)}"),
            ("Time step", f"{position.step} of {len(self.episode)}"),
        )

    def _step_facts(self) -> Facts:
        episode, step = self.episode, self.position.step
        if step == len(episode):
            return (("Truncated / done", "-"), ("Reward", "-"), ("Action", "- (final frame)"))
        truncated, done = bool(episode.trunc[step]), bool(episode.end[step])
        return (
            ("Truncated / done", f"{_yes_no(truncated)} / {_yes_no(done)}"),
            ("Reward", f"{float(episode.rew[step]):g}"),
            ("Action", self._action(episode.act[step].tolist())),
        )

    def _return_facts(self) -> Facts:
        """Facts about the returns up to and including this time step, after it, and in total."""
        rewards, num_rewards = self.episode.rew, self.position.step + 1
        return (
            ("Return so far", f"{float(rewards[:num_rewards].sum()):g}"),
            ("Return to go", f"{float(rewards[num_rewards:].sum()):g}"),
            ("Return", f"{float(rewards.sum()):g}"),
        )

    def _action(self, action: int | list[Any]) -> str:
        meanings = self.action_meanings
        if isinstance(action, list):
            return named_parts(action)
        return meanings[action] if meanings is not None and action < len(meanings) else str(action)


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"
