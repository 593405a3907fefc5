"""A log message for what the user had to wait for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

WORTH_A_MESSAGE_SECONDS = 1.0


@contextmanager
def log_if_slow(what: str) -> Iterator[None]:
    """Log afterwards what was done and how long it took, if that was noticeable.

    The level is that of a warning, which logging shows on standard error unless it is configured otherwise.
    """
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > WORTH_A_MESSAGE_SECONDS:
        logging.getLogger(__name__).warning("%s in %.0f s", what, seconds)
