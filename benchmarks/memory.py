"""Resources of this process, as Linux reports them; None on other systems."""

from __future__ import annotations

import re
from pathlib import Path

_FILES = Path("/proc/self/fd")
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """Memory that this process occupies now."""
    return _kilobytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """Peak memory of this process so far.

    `getrusage` would not do: it counts what the parent occupied when it started this process.
    """
    return _kilobytes("VmHWM")


def num_threads() -> int | None:
    """Threads of this process, those of libraries among them."""
    return _status(r"Threads:\s*(\d+)")


def num_open_files() -> int | None:
    """Open file descriptors of this process: files, sockets and pipes."""
    try:
        return sum(1 for _ in _FILES.iterdir()) - 1  # without that of the folder itself
    except OSError:
        return None


def _kilobytes(name: str) -> int | None:
    found = _status(rf"{name}:\s*(\d+) kB")
    return None if found is None else 1024 * found


def _status(pattern: str) -> int | None:
    try:
        found = re.search(f"^{pattern}$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
