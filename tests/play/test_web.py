"""The server of play in a browser, with real sockets. `test_page` tests the page."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.errors import CacheError, CheckpointError, InvalidInputError
from diamond_gym.play import settings, start
from diamond_gym.play.__main__ import main
from diamond_gym.play.browser import DatasetBrowser, find_datasets
from diamond_gym.play.canvas import Canvas
from diamond_gym.play.keys import DATASET_SHORTCUTS, Command, GameKeys, play_shortcuts
from diamond_gym.play.pacing import Clock
from diamond_gym.play.recording import Recorder
from diamond_gym.play.viewer import Viewer
from diamond_gym.play.web import access, app, buttons, guard, outbox, protocol, server
from diamond_gym.play.web.controls import Controls, Press
from diamond_gym.play.web.outbox import MAX_IN_FLIGHT, Outbox
from diamond_gym.play.web.protocol import MAX_MESSAGE_BYTES, Frame, Kind, parse
from tests import recordings, worlds
from tests.browser import Guest, Served, guest, serve
from tests.waiting import wait_until

SIZE = 256


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> DiamondEnv:
    checkpoint = worlds.save_tiny_world(tmp_path_factory.mktemp("endless"), end_bias=-30)
    return DiamondEnv("Breakout", checkpoint=checkpoint, **worlds.PLAIN)


def make_viewer(env: DiamondEnv, folder: Path, *arguments: str, recorder: Recorder | None = None) -> Viewer:
    given = settings.parse(["game=Breakout", "seed=3", "--human", f"--size={SIZE}", *arguments])
    session = start.session_in(env, given, recorder, tell=lambda line: None)
    return Viewer(session, Canvas(SIZE), fps=60, captures=folder / "captures", tell=lambda line: None)


@pytest.fixture
def served(env: DiamondEnv, tmp_path: Path) -> Iterator[Served]:
    with serve(lambda: make_viewer(env, tmp_path)) as served:
        yield served


@pytest.fixture
def player(served: Served) -> Iterator[Guest]:
    with guest(served.socket_url) as player:
        yield player


# --- messages


@pytest.mark.parametrize(
    "text, kind, key, number",
    [
        ('{"type": "down", "key": "a"}', Kind.DOWN, "a", 0),
        ('{"type": "press", "key": "ctrl+s"}', Kind.PRESS, "ctrl+s", 0),
        ('{"type": "shown", "number": 7}', Kind.SHOWN, "", 7),
        ('{"type": "release", "more": 1}', Kind.RELEASE, "", 0),
    ],
)
def test_messages(text: str, kind: Kind, key: str, number: int):
    assert parse(text) == protocol.Message(kind, key, number)


def test_messages_with_numbers():
    slide = '{"type": "slide", "part": 2, "value": -0.5}'
    assert parse(slide) == protocol.Message(Kind.SLIDE, number=2, x=-0.5)
    assert parse('{"type": "point", "x": 1, "y": 0.25}') == protocol.Message(Kind.POINT, x=1.0, y=0.25)


MALFORMED = [
    ("", "must be a JSON object, got ''"),
    ("{", "must be a JSON object, got '{'"),
    ("[" * 900, "must be a JSON object"),
    ("[]", "must be a JSON object"),
    ("{}", "type must be one of down, up, press, slide, point, lift, release, sit, shown, got None"),
    ('{"type": ["down"]}', "type must be one of"),
    ('{"type": "down"}', "key must be a name of 1 to 16 letters, got None"),
    ('{"type": "up", "key": ""}', "key must be a name"),
    ('{"type": "press", "key": "' + "a" * 17 + '"}', "key must be a name"),
    ('{"type": "shown", "number": true}', "number must be an integer of at least 0, got True"),
    ('{"type": "shown", "number": -1}', "at least 0, got -1"),
    ('{"type": "shown", "number": 1e3}', "got 1000.0"),
    ('{"type": "slide", "part": 256, "value": 0}', "part must be an integer in 0..255, got 256"),
    ('{"type": "slide", "part": 0, "value": NaN}', "value must be a finite number, got nan"),
    ('{"type": "slide", "part": 0, "value": 1e999}', "got inf"),
    ('{"type": "slide", "part": 0, "value": 1' + "0" * 400 + "}", "value must be a finite number, got 1000"),
    ('{"type": "slide", "part": 0, "value": true}', "got True"),
    ('{"type": "point", "x": 0.5}', "y must be a finite number, got None"),
    ('{"type": "point", "x": -0.1, "y": 0}', "x must be in [0, 1], got -0.1"),
]


@pytest.mark.parametrize("text, message", MALFORMED)
def test_malformed_messages(text: str, message: str):
    with pytest.raises(InvalidInputError) as error:
        parse(text)
    assert message in str(error.value) and len(str(error.value)) < 200


def test_pictures_lose_nothing_and_are_sent_small():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 64, 3), np.uint8)
    for picture, side in (
        (frame.repeat(10, 0).repeat(10, 1), 64),
        (frame, 64),
        (np.zeros((256, 256, 3), np.uint8), 4),
        (cv2.resize(frame, (200, 200), interpolation=cv2.INTER_NEAREST), 200),
        (frame.repeat(4, 0).repeat(2, 1), 128),
    ):
        small = protocol.reduced(picture)
        factor = picture.shape[0] // small.shape[0]
        assert small.shape[0] == side or small.shape == (128, 64, 3)
        assert np.array_equal(small.repeat(factor, 0).repeat(factor, 1), picture)


def test_every_command_has_a_button():
    labelled = [command for group in buttons._GROUPS.values() for command in group]
    assert set(labelled) == set(Command) and len(labelled) == len(set(labelled))


def test_buttons_press_keys_that_are_free(env: DiamondEnv, tmp_path: Path):
    for shortcuts in (play_shortcuts(GameKeys.of(["NOOP", "DOWN"]).keys), DATASET_SHORTCUTS):
        for title in buttons._GROUPS:
            for button in buttons._buttons(title, shortcuts):
                assert [s.command for s in shortcuts if button["key"] in s.keys] == [button["command"]]
                assert button["label"] and button["key"] != "s"


def test_keys_of_a_touch_pad():
    assert GameKeys.of(worlds.ACTION_MEANINGS).alone() == [("a", "LEFT"), ("d", "RIGHT"), (" ", "FIRE")]
    assert GameKeys.of(["NOOP", "UPFIRE"]).alone() == [("w", ""), (" ", "")]


# --- state shared by threads, and outboxes of slow pages


def test_controls():
    controls = Controls()
    for key in ("a", "d", "a"):
        controls.down(key)
    controls.up("a")
    controls.press("m")
    taken = controls.take()
    assert taken.held == ("a", "d")  # a tap counts
    assert taken.presses == (Press("a"), Press("d"), Press("a", is_repeated=True), Press("m"))
    assert controls.take().held == ("d",) and controls.take().presses == ()
    controls.release()
    assert controls.take().held == ()


def test_sliders_stay_and_the_mouse_counts_while_it_is_down():
    controls = Controls()
    controls.slide(1, 0.5)
    controls.down("a")
    controls.point(0, 0)
    controls.point(1, 0.5)
    controls.lift()
    assert controls.take().held == ("part@1,0.5", "a", "mouse@1.0000,0.5000")  # a click counts
    assert controls.take().held == ("part@1,0.5", "a")
    controls.point(0, 0)
    controls.slide(1, -2.0)
    for _ in range(2):
        assert controls.take().held == ("part@1,-2.0", "a", "mouse@0.0000,0.0000")
    controls.release()
    assert controls.take().held == ()


def test_controls_of_a_flood_are_bounded():
    controls = Controls()
    for i in range(1000):
        controls.down(f"key{i}")
        controls.press("m")
    taken = controls.take()
    assert len(taken.held) == 16 and len(taken.presses) == 64


def frame(number: int) -> Frame:
    return Frame(number, f"facts {number}", f"png {number}".encode())


@pytest.mark.anyio
async def test_a_slow_page_gets_the_latest_picture_only():
    box = Outbox()
    sent = []
    for number in range(1, 20):
        box.put_frame(frame(number))
        box.put("seat", f"seat {number}")
        taken = await box.take()
        sent += [item for item in taken if isinstance(item, bytes)]
        assert f"seat {number}" in taken
    assert sent == [f"png {number}".encode() for number in range(1, MAX_IN_FLIGHT + 1)]
    box.shown(1)
    assert await box.take() == ["facts 19", b"png 19"]


@pytest.mark.anyio
async def test_a_page_that_has_gone_is_noticed():
    box = Outbox(patience=0.05)
    box.put_frame(frame(1))
    await box.take()
    with pytest.raises(TimeoutError):
        await box.take()
    box.close(4000, "over")
    assert await box.take() == [outbox.Close(4000, "over")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_clock_keeps_time_and_makes_no_bursts():
    clock, start_of_all = Clock(100), time.perf_counter()
    for _ in range(5):
        clock.wait()
    assert time.perf_counter() - start_of_all > 0.045
    time.sleep(0.1)
    clock.wait()
    late = time.perf_counter()
    clock.wait()
    assert time.perf_counter() - late > 0.005


# --- access


@pytest.mark.parametrize(
    "host, is_refused",
    [
        ("localhost:9000", False),
        ("127.0.0.1:8000", False),
        ("[::1]:8000", False),
        ("my.localhost", False),
        ("box:8000", False),
        ("evil.example:8000", True),
        ("10.0.0.1", True),
        ("[bad", True),
        (None, True),
    ],
)
def test_a_local_page_answers_to_local_names_only(host: str | None, is_refused: bool):
    rules = access.access_to("127.0.0.1", "box")
    assert rules.token is None and (rules.refuses(host, None) is not None) == is_refused


def test_tokens_differ_and_are_needed_elsewhere():
    rules, others = (access.access_to("10.0.0.1", "10.0.0.1") for _ in range(2))
    assert rules.token and others.token and rules.token != others.token and len(rules.token) >= 20
    assert rules.refuses("box:8000", rules.token) is None
    assert "a token is needed" in str(rules.refuses("box:8000", None))
    for wrong in ("", "ä", rules.token[:-1], others.token):
        assert "the token is wrong" in str(rules.refuses("box:8000", wrong))


def closing(url: str, **more: Any) -> tuple[int, str]:
    """Return code and reason with which a socket is closed at once."""
    with connect(url, **more) as connection, pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.recv(5)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def get(url: str, **headers: str) -> Answer:
    """Request a path exactly as it is written."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=10)
    connection.request("GET", url.removeprefix(f"http://{parts.netloc}"), headers=headers)
    response = connection.getresponse()
    fields = {name.lower(): value for name, value in response.getheaders()}
    answer = Answer(response.status, fields, response.read().decode())
    connection.close()
    return answer


