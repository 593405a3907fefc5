"""The page of the play mode, served to tests, and people who have it open."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from diamond_gym.play.viewer import Viewer
from diamond_gym.play.web import server
from diamond_gym.play.web.game import Game

WAIT_SECONDS = 30.0


@dataclass
class Served:
    """A served page, with the messages of its game and the viewers that it opened."""

    server: server.Server
    game: Game
    viewers: list[Viewer]
    told: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def socket_url(self) -> str:
        return self.url.replace("http:", "ws:").replace("/?", "/socket?") + (
            "" if "?" in self.url else "socket"
        )


@contextmanager
def serve(
    open_viewer: Callable[[], Viewer], *, host: str = "127.0.0.1", fps: float = 60, grace: float = 0.2
) -> Iterator[Served]:
    """Serve a page, with its game in a thread of this process."""
    viewers: list[Viewer] = []
    told: list[str] = []

    def opened() -> Viewer:
        viewers.append(open_viewer())
        return viewers[-1]

    with server.serving(server.listen(host, 0), host) as served:
        game = Game(opened, served.controls, served, fps=fps, tell=told.append, grace=grace)
        thread = threading.Thread(target=game.run, daemon=True)
        thread.start()
        try:
            yield Served(served, game, viewers, told)
        finally:
            served.controls.end()
            thread.join(WAIT_SECONDS)
            game.close()


class Guest:
    """A client that looks like a person's page to the server."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> dict[str, Any]:
        """Return the next message; the facts of a picture contain it as "picture"."""
        message = json.loads(self.socket.recv(WAIT_SECONDS))
        if message["type"] == "view":
            png = np.frombuffer(self.socket.recv(WAIT_SECONDS), np.uint8)
            message["bytes"] = len(png)
            message["picture"] = cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            message["facts"] = {name: value for column in message["header"] for name, value in column}
            self.send("shown", number=message["number"])
        self.seen.append(message)
        return message

    def until(
        self, kind: str, is_right: Callable[[dict[str, Any]], bool] = lambda message: True
    ) -> dict[str, Any]:
        """Return the next message of a kind that fulfils a condition."""
        for _ in range(2000):
            message = self.receive()
            if message["type"] == kind and is_right(message):
                return message
        raise AssertionError(f"no such {kind}")

    def fact(self, name: str, value: str) -> dict[str, Any]:
        """Return the next picture with a fact."""
        return self.until("view", lambda message: message["facts"][name] == value)


@contextmanager
def guest(url: str, **more: Any) -> Iterator[Guest]:
    with connect(url, compression=None, **more) as socket:
        yield Guest(socket)
