"""Pictures and the window."""

from __future__ import annotations

import sys

import numpy as np
import pygame
import pytest

from diamond_gym.envs.rendering import Window, enlarge, tile
from diamond_gym.errors import DiamondGymError, DisplayError, MissingDependencyError


def frame(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_enlarge():
    picture = enlarge(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3), 2)
    assert picture.shape == (4, 6, 3)
    np.testing.assert_array_equal(picture[2:4, 2:4], np.broadcast_to([12, 13, 14], (2, 2, 3)))


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (32, 6, 6)])
def test_tile(count: int, rows: int, columns: int):
    frames = np.stack([frame(i + 1, side=64) for i in range(count)])
    picture = tile(frames)
    side = picture.shape[1] // columns
    assert picture.shape == (rows * side, columns * side, 3)
    assert side % 64 == 0 and side <= 512 and picture.shape[1] <= 1024
    cells = picture[side // 2 :: side, side // 2 :: side, 0].ravel()
    np.testing.assert_array_equal(cells, [*range(1, count + 1)] + [0] * (rows * columns - count))


def test_many_tiles_are_not_enlarged_beyond_the_width():
    assert tile(np.stack([frame(1, side=64)] * 300)).shape[1] == 18 * 64


def shown() -> np.ndarray:
    return pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)


def test_windows_take_turns():
    first, second = Window("first", fps=1000), Window("second", fps=1000)
    first.show(frame(1))
    np.testing.assert_array_equal(shown(), frame(1))
    second.show(frame(2, side=6))
    first.close()  # the first has lost the screen already, so the second keeps it
    np.testing.assert_array_equal(shown(), frame(2, side=6))
    first.show(frame(3))
    np.testing.assert_array_equal(shown(), frame(3))
    first.close()
    first.close()
    assert not pygame.display.get_init()
    second.show(frame(4, side=6))
    np.testing.assert_array_equal(shown(), frame(4, side=6))
    second.close()


def test_window_keeps_its_pace():
    window = Window("paced", fps=20)
    window.show(frame(0))
    start = pygame.time.get_ticks()
    for _ in range(4):
        window.show(frame(0))
    assert pygame.time.get_ticks() - start >= 150
    window.close()


@pytest.mark.parametrize("driver", [None, "no_such_driver"])
def test_no_display(monkeypatch: pytest.MonkeyPatch, driver: str | None):
    pygame.display.quit()
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if driver is None:
        monkeypatch.delenv("SDL_VIDEODRIVER")
    else:
        monkeypatch.setenv("SDL_VIDEODRIVER", driver)
    with pytest.raises(DisplayError, match='render_mode="rgb_array"') as error:
        Window("nowhere")
    assert isinstance(error.value, DiamondGymError)


def test_no_pygame(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "diamond-gym\[play\]"'):
        Window("nothing")
