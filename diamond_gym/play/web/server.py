"""The web server, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from diamond_gym.errors import InvalidInputError
from diamond_gym.play.web import app
from diamond_gym.play.web.access import Access, access_to
from diamond_gym.play.web.controls import Controls
from diamond_gym.play.web.guard import Guard
from diamond_gym.play.web.protocol import MAX_MESSAGE_BYTES, Frame
from diamond_gym.play.web.room import Room

_PING_SECONDS = 5.0
_EVERYWHERE = ("0.0.0.0", "::")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket for the server, before anything is loaded.

    Args:
        host: Name or address of this machine; 0.0.0.0 for all of its addresses.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: The port is in use or not allowed, or the host is not one of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"cannot listen at {host} port {port}: {reason}; choose others with --host and --port"
        ) from None


@dataclass(frozen=True)
class Server:
    """A running server, for the game an `Audience` that may be called from any thread.

    Attributes:
        url: Address of the page, with its token if it needs one.
        controls: The input of the player.
        room: The people on the page.
        loop: The event loop of the room.
    """

    url: str
    controls: Controls
    room: Room
    loop: asyncio.AbstractEventLoop

    def introduce(self, introduction: str) -> None:
        """See `Room.introduce`."""
        self._call(self.room.introduce, introduction)

    def show(self, frame: Frame) -> None:
        """See `Room.show`."""
        self._call(self.room.show, frame)

    def send_player_away(self) -> None:
        """See `Room.send_player_away`."""
        self._call(self.room.send_player_away)

    def forget(self) -> None:
        """See `Room.forget`."""
        self._call(self.room.forget)

    def fail(self, text: str) -> None:
        """See `Room.fail`."""
        self._call(self.room.fail, text)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the server's thread call a function soon; any thread may ask for it."""
        self.loop.call_soon_threadsafe(function, *arguments)


@contextlib.contextmanager
def serving(listener: socket.socket, host: str) -> Iterator[Server]:
    """Serve the page while the block runs.

    Args:
        listener: The socket from `listen`; it is closed at the end.
        host: The host that `listen` got.
    """
    controls = Controls()
    room = Room(controls)
    address, port = listener.getsockname()[:2]
    access = access_to(address, host)
    web = uvicorn.Server(_config(room, access))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop, web, listener), name="web server", daemon=True)
    thread.start()
    try:
        yield Server(_url(host, port, access), controls, room, loop)
    finally:
        web.should_exit = True
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, web: uvicorn.Server, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(web.serve(sockets=[listener]))


def _config(room: Room, access: Access) -> uvicorn.Config:
    """Configure Uvicorn without its log, which would hold tokens, and without compression."""
    http, ws = Guard().protocols()
    return uvicorn.Config(
        app.make_app(room, access),
        http=http,
        access_log=False,
        log_level="error",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ws=ws,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PING_SECONDS,
    )


def _url(host: str, port: int, access: Access) -> str:
    name = socket.gethostname() if host in _EVERYWHERE else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={access.token}" if access.token else "")
