"""Games that an agent of Stable-Baselines3 plays in a batch, to their end."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym.progress import Bar
from trainers.sb3.player import Policy


def play_games(
    policy: Policy, env: VecEnv, num_games: int, what: str, *, seed: int, progress: bool = True
) -> list[float]:
    """Play games to their end and return their returns.

    Every environment plays equally many games (one more for the first ones), so that short games
    do not crowd out long ones.

    Args:
        policy: The policy that plays.
        env: Games whose `infos` hold "episode", as `Monitor` and `VecMonitor` add it.
        num_games: Number of games, at least 1.
        what: Label of the progress bar.
        seed: Fixes the games and the policy's random numbers, at least 0.
        progress: Whether to show a bar on stderr.
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


def random_policy(env: VecEnv) -> Policy:
    """A policy of uniformly random actions, from NumPy's global generator, as Stable-Baselines3 uses it."""
    num_actions = int(env.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda obs, begins: np.random.randint(num_actions, size=len(obs))
