"""Errors that only the trainer's commands can meet, and the exceptions by which its processes stop."""

from __future__ import annotations

from diamond_gym.errors import DiamondGymError


class DivergedError(DiamondGymError, FloatingPointError):
    """A loss or gradient is no longer a finite number."""


class LoggingError(DiamondGymError, RuntimeError):
    """A requested log cannot be opened."""


class HubError(DiamondGymError, RuntimeError):
    """The Hugging Face Hub cannot be reached, or refuses a request."""


PROCESS_LOST = "another process of this run is gone"
"""How the message of a `ProcessLostError` begins, for programs that read what a run printed."""


class ProcessLostError(DiamondGymError, ConnectionError):
    """Another process of the same run is gone, or does not answer."""


class StopRequested(Exception):
    """The step is finished; the run is to be saved and ended."""


class SaveRequested(Exception):
    """The step is finished; the run is to be saved and continued."""


class FirstProcessFailed(Exception):
    """Rank 0 failed, and reports the reason itself."""
