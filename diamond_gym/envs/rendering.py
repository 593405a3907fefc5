"""Pictures of frames: enlarged, tiled, and shown in a pygame window.

The module does not depend on environments. It imports pygame when the first window is made.
"""

from __future__ import annotations

import importlib
import math
import os
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from diamond_gym.errors import DisplayError, MissingDependencyError

if TYPE_CHECKING:
    import pygame

PICTURE_SIDE = 512
"""Largest side to which whole multiples enlarge a frame: a 64x64 frame is rendered at 512x512."""
SCALE = 8
"""Factor by which frames of 64x64 are enlarged."""

RENDER_FPS = 15
"""Frames per second: the models see every fourth frame of a 60 Hz console."""

METADATA: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": RENDER_FPS}

_MAX_TILES_SIDE = 1024
_UNSEEN_DRIVERS = ("dummy", "offscreen")
_ADVICE = (
    'Use render_mode="rgb_array", run under a desktop or `xvfb-run`, '
    "or set SDL_VIDEODRIVER=dummy to draw without a screen"
)


def enlarge(frame: UInt8[np.ndarray, "h w c"], scale: int | None = None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Enlarge a colour or grey frame: each pixel becomes a square of `scale` x `scale` pixels.

    Args:
        frame: The frame, with three channels or one.
        scale: The factor; None for the largest with which no side exceeds `PICTURE_SIDE`, at least 1.
    """
    scale = max(1, PICTURE_SIDE // max(frame.shape[:2])) if scale is None else scale
    colour = np.broadcast_to(frame, (*frame.shape[:2], 3))
    return colour.repeat(scale, axis=0).repeat(scale, axis=1)


def tile(frames: UInt8[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Put frames in a nearly square grid, filled up with black, at most 1024 pixels wide if they fit."""
    b, h, w, c = frames.shape
    columns = math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    grid = np.zeros((rows * columns, h, w, c), np.uint8)
    grid[:b] = frames
    picture = grid.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    return enlarge(picture, min(SCALE, max(1, _MAX_TILES_SIDE // (columns * w))))


class Window:
    """A window on the screen, which opens with the first picture, in its size.

    pygame has one window per process: the latest `Window` to show a picture has it.

    Attributes:
        title: Text of the title bar, from the next time the window opens.

    Args:
        title: See above.
        fps: Most pictures per second; `show` waits when called faster.
        advice: What to do where there is no display, for the error message.

    Raises:
        MissingDependencyError: pygame is not installed.
        DisplayError: There is no display to open a window on.
    """

    _on_screen: ClassVar[Window | None] = None

    def __init__(self, title: str, fps: float = RENDER_FPS, advice: str = _ADVICE) -> None:
        self._pygame = _import_pygame()
        self.title = title
        self._fps = fps
        self._advice = advice
        self._is_fullscreen = self._is_stale = False
        self._clock = self._pygame.time.Clock()
        self._init_display()

    def show(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Show a picture, keep the window responsive, and wait until the frame is due."""
        height, width = picture.shape[:2]
        surface = self._surface_for(width, height)
        image = self._pygame.image.frombuffer(np.ascontiguousarray(picture), (width, height), "RGB")
        self._put(image, surface)
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(self._fps)

    def toggle_fullscreen(self) -> None:
        """Switch between a window and the full screen, from the next picture on."""
        self._is_fullscreen = not self._is_fullscreen
        self._is_stale = True

    def close(self) -> None:
        """Close the window if it is this one's. Closing twice is harmless."""
        if Window._on_screen is self:
            self._pygame.display.quit()
            Window._on_screen = None

    def _surface_for(self, width: int, height: int) -> pygame.Surface:
        """Return the window's surface, or a new one where the size or mode has changed."""
        surface = self._pygame.display.get_surface() if self._pygame.display.get_init() else None
        fits = surface is not None and (self._is_fullscreen or surface.get_size() == (width, height))
        if Window._on_screen is self and surface is not None and fits and not self._is_stale:
            return surface
        if self._is_stale:
            self._pygame.display.quit()  # a window that is only resized may keep its place or its size
        self._init_display()
        mode = ((0, 0), self._pygame.FULLSCREEN) if self._is_fullscreen else ((width, height), 0)
        surface = self._pygame.display.set_mode(*mode)
        self._pygame.display.set_caption(self.title)
        Window._on_screen = self
        self._is_stale = False
        return surface

    def _put(self, image: pygame.Surface, surface: pygame.Surface) -> None:
        """Copy a picture to the centre of the screen, scaled to fit."""
        (width, height), (screen_width, screen_height) = image.get_size(), surface.get_size()
        if (width, height) != (screen_width, screen_height):
            scale = min(screen_width / width, screen_height / height)
            width, height = int(scale * width), int(scale * height)
            image = self._pygame.transform.scale(image, (width, height))
            surface.fill(0)
        surface.blit(image, ((screen_width - width) // 2, (screen_height - height) // 2))

    def _init_display(self) -> None:
        """Start pygame's display. Without a screen SDL silently draws to nowhere, which is an error here."""
        try:
            self._pygame.display.init()
        except self._pygame.error as error:
            raise DisplayError(f"no window can be opened ({error}). {self._advice}") from error
        driver = self._pygame.display.get_driver()
        if driver in _UNSEEN_DRIVERS and os.environ.get("SDL_VIDEODRIVER") != driver:
            self._pygame.display.quit()
            raise DisplayError(f"no window can be opened: there is no display. {self._advice}")


def _import_pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        return importlib.import_module("pygame")
    except ImportError as error:
        raise MissingDependencyError(
            'a window (render_mode="human") needs pygame: pip install "diamond-gym[play]"'
        ) from error
