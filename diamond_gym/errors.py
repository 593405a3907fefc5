"""The exceptions that a user can meet.

Every error that this package raises about a user's input is a `DiamondGymError`, so one `except` catches them
all. Each class also derives from the built-in (or Gymnasium) exception that fits it, so existing handlers
keep working.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium.error


class DiamondGymError(Exception):
    """Base of every error raised by diamond_gym and its trainers."""


class InvalidInputError(DiamondGymError, ValueError):
    """A value (action, seed, option, context, keyword) is not one of those accepted."""


class InvalidTypeError(InvalidInputError, TypeError):
    """A value has the wrong type, or a keyword is unknown; also a TypeError."""


class UnknownGameError(DiamondGymError, ValueError):
    """A game's name is not one that ale-py knows."""


class ResetNeededError(DiamondGymError, gymnasium.error.ResetNeeded):
    """`step` or `render` was called before `reset`."""


class ClosedEnvironmentError(DiamondGymError, gymnasium.error.ClosedEnvironmentError):
    """The environment was used after `close`."""


class CheckpointError(DiamondGymError, RuntimeError):
    """A checkpoint is truncated, foreign, unsafe to load, for another game or of another architecture."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint: neither embedded, nor cached, nor reachable, nor at the given path."""


class WorldModelError(DiamondGymError, RuntimeError):
    """A custom world model is not as `CustomWorldModel` says: spaces, states, shapes, types or devices."""


class DatasetError(DiamondGymError, RuntimeError):
    """An episode, or a folder of episodes, is missing, corrupt or of the wrong shape."""


class CacheError(DiamondGymError, OSError):
    """The cache folder (or another output folder) cannot be written."""


class FolderInUseError(DiamondGymError, RuntimeError):
    """Another process is working in the folder of a run."""


class DeviceError(DiamondGymError, RuntimeError):
    """The requested device is not available on this machine."""


class DisplayError(DiamondGymError, RuntimeError):
    """A window was asked for but no display can be opened."""


class MissingDependencyError(DiamondGymError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


__all__ = [
    "CacheError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ClosedEnvironmentError",
    "DatasetError",
    "DeviceError",
    "DiamondGymError",
    "DisplayError",
    "FolderInUseError",
    "InvalidInputError",
    "InvalidTypeError",
    "MissingDependencyError",
    "ResetNeededError",
    "UnknownGameError",
    "WorldModelError",
]


def require(module: str, name: str, user: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        module: The module.
        name: What its package is called.
        user: What needs it, for the message.
        extra: The extra of this package that brings it.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{user} needs {name} ({error}): pip install 'diamond-gym[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if there is no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
