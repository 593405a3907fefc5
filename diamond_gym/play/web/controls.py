"""What people ask of the game, handed from the web server's thread to the game's; safe in both."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from diamond_gym.play.held import HeldKeys

_MAX_HELD, _MAX_PRESSES = 16, 64
"""More keys than that between two pictures are nobody's fingers: they are dropped."""


@dataclass(frozen=True)
class Press:
    """A key that went down.

    Attributes:
        key: Its name.
        is_repeated: Whether it was down already.
    """

    key: str
    is_repeated: bool = False


@dataclass(frozen=True)
class Input:
    """What a picture needs to know.

    Attributes:
        held: Keys that are held or were since the last picture, in the order in which they went down.
        presses: Keys that went down since, in order.
    """

    held: tuple[str, ...] = ()
    presses: tuple[Press, ...] = ()


class Controls:
    """The player's keys, and how many people are there."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._keys = HeldKeys()
        self._presses: list[Press] = []
        self._num_people = 0
        self._is_ended = False

    def down(self, key: str) -> None:
        """A key is held from now on."""
        with self._changed:
            held = self._keys.now()
            if key in held or len(held) < _MAX_HELD:
                self._add(Press(key, self._keys.down(key)))

    def up(self, key: str) -> None:
        """A key is held no longer."""
        with self._changed:
            self._keys.up(key)

    def press(self, key: str) -> None:
        """A key went down for what it asks for, and is not held."""
        with self._changed:
            self._add(Press(key))

    def release(self) -> None:
        """All keys are let go: the player looks elsewhere, or has gone."""
        with self._changed:
            self._keys.release()

    def take(self) -> Input:
        """What there was since the last picture."""
        with self._changed:
            taken = Input(tuple(self._keys.now()), tuple(self._presses))
            self._keys.start_picture()
            self._presses = []
            return taken

    def set_num_people(self, count: int) -> None:
        """So many people have the page open now."""
        with self._changed:
            self._num_people = count
            self._changed.notify_all()

    def end(self) -> None:
        """The game is to end: from now on nobody is there."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def wait_for_people(self, seconds: float | None = None) -> bool:
        """Wait until somebody is there; give whether somebody is.

        Args:
            seconds: At most so long; None for as long as it takes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_ended or self._num_people > 0, seconds)
            return self._num_people > 0 and not self._is_ended

    def _add(self, press: Press) -> None:
        if len(self._presses) < _MAX_PRESSES:
            self._presses.append(press)
