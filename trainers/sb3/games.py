"""The games an agent learns from and is scored in, imagined and real, as Stable-Baselines3 sees them."""

from __future__ import annotations

from functools import partial

import gymnasium
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from diamond_gym.adapters.sb3 import ContextFrameStack, make_sb3_vec_env
from diamond_gym.games.atari import AtariEnv
from diamond_gym.registration import env_id
from trainers.sb3.settings import EvaluateSettings, TrainSettings


def imagined(
    settings: TrainSettings | EvaluateSettings, num_envs: int, *, frame_stack: int, seed: int
) -> VecEnv:
    """Imagined games in one batch; an episode is a life, or ends at the horizon."""
    env = make_sb3_vec_env(
        env_id(settings.game),
        num_envs,
        seed=seed,
        max_episode_steps=settings.horizon,
        checkpoint=settings.checkpoint,
        contexts=settings.contexts,
        num_denoising_steps=settings.num_denoising_steps,
        device=settings.device,
        backend=settings.backend,
    )
    return ContextFrameStack(env, frame_stack)


def real(game: str, num_envs: int, *, frame_stack: int, training: bool, max_steps: int, seed: int) -> VecEnv:
    """Real games, one after the other in this process.

    Args:
        game: Name of the game.
        num_envs: Number of games.
        frame_stack: Number of frames that the policy sees.
        training: True: an episode is a life, and rewards are signs. False: whole games and raw scores.
        max_steps: Number of steps after which an episode is cut short.
        seed: Seed of game 0; game i gets `seed + i`.
    """
    env = DummyVecEnv([partial(_real_game, game, training, max_steps) for _ in range(num_envs)])
    env.seed(seed)
    return ContextFrameStack(env, frame_stack)


def _real_game(game: str, training: bool, max_steps: int) -> gymnasium.Env:
    env: gymnasium.Env = Monitor(TimeLimit(AtariEnv(game, training=training), max_steps))
    return ClipRewardEnv(env) if training else env
