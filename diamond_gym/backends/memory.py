"""The process's memory: how much there is, and whether the C library keeps what is freed.

Networks on the CPU ask for the same large blocks again and again. By default glibc maps every large block
afresh and faults it in page by page, which can take a third of a training step. Only training asks for this:
an environment must not change the settings of the process that uses it.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_THRESHOLD_BYTES = 1 << 30
MEMORY_IS_KEPT = "the C library keeps freed memory (up to 1 GiB a block): training steps take less time"
"""The log message of programs that have called `keep_freed_memory`."""


def keep_freed_memory() -> bool:
    """Tell the C library to keep blocks of up to 1 GiB; this affects the whole process.

    Returns:
        Whether the C library took the setting (glibc does; others are not changed).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES))


def available_memory() -> int:
    """Return how many bytes can be used without swapping, 2**62 where the system does not say."""
    meminfo = Path("/proc/meminfo")
    text = meminfo.read_text() if meminfo.is_file() else ""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 2**62


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process has used so far, on a GPU those of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
