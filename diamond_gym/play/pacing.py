"""When pictures are due, and how regular they were."""

from __future__ import annotations

import time

import numpy as np


class Pacing:
    """A record of the times between pictures.

    Args:
        fps: Pictures per second that were asked for.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.seconds: list[float] = []
        self._last: float | None = None

    def tick(self) -> None:
        """Note that a picture has been shown."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    def pause(self) -> None:
        """Note a pause; the time until the next picture is not counted."""
        self._last = None

    def __str__(self) -> str:
        if not self.seconds:
            return "frame pacing: fewer than two pictures were shown"
        p50, p95 = 1e3 * np.percentile(self.seconds, [50, 95])
        achieved = len(self.seconds) / sum(self.seconds)
        return (
            f"frame pacing: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {achieved:.1f} fps of {self.fps:g} "
            f"over {len(self.seconds) + 1} pictures"
        )


class Clock:
    """A clock that waits until a picture is due. A late picture delays those after it: there are no bursts.

    Args:
        fps: Pictures per second.
    """

    def __init__(self, fps: float) -> None:
        self._period = 1 / fps
        self._turn = time.perf_counter()

    def wait(self) -> None:
        """Sleep until one period after the last picture was due, or not at all if that has passed."""
        self._turn += self._period
        now = time.perf_counter()
        if self._turn > now:
            time.sleep(self._turn - now)
        else:
            self._turn = now
