"""The episodes a run learns from: collected from the real game into its folder, or recorded earlier.

This module does not depend on networks or on how they are trained.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diamond_gym import files as disk
from diamond_gym.backends.memory import available_memory
from diamond_gym.checkpoints.contexts import NUM_CONTEXTS, ContextBank, contexts_from_episodes, num_windows
from diamond_gym.data.collect import collect
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CacheError, CheckpointError, DatasetError, MissingDependencyError
from diamond_gym.evaluate import pictures
from diamond_gym.games.atari import num_actions as num_actions_of
from diamond_gym.players.player import player, usual_player
from diamond_gym.progress import Bar
from diamond_gym.untrusted import read_tensors, reading
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import AgentConfig
from trainers.diamond.config import PlayerConfig, StaticDatasetConfig, TrainerConfig
from trainers.diamond.replay import Hard, Replay
from trainers.diamond.run_folder import RunFolder

Players = Mapping[str, Sequence[PlayerConfig]]
"""The players of the "train" and of the "test" dataset."""

_log = logging.getLogger(__name__)
_FIRST_TRAIN_SEED, _FIRST_TEST_SEED = 1_000, 999
_SEEDS_PER_RUN = 2_000
_BYTES_BESIDE_FRAME = 64
"""Bytes of a step on disk besides its frame: action, reward, ends and the file's own entries."""
_STATE_COPIES = 2 * 4
_USUAL_FRAMES = AgentConfig().frame_shape
"""Frames of a configuration that states none."""
_HELD_OUT = 10
"""Without test episodes, one in this many training episodes is held out."""


def static_folders(path: Path) -> tuple[Path, Path]:
    """Train and test episodes of a static dataset: `train` and `test` in it.

    A folder that is a dataset itself, as `diamond_gym.play` records them, has training episodes only.
    """
    is_dataset_itself = (path / "info.pt").is_file() and not (path / "train").is_dir()
    return path if is_dataset_itself else path / "train", path / "test"


def check_static_dataset(path: Path) -> None:
    """Check that there are episodes to train on.

    Raises:
        DatasetError: There are no episodes, or the index is corrupt.
    """
    train, _ = static_folders(path)
    if not train.is_dir():
        raise DatasetError(
            f"static_dataset.path={path}: there is no folder {train} of episodes, nor an info.pt"
        )
    try:
        num_episodes = len(EpisodeDataset(train))
    except DatasetError as error:
        raise DatasetError(f"static_dataset.path={path}: {error}") from error
    if num_episodes == 0:
        raise DatasetError(f"static_dataset.path={path}: {train} holds no episodes")


def count_actions(path: Path) -> int:
    """Number of actions in a static dataset: the largest one that occurs, plus 1.

    Raises:
        DatasetError: Its actions are not discrete.
    """
    largest = -1
    for episode in EpisodeDataset(static_folders(path)[0]):
        if episode.act.ndim > 1:
            raise DatasetError(
                f"static_dataset.path={path}: actions are arrays of {tuple(episode.act.shape[1:])}, and "
                "there is no action_space.txt that says what they are: import the recordings again, or give "
                "agent.actions, such as 'box(-1.0..1.0)' or 'multi_discrete(3, 2)'"
            )
        largest = max(largest, int(episode.act.max()))
    return largest + 1


def action_space_of(path: Path, agent: AgentConfig) -> ActionSpace:
    """The actions of a static dataset, as it or the configuration says, or as they occur in it.

    Raises:
        DatasetError: Dataset and configuration disagree, or nothing says what the actions are.
    """
    given, stated = agent.action_space, EpisodeDataset(static_folders(path)[0]).action_space
    if given is not None and stated is not None and given != stated:
        raise DatasetError(f"static_dataset.path={path} has actions {stated}, agent.* says {given}")
    return given or stated or ActionSpace.discrete(count_actions(path))


def fitted(config: TrainerConfig) -> TrainerConfig:
    """The configuration with networks for the frames of its static dataset, where it states no others.

    A dataset that is missing or empty is left to `check_static_dataset`.

    Raises:
        DatasetError: The frames take more memory than there is, or an episode is damaged.
        InvalidInputError: The networks' patches do not divide the frames.
    """
    if config.static_dataset.path is None:
        return config
    path = Path(config.static_dataset.path)
    train, _ = static_folders(path)
    if not train.is_dir() or not len(dataset := EpisodeDataset(train, create=True)):
        return config
    c, h, w = dataset[0].obs.shape[1:]
    if not config.training.compress_frames:
        _check_memory(path, _num_steps_there(dataset, list(range(len(dataset))), (c, h, w)), (c, h, w))
    if config.frame_shape != _USUAL_FRAMES or config.frame_shape == (c, h, w):
        return config
    return replace(config, agent=config.agent.with_frames((c, h, w)))


