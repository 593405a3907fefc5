"""The page of the play mode in a real browser, Chromium without a screen: `make test-web`."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.play import settings, start
from diamond_gym.play.browser import DatasetBrowser, find_datasets
from diamond_gym.play.canvas import Canvas
from diamond_gym.play.view import View
from diamond_gym.play.viewer import Viewer
from diamond_gym.world.action_space import ActionSpace
from tests import recordings, worlds
from tests.browser import Served, serve

pytestmark = pytest.mark.web

SIZE = 256
WAIT_SECONDS = 30.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""A folder for screenshots of the pages, to be inspected."""

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 664},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
LANDSCAPE = {**PHONE, "viewport": {"width": 750, "height": 342}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: install Chromium (apt-get install chromium), then `make test-web`")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install")
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page that somebody has open.

    Attributes:
        page: Playwright's page.
        errors: Errors in the page.
        devtools: A session of the protocol that simulates fingers; None until one is needed.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.errors = page, []
        self.devtools: Any = None
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        page.goto(url)

    def wait(self, is_so: Callable[[], Any]) -> None:
        until = time.monotonic() + WAIT_SECONDS
        while not is_so():
            assert time.monotonic() < until, (self.text("body"), self.errors)
            self.page.wait_for_timeout(20)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def facts(self) -> dict[str, str]:
        rows = self.page.evaluate(
            """[...document.querySelectorAll('#header div')]
                .map((row) => [...row.children].map((e) => e.textContent))"""
        )
        return dict(rows)

    def wait_for(self, name: str, value: str) -> None:
        self.wait(lambda: self.facts().get(name) == value)

    def wait_for_game(self) -> None:
        self.wait(lambda: self.facts().get("Time step") is not None)

    def pixels(self) -> np.ndarray:
        """Return the canvas, uint8 (h, w, 3)."""
        width, height, data = self.page.evaluate(
            """() => {
                const {width, height} = document.getElementById('picture');
                const context = document.getElementById('picture').getContext('2d');
                return [width, height, [...context.getImageData(0, 0, width, height).data]];
            }"""
        )
        return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]

    def box(self, selector: str) -> dict[str, float]:
        return self.page.locator(selector).bounding_box()

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.screenshot(path=f"{SCREENSHOTS}/{name}.png")


OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(chromium: Any) -> Iterator[OpenTab]:
    contexts, tabs = [], []

    def open_tab(url: str, **device: Any) -> Tab:
        contexts.append(chromium.new_context(**(device or DESKTOP)))
        tabs.append(Tab(contexts[-1].new_page(), url))
        return tabs[-1]

    yield open_tab
    errors = [error for tab in tabs for error in tab.errors]
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="module")
def env() -> DiamondEnv:
    return DiamondEnv("Breakout", checkpoint="embedded", **worlds.PLAIN)


def make_viewer(env: DiamondEnv, folder: Path, *arguments: str) -> Viewer:
    env.set_sampler(num_denoising_steps=1, order=1, s_churn=0)
    given = settings.parse(
        ["game=Breakout", "seed=3", "--human", "--horizon=1000", f"--size={SIZE}", *arguments]
    )
    session = start.session_in(env, given, None, tell=lambda line: None)
    return Viewer(session, Canvas(SIZE), fps=15, captures=folder / "captures", tell=lambda line: None)


@pytest.fixture
def served(env: DiamondEnv, tmp_path: Path) -> Iterator[Served]:
    with serve(lambda: make_viewer(env, tmp_path), fps=15) as served:
        yield served


def paddle(pixels: np.ndarray) -> float:
    """Return the column of the paddle's middle, in 64ths of the picture."""
    row = pixels[57:60].astype(int).max(axis=0)
    red = (row[:, 0] > 120) & (row[:, 2] < 110)
    return float(np.flatnonzero(red[4:60]).mean()) + 4


