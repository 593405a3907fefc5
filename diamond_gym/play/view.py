"""What a session shows, as data: a picture and facts. Whoever shows it decides how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from diamond_gym.play.keys import Command, Shortcut

Facts = tuple[tuple[str, str], ...]
"""Name and value, such as ("Reward", "1")."""


@dataclass(frozen=True)
class View:
    """One moment on the screen.

    Attributes:
        picture: Without the header.
        header: Columns of facts, all of the same height whatever happens.
        message: What happened last, in a sentence; empty where there is nothing to tell.
    """

    picture: UInt8[np.ndarray, "s s 3"]
    header: tuple[Facts, ...]
    message: str


class Session(Protocol):
    """What a viewer shows and passes commands on to.

    Attributes:
        title: What is shown, for a title bar or a file's name.
        shortcuts: Keys for its commands.
        message: What happened last; a viewer may put others, and takes each away after a while.
    """

    title: str
    shortcuts: tuple[Shortcut, ...]
    message: str

    def command(self, command: Command, value: float | None = None) -> None:
        """Do what was asked for.

        Args:
            command: What; one that is not the session's own is ignored.
            value: A number, for the commands that need or take one.

        Raises:
            InvalidInputError: The number is missing or out of range; nothing has changed.
        """
        ...

    def advance(self, held: Sequence[str]) -> None:
        """Time goes on by one picture, with these keys held, in the order in which they were pressed."""
        ...

    def view(self) -> View:
        """What there is to see now."""
        ...

    def instructions(self) -> list[tuple[str, str]]:
        """Keys and what they do, where that is not a shortcut's affair."""
        ...

    def held_keys(self) -> list[tuple[str, str]]:
        """Keys that do something while they are held, and what each does alone; "" for nothing."""
        ...

    def close(self) -> str:
        """End it, keeping what can be kept; a line on what was kept, or nothing."""
        ...
