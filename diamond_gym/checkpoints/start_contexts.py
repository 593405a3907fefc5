"""The start contexts of a checkpoint: given, its own, cut from its run's recordings, or played and cached.

A published checkpoint comes without frames. At its first use, its own policy plays the real game, and the
contexts cut from that are kept in a cache folder: `$DIAMOND_GYM_CACHE`, or the platform's usual place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path

from diamond_gym.checkpoints.contexts import (
    NUM_CONTEXTS,
    ContextBank,
    collect_contexts,
    contexts_from_episodes,
    num_windows,
)
from diamond_gym.checkpoints.locate import Location
from diamond_gym.checkpoints.saved_world import CONTEXTS_FILE
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CacheError, CheckpointError, CheckpointNotFoundError, InvalidInputError
from diamond_gym.files import cache_folder
from diamond_gym.world.models import Agent, AgentConfig

_log = logging.getLogger(__name__)

_SEED = 0
_EPSILON = 0.01
"""Probability of a random action when a checkpoint's policy collects, as in its training."""
_RANDOM_HOLD = 4


def find(
    location: Location, given: str | os.PathLike[str] | None, game: str | None, agent: Agent
) -> ContextBank:
    """Find the contexts that a checkpoint's games start from.

    Args:
        location: The checkpoint.
        given: File of contexts or folder of recorded episodes to use; None for the checkpoint's own.
        game: Name of its game, which is played if there are no contexts; None when unknown.
        agent: Its networks.

    Raises:
        InvalidInputError: `given` is not a path; or there are no contexts, and no game to play is known.
        CheckpointNotFoundError: There is nothing at the given path.
        CheckpointError: The contexts are corrupt, or not of this checkpoint's kind.
        DatasetError: The recorded episodes are corrupt.
    """
    n = agent.config.denoiser.inner_model.num_steps_conditioning
    if given is not None:
        return _fitting(read(given, n), agent.config, str(given))
    if location.contexts.is_file():
        return _fitting(ContextBank.load(location.contexts), agent.config, str(location.contexts))
    recorded = [EpisodeDataset(folder) for folder in location.datasets if (folder / "info.pt").is_file()]
    if recorded:
        dataset = _first_large_enough(recorded, n)
        return _fitting(_cut(dataset, n), agent.config, str(dataset.path))
    if game is None:
        raise InvalidInputError(
            f"{location.weights} comes with no start contexts and does not say which game it imagines: give "
            "game='...' (they are then collected from the real game), or contexts='path of contexts or "
            "recorded episodes'"
        )
    return _cached(location.weights, game, agent)


def read(given: str | os.PathLike[str], num_steps_conditioning: int) -> ContextBank:
    """Read a file of contexts, or cut contexts of n frames out of a folder of recorded episodes.

    Raises:
        InvalidInputError: It is not a path.
        CheckpointNotFoundError: There is nothing at the path.
        CheckpointError, DatasetError: What is there is damaged.
    """
    if not isinstance(given, str | os.PathLike) or not given:
        raise InvalidInputError(
            f"contexts must be the path of a file of contexts or of recorded episodes, got {given!r}"
        )
    path = Path(given).expanduser()
    if path.is_file():
        return ContextBank.load(path)
    if not path.is_dir():
        raise CheckpointNotFoundError(f"contexts: there is no file or folder {path}")
    if (path / CONTEXTS_FILE).is_file():
        return ContextBank.load(path / CONTEXTS_FILE)
    return _cut(EpisodeDataset(path), num_steps_conditioning)


def _first_large_enough(datasets: list[EpisodeDataset], n: int) -> EpisodeDataset:
    """Choose the first dataset that holds enough contexts, else the one that holds most."""
    sizes = [int(num_windows(dataset, n).sum()) for dataset in datasets]
    enough = [dataset for dataset, size in zip(datasets, sizes, strict=True) if size >= NUM_CONTEXTS]
    return enough[0] if enough else datasets[sizes.index(max(sizes))]


def _cut(dataset: EpisodeDataset, n: int) -> ContextBank:
    num_contexts = min(NUM_CONTEXTS, max(1, int(num_windows(dataset, n).sum())))
    return contexts_from_episodes(dataset, num_contexts=num_contexts, num_steps_conditioning=n, seed=_SEED)


def _cached(weights: Path, game: str, agent: Agent) -> ContextBank:
    """Return contexts played by this checkpoint's policy, from the cache or played now.

    Two processes at once play the same contexts, since the seed is fixed, and each replaces the whole file.
    """
    n = agent.config.denoiser.inner_model.num_steps_conditioning
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    path = cache_folder() / "contexts" / f"{game}-{digest}-{NUM_CONTEXTS}x{n}.safetensors"
    if path.is_file():
        try:
            return _fitting(ContextBank.load(path), agent.config, str(path))
        except CheckpointError as error:
            warnings.warn(f"collecting start contexts again: {error}", stacklevel=2)
    bank = _collect(game, agent, path)
    try:
        bank.save(path)
    except CacheError as error:
        warnings.warn(
            f"start contexts are kept in memory only: {error}, or set DIAMOND_GYM_CACHE to one", stacklevel=2
        )
    return bank


def _collect(game: str, agent: Agent, path: Path) -> ContextBank:
    # who plays the real game, which need not be loaded to imagine one
    from diamond_gym.players.actor_critic import ActorCriticPlayer
    from diamond_gym.players.player import Player, RandomPlayer

    player: Player
    if agent.actor_critic is None:
        player, who = RandomPlayer(agent.action_space, repeat=_RANDOM_HOLD), "random actions"
    else:
        player, who = ActorCriticPlayer(agent, epsilon=_EPSILON), "the checkpoint's policy"
    _log.warning("collecting start contexts of %s with %s, once, into %s", game, who, path)
    return collect_contexts(
        game,
        player,
        num_contexts=NUM_CONTEXTS,
        num_steps_conditioning=agent.config.denoiser.inner_model.num_steps_conditioning,
        seed=_SEED,
    )


def _fitting(bank: ContextBank, config: AgentConfig, source: str) -> ContextBank:
    """Shorten contexts to the steps that the model is conditioned on, once frames and actions fit."""
    inner, rew_end = config.denoiser.inner_model, config.rew_end_model
    h, w, c = bank.obs.shape[2:]
    if bank.num_steps_conditioning < inner.num_steps_conditioning:
        raise CheckpointError(
            f"start contexts in {source} have {bank.num_steps_conditioning} frames each, this world model "
            f"needs {inner.num_steps_conditioning}: record or collect new ones"
        )
    is_square = h == w and rew_end.img_width is None  # of a published file, only the features are known
    fits = (
        replace(rew_end, img_size=h).features == rew_end.features
        if is_square
        else (h, w) == rew_end.frame_size
    )
    if c != inner.img_channels or not fits:
        raise CheckpointError(
            f"start contexts in {source} have frames of shape {(h, w, c)}, this world model expects "
            f"{(*rew_end.frame_size, inner.img_channels)}"
        )
    space = config.action_space
    assert space is not None
    if space.convert(bank.act) is None or bank.act.shape[2:] != space.shape:
        held = f"action {bank.act.max()}" if bank.act.ndim == 2 else f"actions of shape {bank.act.shape[2:]}"
        takes = f"has {space.num_actions} actions" if space.is_discrete else f"takes {space.accepted()}"
        raise CheckpointError(
            f"start contexts in {source} hold {held}, this world model {takes}: they are of another game"
        )
    return bank.latest(inner.num_steps_conditioning)
