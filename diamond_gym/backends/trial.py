"""Measures once on a processor whether another way of running a network is faster, and remembers the answer.

Answers are small files in the cache folder. They are what makes later processes on this machine choose alike,
and so imagine the same frames after the same seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diamond_gym import files as disk
from diamond_gym.errors import CacheError
from diamond_gym.untrusted import read_json

NEEDED_GAIN = 1.2
"""How many times as fast the other way must be: less is within noise, which would choose anew each time."""
_NUM_PAIRS = 5
_MAX_SECONDS = 3.0
"""After this time a measurement ends with the pairs that it has, at least one after the warm-up."""

_log = logging.getLogger(__name__)


def tried(what: str, key: Sequence[Any], trial: Callable[[], tuple[float, float] | None]) -> bool:
    """Whether the other way is faster here, from the cache or measured now.

    Args:
        what: What is tried, for the log.
        key: What the answer depends on, besides the processor and PyTorch.
        trial: Measures the seconds of the usual and of the other way; None if the other cannot be used.
    """
    file = (
        disk.cache_folder()
        / "backends"
        / f"{digest(cpu_name(), os.cpu_count(), torch.__version__, *key)}.json"
    )
    answer = _remembered(file)
    if answer is None:
        _log.warning('trying %s, once on this processor; backend="eager" does without', what)
        seconds = trial()
        if seconds is None:
            _log.warning("to try %s again, remove %s", what, file)
        answer = seconds is not None and seconds[0] > NEEDED_GAIN * seconds[1]
        _remember(file, {"what": what, "is_faster": answer, "seconds": seconds})
    return answer


def measured(usual: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of two functions, each the least of up to 5 calls in turns."""
    took: list[tuple[float, float]] = []
    for _ in range(_NUM_PAIRS + 1):
        start = time.perf_counter()
        usual()
        middle = time.perf_counter()
        other()
        took.append((middle - start, time.perf_counter() - middle))
        if len(took) > 1 and sum(map(sum, took)) > _MAX_SECONDS:
            break
    usual_seconds, other_seconds = zip(*took[1:], strict=True)  # the first warms up
    return min(usual_seconds), min(other_seconds)


def digest(*values: Any) -> str:
    """Return a short name of some values, for files."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _remembered(file: Path) -> bool | None:
    """The answer in a file; None if there is none, or none that can be read."""
    if not file.exists():
        return None
    try:
        answer = read_json(file, CacheError, "the answer of a trial")
        if isinstance(answer, dict) and isinstance(answer.get("is_faster"), bool):
            return answer["is_faster"]
        raise CacheError(f"{file} holds no answer of a trial")
    except CacheError as error:
        _log.warning("trying again: %s", error)
        return None


def _remember(file: Path, answer: dict[str, Any]) -> None:
    try:
        disk.write_file(file, json.dumps(answer).encode())
    except CacheError as error:
        _log.warning("the answer is not remembered: %s, or set DIAMOND_GYM_CACHE to one", error)