def test_other_sites_cannot_play(served: Served):
    code, reason = closing(served.socket_url, origin="http://evil.example")
    assert code == 4003 and "a page of 'http://evil.example' must not play here" in reason
    assert get(served.url, Host="evil.example").status == 403
    with guest(served.socket_url, origin=served.url.rstrip("/")) as player:
        assert player.until("seat")["is_player"]


def test_a_token_is_asked_for(env: DiamondEnv, tmp_path: Path):
    with serve(lambda: make_viewer(env, tmp_path), host="0.0.0.0") as served:
        assert "?token=" in served.url
        port, token = served.url.split(":")[2].split("/?token=")
        here = f"127.0.0.1:{port}"
        assert get(f"http://{here}/?token={token}").status == 200
        for query, message in (("", "token is needed"), ("?token=wrong", "token is wrong")):
            answer = get(f"http://{here}/{query}")
            assert answer.status == 403 and message in answer.text and "<form >" in answer.text
            code, reason = closing(f"ws://{here}/socket{query}")
            assert code == 4003 and message in reason
        with guest(f"ws://{here}/socket?token={token}") as player:
            assert player.until("seat")["is_player"]


def test_the_page_and_its_files(served: Served):
    page = get(served.url)
    assert page.status == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for name, kind in (("play.js", "javascript"), ("play.css", "css"), ("icon.svg", "svg")):
        file = get(f"{served.url}page/{name}")
        assert file.status == 200 and kind in file.headers["content-type"]
    for path in ("page/../app.py", "page/%2e%2e/app.py", "app.py"):
        assert get(f"{served.url}{path}").status == 404


