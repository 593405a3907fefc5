"""Memory of this process and of the machine, as Linux tells it; None on systems that do not."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """Memory that this process occupies now."""
    text = _read(_STATM)
    return None if text is None else int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int | None:
    """The most memory that this process has occupied so far.

    `getrusage` would not do: it counts what the parent occupied when it started this process.
    """
    return _kilobytes(_STATUS, "VmHWM")


def available_bytes() -> int | None:
    """Memory that processes can still take: what the machine or, if less, the container has left."""
    of_machine = _kilobytes(_MEMINFO, "MemAvailable")
    limit, current = (_read(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if of_machine is None or limit is None or current is None or not limit.strip().isdecimal():
        return of_machine
    return min(of_machine, max(0, int(limit) - int(current)))


def _kilobytes(file: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _read(file) or "", re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
