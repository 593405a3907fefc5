"""The command line: `key=value` arguments into typed settings. Knows nothing of what they are for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diamond_gym.errors import InvalidInputError


def _option(default: str | int | None, text: str, kind: type[str] | type[int] = str) -> Any:
    kind = kind if default is None else type(default)
    return field(default=default, metadata={"help": text, "kind": kind})


@dataclass
class Settings:
    """What to evaluate, and where to put the answer.

    Raises:
        InvalidInputError: a number is out of range.
    """

    game: str = _option("Breakout", "the game")
    checkpoint: str = _option("auto", "auto, embedded, hub, or a path to a checkpoint or run folder")
    policy: str = _option(
        "auto",
        "who plays the real game: scripted, random, auto (scripted where there is one), or a checkpoint",
    )
    episodes: int = _option(20, "held-out real episodes, each up to a lost life")
    starts: int | None = _option(
        None, "moments to imagine from, spread evenly; without it 200, 30 for large networks on a CPU", int
    )
    horizon: int = _option(50, "steps to imagine from each start")
    seed: int = _option(0, "fixes the episodes, the starts and the imagination")
    num_denoising_steps: int | None = _option(None, "passes per frame, instead of the checkpoint's own", int)
    device: str = _option("auto", "where the networks run: auto, cpu, cuda, ...")
    batch_size: int = _option(32, "games imagined at once; changes the time taken, not the numbers")
    out: str = _option("fidelity", "folder for fidelity.json, curves.png, film.png and film.mp4")

    def __post_init__(self) -> None:
        for name in ("episodes", "starts", "horizon", "num_denoising_steps", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {number}")
        if not 0 <= self.seed < 2**30:
            raise InvalidInputError(f"seed must be at least 0 and below 2^30, got {self.seed}")


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from arguments such as `["game=Breakout", "horizon=30"]`.

    Raises:
        InvalidInputError: an argument is no `key=value`, a key is unknown or given twice, or a value is not
            of the key's type or range.
    """
    types = {f.name: f.metadata["kind"] for f in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in types:
            raise InvalidInputError(f"unknown option {key!r}: {_suggestion(key, list(types))}")
        if not equals:
            raise InvalidInputError(f"options are written key=value, got {argument!r}")
        if key in values:
            raise InvalidInputError(f"option {key!r} is given twice")
        values[key] = _value(key, text, types[key])
    return Settings(**values)


def usage() -> str:
    """The help text."""
    lines = ["usage: python -m diamond_gym.evaluate [key=value ...]", "", "options:"]
    for option in dataclasses.fields(Settings):
        default = "..." if option.default is None else option.default
        lines.append(f"  {f'{option.name}={default}':24} {option.metadata['help']}")
    return "\n".join(lines)


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key.lstrip("-"), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _value(key: str, text: str, kind: type[str] | type[int]) -> str | int:
    if kind is str:
        if not text:
            raise InvalidInputError(f"option {key!r} needs a value")
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidInputError(f"{key} must be an integer, got {text!r}") from None