# --- people


def test_pictures_facts_and_keys(served: Served, player: Guest):
    game = player.until("game")
    assert game["title"] == "Breakout" and game["held_keys"] == [["a", "LEFT"], ["d", "RIGHT"], [" ", "FIRE"]]
    assert player.until("view")["picture"].shape == (64, 64, 3)
    player.send("down", key="d")
    player.fact("Action", "RIGHT")
    player.send("down", key=" ")
    player.fact("Action", "FIRE")
    player.send("up", key=" ")
    player.fact("Action", "RIGHT")
    player.send("release")
    player.fact("Action", "NOOP")
    player.send("press", key="4")
    player.send("press", key=".")
    paused = player.until("view", lambda view: "paused" in view["facts"]["Time step"])
    assert paused["facts"]["Denoising"] == "4 x Euler"
    time.sleep(0.1)  # the game stands still now
    view = served.viewers[0].view()
    assert np.array_equal(paused["picture"].repeat(4, 0).repeat(4, 1), view.picture)


def test_held_keys_repeat_where_their_command_does(player: Guest):
    for _ in range(3):
        player.send("down", key="up")
        player.send("down", key="m")
    player.fact("Horizon", "53")
    assert player.until("view")["facts"]["Controller"].startswith("policy")


def test_help_is_sent_as_text(player: Guest):
    game = player.until("game")
    assert ["Space", "FIRE"] in game["help"][0][1] and ["Esc", "leave"] in game["help"][1][1]
    assert not player.until("view")["shows_help"]
    player.send("press", key="h")
    player.until("view", lambda view: view["shows_help"])


