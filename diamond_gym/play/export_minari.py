"""Export recorded episodes as a Minari dataset, without loss. Only this module of `play` imports Minari."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.cli import option
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CacheError, DatasetError, InvalidInputError, require
from diamond_gym.play.recording import ORIGINAL_OBS, TRAJECTORY

_DATASETS, _NAMESPACE_FILE = "MINARI_DATASETS_PATH", "namespace_metadata.json"


@dataclass
class ExportOptions:
    """The settings of an export.

    Raises:
        InvalidInputError: The number of actions is out of range.
    """

    dataset: str = option(MISSING, "folder of episodes, with info.pt", is_path=True)
    id: str = option(MISSING, "id of the new dataset, such as breakout/human-v0")
    num_actions: int | None = option(
        None, "size of the action set; without it the largest action, and 1", least=1
    )

    def __post_init__(self) -> None:
        cli.check(self)


def export(options: ExportOptions) -> str:
    """Make the Minari dataset.

    Returns:
        A line that says what was exported.

    Raises:
        InvalidInputError: An option is wrong, or Minari has a dataset of that id.
        MissingDependencyError: Minari is not installed.
        DatasetError: There are no finished episodes, or they are of different sizes.
        CacheError: Minari's folder cannot be written.
    """
    minari = _library()
    dataset = EpisodeDataset(options.dataset)
    episodes = [episode for episode in dataset if episode.final_observation is not None]
    if not episodes:
        raise DatasetError(f"{options.dataset} holds no finished episodes to export")
    stated = dataset.action_space
    actions = (
        Discrete(_num_actions(episodes, options.num_actions)) if stated is None else stated.to_gymnasium()
    )
    space = _frame_space(episodes, options.dataset)
    _check_id(options.id, minari)
    about = f"episodes recorded by diamond_gym.play in {Path(options.dataset).name}"
    _write(minari, options.id, episodes, space, actions, about)
    steps, left_out = sum(map(len, episodes)), len(dataset) - len(episodes)
    rest = f"; {left_out} unfinished left out" if left_out else ""
    return f"{options.id}: {len(episodes)} episodes, {steps} steps{rest}"


COMMAND = cli.Command(
    "python -m diamond_gym.play export-minari",
    """\
Copies recorded episodes, such as those in dataset/rec_<env>_<H or π>, into a Minari dataset, where Minari
keeps its own (MINARI_DATASETS_PATH). Frames, actions, rewards and ends come back exactly as they were
recorded; screens and denoising trajectories, where they were stored, are in `infos`. Unfinished episodes are
left out: Minari needs the frame after the last step.""",
    ExportOptions,
    lambda options: print(export(options)),
    usage_of_arguments="dataset=FOLDER id=NAME [key=value ...]",
)


def _library() -> Any:
    require("h5py", "minari", "export-minari", "minari")  # minari imports it when it writes
    return require("minari", "minari", "export-minari", "minari")


def _check_id(id: str, minari: Any) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id  # pyright: ignore[reportMissingImports]

    try:
        parse_dataset_id(id)
    except ValueError:
        raise InvalidInputError(f"an id is written name-v0 or namespace/name-v0, got {id!r}") from None
    if id in minari.list_local_datasets():
        raise InvalidInputError(f"id={id}: Minari has a dataset of that name, choose another")


def _write(
    minari: Any, id: str, episodes: Sequence[Episode], frames: Box, actions: Space[Any], about: str
) -> None:
    """Make the dataset, or leaves nothing of it: it moves to its place when it is complete."""
    from minari.storage import get_dataset_path  # pyright: ignore[reportMissingImports]

    try:
        root = get_dataset_path()
        with disk.temporary_folder(root / Path(id).name) as folder:
            with warnings.catch_warnings(), _datasets_in(folder):
                warnings.simplefilter("ignore")  # of authors and code that recorded episodes do not name
                minari.create_dataset_from_buffers(
                    id,
                    list(_buffers(episodes)),
                    observation_space=frames,
                    action_space=actions,
                    data_format="hdf5",
                    jpeg_encoding=False,  # JPEG blurs small things
                    description=about,
                )
            for file in (*folder.rglob(_NAMESPACE_FILE), folder / id):
                target = root / file.relative_to(folder)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
    except OSError as error:
        raise CacheError(f"cannot write Minari's datasets: {error}; set MINARI_DATASETS_PATH") from error


@contextlib.contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Has Minari keep its datasets in another folder."""
    before = os.environ.get(_DATASETS)
    os.environ[_DATASETS] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DATASETS]
        else:
            os.environ[_DATASETS] = before


def _num_actions(episodes: Sequence[Episode], given: int | None) -> int:
    least = 1 + max(int(episode.act.max()) for episode in episodes)
    if given is not None and given < least:
        raise InvalidInputError(f"num_actions={given}: the episodes hold action {least - 1}")
    return given or least


def _frame_space(episodes: Sequence[Episode], source: str) -> Box:
    shapes = {tuple(episode.obs.shape[1:]) for episode in episodes}
    if len(shapes) > 1:
        raise DatasetError(f"{source}: frames are of different sizes, {sorted(shapes)}")
    c, h, w = shapes.pop()
    return Box(0, 255, (h, w, c), np.uint8)


def _buffers(episodes: Sequence[Episode]) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer  # pyright: ignore[reportMissingImports]

    for i, episode in enumerate(episodes):
        final = episode.final_observation
        assert final is not None
        frames: Any = np.concatenate([_channels_last(episode.obs), _channels_last(final[None])])
        actions: Any = episode.act.numpy()
        yield EpisodeBuffer(
            id=i,
            observations=frames,
            actions=actions,
            rewards=episode.rew.tolist(),
            terminations=episode.end.bool().tolist(),
            truncations=episode.trunc.bool().tolist(),
            infos=_infos(episode),
        )


def _infos(episode: Episode) -> dict[str, Any] | None:
    """Return the other stored data with one entry per frame; the first frame has no denoising."""
    infos = {}
    if ORIGINAL_OBS in episode.info:
        infos[ORIGINAL_OBS] = _channels_last(episode.info[ORIGINAL_OBS])
    if TRAJECTORY in episode.info:
        trajectories = _channels_last(episode.info[TRAJECTORY])
        infos[TRAJECTORY] = np.concatenate([np.zeros_like(trajectories[:1]), trajectories])
    return infos or None


def _channels_last(frames: Tensor) -> np.ndarray:
    return np.ascontiguousarray(frames.movedim(-3, -1).numpy())
