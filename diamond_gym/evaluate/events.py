"""Which steps of recorded episodes are rare and decide a game, so that a training may draw them often.

Run `python -m diamond_gym.evaluate.events dataset=EPISODES/train game=Breakout out=weights.safetensors`, and
train with `denoiser.training.step_weights=weights.safetensors`. The trainer itself knows no game.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float32, UInt8

from diamond_gym import cli
from diamond_gym.cli import option
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.ball import GAMES_WITH_BALL, find_events
from diamond_gym.files import replacing

SHARES = {
    "Breakout": {
        "free flight": 0.12,
        "paddle": 0.28,
        "bricks": 0.12,
        "walls": 0.06,
        "serve": 0.14,
        "after a serve": 0.08,
        "ball appears": 0.05,
        "ball disappears": 0.05,
        "no ball": 0.1,
    },
    "Pong": {
        "free flight": 0.1,
        "paddle": 0.25,
        "after the paddle": 0.25,
        "opponent": 0.12,
        "walls": 0.05,
        "serve": 0.15,
        "after a serve": 0.1,
        "ball appears": 0.03,
        "ball disappears": 0.03,
        "no ball": 0.1,
    },
}
"""How often kinds of steps are drawn in each game, in proportion. A serve is rare and decides what follows;
if steps without a ball are never drawn, the ball is served too early. In the two steps after Pong's ball has
turned at the paddle, the opponent answers to where it flies now."""
UNSEEN_BEFORE_SERVE = 4
"""Frames without a ball before one that is served; after fewer, the ball was only hidden."""


def weigh_steps(
    game: str, episodes: Iterable[Episode]
) -> tuple[Float32[np.ndarray, " t"], UInt8[np.ndarray, "t 2"]]:
    """Weigh the frames of episodes so that kinds of what happens to the ball are drawn as `SHARES` says.

    Args:
        game: One of `GAMES_WITH_BALL`.
        episodes: Real episodes, in the order of their dataset.

    Returns:
        For each frame in which a step results, its weight and the row and column of the ball before it (where
        there is none, of the next one that comes); the weights of a kind add up to its share. They are 0 in
        first frames, and in episodes that never show a ball.
    """
    kinds: dict[str, list[np.ndarray]] = {}
    places: list[np.ndarray] = []
    for episode in episodes:
        ball, happens = find_events(game, episode)
        seen = np.asarray(~np.isnan(ball).any(1))
        before, after = seen[:-1], seen[1:]
        serve, paddle = _serves(seen), happens["paddle"]
        happens |= {
            "serve": serve,
            "after a serve": _one_later(serve) & after,
            "after the paddle": _one_later(paddle) | _one_later(_one_later(paddle)),
            "ball appears": ~before & after & ~serve,
            "ball disappears": before & ~after,
            "no ball": ~before & ~after & seen.any(),
        }
        for kind, flags in happens.items():
            kinds.setdefault(kind, []).append(_one_later(flags))
        rounded = _filled(ball, seen)[:-1, ::-1].round().clip(0, 255).astype(np.uint8)
        places.append(_one_later(rounded))
    weights = sum(share * _evenly(np.concatenate(kinds[kind])) for kind, share in SHARES[game].items())
    return np.asarray(weights, np.float32), np.concatenate(places)


def _serves(seen: np.ndarray) -> np.ndarray:
    """Whether each step shows the ball after `UNSEEN_BEFORE_SERVE` frames without it, fewer at the start."""
    last_seen = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), -UNSEEN_BEFORE_SERVE))
    away = np.arange(len(seen)) - last_seen
    return seen[1:] & (away[:-1] >= UNSEEN_BEFORE_SERVE)


def _filled(ball: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Places of the ball in all frames; where it is not seen, its next place, else its last."""
    times = np.flatnonzero(seen)
    if len(times) == 0:
        return np.zeros_like(ball)
    following = np.searchsorted(times, np.arange(len(ball))).clip(max=len(times) - 1)
    return ball[times[following]]


def _one_later(steps: np.ndarray) -> np.ndarray:
    """Values of the steps one later: those of the frames that result from them, the last step left out."""
    return np.concatenate([np.zeros_like(steps[:1]), steps[:-1]])


def _evenly(flags: np.ndarray) -> np.ndarray:
    return flags / max(1, flags.sum())


@dataclass
class EventSettings:
    """The settings of the search for events."""

    dataset: Path = option(MISSING, "folder of recorded episodes")
    out: Path = option(MISSING, "file of weights to write (.safetensors)")
    game: str = option("Breakout", f"the game: {', '.join(GAMES_WITH_BALL)}")


def _write(settings: EventSettings) -> None:
    num_steps = write_weights(settings.game, [(settings.dataset, 1.0)], settings.out)
    print(f"wrote the weights of {num_steps} steps to {settings.out}")


def write_weights(game: str, datasets: Sequence[tuple[Path, float]], out: Path) -> int:
    """Write the file that `denoiser.training.step_weights` names.

    Args:
        game: One of `GAMES_WITH_BALL`.
        datasets: Folders of recorded episodes, in the order in which one dataset holds them, and the share of
            the weight that the steps of each have.
        out: The file.

    Returns:
        The number of steps.

    Raises:
        InvalidInputError: The game is none of these, or no ball is seen in a dataset.
        DatasetError: A folder holds no episodes.
    """
    check_has_ball(game)
    found = [_weigh_folder(game, folder) for folder, _ in datasets]
    weights = [
        share / weights.sum() * weights for (weights, _), (_, share) in zip(found, datasets, strict=True)
    ]
    content = {"weights": np.concatenate(weights), "places": np.concatenate([places for _, places in found])}
    with replacing(out) as file:
        file.write(safetensors.numpy.save(content))
    return len(content["weights"])


def check_has_ball(game: str) -> None:
    """Raise `InvalidInputError` unless a game is one of `GAMES_WITH_BALL`."""
    if game not in GAMES_WITH_BALL:
        raise InvalidInputError(
            f"game={game!r}: its ball cannot be found; accepted are {', '.join(GAMES_WITH_BALL)}"
        )


def _weigh_folder(game: str, folder: Path) -> tuple[Float32[np.ndarray, " t"], UInt8[np.ndarray, "t 2"]]:
    weights, places = weigh_steps(game, EpisodeDataset(folder))
    if not weights.any():
        raise InvalidInputError(f"dataset={folder}: no ball is seen in its {len(weights)} steps")
    return weights, places


COMMAND = cli.Command(
    "python -m diamond_gym.evaluate.events",
    "Finds the steps of recorded episodes in which something happens to the ball.",
    EventSettings,
    _write,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the weights of a dataset's steps; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
