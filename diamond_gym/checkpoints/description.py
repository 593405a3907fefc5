"""The description of a world model: sizes, sampler, game, actions, training.

It is strict JSON in the metadata of our safetensors files and in `config/world.json` of a run folder. It is
plain data: reading it never runs anything.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.errors import CheckpointError, CheckpointNotFoundError
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import AgentConfig, config_from_dict
from diamond_gym.world.sampler import DiffusionSamplerConfig

FORMAT_VERSION = 1


@dataclass(frozen=True)
class WorldDescription:
    """Everything about a world model except its weights and start contexts.

    Attributes:
        agent: Sizes of its networks; None when unknown (they can be read off the weights).
        sampler: How its frames are sampled.
        game: Name of its Atari game; None when unknown, or when it is not an Atari game.
        action_meanings: Names of its actions in order, or of the parts of an action where it is not discrete;
            None when unknown.
        training: Anything worth recording about its training.
    """

    agent: AgentConfig | None
    sampler: DiffusionSamplerConfig
    game: str | None
    action_meanings: list[str] | None
    training: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Return strict JSON, with infinite numbers as the string "inf"."""
        fields = {"format_version": FORMAT_VERSION, **asdict(self)}
        fields["sampler"] = {key: finite_or_text(value) for key, value in fields["sampler"].items()}
        return json.dumps(fields, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str) -> WorldDescription:
        """Read what `to_json` wrote.

        Args:
            text: JSON.
            source: Where it comes from, for error messages.

        Raises:
            CheckpointError: It is not JSON, of a later format, or not a description.
        """
        with untrusted.reading(source, CheckpointError, "the description of a world model"):
            fields = untrusted.parse_json(text)
            if not isinstance(fields, dict):
                raise ValueError(f"expected a mapping, got {type(fields).__name__}")
            version = fields.get("format_version", FORMAT_VERSION)
            if version != FORMAT_VERSION:
                raise ValueError(f"it is of format version {version!r}, this program reads {FORMAT_VERSION}")
            return cls(
                agent=_agent(_checked(dict, "agent", fields.get("agent"))),
                sampler=_sampler(_checked(dict, "sampler", fields.get("sampler"))),
                game=_checked(str, "game", fields.get("game")),
                action_meanings=_names(fields.get("action_meanings")),
                training=_checked(dict, "training", fields.get("training")),
            )

    def save(self, path: Path) -> None:
        """Write the description as a JSON file.

        Raises:
            CacheError: The file cannot be written.
        """
        disk.write_file(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path) -> WorldDescription:
        """Read a JSON file.

        Raises:
            CheckpointNotFoundError: There is no such file.
            CheckpointError: It holds no description.
        """
        if not path.is_file():
            raise CheckpointNotFoundError(f"there is no file {path}")
        text = untrusted.read_text(path, CheckpointError, "the description of a world model")
        return cls.from_json(text, str(path))


def num_action_names(space: ActionSpace) -> int:
    """Number of names in `action_meanings`: one for each choice of a discrete space, else for each part."""
    return space.size if space.num_actions is None else space.num_actions


def names_wanted(space: ActionSpace) -> str:
    """Say what `action_meanings` names, for error messages: "4 actions", or "2 parts of an action"."""
    return f"{num_action_names(space)} {'actions' if space.is_discrete else 'parts of an action'}"


def finite_or_text(value: float) -> float | str:
    """Return a number as JSON can hold it: an infinite one as the string "inf"."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _agent(values: dict[str, Any] | None) -> AgentConfig | None:
    return None if values is None else config_from_dict(AgentConfig, values)


_REMOVED = {"timestep_spacing": "leading"}
"""Former keys of the sampler, with the only values that are accepted: those that mean today's sampler."""


def _sampler(values: dict[str, Any] | None) -> DiffusionSamplerConfig:
    if values is None:
        return DiffusionSamplerConfig()
    kept = {key: _number(key, x) for key, x in values.items() if _REMOVED.get(key) != x}
    return config_from_dict(DiffusionSamplerConfig, kept)


def _number(key: str, value: Any) -> Any:
    """The inverse of `finite_or_text`, except for the names among the sampler's values."""
    is_name = get_type_hints(DiffusionSamplerConfig).get(key, str) is str
    return float(value) if isinstance(value, str) and not is_name else value


def _checked(kind: type, name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def _names(value: Any) -> list[str] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"action_meanings must be a list of names, got {value!r}")
    return value
