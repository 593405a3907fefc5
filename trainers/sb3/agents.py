"""Agents of Stable-Baselines3: make, save and load them."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym import untrusted
from diamond_gym.backends.choose import pick_device
from diamond_gym.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InvalidInputError,
    MissingDependencyError,
)
from diamond_gym.files import replacing
from trainers.sb3.settings import OFF_POLICY, PRESETS, RECURRENT

AGENT_FILE = "agent.zip"
EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of GAME.zip: agents that learned in imagination only; the README.md beside them says how."""
_WHAT = "an agent that this Stable-Baselines3 loads"
_MAX_BYTES, _MAX_DATA_BYTES = 2**29, 2**24
_MAX_ACTIONS, _MAX_FRAMES, _MAX_NUMBER = 1024, 64, 10**7
_COUNTS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls")
"""Counters that a resumed agent keeps."""


def algorithm(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm.

    Raises:
        MissingDependencyError: The algorithm is one of sb3-contrib, which is not installed.
    """
    if name in ("ppo", "a2c", "dqn"):
        return {"ppo": PPO, "a2c": A2C, "dqn": DQN}[name]
    try:
        import sb3_contrib
    except ImportError:
        raise MissingDependencyError(f"{name} needs sb3-contrib: pip install 'diamond-gym[sb3]'") from None
    return {"recurrent_ppo": sb3_contrib.RecurrentPPO, "qrdqn": sb3_contrib.QRDQN}[name]


def new_agent(name: str, env: VecEnv, *, seed: int, device: str, **kwargs: Any) -> BaseAlgorithm:
    """Make an untrained agent."""
    return algorithm(name)(_policy(name), env, seed=seed, device=pick_device(device), **kwargs)


def _policy(name: str) -> str:
    return "CnnLstmPolicy" if name in RECURRENT else "CnnPolicy"


def save_agent(agent: BaseAlgorithm, path: Path) -> None:
    """Write an agent as a zip that Stable-Baselines3 loads; an older one stays until this one is complete.

    Raises:
        CacheError: The folder cannot be written.
    """
    with replacing(path) as file:
        agent.save(file)  # pyright: ignore[reportArgumentType]  (any binary file will do)


def find_agent(name: str, game: str) -> Path:
    """Find the zip of an agent.

    Args:
        name: Path of the zip, of a run folder or of a loop's folder (its last round), or "embedded": the
            agent that comes with the package.
        game: The game it will play.

    Raises:
        CheckpointNotFoundError: There is no such agent.
    """
    if name == "embedded":
        return _embedded_agent(game)
    path = Path(name)
    found = _agent_in(path) if path.is_dir() else path
    if not found.is_file():
        raise CheckpointNotFoundError(f"there is no agent at {found}")
    return found


def _agent_in(folder: Path) -> Path:
    """The zip in the folder of a run, or of the last round of a loop."""
    rounds = {
        int(match[1]): path
        for path in folder.glob(f"round-*/agent/{AGENT_FILE}")
        if (match := re.fullmatch(r"round-(\d+)", path.parents[1].name))
    }
    return rounds[max(rounds)] if rounds else folder / AGENT_FILE


def _embedded_agent(game: str) -> Path:
    path = EMBEDDED / f"{game}.zip"
    if not path.is_file():
        games = ", ".join(sorted(file.stem for file in EMBEDDED.glob("*.zip"))) or "none yet"
        raise CheckpointNotFoundError(f"no embedded agent of {game}; games with one: {games}")
    return path


def load_agent(
    path: Path,
    *,
    device: str,
    algo: str | None = None,
    env: VecEnv | None = None,
    keywords: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> BaseAlgorithm:
    """Load an agent from its zip.

    Such a zip holds pickled Python, which can run anything when it is unpickled. That is not done here unless
    `trust` is True: a new agent is built from the plain text that is also in the zip (algorithm, frames,
    actions), and gets the weights.

    Args:
        path: The zip.
        device: Device of the policy.
        algo: Name of the algorithm that the agent must be of; None recognises it.
        env: Games in which the agent is to continue learning; their spaces must be the agent's.
        keywords: Keyword arguments of the algorithm, for an agent that continues learning; numbers in the zip
            take precedence.
        trust: Whether to load the zip as Stable-Baselines3 does, whatever is pickled in it.

    Raises:
        CheckpointError: The file is damaged, not an agent of a known algorithm, or its policy is described by
            pickled Python only.
        InvalidInputError: The agent is of another algorithm, or for other observations or actions.
        MissingDependencyError: The algorithm is one of sb3-contrib, which is not installed.
    """
    with untrusted.reading(path, CheckpointError, _WHAT):
        data, weights = _plain(path)
    name = _checked_algorithm(path, data, algo, trust)
    kind, place = algorithm(name), pick_device(device)
    if trust:
        with untrusted.reading(path, CheckpointError, _WHAT):
            return kind.load(path, env=env, device=place)
    frames, actions = _spaces(path, data)
    with untrusted.reading(path, CheckpointError, _WHAT):
        if env is None:
            agent = _untrained(name, frames, actions, place)
        else:
            known = {key: data[key] for key in keywords or {} if _is_number(data.get(key))}
            agent = new_agent(name, env, seed=0, device=device, **{**(keywords or {}), **known})
    if (agent.observation_space.shape, agent.action_space) != (frames.shape, actions):
        raise InvalidInputError(
            f"{path} was not trained for these games: it sees {frames.shape} and has {actions}, these show "
            f"{agent.observation_space.shape} and have {agent.action_space}"
        )
    _take_weights(agent, weights, path, name)
    for count in _COUNTS:
        if hasattr(agent, count) and _is_number(data.get(count)):
            setattr(agent, count, int(data[count]))
    return agent


def _plain(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the plain text of a zip, and the weights of the agent and of its optimiser.

    Raises:
        Exception: The file is damaged, or not such a zip.
    """
    with untrusted.opened(path) as file, zipfile.ZipFile(file) as archive:
        untrusted.check_unpacked(archive, _MAX_BYTES)
        if archive.getinfo("data").file_size > _MAX_DATA_BYTES:
            raise ValueError("its settings are far too long")
        data = untrusted.parse_json(archive.read("data").decode("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("its settings are no mapping")
        weights = {
            name.removesuffix(".pth"): untrusted.load_torch(io.BytesIO(archive.read(name)))
            for name in archive.namelist()
            if name in ("policy.pth", "policy.optimizer.pth")
        }
        untrusted.check_finite(weights["policy"])
    return data, weights


def _spaces(path: Path, data: dict[str, Any]) -> tuple[Box, Discrete]:
    """Observation and action space of an agent, channels first, from the plain text of its zip.

    Raises:
        CheckpointError: The text does not describe them.
        InvalidInputError: The agent sees anything but stacks of 64x64 RGB frames, or has no discrete actions.
    """
    with untrusted.reading(path, CheckpointError, _WHAT):
        frames, actions = data["observation_space"], data["action_space"]
        shape = [int(side) for side in frames["_shape"]]
        num_actions = int(actions["n"]) if "n" in actions else 0
    if len(shape) != 3 or shape[1:] != [64, 64] or shape[0] not in range(3, 3 * _MAX_FRAMES + 1, 3):
        raise InvalidInputError(
            f"{path} sees observations of shape {tuple(shape)}; accepted are stacks of 64x64 RGB frames"
        )
    if not 1 <= num_actions <= _MAX_ACTIONS or frames.get("dtype") != "uint8":
        raise InvalidInputError(f"{path} has {num_actions} actions and frames of {frames.get('dtype')}")
    return Box(0, 255, tuple(shape), np.uint8), Discrete(num_actions)


def _untrained(name: str, frames: Box, actions: Discrete, device: torch.device) -> BaseAlgorithm:
    """Make an untrained agent for playing: it has no room for experience to learn from."""
    small: dict[str, Any] = {"buffer_size": 1} if name in OFF_POLICY else {"n_steps": 2}
    agent = algorithm(name)(_policy(name), None, device=device, _init_setup_model=False, **small)  # pyright: ignore
    agent.observation_space, agent.action_space, agent.n_envs = frames, actions, 1
    agent._setup_model()
    return agent


def _take_weights(agent: BaseAlgorithm, weights: dict[str, Any], path: Path, name: str) -> None:
    """Load weights into a new agent.

    Raises:
        CheckpointError: The weights are not those of the algorithm's standard policy.
    """
    try:
        agent.set_parameters(weights, exact_match=True, device=agent.device)
    except Exception as error:  # torch's errors, and those that malformed optimiser states cause
        raise CheckpointError(
            f"{path} has another policy than {name} usually has, or is damaged ({untrusted.reason(error)}). "
            "Only pickled Python in the file describes its policy, and that can run anything: give "
            "trust=true if you trust its author"
        ) from error


def _is_number(value: Any) -> bool:
    """Whether a value is a plain number, as a setting of an algorithm may be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER


def set_learning_rate(agent: BaseAlgorithm, rate: float, *, falls: bool) -> None:
    """Set the learning rate of an agent, from its next update on.

    Args:
        agent: The agent.
        rate: Its learning rate, at the beginning.
        falls: Whether the rate falls linearly to 0, which it reaches when `learn` ends.
    """
    agent.learning_rate = rate
    agent.lr_schedule = FloatSchedule(LinearSchedule(rate, 0.0, 1.0) if falls else rate)


def is_off_policy(agent: BaseAlgorithm) -> bool:
    """Whether an algorithm learns from a replay buffer."""
    return isinstance(agent, OffPolicyAlgorithm)


def check_fits(agent: BaseAlgorithm, env: VecEnv, path: Path) -> None:
    """Check that an agent can play in an environment.

    Raises:
        InvalidInputError: The agent was trained for other observations or actions.
    """
    if agent.action_space != env.action_space:
        raise InvalidInputError(
            f"{path} was trained for {agent.action_space}, these games have {env.action_space}: wrong game?"
        )
    seen, shown = agent.observation_space.shape, env.observation_space.shape
    if sorted(seen or ()) != sorted(shown or ()):  # channels first or last
        raise InvalidInputError(f"{path} was trained for observations of shape {seen}, these are of {shown}")


def _checked_algorithm(path: Path, saved: dict[str, Any], asked: str | None, trust: bool) -> str:
    """The algorithm of an agent, which must be the one that is asked for; custom policies do not tell it."""
    with untrusted.reading(path, CheckpointError, _WHAT):
        module = str(saved["policy_class"]["__module__"])
    found = _recognise(module, saved)
    if found is None:
        if asked is not None and trust:
            return asked
        raise CheckpointError(
            f"{path} is of an unknown algorithm, or its policy ({module}) is not Stable-Baselines3's own; "
            f"known: {', '.join(PRESETS)}" + (f"; trust=true takes it for {asked}" if asked else "")
        )
    if asked not in (None, found):
        raise InvalidInputError(f"{path} is an agent of {found}, not of {asked}")
    return found


def _recognise(module: str, saved: dict[str, Any]) -> str | None:
    """Recognise an algorithm by the module of its policy, and by values that only it saves."""
    if "cg_damping" in saved:  # TRPO has the policy of A2C
        return None
    return {
        "sb3_contrib.qrdqn.policies": "qrdqn",
        "sb3_contrib.common.recurrent.policies": "recurrent_ppo",
        "stable_baselines3.dqn.policies": "dqn",
        "stable_baselines3.common.policies": "ppo" if "clip_range" in saved else "a2c",
    }.get(module)
