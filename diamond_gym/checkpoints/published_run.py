"""Read the game and the sampler of a world model from the published trainer's `config/trainer.yaml`.

It is read as plain data: names of classes (`_target_`) and expressions (`${eval:...}`) are never followed.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diamond_gym import untrusted
from diamond_gym.checkpoints.description import WorldDescription
from diamond_gym.errors import CheckpointError
from diamond_gym.world.models import config_from_dict
from diamond_gym.world.sampler import DiffusionSamplerConfig

CONFIG_FILE = Path("config", "trainer.yaml")
"""The configuration inside a run folder, ours or a published one."""
_INFINITY = re.compile(r"""\$\{eval:\s*['"]?float\(\s*['"]inf['"]\s*\)['"]?\s*\}""")
"""The published configuration's text for infinity, which YAML writes differently."""
_TEXTS = ("s_churn_at",)
_SAMPLER = "world_model_env.diffusion_sampler"


def is_published(run: Path) -> bool:
    """Whether a folder is a run of the published trainer: its configuration names games by `env`.

    Raises:
        CheckpointError: The configuration cannot be read.
    """
    file = run / CONFIG_FILE
    return file.is_file() and isinstance(_read(file).get("env"), Mapping)


def describe(run: Path) -> WorldDescription:
    """Describe the game and sampler of a published run; the sizes are inferred from its weights.

    Raises:
        CheckpointError: The configuration cannot be read, or has an unknown key or value of the sampler.
    """
    file = run / CONFIG_FILE
    config = _read(file)
    values = {name: x for name, x in _inner(config, *_SAMPLER.split(".")).items() if name != "_target_"}
    with untrusted.reading(file, CheckpointError, f"a configuration with a sampler in {_SAMPLER}"):
        numbers = {name: x if name in _TEXTS else _number(name, x) for name, x in values.items()}
        sampler = config_from_dict(DiffusionSamplerConfig, numbers)
    return WorldDescription(None, sampler, game_of(run), None)


def game_of(run: Path) -> str | None:
    """The id of a published run's environment, such as BreakoutNoFrameskip-v4; None when it states none.

    Raises:
        CheckpointError: The configuration cannot be read.
    """
    name = _inner(_read(run / CONFIG_FILE), "env", "train").get("id")
    return name if isinstance(name, str) else None


def _read(file: Path) -> Mapping[str, Any]:
    content = untrusted.read_yaml(file, CheckpointError, "a configuration")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} is not a configuration: it holds {type(content).__name__}")
    return content


def _inner(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping at a path of keys, empty where there is none."""
    for key in keys:
        config = config.get(key)  # pyright: ignore[reportAssignmentType]
        if not isinstance(config, Mapping):
            return {}
    return config


def _number(name: str, value: Any) -> float:
    """Parse a number, also one that YAML 1.1 takes for text, such as 2e-3.

    Raises:
        ValueError: It is not a number.
    """
    if isinstance(value, str) and _INFINITY.fullmatch(value.strip()):
        return math.inf
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r} is not a number")
    return value
