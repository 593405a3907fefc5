"""Progress of long commands: a bar on a terminal, elsewhere a line per minute in the log.

Messages go through `logging`, under the names of their modules; `shown` lets a program print them to stderr.
Programs that use the library decide themselves how to handle them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

SECONDS = 60.0
"""Seconds between two lines of the log, over all bars."""
_LOOK_SECONDS = 1.0
_NAMES = ("diamond_gym", "trainers", "benchmarks")
_log = logging.getLogger(__name__)
_last_line = time.monotonic()


@contextlib.contextmanager
def shown(level: int = logging.INFO) -> Iterator[None]:
    """Within the block, print messages of this level and above to stderr, between the bars.

    Args:
        level: A level of `logging`; above INFO there are no bars either.
    """
    handler, loggers = _Handler(), [logging.getLogger(name) for name in _NAMES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


class _Handler(logging.Handler):
    """Prints messages, with the time where stderr is not a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        begin = "" if _is_watched() else "%(asctime)s "
        begin += "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = logging.Formatter(f"{begin}%(message)s", "%Y-%m-%d %H:%M:%S").format(record)
        # a closed terminal or pipe must not end the program
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stderr)


class Bar(tqdm):
    """A bar of `tqdm` on a terminal and in a notebook; elsewhere a line per minute: done, rate, time left.

    It takes tqdm's arguments. The latest text of `set_postfix_str`, such as a score, ends the line.
    """

    def __init__(self, *arguments: Any, disable: bool = False, **keywords: Any) -> None:
        self._is_logged = not _is_watched()
        if self._is_logged:
            keywords |= {"mininterval": _LOOK_SECONDS, "leave": False, "file": io.StringIO()}
        self._was_told = False
        is_quiet = logging.getLogger(_NAMES[0]).level > logging.INFO
        super().__init__(*arguments, disable=disable or is_quiet, **keywords)
        if self._is_logged and not disable and keywords.get("desc"):
            _log.debug("%s begins", keywords["desc"])

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the progress, see `tqdm.display`."""
        if not self._is_logged:
            super().display(msg, pos)
            return
        if msg is None and time.monotonic() - _last_line >= SECONDS:
            self._tell()

    def close(self) -> None:
        """Close the bar, with a last line in the log if there was one before."""
        if not self.disable and self._was_told:
            self._tell()
        super().close()

    def _tell(self) -> None:
        global _last_line
        _last_line, self._was_told = time.monotonic(), True
        _log.info("%s", line(dict(self.format_dict)))


def line(state: dict[str, Any]) -> str:
    """Format the progress of a bar in words.

    Args:
        state: The `format_dict` of tqdm.
    """
    done, total, unit, seconds = state["n"], state["total"], state["unit"], state["elapsed"]
    begin = f"{state['prefix'].rstrip(': ')}: " if state["prefix"] else ""
    of_all = f" of {total:,.0f} {unit}s ({100 * done / total:.0f} %)" if total else f" {unit}s"
    rate = state["rate"] or (done - state["initial"]) / max(seconds, 1e-9)
    parts = [f"{begin}{done:,.0f}{of_all}"]
    if rate:
        per_second = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        parts.append(f"{per_second} {unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s a {unit}")
    if rate and total and done < total:
        parts.append(f"{duration((total - done) / rate)} left")
    return ", ".join([*parts, *([state["postfix"]] if state["postfix"] else [])])


def duration(seconds: float) -> str:
    """Format a duration, such as "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _is_watched() -> bool:
    """Whether output is on a terminal or in a notebook, where bars can move."""
    return "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())
