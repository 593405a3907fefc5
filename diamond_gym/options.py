"""Command lines of `key=value` into dataclasses, and the checks that all command lines share.

Knows nothing of what the options are for.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar

from diamond_gym.errors import InvalidInputError

_T = TypeVar("_T")


def option(default: Any, text: str, kind: type | None = None) -> Any:
    """A field of a dataclass of options.

    Args:
        default: What it is without the option.
        text: A line of help.
        kind: str, int, float or bool; None is the type of the default.
    """
    return field(default=default, metadata={"help": text, "kind": kind or type(default)})


def parse(kind: type[_T], arguments: Sequence[str]) -> _T:
    """A dataclass, all of whose fields are options, from arguments such as `["game=Breakout", "horizon=30"]`.

    "null" stands for None where that is the default.

    Raises:
        InvalidInputError: An argument is no `key=value`, a key is unknown or given twice, or a value is not
            of the key's type; or what the dataclass itself refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in fields:
            raise InvalidInputError(f"unknown option {key!r}: {_suggestion(key, list(fields))}")
        if not equals:
            raise InvalidInputError(f"options are written key=value, got {argument!r}")
        if key in values:
            raise InvalidInputError(f"option {key!r} is given twice")
        is_null = text == "null" and fields[key].default is None
        values[key] = None if is_null else _value(key, text, fields[key].metadata["kind"])
    return kind(**values)


def check_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raises `InvalidInputError` unless a value is one of the accepted."""
    if value not in accepted:
        raise InvalidInputError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def check_positive(given: object, *names: str) -> None:
    """Raises `InvalidInputError` unless these attributes are at least 1, or None."""
    for name in names:
        number = getattr(given, name)
        if number is not None and number < 1:
            raise InvalidInputError(f"{name} must be at least 1, got {number}")


def check_seed(seed: int, bits: int) -> None:
    """Raises `InvalidInputError` unless a seed is at least 0 and has at most so many bits."""
    if not 0 <= seed < 2**bits:
        raise InvalidInputError(f"seed must be at least 0 and below 2^{bits}, got {seed}")


def positive_int(text: str) -> int:
    """An integer >= 1, as the `type` of an argument of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """An integer >= 0, as the `type` of an argument of argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0, as the `type` of an argument of argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return number


def describe(kind: type) -> str:
    """A line of help for each option, with its default."""
    lines = []
    for f in dataclasses.fields(kind):
        default = "..." if f.default is None else _text(f.default)
        lines.append(f"  {f'{f.name}={default}':24} {f.metadata['help']}")
    return "\n".join(lines)


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key.lstrip("-"), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


_KINDS = {int: "an integer", float: "a number"}


def _value(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise InvalidInputError(f"{key} must be true or false, got {text!r}")
        return text == "true"
    if kind is str:
        if not text:
            raise InvalidInputError(f"option {key!r} needs a value")
        return text
    try:
        return kind(text)
    except ValueError:
        raise InvalidInputError(f"{key} must be {_KINDS[kind]}, got {text!r}") from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
