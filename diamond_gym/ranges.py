"""Checks of numbers from users or files: of the right type, finite and within a range."""

from __future__ import annotations

import math
from typing import Any

from diamond_gym.errors import InvalidInputError


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """Raise `InvalidInputError` unless a value is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInputError(f"{name} must be an integer from {least} to {most}, got {_shown(value)}")


def check_integers(name: str, values: Any, least: int, most: int) -> None:
    """Raise `InvalidInputError` unless a value is a list of integers from `least` to `most`."""
    if not isinstance(values, list):
        raise InvalidInputError(f"{name} must be a list of integers, got {_shown(values)}")
    for value in values:
        check_integer(f"{name} (each of them)", value, least, most)


def check_number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    """Raise `InvalidInputError` unless a value is a number from `least` (or `above` it) to `most`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (least < value if above else least <= value) or not value <= most:
        lowest = f"above {least:g}" if above else f"at least {least:g}"
        highest = "" if math.isinf(most) else f" and at most {most:g}"
        raise InvalidInputError(f"{name} must be a number, {lowest}{highest}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """Format the value as a user would write it, cut if it is very long."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
