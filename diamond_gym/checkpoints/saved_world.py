"""World models in our own format: a file of weights that describes itself, start contexts beside it.

The folder form is `<folder>/model.safetensors` and `<folder>/contexts.safetensors`; a lone file
`<name>.safetensors` has its contexts in `<name>.contexts.safetensors`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.checkpoints.description import WorldDescription, names_wanted, num_action_names
from diamond_gym.checkpoints.weights import build_agent, checked_weights
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.registration import game_name
from diamond_gym.world.models import Agent
from diamond_gym.world.sampler import DiffusionSamplerConfig

MODEL_FILE = "model.safetensors"
CONTEXTS_FILE = "contexts.safetensors"

_SUFFIX = ".safetensors"
_DESCRIPTION = "diamond_gym.world"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def save_world(
    path: str | os.PathLike[str],
    agent: Agent,
    *,
    game: str | None,
    action_meanings: Sequence[str] | None,
    sampler: DiffusionSamplerConfig,
    contexts: ContextBank | None = None,
    dtype: str = "float32",
    training: dict[str, Any] | None = None,
) -> Path:
    """Write a world model where `load_world` can read it.

    Args:
        path: A folder, or a file name that ends in `.safetensors`. Existing files are replaced atomically.
        agent: Its networks, with or without an actor-critic.
        game: Name of the Atari game, None for any other environment.
        action_meanings: Names of its actions in order, or of the parts of an action where it is not discrete;
            None when they have none.
        sampler: How its frames are to be sampled.
        contexts: The contexts its games start from; None keeps those that are already there.
        dtype: "float32", or "float16" for half the size (weights only; buffers stay as they are).
        training: Anything worth recording about its training, expressible in JSON.

    Returns:
        The file of weights.

    Raises:
        InvalidInputError: Arguments contradict each other.
        UnknownGameError: ale_py has no such game.
        CacheError: The folder cannot be written.
    """
    if dtype not in _DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if action_meanings is not None and len(action_meanings) != num_action_names(agent.action_space):
        raise InvalidInputError(
            f"the agent has {names_wanted(agent.action_space)}, action_meanings has {len(action_meanings)}"
        )
    description = WorldDescription(
        agent=agent.config,
        sampler=sampler,
        game=None if game is None else game_name(game),
        action_meanings=None if action_meanings is None else list(action_meanings),
        training=training,
    )
    try:
        metadata = {"format": "pt", _DESCRIPTION: description.to_json()}
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"training must be expressible in JSON: {error}") from error
    weights = {name: parameter.to(_DTYPES[dtype]) for name, parameter in agent.named_parameters()}
    weights |= dict(agent.named_buffers())
    try:
        untrusted.check_finite(weights)
    except ValueError as error:
        raise InvalidInputError(f"the agent cannot be saved in {dtype}: {error}") from error
    file = Path(path).expanduser()
    file = file if file.suffix == _SUFFIX else file / MODEL_FILE
    if contexts is not None:
        contexts.save(contexts_path(file))
    disk.write_tensors(file, weights, metadata)
    return file


def read_saved_world(file: Path) -> tuple[Agent, WorldDescription]:
    """Read the networks, on the CPU in float32, and the description from a file of weights.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is truncated, foreign, or contradicts itself.
    """
    weights, metadata = untrusted.read_tensors(file)
    if _DESCRIPTION not in metadata:
        raise CheckpointError(
            f"{file} is not a world model of this program: its metadata has no {_DESCRIPTION} (found: "
            f"{', '.join(metadata) or 'no metadata'}). Give a file that save_world wrote, or a published .pt"
        )
    description = WorldDescription.from_json(metadata[_DESCRIPTION], str(file))
    if description.agent is None:
        raise CheckpointError(
            f"{file} does not say how large its networks are: save it again with save_world"
        )
    agent = build_agent(checked_weights(file, weights), file, description.agent, is_complete=True)
    return agent, description


def contexts_path(file: Path) -> Path:
    """The path of the start contexts of a file of weights, which may not exist."""
    name = CONTEXTS_FILE if file.name == MODEL_FILE else f"{file.stem}.{CONTEXTS_FILE}"
    return file.with_name(name)
