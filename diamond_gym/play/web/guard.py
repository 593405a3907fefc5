"""Limits for connections with unfinished requests: they are closed within seconds, and never many at once.

Otherwise a client could hold so many half-open connections that nobody else gets one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PATIENCE_SECONDS = 5.0
"""Seconds for the rest of a request's header, or of a message."""
MAX_WAITING = 128
"""Most connections at once that are not sockets of the page; one more closes the oldest."""
_CLOSING_SECONDS = 2.0
_INVALID_TEXT = 1007
_log = logging.getLogger(__name__)


class Guard:
    """The connections of a server that are not (yet) sockets of the page, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.BaseProtocol, asyncio.Transport] = {}

    def enter(self, protocol: asyncio.BaseProtocol, transport: Any) -> None:
        """Add a connection; close the oldest one if there are too many."""
        self._waiting[protocol] = transport
        if len(self._waiting) > MAX_WAITING:
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest).abort()

    def leave(self, protocol: asyncio.BaseProtocol) -> None:
        """Remove a connection, which is a socket of the page now, or gone."""
        self._waiting.pop(protocol, None)

    def protocols(self) -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
        """Return Uvicorn's protocols for pages and for sockets, with these limits."""
        guard = self

        class Http(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                guard.enter(self, transport)
                self._deadline = _Deadline(transport)
                self._deadline.set(True)

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                self._deadline.set(self.cycle is None or self.cycle.response_complete)

            def handle_websocket_upgrade(self, event: Any) -> None:
                guard.leave(self)
                self._deadline.set(False)
                super().handle_websocket_upgrade(event)
                self._deadline.is_over = True

            def connection_lost(self, exc: Exception | None) -> None:
                guard.leave(self)
                self._deadline.set(False)
                super().connection_lost(exc)

        class Socket(WebSocketsSansIOProtocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                guard.enter(self, transport)
                self.close_timeout = _CLOSING_SECONDS
                self._deadline = _Deadline(transport)

            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                self._deadline.set(bool(self.conn.reader.buffer or self.frames))

            async def send(self, message: Any) -> None:
                await super().send(message)
                if self.handshake_complete:
                    guard.leave(self)

            def send_receive_event_to_app(self) -> None:
                if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
                    _log.warning("a page sent text that is not UTF-8: its connection is closed")
                    self.frames = []
                    self.conn.send_close(_INVALID_TEXT)
                    self.handle_parser_exception()
                    return
                super().send_receive_event_to_app()

            def connection_lost(self, exc: Exception | None) -> None:
                guard.leave(self)
                self._deadline.set(False)
                super().connection_lost(exc)

        return Http, Socket


class _Deadline:
    """A time limit for a request or message to be completed; partial data do not extend it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False

    def set(self, is_unfinished: bool) -> None:
        """Start or stop the time limit."""
        if self._timer is not None and not is_unfinished:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and is_unfinished and not self.is_over:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PATIENCE_SECONDS, self._transport.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
        return True
    except UnicodeDecodeError:
        return False
