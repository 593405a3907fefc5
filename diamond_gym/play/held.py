"""Which keys are held, whoever says so: a window's events or a browser's messages."""

from __future__ import annotations


class HeldKeys:
    """Keys that are held, and those that went down and up again since the last picture."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._tapped: list[str] = []

    def now(self) -> list[str]:
        """Keys that are held or were since the last picture, in the order in which they went down."""
        return list(dict.fromkeys([*self._tapped, *self._held]))

    def start_picture(self) -> None:
        """Taps before this moment belong to the picture before."""
        self._tapped = []

    def down(self, key: str) -> bool:
        """A key went down; gives whether it was down already, and only repeats itself."""
        is_repeated = key in self._held
        if not is_repeated:
            self._held.append(key)
            self._tapped.append(key)
        return is_repeated

    def up(self, key: str) -> None:
        """A key was let go; one that was not held changes nothing."""
        self._held = [held for held in self._held if held != key]

    def release(self) -> None:
        """All keys were let go."""
        self._held = []
