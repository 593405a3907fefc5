"""The messages still to be sent to a page: the latest of each kind, so that slow pages skip pictures."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from diamond_gym.play.web.protocol import Frame

MAX_IN_FLIGHT = 4
"""Most pictures on their way to a page at once; the next one waits until the page has drawn one of them.

At 15 pictures per second that is enough for a round trip of 250 ms.
"""
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Close:
    """A request to close the connection.

    Attributes:
        code: Code of the WebSocket protocol.
        reason: Text of at most 123 bytes.
    """

    code: int
    reason: str


class Outbox:
    """The outbox of a page; use it only in the event loop.

    Args:
        patience: Seconds after which a page that draws nothing counts as gone.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._changed = asyncio.Event()
        self._texts: dict[str, str] = {}
        self._frame: Frame | None = None
        self._in_flight: deque[int] = deque()
        self._close: Close | None = None

    def put(self, kind: str, text: str) -> None:
        """Add a message, which replaces a waiting one of its kind."""
        self._texts[kind] = text
        self._changed.set()

    def put_frame(self, frame: Frame) -> None:
        """Add a picture, which replaces a waiting one."""
        self._frame = frame
        if self._has_room():
            self._changed.set()

    def shown(self, number: int) -> None:
        """Note that the page has drawn this picture; earlier ones were drawn or skipped."""
        while self._in_flight and self._in_flight[0] <= number:
            self._in_flight.popleft()
        if self._frame is not None:
            self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Close the connection once the waiting messages are sent."""
        self._close = Close(code, reason)
        self._changed.set()

    async def take(self) -> list[str | bytes | Close]:
        """Wait until there is something to send; return it in order.

        Raises:
            TimeoutError: The page has drawn none of its pictures for too long.
        """
        while not (self._texts or self._close or (self._frame and self._has_room())):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._patience)
            except TimeoutError:
                if self._in_flight:
                    raise
        taken: list[str | bytes | Close] = list(self._texts.values())
        self._texts = {}
        if self._frame is not None and self._has_room():
            taken += [self._frame.facts, self._frame.png]
            self._in_flight.append(self._frame.number)
            self._frame = None
        return taken if self._close is None else [*taken, self._close]

    def _has_room(self) -> bool:
        return len(self._in_flight) < MAX_IN_FLIGHT
