"""How good a player is in the real game: returns of whole games, and the uncertainty of their mean."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import gymnasium
import numpy as np

from diamond_gym.errors import UnknownGameError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players import loop
from diamond_gym.players.player import Player
from diamond_gym.progress import Bar
from diamond_gym.registration import check_imagined, game_name

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """Returns of a player's games.

    Attributes:
        player: Name of the player.
        returns: Return of each game, in the order in which they ended.
        mean: Their mean.
        median: Their median.
        low: Lower end of the 95 % bootstrap interval of the mean.
        high: Upper end.
    """

    player: str
    returns: list[float]
    mean: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, player: str, returns: list[float]) -> Score:
        """Summarise one or more returns."""
        low, high = bootstrap_interval(returns)
        return cls(player, returns, float(np.mean(returns)), float(np.median(returns)), low, high)

    def in_words(self) -> str:
        """Say mean, interval and median of real games."""
        return (
            f"mean score of {len(self.returns)} real games: {self.mean:.2f} "
            f"(95 % interval {self.low:.2f} to {self.high:.2f}), median {self.median:.2f}"
        )


def bootstrap_interval(returns: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap (Efron 1979), the same for the same returns."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(returns), (NUM_RESAMPLES, len(returns))).mean(axis=1)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [outside, 1 - outside])
    return float(low), float(high)


def table(scores: list[Score]) -> str:
    """Return scores as text, a line each."""
    width = max(len(score.player) for score in scores)
    lines = [f"{'player':<{width}}  games     mean   median   95 % interval of the mean"]
    for s in scores:
        interval = f"{s.low:.2f} to {s.high:.2f}"
        lines.append(
            f"{s.player:<{width}}  {len(s.returns):>5}  {s.mean:>7.2f}  {s.median:>7.2f}   {interval}"
        )
    return "\n".join(lines)


def real_game(env_id: str) -> str | None:
    """Return the Atari game that an id imagines; None where it imagines something else.

    Raises:
        DiamondGymError: There is no such id, or it is not that of an imagined game.
    """
    check_imagined(env_id)
    try:
        return game_name(gymnasium.spec(env_id).kwargs.get("game") or env_id)
    except UnknownGameError:
        return None


def real_scores(player: Player, game: str, *, num_games: int, seed: int, max_steps: int) -> list[float]:
    """Play real games, from their start to game over, and return their scores.

    Args:
        player: The player; it forgets each game, and its random numbers continue.
        game: Canonical name.
        num_games: How many, at least 0.
        seed: Seed of the first game; each further game has the next one.
        max_steps: Steps after which a game is cut short.
    """
    scores: list[float] = []
    with closing(AtariEnv(game, training=False)) as env, Bar(desc="real games", unit="step") as bar:
        for number in range(num_games):
            obs, _ = env.reset(seed=seed + number)
            player.reset()
            scores.append(0.0)
            for step in itertools.islice(loop.play(env, player, obs), max_steps):
                scores[-1] += step.rew
                told = f"game {number + 1} of {num_games}, score {scores[-1]:.0f}"
                bar.set_postfix_str(told, refresh=False)
                bar.update()
    return scores
