"""Tells, on standard error, what a user has had to wait for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

WORTH_A_MESSAGE_SECONDS = 1.0


@contextmanager
def log_if_slow(what: str) -> Iterator[None]:
    """Says afterwards what was done and how long it took, if that was more than a moment."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > WORTH_A_MESSAGE_SECONDS:
        print(f"{what} in {seconds:.0f} s", file=sys.stderr)
