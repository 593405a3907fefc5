"""Games that an agent of Stable-Baselines3 plays in a batch, to their end."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from trainers.sb3.player import Policy


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
    with tqdm(total=num_games, desc=what, unit="game", disable=not progress) as bar:
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
    """Uniformly random actions, out of NumPy's global generator as Stable-Baselines3 draws its own."""
    num_actions = int(env.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda obs, begins: np.random.randint(num_actions, size=len(obs))
