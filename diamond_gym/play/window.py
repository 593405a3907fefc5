"""A viewer in a window: keys in, pictures out. Only this module of `play` uses pygame."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from diamond_gym.envs.rendering import Window
from diamond_gym.play.held import HeldKeys
from diamond_gym.play.keys import mouse_key
from diamond_gym.play.pacing import Pacing
from diamond_gym.play.viewer import Viewer

NO_DISPLAY = (
    "Play on a desktop or under `xvfb-run`; or in a browser, here or elsewhere, with `--web`; or set "
    "SDL_VIDEODRIVER=dummy and let `--film FILE --frames N` show what would have been on the screen"
)
"""Advice for machines without a display."""

_REPEAT_DELAY_MS, _REPEAT_MS = 400, 60


def open_window(title: str, fps: float) -> Window:
    """Make a window that opens with its first picture.

    Raises:
        MissingDependencyError: pygame is not installed.
        DisplayError: There is no display.
    """
    return Window(title, fps, advice=NO_DISPLAY)


def run(viewer: Viewer, window: Window, pacing: Pacing, num_frames: int | None = None) -> None:
    """Show the viewer until it is left, the window is closed, or `num_frames` pictures were shown.

    Args:
        viewer: The viewer.
        window: The window, which is closed at the end.
        pacing: Records the time of every picture.
        num_frames: Number of pictures; None for no end.
    """
    keyboard = Keyboard()
    is_fullscreen = False
    try:
        while not viewer.has_left and num_frames != 0:
            window.show(viewer.advance(keyboard.held()))
            pacing.tick()
            keyboard.read(viewer.press)
            viewer.has_left |= keyboard.is_closed
            if viewer.is_fullscreen != is_fullscreen:
                is_fullscreen = viewer.is_fullscreen
                window.toggle_fullscreen()
            num_frames = None if num_frames is None else num_frames - 1
    finally:
        window.close()


class OnKey(Protocol):
    """A function that is called for keys that go down."""

    def __call__(self, key: str, *, is_repeated: bool) -> object:
        """Handle a key that went down, or has been down for a while."""
        ...


class Keyboard:
    """The state of the keyboard.

    Attributes:
        is_closed: Whether the window was closed.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._pygame: Any = importlib.import_module("pygame")
        self._keys = HeldKeys()

    def held(self) -> list[str]:
        """The keys held now or since the last picture, in the order in which they were pressed.

        The place of the mouse is the last one, while its button is held.
        """
        return [*self._keys.now(), *self._mouse()]

    def _mouse(self) -> list[str]:
        surface = self._pygame.display.get_surface() if self._pygame.display.get_init() else None
        if surface is None or not self._pygame.mouse.get_pressed()[0]:
            return []
        (x, y), (width, height) = self._pygame.mouse.get_pos(), surface.get_size()
        return [mouse_key(x / max(1, width - 1), y / max(1, height - 1))]

    def read(self, on_key: OnKey) -> None:
        """Process the events since the last picture."""
        self._pygame.key.set_repeat(_REPEAT_DELAY_MS, _REPEAT_MS)  # every new window resets this
        self._keys.start_picture()
        for event in self._pygame.event.get():
            if event.type == self._pygame.QUIT:
                self.is_closed = True
            elif event.type == self._pygame.WINDOWFOCUSLOST:
                self._keys.release()  # their release causes no event
            elif event.type == self._pygame.KEYUP:
                self._keys.up(self._name(event))
            elif event.type == self._pygame.KEYDOWN:
                self._press(event, on_key)

    def _press(self, event: Any, on_key: OnKey) -> None:
        name = self._name(event)
        if event.mod & self._pygame.KMOD_CTRL:
            on_key(f"ctrl+{name}", is_repeated=False)
            return
        is_repeated = self._keys.down(name)
        on_key(self._character(event) or name, is_repeated=is_repeated)

    def _name(self, event: Any) -> str:
        name: str = self._pygame.key.name(event.key)
        return _NAMES.get(name, name)

    def _character(self, event: Any) -> str | None:
        """Return the character that the key types, for signs whose place depends on the keyboard."""
        typed = getattr(event, "unicode", "")
        return typed if typed in _SIGNS and typed else None


_NAMES = {
    "return": "enter",
    "keypad enter": "enter",
    "space": " ",
    "page up": "pageup",
    "page down": "pagedown",
    "[+]": "+",
    "[-]": "-",
    "[.]": ".",
    **{f"[{n}]": str(n) for n in range(10)},
}
"""Maps pygame's names of keys to ours, where they differ."""
_SIGNS = "+-=.123456789"
