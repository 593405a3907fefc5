"""Signals to a long command: requests to end or to save.

SIGINT (Ctrl-C), SIGTERM (clusters, containers, `timeout`) and SIGHUP (a closed terminal) ask it to end: it
finishes its step, saves and exits with 130, 143 or 129. SIGUSR1 is the warning that clusters send some time
before SIGTERM: it saves and continues, so that neither work nor time is lost.

`handled` is for programs and goes around everything they do; `deferred` is for a loop that can be resumed;
`quiet_while_importing` is for the time before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import NoReturn

_log = logging.getLogger(__name__)
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SAVING = [getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name)]


_PACKAGES = ("diamond_gym", "trainers", "benchmarks")


def quiet_while_importing() -> None:
    """Leave out the traceback of a Ctrl-C that comes before a command of ours has imported what it needs.

    PyTorch takes seconds, in which no program is there to handle signals. The process ends by the signal all
    the same, which shells report as 130. Programs of others are left alone.
    """
    if sys.argv[:1] != ["-m"]:  # which it is while `python -m` imports the package of its module
        return
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if module.partition(".")[0] in _PACKAGES and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _without_interrupts


def _without_interrupts(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the program ends as after Ctrl-C, and saves the same, with another exit code.

    Args:
        number: The signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of a process that this signal ended, as shells report it."""
        return 128 + self.number


class Requests:
    """The requests of signals since `deferred` began.

    Attributes:
        stop: Whether the loop should end after this step.
        save: Whether it should save after this step and continue; the loop resets it.
    """

    def __init__(self) -> None:
        self.stop = self.save = False
        self._number: int = signal.SIGINT
        self._is_waiting = True

    def ask_to_end(self, number: int) -> None:
        """Ask the loop to end; raise at once if no step has to be finished, or at the second request."""
        is_again, self.stop = self.stop, True
        self._number = self._number if is_again else number
        if not self._is_waiting or (is_again and number == signal.SIGINT):
            self.end()

    def end(self) -> NoReturn:
        """Raise the exception of the signal: `KeyboardInterrupt` or `Terminated`."""
        raise KeyboardInterrupt if self._number == signal.SIGINT else Terminated(self._number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, raise at once on a request to end: it may be interrupted anywhere."""
        if self.stop:
            self.end()
        self._is_waiting = False
        try:
            yield
        finally:
            self._is_waiting = True


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within the block, signals that end a program raise `Terminated`, and SIGUSR1 does not end it.

    Signals that already have a handler or are ignored are not changed. Neither are, under torchrun, the
    signals that end: a process that waits for another one would not see the exception.
    """
    ending = [] if "TORCHELASTIC_RUN_ID" in os.environ else _ENDING
    mine = dict.fromkeys(ending, _terminate) | dict.fromkeys(_SAVING, _note)
    with _set({number: handler for number, handler in mine.items() if _is_free(number)}):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Requests]:
    """Within the block, record signals for a loop that checks them after every step.

    A second Ctrl-C raises at once. Signals that end a process are recorded inside `handled`, and under
    torchrun. Outside the main thread there are never any requests.

    Raises:
        KeyboardInterrupt: At the end of the block, when the loop was asked to end.
        Terminated: Instead, when it was by SIGTERM or SIGHUP.
    """
    requests = Requests()

    def end(number: int, frame: FrameType | None) -> None:
        _leave_to_parent(number)
        requests.ask_to_end(number)

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True

    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    ending = [x for x in _ENDING if signal.getsignal(x) is _terminate or (under_torchrun and _is_free(x))]
    saving = [x for x in _SAVING if signal.getsignal(x) is _note or _is_free(x)]
    mine = dict.fromkeys([signal.SIGINT, *ending], end) | dict.fromkeys(saving, save)
    with _set(mine):
        try:
            yield requests
        except KeyboardInterrupt:
            if requests.stop:
                requests.end()
            raise
        if requests.stop:
            requests.end()


def leave_to_parent() -> None:
    """In a worker process, ignore Ctrl-C and SIGUSR1: the parent gets them too, and handles them."""
    for number in (signal.SIGINT, *_SAVING):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _set(handlers: dict) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_free(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_DFL


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _leave_to_parent(number)
    raise Terminated(number)


def _note(number: int, frame: FrameType | None) -> None:
    _log.info("%s: there is nothing to save now", signal.Signals(number).name)


_PROCESS = os.getpid()


def _leave_to_parent(number: int) -> None:
    """End a forked process, which must not do what its parent does at the end."""
    if os.getpid() != _PROCESS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
