"""Stable-Baselines3's algorithms by name: made, saved and loaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym.backends.choose import pick_device
from diamond_gym.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InvalidInputError,
    MissingDependencyError,
    first_line,
)
from diamond_gym.files import replacing
from trainers.sb3.settings import PRESETS, RECURRENT

AGENT_FILE = "agent.zip"
EMBEDDED = Path(__file__).parent / "embedded"
"""GAME.zip: agents that learned in imagination and nowhere else; the README.md beside them tells how."""
_UNREADABLE = (
    AttributeError,
    EOFError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    json.JSONDecodeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
"""What comes out of files that are damaged, of other programs or of other versions."""


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
    return algorithm(name)(policy, env, seed=seed, device=pick_device(device), **kwargs)


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """Writes an agent as a zip that Stable-Baselines3 loads; an older one stays until this one is complete.

    Raises:
        CacheError: the folder cannot be written.
    """
    with replacing(path) as file:
        agent.save(file)  # pyright: ignore[reportArgumentType]  (any binary file will do)


def find_agent(name: str, game: str) -> Path:
    """The zip of an agent.

    Args:
        name: path of the zip, of a run folder or of a loop's (its last round), or "embedded": the one that
            comes with the package.
        game: the game it will play.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    if name == "embedded":
        return _embedded_agent(game)
    path = Path(name)
    found = _agent_in(path) if path.is_dir() else path
    if not found.is_file():
        raise CheckpointNotFoundError(f"there is no agent at {found}")
    return found


def _agent_in(folder: Path) -> Path:
    """Of a run, or of the last round of a loop."""
    rounds = folder.glob(f"round-[0-9]*/agent/{AGENT_FILE}")
    latest = max(rounds, key=lambda path: int(path.parents[1].name.removeprefix("round-")), default=None)
    return latest or folder / AGENT_FILE


def _embedded_agent(game: str) -> Path:
    path = EMBEDDED / f"{game}.zip"
    if not path.is_file():
        games = ", ".join(sorted(file.stem for file in EMBEDDED.glob("*.zip"))) or "none yet"
        raise CheckpointNotFoundError(f"no embedded agent of {game}; games with one: {games}")
    return path


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
    kind, place = algorithm(algo or _algorithm_of(path)), pick_device(device)
    try:
        return kind.load(path, env=env, device=place)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise InvalidInputError(f"{path} was not trained for these games: {first_line(error)}") from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not an agent that this Stable-Baselines3 loads: {first_line(error)}")


def set_learning_rate(agent: BaseAlgorithm, rate: float) -> None:
    """Has an agent learn at another rate from its next update on."""
    agent.learning_rate, agent.lr_schedule = rate, FloatSchedule(rate)


def is_off_policy(agent: BaseAlgorithm) -> bool:
    """Whether it learns from a replay buffer."""
    return isinstance(agent, OffPolicyAlgorithm)


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
    """By the module of the policy, and by what only one algorithm saves."""
    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("data"))
        module = str(saved["policy_class"]["__module__"])
    except (*_UNREADABLE, TypeError) as error:
        raise _unreadable(path, error) from error
    known = {
        "sb3_contrib.qrdqn.policies": "qrdqn",
        "sb3_contrib.common.recurrent.policies": "recurrent_ppo",
        "stable_baselines3.dqn.policies": "dqn",
        "stable_baselines3.common.policies": "ppo" if "clip_range" in saved else "a2c",
    }
    if module not in known or "cg_damping" in saved:  # TRPO has the policy of A2C
        raise CheckpointError(
            f"{path} is of an unknown algorithm, or its policy ({module}) is not Stable-Baselines3's own; "
            f"known: {', '.join(PRESETS)}"
        )
    return known[module]
