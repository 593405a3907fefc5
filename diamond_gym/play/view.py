"""What a session shows, as data: a picture and facts, independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from diamond_gym.play.keys import Command, Shortcut, Slider

Facts = tuple[tuple[str, str], ...]
"""A name and a value, such as ("Reward", "1")."""


@dataclass(frozen=True)
class View:
    """The content of the screen.

    Attributes:
        picture: The picture, without the header.
        header: Columns of facts, always of the same height.
        message: What happened last, in a sentence; may be empty.
    """

    picture: UInt8[np.ndarray, "s s 3"]
    header: tuple[Facts, ...]
    message: str


class Session(Protocol):
    """The interface of a session, which a viewer shows and sends commands to.

    Attributes:
        title: Title for a title bar or a file's name.
        shortcuts: Keys for its commands.
        message: What happened last; a viewer may set others, and clears each after a while.
    """

    title: str
    shortcuts: tuple[Shortcut, ...]
    message: str

    def command(self, command: Command, value: float | None = None) -> None:
        """Carry out a command.

        Args:
            command: The command; one that is not the session's own is ignored.
            value: A number, for the commands that need or take one.

        Raises:
            InvalidInputError: The number is missing or out of range; nothing has changed.
        """
        ...

    def advance(self, held: Sequence[str]) -> None:
        """Advance time by one picture, with these keys held, in the order in which they were pressed."""
        ...

    def view(self) -> View:
        """Return what there is to see now."""
        ...

    def instructions(self) -> list[tuple[str, str]]:
        """Return the keys that are not shortcuts, and what they do."""
        ...

    def held_keys(self) -> list[tuple[str, str]]:
        """Return the keys that act while they are held, and what each does alone; "" for nothing."""
        ...

    def sliders(self) -> list[Slider]:
        """Return the continuous parts of the game's actions, in order; none if they are discrete."""
        ...

    def close(self) -> str:
        """End the session and save its data; return a line about what was saved, which may be empty."""
        ...