def test_keys_move_the_paddle_on_the_canvas(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    assert tab.text("#seat-text") == "You play." and tab.page.title() == "DIAMOND Breakout"
    tab.page.keyboard.down("a")
    tab.wait_for("Action", "LEFT")
    tab.wait(lambda: paddle(tab.pixels()) < 14)
    tab.page.keyboard.up("a")
    tab.wait_for("Action", "NOOP")
    left = tab.pixels()
    tab.page.keyboard.down("D")  # with Shift or Caps Lock it is the same key
    tab.wait_for("Action", "RIGHT")
    tab.wait(lambda: paddle(tab.pixels()) > 45)
    assert left.shape == (64, 64, 3) and not np.array_equal(left, tab.pixels())
    tab.screenshot("desktop")


def is_shown(picture: np.ndarray, pixels: np.ndarray, width: int) -> bool:
    """Whether a canvas of a width shows every pixel of a picture."""
    factor = len(picture) // len(pixels)
    return pixels.shape[1] == width and np.array_equal(pixels.repeat(factor, 0).repeat(factor, 1), picture)


def seen(served: Served) -> View:
    """Return what people see; the game's thread may be making the next picture."""
    view = served.game.view
    assert view is not None
    return view


def test_every_pixel_arrives_as_it_was(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.press(".")
    tab.wait(lambda: "paused" in tab.facts()["Time step"])
    for key, width in (("m", 64), ("c", SIZE), ("t", SIZE)):
        tab.page.keyboard.press(key)
        tab.wait(lambda width=width: is_shown(seen(served).picture, tab.pixels(), width))
    assert "has-text" in tab.page.locator("#picture").get_attribute("class")
    tab.screenshot("compare")


def test_the_header_says_what_the_viewer_says(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.press(".")
    tab.wait(lambda: "paused" in tab.facts()["Time step"])
    tab.page.keyboard.press("Enter")
    tab.wait_for("Time step", "0 (paused)")
    header = seen(served).header
    assert tab.facts() == {name: value for column in header for name, value in column}


def test_buttons_do_what_keys_do_and_leave_the_keyboard_to_the_game(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    for label, name, value in (
        ("3", "Denoising", "3 x Euler"),
        ("Euler / Heun", "Denoising", "3 x Heun"),
        ("Churn +", "Churn", "0.1"),
        ("Horizon -", "Horizon", "999"),
        ("Next place", "Environment", "real game (test)"),
    ):
        tab.page.get_by_role("button", name=label, exact=True).click()
        tab.wait_for(name, value)
    tab.page.keyboard.down(" ")
    tab.wait_for("Action", "FIRE")
    assert tab.facts()["Environment"] == "real game (test)"


def test_browsers_own_keys_stay_theirs(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    prevented = """(keys) => keys.map((fields) =>
        !dispatchEvent(new KeyboardEvent('keydown', {cancelable: true, ...fields})))"""
    ours = [{"key": " "}, {"key": "ArrowUp"}, {"key": "s", "ctrlKey": True}, {"key": "F1"}, {"key": "A"}]
    theirs = [{"key": "r", "ctrlKey": True}, {"key": "Tab"}, {"key": "d", "altKey": True}, {"key": "F11"}]
    assert tab.page.evaluate(prevented, ours) == [True] * len(ours)
    assert tab.page.evaluate(prevented, theirs) == [False] * len(theirs)


def test_keys_by_their_place_where_the_keyboard_is_not_latin(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'в', code: 'KeyD'}))")
    tab.wait_for("Action", "RIGHT")


def test_keys_are_let_go_with_the_focus(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.down("d")
    tab.wait_for("Action", "RIGHT")
    tab.page.evaluate("dispatchEvent(new Event('blur'))")
    tab.wait_for("Action", "NOOP")


def test_help(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.press("h")
    tab.wait(lambda: tab.page.locator("#help").is_visible())
    assert "denoising steps" in tab.text("#help")
    tab.screenshot("help")
    tab.page.keyboard.press("h")
    tab.wait(lambda: not tab.page.locator("#help").is_visible())


def test_fullscreen(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.press("f")
    tab.wait(lambda: tab.page.evaluate("document.fullscreenElement?.id") == "stage")
    tab.page.keyboard.press("f")
    tab.wait(lambda: tab.page.evaluate("document.fullscreenElement") is None)


def test_the_second_watches_until_the_seat_is_free(served: Served, open_tab: OpenTab):
    first, second = open_tab(served.url), open_tab(served.url, **PHONE)
    second.wait(lambda: "you are watching" in second.text("#seat"))
    second.wait_for_game()
    first.wait(lambda: first.text("#seat-text") == "You play. 1 watching")
    first.page.keyboard.down("d")
    second.wait_for("Action", "RIGHT")
    second.screenshot("phone-watching")
    first.page.close()
    second.wait(lambda: second.page.locator("#sit").is_visible())
    second.wait_for("Action", "NOOP")
    second.page.locator("#sit").tap()
    second.wait(lambda: second.page.locator("body").get_attribute("class") == "is-playing")


def test_leaving_and_playing_again(served: Served, open_tab: OpenTab):
    tab = open_tab(served.url)
    tab.wait_for_game()
    tab.page.keyboard.press("Escape")
    tab.wait(lambda: tab.text("#notice-text") == "You left the game.")
    tab.screenshot("left")
    tab.wait(lambda: not served.game.is_loaded)
    tab.page.locator("#again").click()
    tab.wait(lambda: not tab.page.locator("#notice").is_visible())
    tab.page.keyboard.down("d")
    tab.wait_for("Action", "RIGHT")
    assert len(served.viewers) == 2


def test_a_lost_connection_is_made_again(env: DiamondEnv, tmp_path: Path, open_tab: OpenTab):
    with serve(lambda: make_viewer(env, tmp_path), fps=15, grace=10) as served:
        tab = open_tab(served.url)
        tab.wait_for_game()
        loop, room = served.server.loop, served.server.room
        first = room.player
        assert first is not None
        loop.call_soon_threadsafe(lambda: first.outbox.close(1012, ""))
        tab.wait(lambda: room.player not in (None, first))
        tab.wait(
            lambda: tab.text("#seat-text") == "You play." and not tab.page.locator("#notice").is_visible()
        )
        tab.page.keyboard.down("d")
        tab.wait_for("Action", "RIGHT")


def test_a_token_can_be_typed_in(env: DiamondEnv, tmp_path: Path, open_tab: OpenTab):
    with serve(lambda: make_viewer(env, tmp_path), host="0.0.0.0", fps=15) as served:
        port, token = served.url.split(":")[2].split("/?token=")
        tab = open_tab(f"http://127.0.0.1:{port}/")
        assert "A token is needed" in tab.text("body")
        tab.screenshot("token")
        tab.errors.clear()  # the 403
        tab.page.locator("input").fill(token)
        tab.page.locator("button").click()
        tab.wait_for_game()


def test_datasets(tmp_path: Path, open_tab: OpenTab):
    recordings.save_dataset(tmp_path / "dataset" / "train", 2)
    browser = DatasetBrowser(find_datasets(tmp_path / "dataset"), None, size=SIZE)
    with serve(lambda: Viewer(browser, Canvas(SIZE), fps=15, captures=tmp_path), fps=15) as served:
        tab = open_tab(served.url, **PHONE)
        tab.wait_for_game()
        assert not tab.page.locator("#pad").is_visible()
        tab.page.get_by_role("button", name="Step on").tap()
        tab.wait(lambda: tab.facts()["Time step"].startswith("1 of"))
        assert tab.page.evaluate("scrollY") == 0  # buttons are visible together with the picture
        tab.screenshot("phone-datasets")


# --- phones


def touch(tab: Tab, *points: tuple[float, float]) -> None:
    """Place fingers at these positions; an empty list lifts all."""
    if tab.devtools is None:
        tab.devtools = tab.page.context.new_cdp_session(tab.page)
    kind = "touchStart" if points else "touchEnd"
    tab.devtools.send(
        "Input.dispatchTouchEvent",
        {"type": kind, "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]},
    )


def middle(box: dict[str, float]) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("device, name", [(PHONE, "phone"), (LANDSCAPE, "phone-landscape")])
def test_the_touch_pad(served: Served, open_tab: OpenTab, device: dict[str, Any], name: str):
    tab = open_tab(served.url, **device)
    tab.wait_for_game()
    right, left, fire = (middle(tab.box(f"[data-key='{key}'].key")) for key in ("d", "a", " "))
    touch(tab, right)
    tab.wait_for("Action", "RIGHT")
    tab.wait(lambda: paddle(tab.pixels()) > 45)
    tab.screenshot(name)
    touch(tab, right, fire)  # a second finger
    tab.wait_for("Action", "FIRE")
    touch(tab)
    tab.wait_for("Action", "NOOP")
    touch(tab, left)
    tab.wait_for("Action", "LEFT")
    touch(tab)
    tab.wait_for("Action", "NOOP")


@pytest.mark.parametrize("device", [DESKTOP, PHONE, LANDSCAPE])
def test_nothing_is_clipped_and_buttons_are_large_enough(
    served: Served, open_tab: OpenTab, device: dict[str, Any]
):
    tab = open_tab(served.url, **device)
    tab.wait_for_game()
    width, height = device["viewport"].values()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll('#header dt, #header dd, #groups button, .key')]
        .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map((e) => e.textContent)"""
    assert tab.page.evaluate(cut) == []
    is_touched = "has_touch" in device
    for button in tab.page.locator("#groups button").all():
        box = button.bounding_box()
        assert box["width"] >= 40 and box["height"] >= (44 if is_touched else 36)
    for selector in ("#picture", *(f"[data-key='{key}'].key" for key in "ad " if is_touched)):
        box = tab.box(selector)
        assert box["x"] >= 0 and box["y"] >= 0
        assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
        assert min(box["width"], box["height"]) >= 48
    picture = tab.box("#picture")
    assert picture["width"] == pytest.approx(picture["height"], abs=1) and picture["width"] >= 250
    font = tab.page.evaluate("parseFloat(getComputedStyle(document.getElementById('header')).fontSize)")
    assert font >= 11


def test_a_pad_with_all_directions(open_tab: OpenTab, tmp_path: Path):
    folder = tmp_path / "world"
    meanings = ["NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT"]
    worlds.save_world_of(folder, "MsPacman", meanings)
    env = DiamondEnv("MsPacman", checkpoint=str(folder), **worlds.PLAIN)
    with serve(lambda: make_viewer(env, tmp_path), fps=15) as served:
        tab = open_tab(served.url, **PHONE)
        tab.wait_for_game()
        x, y = middle(tab.box("#cross"))
        for dx, dy, action in ((60, 0, "RIGHT"), (0, -60, "UP"), (50, -50, "UPRIGHT"), (0, 60, "DOWN")):
            touch(tab, (x + dx, y + dy))
            tab.wait_for("Action", action)
            tab.screenshot("phone-cross")
            touch(tab)
            tab.wait_for("Action", "NOOP")


# --- actions that are not discrete


@pytest.fixture
def serve_space(tmp_path: Path) -> Iterator[Callable[[str], Served]]:
    """Serve a world with actions of a space."""
    with contextlib.ExitStack() as stack:

        def serve_space(text: str) -> Served:
            checkpoint = worlds.save_tiny_world_of(tmp_path / "world", ActionSpace.parse(text))
            env = DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)
            stack.callback(env.close)
            given = settings.parse(
                [f"checkpoint={checkpoint}", "seed=3", "--human", "--horizon=1000", f"--size={SIZE}"]
            )
            session = start.session_in(env, given, None, tell=lambda line: None)
            viewer = Viewer(session, Canvas(SIZE), fps=15, captures=tmp_path, tell=lambda line: None)
            return stack.enter_context(serve(lambda: viewer, fps=15))

        yield serve_space


SliderFacts = list[tuple[str, str, str, str]]


def slider_facts(tab: Tab) -> SliderFacts:
    """Return name, least value, greatest value and value of each slider."""
    rows = tab.page.evaluate(
        """[...document.querySelectorAll('#sliders > div')]
            .map((row) => [...row.children].map((e) => e.textContent))"""
    )
    return [(name, low, high, value) for name, low, _, high, value in rows]


def action(tab: Tab) -> list[float]:
    """Return the latest action of several parts; [] before the first."""
    text = tab.facts()["Action"]
    return [] if text == "-" else [float(part) for part in text.split(", ")]


def test_a_slider_for_each_continuous_part(serve_space: Callable[[str], Served], open_tab: OpenTab):
    tab = open_tab(serve_space("box(-1.0..1.0, 0.0..1.0, 0.0..10.0)").url)
    tab.wait_for_game()
    assert slider_facts(tab) == [
        ("ACTION_0", "-1", "1", "0"),
        ("ACTION_1", "0", "1", "0"),
        ("ACTION_2", "0", "10", "0"),
    ]
    inputs = tab.page.locator("#sliders input")
    left = inputs.nth(0).bounding_box()
    tab.page.mouse.click(left["x"] + 2, left["y"] + left["height"] / 2)
    tab.wait_for("Action", "-1, 0, 0")
    inputs.nth(2).fill("2.5")
    tab.wait_for("Action", "-1, 0, 2.5")
    tab.page.keyboard.down("d")  # the keyboard belongs to the game again, and its keys count more
    tab.wait_for("Action", "1, 0, 2.5")
    tab.page.keyboard.up("d")
    tab.wait_for("Action", "-1, 0, 2.5")
    tab.screenshot("sliders")
    tab.page.get_by_role("button", name="ACTION_0").click()
    tab.wait_for("Action", "0, 0, 2.5")
    inputs.nth(2).focus()
    tab.page.keyboard.press("End")  # a focused slider has the arrow keys, not the horizon
    tab.wait_for("Action", "0, 0, 10")
    tab.page.evaluate("dispatchEvent(new Event('blur'))")
    tab.wait_for("Action", "0, 0, 0")
    assert [row[3] for row in slider_facts(tab)] == ["0", "0", "0"]


def test_the_mouse_on_the_picture_sets_two_parts(serve_space: Callable[[str], Served], open_tab: OpenTab):
    tab = open_tab(serve_space("box(-1.0..1.0, 0.0..1.0, 0.0..10.0)").url)
    tab.wait_for_game()
    box = tab.box("#picture")
    x, y = middle(box)
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.wait_for("Action", "0, 0.5, 0")
    tab.page.mouse.move(x + box["width"], y)  # outside it is the edge
    tab.wait_for("Action", "1, 0.5, 0")
    assert [row[3] for row in slider_facts(tab)] == ["1", "0.5", "0"]
    tab.screenshot("sliders-mouse")
    tab.page.mouse.up()
    tab.wait_for("Action", "0, 0, 0")
    assert [row[3] for row in slider_facts(tab)] == ["0", "0", "0"]


@pytest.mark.parametrize("device, name", [(PHONE, "phone"), (LANDSCAPE, "phone-landscape")])
def test_fingers_on_sliders_and_picture(
    serve_space: Callable[[str], Served], open_tab: OpenTab, device: dict[str, Any], name: str
):
    tab = open_tab(serve_space("box(-1.0..1.0, 0.0..1.0, 0.0..10.0)").url, **device)
    tab.wait_for_game()
    assert not tab.page.locator("#pad").is_visible()
    width, height = device["viewport"].values()
    for element in [tab.page.locator("#picture"), *tab.page.locator("#sliders input").all()]:
        box = element.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] >= 80
        assert box["y"] >= 0 and box["y"] + box["height"] <= height and box["height"] >= 44
    box = tab.box("#picture")
    touch(tab, (box["x"] + box["width"] / 4, box["y"] + box["height"] / 4))
    tab.wait(lambda: action(tab) == pytest.approx([-0.5, 0.25, 0], abs=0.02))
    tab.screenshot(f"{name}-sliders")
    touch(tab)
    tab.wait_for("Action", "0, 0, 0")
    touch(tab, middle(tab.page.locator("#sliders input").nth(2).bounding_box()))
    tab.wait(lambda: action(tab) == pytest.approx([0, 0, 5], abs=0.2))
    touch(tab)
    tab.wait(lambda: action(tab) == pytest.approx([0, 0, 5], abs=0.2))  # it stays


def test_discrete_parts_have_keys_and_no_sliders(serve_space: Callable[[str], Served], open_tab: OpenTab):
    tab = open_tab(serve_space("multi_binary(3)").url, **PHONE)
    tab.wait_for_game()
    assert not tab.page.locator("#sliders").is_visible()
    touch(tab, middle(tab.box("[data-key='a'].key")))
    tab.wait_for("Action", "0, 1, 0")
    tab.screenshot("phone-buttons")
    touch(tab)
    touch(tab, *(middle(tab.box(f"[data-key='{key}'].key")) for key in "ws"))
    tab.wait_for("Action", "1, 0, 1")
    touch(tab)
    tab.wait_for("Action", "0, 0, 0")