def _check_memory(path: Path, num_steps: int, shape: tuple[int, int, int]) -> None:
    """Check that the frames of a dataset fit into memory, where training keeps them.

    Raises:
        DatasetError: They do not.
    """
    needed, there = num_steps * math.prod(shape), available_memory()
    if needed > there:
        c, h, w = shape
        raise DatasetError(
            f"static_dataset.path={path}: {num_steps} frames of {h}x{w} with {c} channels take "
            f"{needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are available: give "
            "training.compress_frames=true, or import fewer episodes, or smaller frames with size=64"
        )


def player_name(config: PlayerConfig, game: str) -> str:
    """The player that "auto" means in a game."""
    return usual_player(game) if config.name == "auto" else config.name


def check_players(players: Players, game: str) -> None:
    """Check that every player can play the game.

    Raises:
        InvalidInputError: A player cannot play it.
        MissingDependencyError: PPO is to play, and Stable-Baselines3 is not installed.
    """
    for p in chain(*players.values()):
        if p.name == "ppo":
            require_stable_baselines3()
            continue
        player(player_name(p, game), game, num_actions_of(game), noise=p.noise, repeat=p.repeat)


def require_stable_baselines3() -> None:
    """Check that Stable-Baselines3 is installed.

    Raises:
        MissingDependencyError: Stable-Baselines3 is not installed.
    """
    try:
        pictures.require_matplotlib()  # before Stable-Baselines3 imports it
        import stable_baselines3  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "the player ppo needs Stable-Baselines3: pip install 'diamond-gym[sb3]'"
        ) from None


def check_space(
    run: Path,
    players: Players,
    num_collected: int,
    frame_shape: tuple[int, ...],
    *,
    copies: int = 1,
    num_weights: int = 0,
) -> None:
    """Check that the disk has room for what is collected and saved.

    Args:
        run: The run's folder, which may not exist yet; complete splits need no more room.
        players: The players of each split.
        num_collected: Steps that the actor-critic collects.
        frame_shape: Shape of a frame, one byte a number.
        copies: How many agents are kept.
        num_weights: Number of weights of all networks.

    Raises:
        CacheError: There is not enough room.
    """
    missing = [split for split in players if not RunFolder(run).dataset(split).is_dir()]
    steps = num_collected + sum(player.num_steps for split in missing for player in players[split])
    num_bytes = steps * (math.prod(frame_shape) + _BYTES_BESIDE_FRAME)
    # the state has weights, their average and two moments, and is written beside the one before
    num_bytes += 4 * (_STATE_COPIES + copies) * num_weights
    disk.check_space(run, num_bytes, f"{steps} steps of play")


def collect_datasets(run: RunFolder, game: str, players: Players, *, seed: int, progress: bool) -> None:
    """Let the players fill the run's datasets; complete splits are left alone.

    A split appears as a whole once all of its players are done. The same seed gives the same episodes.

    Raises:
        CacheError: The run folder cannot be written.
    """
    base = _SEEDS_PER_RUN * seed
    for split, first_seed, step in (
        ("train", base + _FIRST_TRAIN_SEED, 1),
        ("test", base + _FIRST_TEST_SEED, -1),
    ):
        folder, count = run.dataset(split), len(players[split])
        if count and not folder.is_dir():
            seeds = range(first_seed, first_seed + step * count, step)
            _collect_split(folder, game, list(zip(players[split], seeds, strict=True)), progress)


def _collect_split(folder: Path, game: str, players: list[tuple[PlayerConfig, int]], progress: bool) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    dataset = EpisodeDataset(partial, create=True)
    for config, seed in players:
        name = player_name(config, game)
        if progress:
            _log.info("%s: %d steps of %s by the %s player", folder.name, config.num_steps, game, name)
        if name == "ppo":
            _collect_ppo(game, config.num_steps, seed, dataset, progress)
            continue
        policy = player(name, game, num_actions_of(game), noise=config.noise, repeat=config.repeat)
        collect(game, policy, num_steps=config.num_steps, seed=seed, dataset=dataset, progress=progress)
    disk.replace_folder(partial, folder)


def _collect_ppo(game: str, num_steps: int, seed: int, dataset: EpisodeDataset, progress: bool) -> None:
    from trainers.sb3.collect import collect_while_learning

    with Bar(total=num_steps, unit="step", desc="collect", disable=not progress) as bar:
        collect_while_learning(game, num_steps, seed, dataset, on_steps=bar.update)


def dataset_folders(run: RunFolder, static: StaticDatasetConfig) -> tuple[Path, Path]:
    """Folders of the train and test episodes; the latter may not exist."""
    if static.path is None:
        return run.dataset("train"), run.dataset("test")
    return static_folders(Path(static.path))


