"""Contexts, from which imagination starts: real frames and the actions taken at them.

Contexts are cut from recorded episodes or played for the purpose, and kept in one small safetensors file. The
module does not depend on networks: a player is anything that chooses actions.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CheckpointError, DatasetError, InvalidInputError

if TYPE_CHECKING:
    from diamond_gym.players.player import Player, Policy

FORMAT_VERSION = 1
NUM_CONTEXTS = 64
"""Default number of contexts that are collected."""
STEPS_PER_CONTEXT = 16
"""Steps played for each context that is collected."""
STEPS_BEFORE_LOSS = (4, 16)
"""Steps from a context to the loss that the recorded player did not avert: time to do better."""

_MAX_BYTES = 2**29
"""Largest size of all frames of a file; those of 8 000 Atari contexts of 4 frames have 3/4 of it."""
_COMPRESSION_LEVEL = 9
_ROWS_FIRST = (2, 0, 1, 3, 4)
"""(k n h w c) -> (h k n w c): the same row of all frames lies together, which compresses twice as well."""


@dataclass(frozen=True, eq=False)
class ContextBank:
    """k contexts, each the last n frames and actions before some time of a real game.

    Attributes:
        obs: uint8 (k, n, h, w, c), frames, oldest first.
        act: int64 or float32 (k, n, *shape of an action), `act[:, i]` was taken at `obs[:, i]`; the last one
            is what the recorded player did next, which a world model does not need.

    Raises:
        InvalidInputError: A shape or dtype is wrong, there is no context, or an integer action is negative.
    """

    obs: NDArray[np.uint8]
    act: NDArray[Any]

    def __post_init__(self) -> None:
        if self.obs.dtype != np.uint8 or self.obs.ndim != 5 or 0 in self.obs.shape:
            raise InvalidInputError(
                f"context frames must be uint8 (k, n, h, w, c), got {self.obs.dtype} {self.obs.shape}"
            )
        if self.act.dtype not in (np.int64, np.float32) or self.act.shape[:2] != self.obs.shape[:2]:
            raise InvalidInputError(
                f"context actions must be int64 (or float32) {self.obs.shape[:2]}, got {self.act.dtype} "
                f"{self.act.shape}"
            )
        if self.act.dtype == np.int64 and self.act.min() < 0:
            raise InvalidInputError(f"context actions must not be negative, got {self.act.min()}")

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def num_steps_conditioning(self) -> int:
        """Number of frames and actions of each context (n)."""
        return self.obs.shape[1]

    def latest(self, num_steps_conditioning: int) -> ContextBank:
        """Shorten the contexts to their newest frames and actions.

        Raises:
            InvalidInputError: The contexts have fewer.
        """
        if not 1 <= num_steps_conditioning <= self.num_steps_conditioning:
            raise InvalidInputError(
                f"contexts of {self.num_steps_conditioning} frames have no latest {num_steps_conditioning}"
            )
        return ContextBank(self.obs[:, -num_steps_conditioning:], self.act[:, -num_steps_conditioning:])

    def __add__(self, other: ContextBank) -> ContextBank:
        """Join two sets of contexts.

        Raises:
            InvalidInputError: Their frames or actions differ in number or size.
        """
        if self.obs.shape[1:] != other.obs.shape[1:] or self.act.shape[1:] != other.act.shape[1:]:
            raise InvalidInputError(
                f"contexts of frames {self.obs.shape[1:]} and {other.obs.shape[1:]}, of actions "
                f"{self.act.shape[1:]} and {other.act.shape[1:]} cannot be joined"
            )
        return ContextBank(np.concatenate([self.obs, other.obs]), np.concatenate([self.act, other.act]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the contexts as a safetensors file, their frames compressed without loss.

        Raises:
            InvalidInputError: They are too many: `load` reads files of up to 512 MiB of frames.
            CacheError: The file cannot be written.
        """
        check_fits_file(len(self), self.obs.shape[1:])
        compressed = zlib.compress(self.obs.transpose(_ROWS_FIRST).tobytes(), _COMPRESSION_LEVEL)
        tensors = {
            "frames": torch.frombuffer(bytearray(compressed), dtype=torch.uint8),
            "act": torch.from_numpy(np.ascontiguousarray(self.act)),
        }
        header = {"format_version": FORMAT_VERSION, "shape": self.obs.shape}
        disk.write_tensors(Path(path), tensors, {"diamond_gym.contexts": json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ContextBank:
        """Read a file of contexts.

        Raises:
            CheckpointNotFoundError: There is no such file.
            CheckpointError: The file is corrupt or holds no contexts.
        """
        path = Path(path)
        tensors, metadata = untrusted.read_tensors(path)
        if "diamond_gym.contexts" not in metadata or set(tensors) != {"frames", "act"}:
            raise CheckpointError(
                f"{path} holds no start contexts: expected the tensors act and frames as ContextBank.save "
                f"writes them, found {', '.join(sorted(tensors)[:5]) or 'none'}"
            )
        with untrusted.reading(path, CheckpointError, "a file of start contexts"):
            shape = _checked_shape(metadata["diamond_gym.contexts"])
            frames = _decompress(tensors["frames"].numpy().tobytes(), math.prod(shape))
            rows_first = np.frombuffer(frames, np.uint8).reshape([shape[axis] for axis in _ROWS_FIRST])
            obs = np.ascontiguousarray(rows_first.transpose(np.argsort(_ROWS_FIRST)))
            return cls(obs, tensors["act"].numpy())


def contexts_from_episodes(
    episodes: Sequence[Episode] | EpisodeDataset,
    *,
    num_contexts: int,
    num_steps_conditioning: int,
    seed: int,
    starts: Sequence[Sequence[int]] | None = None,
) -> ContextBank:
    """Cut contexts out of episodes; every n steps of an episode are equally likely, and none is drawn twice.

    All possible contexts, episode after episode, are divided into `num_contexts` stretches of equal length,
    and one is drawn from each, so that every part of the recording is represented.

    Args:
        episodes: Episodes, or a dataset (only those that are drawn are read).
        num_contexts: Number of contexts (k), at least 1.
        num_steps_conditioning: Frames and actions of each (n), at least 1.
        seed: Fixes the draw, >= 0.
        starts: For each episode, the first steps of the contexts to draw from, as `starts_before_losses`
            returns them; None draws from all.

    Raises:
        DatasetError: The episodes hold fewer contexts than asked for, or frames of different sizes.
    """
    _check_sizes(num_contexts, num_steps_conditioning)
    n = num_steps_conditioning
    if starts is None:
        starts = [range(windows) for windows in num_windows(episodes, n).tolist()]
    windows = np.array([len(firsts) for firsts in starts], np.int64)
    last = windows.cumsum()
    total = int(last[-1]) if len(last) else 0
    if total < num_contexts:
        raise DatasetError(
            f"{len(last)} episode(s) hold {total} contexts of {n} steps, {num_contexts} were asked for: "
            "record more, or ask for fewer"
        )
    edges = np.arange(num_contexts + 1) * total // num_contexts
    draws = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    owners = np.searchsorted(last, draws, side="right")
    obs, act = [], []
    for owner in np.unique(owners):
        episode = episodes[int(owner)]
        for i in draws[owners == owner] - (last[owner] - windows[owner]):
            start = starts[owner][i]
            obs.append(episode.obs[start : start + n].permute(0, 2, 3, 1).numpy())
            act.append(episode.act[start : start + n].numpy())
    if len({frames.shape for frames in obs}) > 1:
        raise DatasetError("the episodes have frames of different sizes")
    return ContextBank(np.stack(obs), np.stack(act))


def starts_before_losses(
    episodes: Iterable[Episode], num_steps_conditioning: int, steps: tuple[int, int] = STEPS_BEFORE_LOSS
) -> list[list[int]]:
    """Find contexts that end shortly before something is lost: where it matters what is done next.

    A loss is a negative reward, or a terminal step.

    Args:
        episodes: Episodes, or a dataset; all of them are read.
        num_steps_conditioning: Steps of a context (n), at least 1.
        steps: Fewest and most steps from a context's last to the one that loses, at least 1.

    Returns:
        For each episode, the first steps of these contexts in order.

    Raises:
        InvalidInputError: `steps` are not two positive numbers in order.
    """
    least, most = steps
    if not 1 <= least <= most:
        raise InvalidInputError(f"steps must be two positive numbers, fewest and most, got {steps}")
    starts: list[list[int]] = []
    for episode in episodes:
        losses = torch.nonzero((episode.rew < 0) | (episode.end > 0)).flatten().tolist()
        lasts = {last for loss in losses for last in range(loss - most, loss - least + 1)}
        firsts = (last - num_steps_conditioning + 1 for last in lasts)
        starts.append(sorted(first for first in firsts if first >= 0))
    return starts


def num_windows(
    episodes: Sequence[Episode] | EpisodeDataset, num_steps_conditioning: int
) -> NDArray[np.int64]:
    """Number of contexts of n steps in each episode, overlapping ones included: (num_episodes,)."""
    if isinstance(episodes, EpisodeDataset):
        lengths = episodes.lengths
    else:
        lengths = np.array([len(episode) for episode in episodes], np.int64)
    return np.maximum(lengths - num_steps_conditioning + 1, 0)


def collect_contexts(
    game: str,
    player: Player | Policy,
    *,
    num_contexts: int = NUM_CONTEXTS,
    num_steps_conditioning: int,
    seed: int = 0,
    progress: bool = True,
) -> ContextBank:
    """Play the real game, with episodes ending at lost lives, and cut contexts out of it.

    Args:
        game: Name of an Atari game.
        player: As in `diamond_gym.data.collect.collect`.
        num_contexts: Number of contexts, at least 1; `STEPS_PER_CONTEXT` steps are played for each.
        num_steps_conditioning: Frames and actions of each.
        seed: Fixes the game and the draw, >= 0.
        progress: Show a bar on stderr.

    Raises:
        UnknownGameError: ale_py has no such game.
        DatasetError: The player's episodes are too short to hold as many contexts.
    """
    _check_sizes(num_contexts, num_steps_conditioning)
    num_steps = STEPS_PER_CONTEXT * num_contexts + num_steps_conditioning
    from diamond_gym.data.collect import collect  # the real game: to imagine one, it need not be loaded

    report = collect(game, player, num_steps=num_steps, seed=seed, progress=progress)
    return contexts_from_episodes(
        report.episodes,
        num_contexts=num_contexts,
        num_steps_conditioning=num_steps_conditioning,
        seed=seed,
    )


def check_fits_file(num_contexts: int, shape: Sequence[int]) -> None:
    """Check that `ContextBank.load` would read a file of so many contexts.

    Args:
        num_contexts: Number of contexts.
        shape: Shape (n, h, w, c) of the frames of each.

    Raises:
        InvalidInputError: They are too many.
    """
    most = _MAX_BYTES // math.prod(shape)
    if num_contexts > most:
        raise InvalidInputError(
            f"{num_contexts:,} contexts of frames {tuple(shape)} do not fit into a file: at most {most:,} do"
        )


def _check_sizes(num_contexts: int, num_steps_conditioning: int) -> None:
    if num_contexts < 1 or num_steps_conditioning < 1:
        raise InvalidInputError(
            "num_contexts and num_steps_conditioning must be at least 1, "
            f"got {num_contexts!r} and {num_steps_conditioning!r}"
        )


def _checked_shape(header: str) -> tuple[int, ...]:
    fields = untrusted.parse_json(header)
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"it is of format version {version!r}, this program reads {FORMAT_VERSION}")
    shape = fields.get("shape")
    if not (isinstance(shape, list) and len(shape) == 5 and all(type(s) is int and s > 0 for s in shape)):
        raise ValueError(f"its shape should be five positive integers, it is {shape!r}")
    if math.prod(shape) > _MAX_BYTES:
        raise ValueError(f"its shape {shape} needs more than {_MAX_BYTES} bytes")
    return tuple(shape)


def _decompress(compressed: bytes, size: int) -> bytes:
    """Decompress to exactly `size` bytes, and never to more."""
    decompressor = zlib.decompressobj()
    frames = decompressor.decompress(compressed, size + 1)
    if len(frames) != size or not decompressor.eof:
        raise ValueError(f"its frames do not unpack to the {size} bytes its shape needs")
    return frames
