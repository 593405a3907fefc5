"""A viewer in front of people elsewhere: keys into it, pictures out of it. Knows no sockets and no pages."""

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
"""For so long after the last person left, the game waits: pages are reloaded."""


class Audience(Protocol):
    """Everybody who looks on; none of these waits for anybody."""

    def introduce(self, introduction: str) -> None:
        """A game has been loaded."""
        ...

    def show(self, frame: Frame) -> None:
        """A new picture."""
        ...

    def send_player_away(self) -> None:
        """The player asked to leave."""
        ...

    def forget(self) -> None:
        """The game has been freed."""
        ...

    def fail(self, text: str) -> None:
        """The game cannot be loaded."""
        ...


@dataclass
class Shown:
    """What was sent last.

    Attributes:
        number: Pictures sent so far.
        view: The latest; None before the first.
        shows_help: Whether help was over it.
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
    """A viewer that is there while people are.

    Args:
        open_viewer: Loads what is played, the first time at once.
        controls: What people ask for.
        audience: Those who look on.
        fps: Pictures per second.
        num_frames: Pictures until it is over; None for no end.
        tell: Gets a line about each visit.
        grace: Seconds for which the viewer is kept without anybody there.

    Raises:
        DiamondGymError: It cannot be loaded.
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
        """What people see; None before the first picture. Any thread may ask."""
        return self._shown.view

    @property
    def is_loaded(self) -> bool:
        """Whether there is a viewer."""
        return self._viewer is not None

    def run(self) -> None:
        """Play whenever somebody is there, until so many pictures were shown or the controls are ended."""
        while self._num_frames != 0 and self._controls.wait_for_people():
            viewer = self._viewer or self._try_to_open()
            if viewer is not None:
                self._visit(viewer)
                del viewer
                self._try_to_close()

    def close(self) -> None:
        """End it, and say what was kept and how evenly pictures came. Closing twice is harmless.

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
        """Free the memory. What could not be written stays, and is tried again after the next visit."""
        try:
            self.close()
        except DiamondGymError as error:
            self._tell(f"error: {error}")
            return
        self._audience.forget()
        gc.collect()  # sessions hold tables of their own methods
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
        """One picture: what was pressed, a step, and what there is to see now."""
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
