"""A viewer for people on web pages: keys in, pictures out. Knows nothing of sockets and pages."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from diamond_gym.errors import DiamondGymError
from diamond_gym.play.pacing import Clock, Pacing
from diamond_gym.play.view import View
from diamond_gym.play.viewer import Viewer
from diamond_gym.play.web import buttons, protocol
from diamond_gym.play.web.controls import Controls
from diamond_gym.play.web.protocol import Frame

GRACE_SECONDS = 3.0
"""Seconds for which the game waits after the last person left, because pages are reloaded."""


class Audience(Protocol):
    """The interface to everybody who watches; no method blocks."""

    def introduce(self, introduction: str) -> None:
        """Announce that a game has been loaded."""
        ...

    def show(self, frame: Frame) -> None:
        """Show a new picture."""
        ...

    def send_player_away(self) -> None:
        """Disconnect the player, who asked to leave."""
        ...

    def forget(self) -> None:
        """Announce that the game has been freed."""
        ...

    def fail(self, text: str) -> None:
        """Announce that the game cannot be loaded."""
        ...


@dataclass
class Shown:
    """The latest picture that was sent.

    Attributes:
        number: Number of pictures sent so far.
        view: The latest view; None before the first.
        shows_help: Whether help was drawn over it.
    """

    number: int = 0
    view: View | None = None
    shows_help: bool = False

    def is_like(self, view: View, shows_help: bool) -> bool:
        """Whether a view looks the same."""
        before = self.view
        return (
            before is not None
            and (before.header, before.message, self.shows_help) == (view.header, view.message, shows_help)
            and np.array_equal(before.picture, view.picture)
        )


class Game:
    """A viewer that is loaded while people are on the page.

    Args:
        open_viewer: Loads the viewer; the first call is made at once.
        controls: The input of the player.
        audience: Everybody who watches.
        fps: Pictures per second.
        num_frames: Number of pictures until the end; None for no end.
        tell: Called with a line about each visit.
        grace: Seconds for which the viewer is kept after everybody has left.

    Raises:
        DiamondGymError: The viewer cannot be loaded.
    """

    def __init__(
        self,
        open_viewer: Callable[[], Viewer],
        controls: Controls,
        audience: Audience,
        *,
        fps: float,
        num_frames: int | None = None,
        tell: Callable[[str], object] = print,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._open_viewer, self._controls, self._audience = open_viewer, controls, audience
        self._fps, self._num_frames, self._tell, self._grace = fps, num_frames, tell, grace
        self._shown = Shown()
        self._pacing = Pacing(fps)
        self._viewer: Viewer | None = None
        self._open()

    @property
    def view(self) -> View | None:
        """What people see; None before the first picture. This may be read from any thread."""
        return self._shown.view

    @property
    def is_loaded(self) -> bool:
        """Whether the viewer is loaded."""
        return self._viewer is not None

    def run(self) -> None:
        """Play whenever somebody is there, until `num_frames` pictures were shown or the controls end."""
        while self._num_frames != 0 and self._controls.wait_for_people():
            viewer = self._viewer or self._try_to_open()
            if viewer is not None:
                self._visit(viewer)
                del viewer
                self._try_to_close()

    def close(self) -> None:
        """Close the viewer; report what was saved and how regular pictures were. Closing twice is harmless.

        Raises:
            CacheError: Something cannot be written.
        """
        if self._viewer is None:
            return
        kept = self._viewer.close()
        self._viewer = None
        self._tell(f"{kept}\n{self._pacing}" if kept else str(self._pacing))

    def _open(self) -> Viewer:
        self._viewer = viewer = self._open_viewer()
        self._shown, self._pacing = Shown(self._shown.number), Pacing(self._fps)
        self._audience.introduce(buttons.introduction(viewer))
        return viewer

    def _try_to_open(self) -> Viewer | None:
        try:
            return self._open()
        except DiamondGymError as error:
            self._tell(f"error: {error}")
            self._audience.fail(str(error))
            return None

    def _try_to_close(self) -> None:
        """Free the memory. Data that cannot be written stay, and are tried again after the next visit."""
        try:
            self.close()
        except DiamondGymError as error:
            self._tell(f"error: {error}")
            return
        self._audience.forget()
        gc.collect()  # sessions have reference cycles through tables of their own methods
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _visit(self, viewer: Viewer) -> None:
        """Play until the last person has left."""
        clock = Clock(self._fps)
        while self._num_frames != 0 and self._is_wanted():
            self._picture(viewer)
            self._pacing.tick()
            self._num_frames = None if self._num_frames is None else self._num_frames - 1
            clock.wait()

    def _is_wanted(self) -> bool:
        if self._controls.wait_for_people(0):
            return True
        self._pacing.pause()
        return self._controls.wait_for_people(self._grace)

    def _picture(self, viewer: Viewer) -> None:
        """Handle the input, take a step and show the picture."""
        taken = self._controls.take()
        for press in taken.presses:
            viewer.press(press.key, is_repeated=press.is_repeated)
        viewer.advance(taken.held)
        self._show(viewer.view(), viewer.shows_help)
        if viewer.has_left:
            viewer.has_left = False
            self._audience.send_player_away()

    def _show(self, view: View, shows_help: bool) -> None:
        """Send a picture unless it looks like the one before."""
        if not self._shown.is_like(view, shows_help):
            self._shown = Shown(self._shown.number + 1, view, shows_help)
            self._audience.show(protocol.frame(self._shown.number, view, shows_help=shows_help))
