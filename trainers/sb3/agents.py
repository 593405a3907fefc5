"""Stable-Baselines3's algorithms by name: made, saved and loaded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym.disk import replacing
from diamond_gym.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InvalidInputError,
    MissingDependencyError,
    first_line,
)
from trainers.sb3.settings import RECURRENT

AGENT_FILE = "agent.zip"


def algorithm(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm.

    Raises:
        MissingDependencyError: it is one of sb3-contrib, which is not installed.
    """
    if name in ("ppo", "a2c", "dqn"):
        return {"ppo": PPO, "a2c": A2C, "dqn": DQN}[name]
    try:
        import sb3_contrib
    except ImportError:
        raise MissingDependencyError(f"{name} needs sb3-contrib: pip install 'diamond-gym[sb3]'") from None
    return {"recurrent_ppo": sb3_contrib.RecurrentPPO, "qrdqn": sb3_contrib.QRDQN}[name]


def new_agent(name: str, env: VecEnv, *, seed: int, device: str, **kwargs: Any) -> BaseAlgorithm:
    """An agent that has learned nothing."""
    policy = "CnnLstmPolicy" if name in RECURRENT else "CnnPolicy"
    return algorithm(name)(policy, env, seed=seed, device=device, **kwargs)


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """Writes an agent as a zip that Stable-Baselines3 loads; an older one stays until this one is complete.

    Raises:
        CacheError: the folder cannot be written.
    """
    with replacing(path) as file:
        agent.save(file)  # pyright: ignore[reportArgumentType]  (any binary file will do)


def find_agent(path: Path) -> Path:
    """The zip of an agent.

    Args:
        path: the zip, or a run folder.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    found = path / AGENT_FILE if path.is_dir() else path
    if not found.is_file():
        raise CheckpointNotFoundError(f"there is no agent at {found}")
    return found


def load_agent(
    path: Path, *, device: str, algo: str | None = None, env: VecEnv | None = None
) -> BaseAlgorithm:
    """An agent out of its zip.

    Args:
        path: the zip.
        device: where its policy runs.
        algo: its algorithm; None finds out.
        env: games to go on learning from; their spaces must be the agent's.

    Raises:
        CheckpointError: the file is damaged, or no agent of a known algorithm.
        InvalidInputError: the agent is for other observations or actions.
        MissingDependencyError: its algorithm is one of sb3-contrib, which is not installed.
    """
    try:
        return algorithm(algo or _algorithm_of(path)).load(path, env=env, device=device)
    except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not an agent of Stable-Baselines3: {first_line(error)}") from error
    except ValueError as error:
        raise InvalidInputError(f"{path} was not trained for these games: {first_line(error)}") from error


def check_fits(agent: BaseAlgorithm, env: VecEnv, path: Path) -> None:
    """Makes sure that an agent can play.

    Raises:
        InvalidInputError: it was trained for other observations or actions.
    """
    if agent.action_space != env.action_space:
        raise InvalidInputError(
            f"{path} was trained for {agent.action_space}, these games have {env.action_space}: another game?"
        )
    seen, shown = agent.observation_space.shape, env.observation_space.shape
    if sorted(seen or ()) != sorted(shown or ()):  # channels first or last
        raise InvalidInputError(f"{path} was trained for observations of shape {seen}, these are of {shown}")


def _algorithm_of(path: Path) -> str:
    """By what only one algorithm saves."""
    with zipfile.ZipFile(path) as archive:
        saved = json.loads(archive.read("data"))
    module = str(saved["policy_class"])  # names the module of the policy
    if "sb3_contrib.qrdqn" in module:
        return "qrdqn"
    if "sb3_contrib.common.recurrent" in module:
        return "recurrent_ppo"
    if "exploration_rate" in saved:
        return "dqn"
    return "ppo" if "clip_range" in saved else "a2c"
