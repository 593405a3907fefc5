"""Scores a saved agent in the real game or in imagination, or compares what it meets in both."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.evaluation import compare_play
from diamond_gym.evaluate.score import Score
from diamond_gym.evaluate.settings import Settings
from diamond_gym.registration import game_name
from trainers.sb3 import games, scoring
from trainers.sb3.agents import check_fits, find_agent, load_agent
from trainers.sb3.player import AgentPlayer, AgentPolicy
from trainers.sb3.settings import BOTH, EvaluateSettings

_NUM_ENVS = 8
_HELD_OUT_GAMES = 20


def evaluate(settings: EvaluateSettings, *, progress: bool = True) -> Score:
    """Let a saved agent play, and return its score.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is not an agent.
        InvalidInputError: The agent is for another game, or is to play in both worlds.
        DiamondGymError: The world model is not usable; the subclass says how.
    """
    if settings.where == BOTH:
        raise InvalidInputError(f"where={BOTH} gives no score: call compare")
    path = find_agent(settings.agent, game_name(settings.game))
    agent = load_agent(path, device=settings.device, trust=settings.trust)
    env = _games(settings, frame_stack(agent, path))
    try:
        check_fits(agent, env, path)
        policy = AgentPolicy(agent, deterministic=settings.deterministic)
        returns = scoring.play_games(
            policy, env, settings.episodes, settings.where, seed=settings.seed, progress=progress
        )
    finally:
        env.close()
    return Score.of(f"{path}, {settings.where}", returns)


def compare(settings: EvaluateSettings) -> dict[str, Any]:
    """Let a saved agent play on from the same contexts in the real game and in imagination.

    Returns:
        What it meets in both, as of `diamond_gym.evaluate.evaluation.compare_play`.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is not an agent.
        InvalidInputError: The agent is for another game.
        DiamondGymError: The world model is not usable; the subclass says how.
    """
    path = find_agent(settings.agent, game_name(settings.game))
    agent = load_agent(path, device=settings.device, trust=settings.trust)
    stack = frame_stack(agent, path)
    with closing(_games(replace(settings, where="real", episodes=1), stack)) as env:
        check_fits(agent, env, path)
    asked = Settings(
        game=settings.game,
        checkpoint=settings.checkpoint,
        episodes=min(_HELD_OUT_GAMES, settings.episodes),
        starts=settings.episodes,
        horizon=settings.horizon,
        seed=settings.seed,
        num_denoising_steps=settings.num_denoising_steps,
        device=settings.device,
        backend=settings.backend,
    )
    return compare_play(asked, lambda: AgentPlayer(agent, stack, deterministic=settings.deterministic))


def frame_stack(agent: BaseAlgorithm, path: Path) -> int:
    """Number of frames that an agent sees.

    Raises:
        InvalidInputError: The agent does not see stacks of 64x64 RGB frames.
    """
    shape = sorted(agent.observation_space.shape or ())
    if len(shape) != 3 or shape[1:] != [64, 64] or shape[0] % 3:
        raise InvalidInputError(
            f"{path} sees observations of shape {agent.observation_space.shape}; accepted are stacks of "
            "64x64 RGB frames"
        )
    return shape[0] // 3


def _games(settings: EvaluateSettings, stack: int) -> VecEnv:
    num_envs = min(_NUM_ENVS, settings.episodes)
    if settings.where == "imagination":
        return games.imagined(settings, num_envs, frame_stack=stack, seed=settings.seed)
    return games.real(
        game_name(settings.game),
        num_envs,
        frame_stack=stack,
        training=False,
        max_steps=settings.max_game_steps,
        seed=settings.seed,
    )
