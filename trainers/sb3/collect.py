"""Episodes of an agent that learns in the real game while it plays: play of all strengths, for any game."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from diamond_gym.adapters.sb3 import ContextFrameStack
from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.games.atari import AtariEnv
from trainers.sb3.agents import new_agent
from trainers.sb3.settings import PRESETS

NUM_ENVS = 32
"""Number of games at once."""
FRAME_STACK = 4
"""Number of frames that the agent sees."""


def collect_while_learning(
    game: str,
    num_steps: int,
    seed: int,
    dataset: EpisodeDataset,
    *,
    on_steps: Callable[[int], object] = lambda count: None,
) -> None:
    """Let PPO learn a real game from scratch, with the preset of `trainers.sb3`, and keep all its episodes.

    An episode is a life. At the end, unfinished episodes are kept as such.

    Args:
        game: The game's name.
        num_steps: Steps of all games together, at least 1.
        seed: At least 0; fixes the games and the agent.
        dataset: Dataset to which each episode is added when it ends.
        on_steps: Called with the number of steps made since it was last called.
    """
    games = DummyVecEnv([partial(_game, game) for _ in range(NUM_ENVS)])
    recorded = EpisodeRecorder(games, dataset, num_steps)
    recorded.seed(seed)
    env = ContextFrameStack(_RewardSigns(recorded), FRAME_STACK)
    try:
        agent = new_agent("ppo", env, seed=seed, device="cpu", **PRESETS["ppo"])
        agent.learn(num_steps, callback=_Told(on_steps, recorded))
        recorded.finish()
    finally:
        env.close()


class EpisodeRecorder(VecEnvWrapper):
    """Vectorised games whose episodes are added to a dataset, up to a number of steps.

    Args:
        venv: Real games with frames (h, w, c), an episode each life.
        dataset: Dataset to which they are added.
        num_steps: Number of steps to keep; later steps are played and dropped.
    """

    def __init__(self, venv: VecEnv, dataset: EpisodeDataset, num_steps: int) -> None:
        super().__init__(venv)
        self.dataset, self.num_left = dataset, num_steps
        self._builders = [EpisodeBuilder() for _ in range(venv.num_envs)]
        self._obs = self._actions = np.zeros(0)

    def reset(self) -> VecEnvObs:
        """Start all games."""
        self._obs = np.array(self.venv.reset())
        return self._obs.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step of all games."""
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish a step of all games, and keep it."""
        obs, rewards, dones, infos = self.venv.step_wait()
        for i, builder in enumerate(self._builders):
            if self.num_left == 0:
                break
            self.num_left -= 1
            is_cut = bool(infos[i].get("TimeLimit.truncated", False))
            builder.add(self._obs[i], int(self._actions[i]), float(rewards[i]))
            if dones[i]:
                final_obs = infos[i]["terminal_observation"]
                self.dataset.append(builder.episode(end=not is_cut, trunc=is_cut, final_obs=final_obs))
                self._builders[i] = EpisodeBuilder()
        self._obs = np.array(obs)
        return self._obs.copy(), rewards, dones, infos

    def finish(self) -> None:
        """Keep the current episodes, as unfinished ones."""
        self.dataset.extend([builder.episode() for builder in self._builders if len(builder)])
        self._builders = [EpisodeBuilder() for _ in self._builders]


class _RewardSigns(VecEnvWrapper):
    """Games whose rewards are replaced by their signs, as the agent learns from them."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, np.sign(rewards), dones, infos


class _Told(BaseCallback):
    """A callback that reports the number of steps, and stops the agent when all steps are kept."""

    def __init__(self, on_steps: Callable[[int], object], recorded: EpisodeRecorder) -> None:
        super().__init__()
        self.on_steps, self.recorded = on_steps, recorded

    def _on_step(self) -> bool:
        self.on_steps(self.training_env.num_envs)
        return self.recorded.num_left > 0


def _game(name: str) -> gymnasium.Env:
    return AtariEnv(name, training=True)
