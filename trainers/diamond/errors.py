"""Errors that only the trainer's commands can meet."""

from __future__ import annotations

from diamond_gym.errors import DiamondGymError


class DivergedError(DiamondGymError, FloatingPointError):
    """A loss or gradient is no longer a finite number."""


class RunInUseError(DiamondGymError, RuntimeError):
    """Another process is working on the run folder."""


class LoggingError(DiamondGymError, RuntimeError):
    """A log that was asked for cannot be opened."""


class HubError(DiamondGymError, RuntimeError):
    """The Hugging Face Hub cannot be reached, or refuses."""