def load_replays(
    folders: tuple[Path, Path],
    frame_shape: tuple[int, ...],
    space: ActionSpace,
    *,
    num_collected: int = 0,
    compress: bool = False,
    progress: bool,
) -> tuple[Replay, Replay]:
    """Load train and test episodes into memory.

    Where there are no test episodes, every tenth training episode (at least one) is held out, unless the
    run's own policy collects: its test episodes come later, and both replays may be empty.

    Args:
        folders: Folders of the train and test episodes.
        frame_shape: Shape (c, h, w) of the frames that the networks take.
        space: The actions that the networks know.
        num_collected: Steps the training dataset will have where the run's own policy collects, else 0.
        compress: Whether the frames of the train episodes are kept compressed.
        progress: Whether to show progress.

    Raises:
        DatasetError: Episodes are missing, corrupt, too few, or do not fit the networks.
    """
    train_folder, test_folder = folders
    train = EpisodeDataset(train_folder, create=num_collected > 0)
    fits = _Fits(frame_shape, space)
    if num_collected or (test_folder / "info.pt").is_file():
        test = EpisodeDataset(test_folder, create=True)
        return (
            _replay(train, range(len(train)), fits, progress, num_collected, compress),
            _replay(test, range(len(test)), fits, False),
        )
    if len(train) < 2:
        raise DatasetError(f"{train_folder} has one episode and there is no {test_folder}: record more")
    held_out = range(min(_HELD_OUT, len(train)) - 1, len(train), _HELD_OUT)
    if progress:
        counts = len(held_out), len(train)
        _log.info("no %s: %d of %d training episodes are held out", test_folder, *counts)
    kept = [i for i in range(len(train)) if i not in held_out]
    return _replay(train, kept, fits, progress, 0, compress), _replay(train, held_out, fits, False)


def load_step_weights(path: Path, num_steps: int, fraction: float) -> Hard:
    """Read a file of `python -m diamond_gym.evaluate.events`.

    Args:
        path: The file.
        num_steps: Steps of the dataset that it must have been made for.
        fraction: Share of the segments that is drawn by it, in [0, 1].

    Raises:
        DatasetError: It cannot be read, is no such file, or was made for another dataset.
    """
    with reading(path, DatasetError, "weights of steps"):
        tensors, _ = read_tensors(path)
    nothing = torch.zeros(())
    weights, places = (tensors.get(name, nothing) for name in ("weights", "places"))
    if weights.ndim != 1 or places.shape != (len(weights), 2) or places.dtype != torch.uint8:
        raise DatasetError(
            f"{path}: no weights of steps; write them with python -m diamond_gym.evaluate.events"
        )
    weights = weights.float()
    if not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
        raise DatasetError(f"{path}: weights of steps must be finite, at least 0, and one above 0")
    if len(weights) != num_steps:
        raise DatasetError(
            f"{path}: weights of {len(weights)} steps, but there are {num_steps} to train on; make them from "
            f"the same episodes, and put test episodes beside these"
        )
    return Hard(fraction, weights.numpy(), places.numpy())


class _Fits:
    """The check that episodes fit the networks."""

    def __init__(self, frame_shape: tuple[int, ...], space: ActionSpace) -> None:
        self.frame_shape, self.space = frame_shape, space

    def check(self, episode: Episode, path: Path) -> None:
        shape = tuple(episode.obs.shape[1:])
        if shape != self.frame_shape:
            raise DatasetError(
                f"{path} has frames of shape {shape}, the networks take {self.frame_shape} "
                "(img_channels, img_size and img_width in agent.*)"
            )
        space, act = self.space, episode.act
        if act.shape[1:] != space.shape or act.dtype != space.torch_dtype:
            kind = f"{act.dtype} of shape {tuple(act.shape[1:])}"
            raise DatasetError(f"{path} has actions {kind}, the networks take {space.accepted()}")
        is_there = space.contains(act)
        if not bool(is_there.all()):
            wrong = act[~is_there][0].tolist()
            only = (
                f"there are only {space.num_actions}" if space.is_discrete else f"they are {space.accepted()}"
            )
            raise DatasetError(f"{path} holds action {wrong}, but {only}: is it of another game?")


def catch_up(replay: Replay, dataset: EpisodeDataset) -> None:
    """Add to a replay what another process has stored in the dataset since the last call.

    Raises:
        DatasetError: An episode is missing or corrupt.
    """
    for number, length in enumerate(dataset.lengths.tolist()):
        if number >= len(replay):
            replay.add(dataset.load(number))
        elif length > replay.lengths[number]:
            replay.extend(number, dataset.load(number))


def load_test_replay(run: RunFolder) -> Replay:
    """Load the test episodes that are in the run folder now."""
    dataset = EpisodeDataset(run.dataset("test"))
    return Replay(dataset, dataset.num_steps)


