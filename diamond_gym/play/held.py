"""The keys that are held, according to a window's events or a browser's messages."""

from __future__ import annotations


class HeldKeys:
    """The keys that are held or were tapped since the last picture."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._tapped: list[str] = []

    def now(self) -> list[str]:
        """Return the keys held now or since the last picture, in the order in which they were pressed."""
        return list(dict.fromkeys([*self._tapped, *self._held]))

    def start_picture(self) -> None:
        """Forget taps, which belong to the picture before."""
        self._tapped = []

    def down(self, key: str) -> bool:
        """Note that a key went down; return whether it was down already and only repeats."""
        is_repeated = key in self._held
        if not is_repeated:
            self._held.append(key)
            self._tapped.append(key)
        return is_repeated

    def up(self, key: str) -> None:
        """Note that a key was released; one that was not held changes nothing."""
        self._held = [held for held in self._held if held != key]

    def release(self) -> None:
        """Note that all keys were released."""
        self._held = []
