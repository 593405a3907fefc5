"""Runs a command that is told to stop when the process that started it is gone.

    python -m trainers.sweep.follow PARENT COMMAND ...

A Ray worker that is killed cannot stop the run that it has started. On Linux the run gets SIGTERM then, on
which both trainers save. Elsewhere it runs to its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def main(arguments: Sequence[str]) -> None:
    """Takes the place of this process by the command; the signal survives that."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(parent):  # it was gone before it could be followed
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
