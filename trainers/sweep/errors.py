"""Errors that only sweeps can meet."""

from __future__ import annotations

from diamond_gym.errors import DiamondGymError


class ClusterError(DiamondGymError, ConnectionError):
    """The Ray cluster does not answer, or no machine of it is large enough."""


class SweepInUseError(DiamondGymError, RuntimeError):
    """Another process works on the sweep, or on one of its runs."""


class RunsFailedError(DiamondGymError, RuntimeError):
    """The sweep has ended, and some of its runs have not."""
