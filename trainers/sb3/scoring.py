"""How good a player is: whole games, their returns, and how sure one can be of the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym.progress import Bar
from trainers.real_score import bootstrap_interval
from trainers.sb3.agents import is_off_policy

Policy = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[Any]]
"""Actions at observations; the flags say which games have just begun."""


@dataclass(frozen=True)
class Score:
    """Returns of a player's games.

    Attributes:
        player: who played.
        returns: of each game, in the order in which they ended.
        mean: their mean.
        median: their median.
        low: lower end of the 95 % bootstrap interval of the mean.
        high: upper end.
    """

    player: str
    returns: list[float]
    mean: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, player: str, returns: list[float]) -> Score:
        """Summary of returns, at least one."""
        low, high = bootstrap_interval(returns)
        return cls(player, returns, float(np.mean(returns)), float(np.median(returns)), low, high)


def play_games(
    policy: Policy, env: VecEnv, num_games: int, what: str, *, seed: int, progress: bool = True
) -> list[float]:
    """Plays games to their end and returns their returns.

    Every one of the environments plays equally many games (one more for the first ones), so that short games
    do not crowd out long ones.

    Args:
        policy: who plays.
        env: games whose `infos` hold "episode", as `Monitor` and `VecMonitor` add it.
        num_games: how many, at least 1.
        what: stands beside the bar.
        seed: fixes the games and what the policy draws, at least 0.
        progress: show a bar on stderr.
    """
    quota = np.full(env.num_envs, num_games // env.num_envs)
    quota[: num_games % env.num_envs] += 1
    set_random_seed(seed)
    env.seed(seed)
    obs, begins = env.reset(), np.ones(env.num_envs, bool)
    returns: list[float] = []
    with Bar(total=num_games, desc=what, unit="game", disable=not progress) as bar:
        while quota.any():
            assert isinstance(obs, np.ndarray)
            obs, _, begins, infos = env.step(policy(obs, begins))
            for i in np.flatnonzero(begins):
                if quota[i]:
                    quota[i] -= 1
                    returns.append(float(infos[i]["episode"]["r"]))
                    bar.update()
    return returns


def policy_of(agent: BaseAlgorithm, *, deterministic: bool = False) -> Policy:
    """An agent as a policy; one that learns values takes the best action, without exploring."""
    deterministic = deterministic or is_off_policy(agent)
    memory: Any = None

    def policy(obs: NDArray[np.uint8], begins: NDArray[np.bool_]) -> NDArray[Any]:
        nonlocal memory
        act, memory = agent.predict(obs, state=memory, episode_start=begins, deterministic=deterministic)
        return act

    return policy


def random_policy(env: VecEnv) -> Policy:
    """Uniformly random actions, out of NumPy's global generator as Stable-Baselines3 draws its own."""
    num_actions = int(env.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda obs, begins: np.random.randint(num_actions, size=len(obs))


def table(scores: list[Score]) -> str:
    """Scores as text."""
    width = max(len(score.player) for score in scores)
    lines = [f"{'player':<{width}}  games     mean   median   95 % interval of the mean"]
    for s in scores:
        interval = f"{s.low:.2f} to {s.high:.2f}"
        lines.append(
            f"{s.player:<{width}}  {len(s.returns):>5}  {s.mean:>7.2f}  {s.median:>7.2f}   {interval}"
        )
    return "\n".join(lines)