def test_a_picture_that_stays_the_same_is_not_sent_again(player: Guest):
    player.send("press", key=".")
    player.until("view", lambda view: "paused" in view["facts"]["Time step"])
    with pytest.raises(TimeoutError):
        while True:
            player.socket.recv(0.5)


def test_one_plays_and_others_watch(player: Guest, served: Served):
    assert player.until("seat") == {"type": "seat", "is_player": True, "is_free": False, "num_viewers": 0}
    with guest(served.socket_url) as other:
        seat = other.until("seat")
        assert not seat["is_player"] and not seat["is_free"]
        assert player.until("seat")["num_viewers"] == 1
        other.send("down", key="a")
        assert "only the player has the keys" in other.until("error")["text"]
        other.send("sit")
        assert "somebody else is playing" in other.until("error")["text"]
        player.send("down", key="d")
        player.fact("Action", "RIGHT")
        other.fact("Action", "RIGHT")


def test_the_seat_becomes_free_and_keys_are_let_go(served: Served):
    with guest(served.socket_url) as other_first:
        other_first.until("seat")
        with guest(served.socket_url) as viewer:
            other_first.send("down", key="d")
            viewer.fact("Action", "RIGHT")
            other_first.socket.close()
            assert viewer.until("seat", lambda seat: seat["is_free"])["is_player"] is False
            viewer.fact("Action", "NOOP")
            viewer.send("sit")
            assert viewer.until("seat", lambda seat: seat["is_player"])
            viewer.send("down", key="a")
            viewer.fact("Action", "LEFT")


def test_a_lost_connection_lets_go_too(served: Served):
    with guest(served.socket_url) as player, guest(served.socket_url) as viewer:
        player.until("seat")
        player.send("down", key="d")
        viewer.fact("Action", "RIGHT")
        player.socket.socket.shutdown(socket.SHUT_RDWR)
        viewer.fact("Action", "NOOP")


@pytest.mark.parametrize("text, message", [*MALFORMED[:5], (b"bytes", "must be text, got bytes")])
def test_malformed_messages_are_answered(player: Guest, text: str | bytes, message: str):
    player.socket.send(text)
    assert message in player.until("error")["text"]
    player.send("down", key="d")
    player.fact("Action", "RIGHT")


def test_oversized_and_broken_messages_close_their_socket_only(served: Served, player: Guest):
    for content, code in ((b"x" * (MAX_MESSAGE_BYTES + 1), 1009), (b"x" * 5000, 1009), (b"\xff", 1007)):
        with guest(served.socket_url) as other, pytest.raises(ConnectionClosed) as closed:
            other.socket.send(content, text=True)
            while True:
                other.socket.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == code
    player.send("down", key="d")
    player.fact("Action", "RIGHT")


