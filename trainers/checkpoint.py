"""Checkpoints of the single-file trainers: one file, written every two minutes and on signals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diamond_gym import untrusted
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.files import prepare_folder, write_torch
from diamond_gym.signals import Requests

_NUM_BYTES = 50 * 2**20
SECONDS = 120.0
"""Seconds between two checkpoints: a killed process loses no more than this."""


class Checkpoint:
    """The state of a training in `checkpoint.pt`, and the weights of the agent alone in `agent.pt`.

    Args:
        folder: The folder of both files.
        parts: Objects with a `state_dict`, by name; one of them is "agent".
        settings: Plain values that must be the same when the training is resumed.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        prepare_folder(folder, _NUM_BYTES)
        self.folder, self.parts, self.settings = folder, parts, dict(settings)
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Load the saved state into the parts; return the progress, or 0 where nothing was saved.

        Raises:
            InvalidInputError: The training was begun with other settings.
            CheckpointError: The file is damaged.
        """
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return 0
        try:
            with untrusted.opened(path) as file:
                saved = untrusted.load_torch(file)
            done, settings = int(saved["done"]), dict(saved["settings"])
        except Exception as error:  # whatever the file holds instead
            raise _damaged(path, error) from error
        for name, value in self.settings.items():
            if settings.get(name, value) != value:
                raise InvalidInputError(
                    f"{self.folder} holds a training with {name}={settings[name]}, not {value}: choose "
                    "another out="
                )
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved["parts"][name])
        except Exception as error:
            raise _damaged(path, error) from error
        return done

    def save_if_due(self, done: int, requests: Requests, *, is_last: bool) -> None:
        """Save after the last step, when two minutes have passed, or when a signal asks for it.

        Args:
            done: Progress so far, in the units that `load` returns.
            requests: What signals have asked for.
            is_last: Whether this was the last step.
        """
        is_time = time.monotonic() - self._saved_at >= SECONDS
        if is_last or is_time or requests.save or requests.stop:
            requests.save = False
            states = {name: part.state_dict() for name, part in self.parts.items()}
            content = {"done": done, "settings": self.settings, "parts": states}
            write_torch(self.folder / "checkpoint.pt", content)
            write_torch(self.folder / "agent.pt", states["agent"])
            self._saved_at = time.monotonic()


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be resumed from ({untrusted.reason(error)}): remove it to begin again, or choose "
        "another out="
    )
