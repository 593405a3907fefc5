"""People's input to the game, passed from the web server's thread to the game's; thread-safe."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from diamond_gym.play.held import HeldKeys
from diamond_gym.play.keys import mouse_key, part_key

_MAX_HELD, _MAX_PRESSES = 16, 64
"""Most keys between two pictures; more are not typed by fingers, and are dropped."""


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
    """The input for a picture.

    Attributes:
        held: Keys held now or since the last picture, in the order in which they were pressed; before them
            the sliders, after them the place of the mouse.
        presses: Keys that went down since the last picture, in order.
    """

    held: tuple[str, ...] = ()
    presses: tuple[Press, ...] = ()


class Controls:
    """The player's keys, sliders and mouse, and the number of people."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._keys = HeldKeys()
        self._presses: list[Press] = []
        self._sliders: dict[int, float] = {}
        self._mouse: str | None = None
        self._clicked: str | None = None
        self._num_people = 0
        self._is_ended = False

    def down(self, key: str) -> None:
        """Note that a key is held from now on."""
        with self._changed:
            held = self._keys.now()
            if key in held or len(held) < _MAX_HELD:
                self._add(Press(key, self._keys.down(key)))

    def up(self, key: str) -> None:
        """Note that a key is no longer held."""
        with self._changed:
            self._keys.up(key)

    def press(self, key: str) -> None:
        """Note that a key was tapped for its command, and is not held."""
        with self._changed:
            self._add(Press(key))

    def slide(self, part: int, value: float) -> None:
        """Note the value of a slider, which stays."""
        with self._changed:
            self._sliders[part] = value

    def point(self, x: float, y: float) -> None:
        """Note the place of the mouse or finger on the picture, in [0, 1] from the upper left corner."""
        with self._changed:
            self._mouse = self._clicked = mouse_key(x, y)

    def lift(self) -> None:
        """Note that the mouse's button was released, or the finger lifted."""
        with self._changed:
            self._mouse = None

    def release(self) -> None:
        """Release keys, mouse and sliders, because the player has switched away or left."""
        with self._changed:
            self._keys.release()
            self._sliders, self._mouse, self._clicked = {}, None, None

    def take(self) -> Input:
        """Return the input since the last picture, and clear it."""
        with self._changed:
            sliders = [part_key(part, value) for part, value in self._sliders.items()]
            mouse = self._mouse or self._clicked  # a click between two pictures counts
            held = (*sliders, *self._keys.now(), *filter(None, [mouse]))
            taken = Input(held, tuple(self._presses))
            self._keys.start_picture()
            self._presses, self._clicked = [], None
            return taken

    def set_num_people(self, count: int) -> None:
        """Set the number of people who have the page open."""
        with self._changed:
            self._num_people = count
            self._changed.notify_all()

    def end(self) -> None:
        """Ask the game to end, as if everybody had left for good."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def wait_for_people(self, seconds: float | None = None) -> bool:
        """Wait until somebody has the page open; return whether somebody has.

        Args:
            seconds: Longest time to wait; None for no limit.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_ended or self._num_people > 0, seconds)
            return self._num_people > 0 and not self._is_ended

    def _add(self, press: Press) -> None:
        if len(self._presses) < _MAX_PRESSES:
            self._presses.append(press)