def opened(served: Served, begin: bytes) -> socket.socket:
    """Open a connection and send the beginning of a request."""
    address = urlsplit(served.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    connection.sendall(begin)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends a connection, within the socket's timeout."""
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_half_a_header_and_half_a_message_are_waited_for_briefly(
    served: Served, player: Guest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guard, "PATIENCE_SECONDS", 0.3)
    request = f"GET / HTTP/1.1\r\nHost: {urlsplit(served.url).netloc}\r\n"
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    socket_request = request.replace("/ HTTP", "/socket HTTP") + upgrade
    socket_request += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    half_a_message = socket_request.encode() + b"\x81\x85\0\0\0\0he"
    half_of_two = socket_request.encode() + b"\x01\x81\0\0\0\0h"
    second_half = f"{request}\r\n{request}".encode()
    for begin in (b"", request.encode(), second_half, half_a_message, half_of_two):
        connection = opened(served, begin)
        assert is_closed(connection), begin
        connection.close()
    player.until("view")


def test_half_open_connections_keep_nobody_out(served: Served, player: Guest):
    crowd = [opened(served, b"GET / HT") for _ in range(guard.MAX_WAITING + 100)]
    assert get(served.url).status == 200
    with guest(served.socket_url) as another:
        another.until("view")
    assert is_closed(crowd[0]), "the oldest made room"
    player.until("view")
    for connection in crowd:
        connection.close()


def test_bad_text_is_logged_in_a_line(served: Served, player: Guest, caplog: pytest.LogCaptureFixture):
    with guest(served.socket_url) as other, pytest.raises(ConnectionClosed) as closed:
        other.socket.send(b"\xff\xfe", text=True)
        for _ in range(200):
            other.socket.recv(timeout=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
    (record,) = [x for x in caplog.records if x.levelname != "INFO"]
    assert "not UTF-8" in record.message and record.exc_info is None
    player.until("view")


def test_a_flood_of_messages_is_read_slowly(served: Served, player: Guest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "MAX_MESSAGES_PER_SECOND", 5)
    begin = time.monotonic()
    for _ in range(11):
        player.send("nonsense")
    player.send("down", key="d")
    player.fact("Action", "RIGHT")
    assert time.monotonic() - begin > 1


def test_too_many_people(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diamond_gym.play.web.room.MAX_PEOPLE", 1)
    with guest(served.socket_url) as player:
        player.until("seat")
        code, reason = closing(served.socket_url)
        assert code == 4002 and "here already: come back later" in reason


def test_a_slow_client_misses_pictures_and_slows_nobody(served: Served, player: Guest):
    with guest(served.socket_url) as slow:
        slow.until("seat")
        first = player.until("view")["number"]
        player.until("view", lambda view: view["number"] >= first + 20)
        numbers = []
        while True:
            try:
                message = slow.socket.recv(0.2)
            except TimeoutError:
                break
            if isinstance(message, str) and '"view"' in message:
                numbers.append(int(message.split('"number": ')[1].split(",")[0]))
        assert len(numbers) == MAX_IN_FLIGHT
        slow.send("shown", number=numbers[-1])
        assert slow.until("view")["number"] > first + 15


# --- coming and going


def ended(player: Guest) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            player.receive()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_escape_leaves_and_others_stay(served: Served, player: Guest):
    with guest(served.socket_url) as other:
        other.until("seat")
        player.send("press", key="escape")
        assert ended(player) == (4000, "you left the game")
        assert other.until("seat", lambda seat: seat["is_free"])
        number = other.until("view")["number"]
        other.until("view", lambda view: view["number"] > number)
        assert served.game.is_loaded and len(served.viewers) == 1


def test_the_last_one_to_leave_frees_the_world_and_keeps_what_was_recorded(tmp_path: Path):
    checkpoint = worlds.save_tiny_world(tmp_path / "world", end_bias=-30)
    models: list[weakref.ref[Any]] = []

    def open_viewer() -> Viewer:
        env = DiamondEnv("Breakout", checkpoint=checkpoint, **worlds.PLAIN)
        models.append(weakref.ref(env.world.world_model))
        return make_viewer(env, tmp_path, "--horizon=3", recorder=Recorder(tmp_path / "dataset"))

    with serve(open_viewer) as served:
        with guest(served.socket_url) as player:
            player.fact("Recording", "1 episodes")
        served.viewers.clear()
        wait_until(lambda: not served.game.is_loaded and (gc.collect() >= 0) and models[0]() is None)
        assert "episode(s) saved under" in served.told[0] and "p95" in served.told[0]
        assert (tmp_path / "dataset" / "rec_Breakout-wm_H" / "info.pt").is_file()
        with guest(served.socket_url) as player:
            player.fact("Recording", "1 episodes")
        assert len(models) == 2


def test_a_page_that_is_loaded_again_finds_its_game(env: DiamondEnv, tmp_path: Path):
    with serve(lambda: make_viewer(env, tmp_path), grace=10) as served:
        with guest(served.socket_url) as player:
            player.send("press", key=".")
            player.until("view", lambda view: "paused" in view["facts"]["Time step"])
        with guest(served.socket_url) as player:
            assert player.until("seat")["is_player"]
            assert "paused" in player.until("view")["facts"]["Time step"]
        assert len(served.viewers) == 1


def test_what_cannot_be_written_is_kept_for_later(env: DiamondEnv, tmp_path: Path):
    with serve(lambda: make_viewer(env, tmp_path)) as served:
        session = served.viewers[0].session
        close, failures = session.close, [CacheError("the disk is full")]

        def failing_close() -> str:
            if failures:
                raise failures.pop()
            return close()

        session.close = failing_close  # pyright: ignore[reportAttributeAccessIssue]
        with guest(served.socket_url) as player:
            player.until("view")
        wait_until(lambda: served.told == ["error: the disk is full"])
        assert served.game.is_loaded
        with guest(served.socket_url) as player:
            player.until("view")  # the last one, which new people get
            player.until("view")  # the game has noticed the guest
        wait_until(lambda: not served.game.is_loaded)
        assert len(served.viewers) == 1


def test_a_world_that_cannot_be_loaded_again(env: DiamondEnv, tmp_path: Path):
    errors: list[Exception] = []

    def open_viewer() -> Viewer:
        if errors:
            raise errors.pop()
        return make_viewer(env, tmp_path)

    with serve(open_viewer) as served:
        with guest(served.socket_url) as player:
            player.until("view")
        wait_until(lambda: not served.game.is_loaded)
        errors.append(CheckpointError("model.safetensors is damaged"))
        with guest(served.socket_url) as player:
            assert ended(player) == (4001, "the world model could not be loaded")
            assert {"type": "status", "text": "model.safetensors is damaged"} in player.seen
        assert "error: model.safetensors is damaged" in served.told
        with guest(served.socket_url) as player:
            player.until("view")


def test_dataset_mode(tmp_path: Path):
    recordings.save_dataset(tmp_path / "dataset" / "train", 2)
    browser = DatasetBrowser(find_datasets(tmp_path / "dataset"), None, size=SIZE)
    with (
        serve(lambda: Viewer(browser, Canvas(SIZE), fps=60, captures=tmp_path)) as served,
        guest(served.socket_url) as player,
    ):
        assert player.until("game")["held_keys"] == []
        for key in ("right", "up"):
            player.send("press", key=key)
        assert player.until("view", lambda view: view["facts"]["Episode"] == "1 of 2")["picture"].ndim == 3


# --- the whole program


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["game=Breakout", "checkpoint=nowhere.pt", "--web", "--port", str(port)]) == 2
    errors = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--web", "--port", "65536"], 2, "port must be in 0..65535 (0 takes a free one), got 65536"),
        (["--web", "--port", "-1"], 2, "port must be in 0..65535"),
        (["--web", "--host", ""], 2, "key host needs a value"),
        (
            ["--web", "--host", "no.such.host.invalid", "--port", "0"],
            2,
            "cannot listen at no.such.host.invalid",
        ),
        (["--web", "--host", "192.0.2.1", "--port", "0"], 2, "cannot listen at 192.0.2.1 port 0"),
        (["--port", "80"], 2, "host and port need web=true"),
        (["game=Brekout", "--web"], 2, "did you mean Breakout"),
        (["checkpoint=nowhere.pt", "--web", "--port", "0"], 1, "nowhere.pt"),
        (["-d", "nowhere", "--web", "--port", "0"], 1, "there is no folder nowhere"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "websockets"])
def test_without_the_extra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["game=Breakout", "--web"]) == 1
    assert f'--web needs {name}: pip install "diamond-gym[web]"' in capsys.readouterr().err


