"""Start contexts for agents that learn in imagination: many, and most of them where much is at stake.

    python -m trainers.contexts game=Breakout out=starts.safetensors
    python -m trainers.sb3 train game=Breakout contexts=starts.safetensors horizon=32

In the middle of a game little depends on the next action for a long time, and imagined games go wrong with
every step. A few steps before a recorded player lost a life or a point, it soon shows who does better.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.checkpoints.contexts import (
    ContextBank,
    check_fits_file,
    contexts_from_episodes,
    num_windows,
    starts_before_losses,
)
from diamond_gym.cli import option
from diamond_gym.data.collect import collect
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import DatasetError, InvalidInputError
from diamond_gym.games.atari import num_actions
from diamond_gym.players.player import Player, RandomPlayer, scripted_player, usual_player
from diamond_gym.players.scripted import DEFAULT_NOISE
from diamond_gym.players.vision import FRAME_SHAPE
from diamond_gym.registration import game_name

_NOISES = (DEFAULT_NOISE, 0.4, 0.8)
"""Noise of the scripted players; each plays an equal share of the steps."""


@dataclass
class ContextsSettings:
    """Which start contexts to make.

    Raises:
        InvalidInputError: A number is out of range, or more contexts are asked for than one file holds.
    """

    game: str = option("Breakout", "the game")
    out: str = option("contexts.safetensors", "file to write, for contexts=", is_path=True)
    max_contexts: int = option(4_000, "how many, fewer where the episodes hold fewer", least=1)
    before_losses: float = option(0.65, "share that lies 4 to 16 steps before a lost life or point")
    num_steps_conditioning: int = option(
        4, "frames and actions of each, as the world model needs them", least=1
    )
    episodes: str | None = option(
        None, "folder of recorded episodes, one per life, instead of playing", is_path=True
    )
    num_steps: int = option(
        60_000,
        "without episodes: real steps to play, by the scripted player, good and bad, or at random",
        least=1,
    )
    seed: int = option(0, "fixes the games and the choice of contexts")

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 31)
        check_share(self.before_losses)
        if self.episodes is None:  # frames of other environments may be smaller
            check_fits_file(self.max_contexts, (self.num_steps_conditioning, *FRAME_SHAPE))


def check_share(before_losses: float) -> None:
    """Raise `InvalidInputError` unless a share of contexts lies in [0, 1]."""
    if not 0 <= before_losses <= 1:
        raise InvalidInputError(f"before_losses must be a share from 0 to 1, got {before_losses}")


def make(settings: ContextsSettings, *, progress: bool = True) -> ContextBank:
    """Play or read episodes, and cut contexts out of them.

    Raises:
        UnknownGameError: ale_py has no such game.
        DatasetError: The folder holds no episodes, or they are too short.
    """
    return cut(
        _episodes(settings, progress),
        max_contexts=settings.max_contexts,
        before_losses=settings.before_losses,
        num_steps_conditioning=settings.num_steps_conditioning,
        seed=settings.seed,
    )


def cut(
    episodes: Sequence[Episode] | EpisodeDataset,
    *,
    max_contexts: int,
    before_losses: float,
    num_steps_conditioning: int,
    seed: int,
) -> ContextBank:
    """Start contexts: a share of them shortly before losses, the rest anywhere.

    Args:
        episodes: Recorded games; a lost life ends one.
        max_contexts: Number of contexts, at least 1; fewer of either kind where the episodes hold fewer.
        before_losses: The share, in [0, 1].
        num_steps_conditioning: Frames and actions of each context, at least 1.
        seed: Fixes the draw, >= 0.

    Raises:
        DatasetError: The episodes hold no context.
    """
    n, num_before = num_steps_conditioning, round(before_losses * max_contexts)
    starts = starts_before_losses(episodes, n) if num_before else []
    num_windows_anywhere = int(num_windows(episodes, n).sum())
    draws = [
        (min(num_before, sum(map(len, starts))), starts),
        (min(max_contexts - num_before, num_windows_anywhere), None),
    ]
    banks = [
        contexts_from_episodes(episodes, num_contexts=size, num_steps_conditioning=n, seed=seed, starts=among)
        for size, among in draws
        if size
    ]
    if not banks:
        where = "before a loss" if before_losses == 1 else "in them"
        raise DatasetError(f"{len(episodes)} episode(s) have no window of {n} steps {where}: record more")
    return functools.reduce(operator.add, banks)


def _episodes(settings: ContextsSettings, progress: bool) -> Sequence[Episode] | EpisodeDataset:
    if settings.episodes is not None:
        return EpisodeDataset(Path(settings.episodes))
    game = game_name(settings.game)
    return play(game, settings.num_steps, seed=settings.seed, progress=progress)


def play(
    game: str, num_steps: int, *, seed: int, dataset: EpisodeDataset | None = None, progress: bool = True
) -> list[Episode]:
    """Play real games: scripted players of several strengths, or a random one in games without them.

    Args:
        game: Canonical name.
        num_steps: Steps of all players together, at least 1.
        seed: Fixes the games and the players, >= 0.
        dataset: Where to store the episodes as well; None for memory alone.
        progress: Show a bar on stderr.
    """
    players = _players(game, seed)
    share = math.ceil(num_steps / len(players))
    reports = [
        collect(game, one, num_steps=share, seed=seed + i, dataset=dataset, progress=progress)
        for i, one in enumerate(players)
    ]
    return [episode for report in reports for episode in report.episodes]


def _players(game: str, seed: int) -> list[Player]:
    """Good and bad players, so that contexts also lie where an agent gets to by itself."""
    if usual_player(game) == "scripted":
        return [scripted_player(game, seed, noise) for noise in _NOISES]
    return [RandomPlayer(num_actions(game), seed, repeat=4)]


def run(settings: ContextsSettings) -> None:
    """Make the contexts and write them."""
    num_frames = settings.max_contexts * settings.num_steps_conditioning
    disk.prepare_folder(Path(settings.out).parent, num_frames * math.prod(FRAME_SHAPE))
    bank = make(settings)
    bank.save(settings.out)
    print(f"wrote {settings.out}: {len(bank)} contexts")


COMMAND = cli.Command(
    "python -m trainers.contexts",
    """\
Plays the real game, or takes recorded episodes, and cuts start contexts out of them: a share of them a few
steps before a lost life or point, the rest anywhere.""",
    ContextsSettings,
    run,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