def cut_back_to(run: RunFolder, state: dict[str, Any]) -> None:
    """Cut the run's training dataset back to what it was when the state was saved.

    Raises:
        CheckpointError: The state is of a run that did not collect.
        DatasetError: Episodes are missing, or shorter than they were.
        CacheError: The folder cannot be written.
    """
    lengths = state.get("episode_lengths")
    if lengths is None:
        raise CheckpointError(f"{run.state_file} is of a run that did not collect its own episodes")
    cut_back(EpisodeDataset(run.dataset("train"), create=True), lengths)


def cut_back(dataset: EpisodeDataset, lengths: list[int]) -> EpisodeDataset:
    """Cut a dataset back: drop what a killed process collected after its last saved state.

    Args:
        dataset: The dataset, at least as long as it was.
        lengths: Number of steps of each episode at that time.

    Raises:
        DatasetError: Episodes are missing, or shorter than they were.
        CacheError: The folder cannot be written.
    """
    now = dataset.lengths.tolist()
    if now == lengths:
        return dataset
    if len(now) < len(lengths) or any(n < then for n, then in zip(now, lengths, strict=False)):
        raise DatasetError(
            f"{dataset.path} does not hold all episodes and steps that the run's state refers to"
        )
    try:
        # the index first: without it, the files that exist are counted
        (dataset.path / "info.pt").unlink(missing_ok=True)
        for number in reversed(range(len(lengths), len(now))):
            dataset.episode_path(number).unlink(missing_ok=True)
        if not lengths:
            shutil.rmtree(dataset.path, ignore_errors=True)  # nothing but empty folders
            return EpisodeDataset(dataset.path, create=True)
    except OSError as error:
        raise CacheError(f"cannot write {dataset.path}: {error}") from error
    for number, then in enumerate(lengths):
        if now[number] > then:
            _beginning(dataset.load(number), then).save(dataset.episode_path(number))
    dataset = EpisodeDataset(dataset.path)
    dataset.extend([])
    return dataset


def _beginning(episode: Episode, num_steps: int) -> Episode:
    """The first steps of an episode that has continued since."""
    names = ("obs", "act", "rew", "end", "trunc")
    return Episode(*(getattr(episode, name)[:num_steps].clone() for name in names))


def replace_test_dataset(run: RunFolder, episodes: Iterable[Episode]) -> None:
    """Replace the run's test episodes by others.

    Raises:
        CacheError: The run folder cannot be written.
    """
    folder = run.dataset("test")
    partial = folder.with_name("test.partial")
    shutil.rmtree(partial, ignore_errors=True)
    EpisodeDataset(partial, create=True).extend(episodes)
    disk.replace_folder(partial, folder)


def _replay(
    dataset: EpisodeDataset,
    episode_ids: Iterable[int],
    fits: _Fits,
    progress: bool,
    room: int = 0,
    compress: bool = False,
) -> Replay:
    ids = list(episode_ids)

    def episodes() -> Iterator[Episode]:
        for i in Bar(ids, desc="load", unit="episode", disable=not progress):
            episode = dataset.load(i)
            fits.check(episode, dataset.episode_path(i))
            yield episode

    num_steps = max(room, _num_steps_there(dataset, ids, fits.frame_shape))
    return Replay(episodes(), num_steps, compress=compress)


def _num_steps_there(dataset: EpisodeDataset, ids: list[int], frame_shape: tuple[int, ...]) -> int:
    """Count the steps of some episodes; the index may claim more than there can be in their files."""
    files = filter(Path.is_file, map(dataset.episode_path, ids))
    num_frames = sum(file.stat().st_size for file in files) // math.prod(frame_shape)
    return min(num_frames, int(dataset.lengths[ids].sum()))


def choose_contexts(
    folders: tuple[Path, Path], num_steps_conditioning: int, *, seed: int, num_contexts: int | None = None
) -> ContextBank:
    """Choose start contexts from the test episodes if there are enough of them, else from the others.

    Args:
        folders: Folders of the train and test episodes; the latter may not exist.
        num_steps_conditioning: Frames of a context.
        seed: Fixes the choice.
        num_contexts: Number of contexts, at least 1; None takes the usual number, or as many as there are.

    Raises:
        DatasetError: The episodes do not hold so many contexts.
    """
    train_folder, test_folder = folders
    wanted = NUM_CONTEXTS if num_contexts is None else num_contexts
    dataset = EpisodeDataset(train_folder)
    if (test_folder / "info.pt").is_file():
        test = EpisodeDataset(test_folder)
        dataset = test if num_windows(test, num_steps_conditioning).sum() >= wanted else dataset
    if num_contexts is None:
        wanted = int(np.clip(num_windows(dataset, num_steps_conditioning).sum(), 1, NUM_CONTEXTS))
    return contexts_from_episodes(
        dataset, num_contexts=wanted, num_steps_conditioning=num_steps_conditioning, seed=seed
    )
