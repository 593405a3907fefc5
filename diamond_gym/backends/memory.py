"""Makes glibc keep freed memory, because networks on the CPU ask for the same large blocks again and again.

By default every large block is mapped afresh and faulted in page by page, which can take a third of a
training step. Only training asks for this: an environment must not change the settings of the process that
uses it.
"""

from __future__ import annotations

import ctypes
import sys

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
