"""What one page is still to be sent: the latest of each kind, so that slow pages skip pictures."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from diamond_gym.play.web.protocol import Frame

MAX_IN_FLIGHT = 4
"""Pictures that are on their way to a page at once; the next one waits until the page has drawn one of them.

At 15 pictures a second that is enough for a round trip of 250 ms.
"""
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Close:
    """The connection is to be closed.

    Attributes:
        code: Of the WebSocket protocol.
        reason: At most 123 bytes.
    """

    code: int
    reason: str


class Outbox:
    """Lives in the event loop.

    Args:
        patience: Seconds after which a page that draws nothing has gone.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._changed = asyncio.Event()
        self._texts: dict[str, str] = {}
        self._frame: Frame | None = None
        self._in_flight: deque[int] = deque()
        self._close: Close | None = None

    def put(self, kind: str, text: str) -> None:
        """A message; it takes the place of one of its kind that still waits."""
        self._texts[kind] = text
        self._changed.set()

    def put_frame(self, frame: Frame) -> None:
        """A picture; it takes the place of one that still waits."""
        self._frame = frame
        if self._has_room():
            self._changed.set()

    def shown(self, number: int) -> None:
        """The page has drawn this picture; earlier ones were drawn or skipped."""
        while self._in_flight and self._in_flight[0] <= number:
            self._in_flight.popleft()
        if self._frame is not None:
            self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Close the connection once the messages that wait are sent."""
        self._close = Close(code, reason)
        self._changed.set()

    async def take(self) -> list[str | bytes | Close]:
        """Wait until there is something to send; give it in order.

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