def test_urls():
    rules = access.Access("secret", "0.0.0.0")
    assert server._url("0.0.0.0", 80, rules) == f"http://{socket.gethostname()}:80/?token=secret"
    assert server._url("::1", 80, access.Access(None, "::1")) == "http://[::1]:80/"


WITHOUT_PYGAME = "import sys; sys.modules['pygame'] = None"


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_the_program_without_display_and_pygame(env: DiamondEnv, tmp_path: Path, end: signal.Signals):
    """Films are saved and pacing is printed, whether Ctrl-C or SIGTERM ends the program."""
    checkpoint = worlds.save_tiny_world(tmp_path / "world", end_bias=-30)
    code = f"{WITHOUT_PYGAME};  from diamond_gym.play.__main__ import main; sys.exit(main(sys.argv[1:]))"
    hidden = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            checkpoint,
            "device=cpu",
            "--web",
            "--port=0",
            "--film=film.gif",
            "--size=256",
        ],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in hidden}
        | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("play at "):
            break
    else:
        raise AssertionError("it never served")
    with guest(line.split()[2].replace("http", "ws") + "socket") as player:
        player.until("view", lambda view: view["number"] > 3)
        process.send_signal(end)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + end, printed
    assert "frame pacing: p50" in printed and "Traceback" not in printed
    assert (tmp_path / "film.gif").stat().st_size > 500
