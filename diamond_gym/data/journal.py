"""What an import has done so far: a file of lines, from which the same command continues after a kill.

The first line says what is imported, every other one what became of an episode of the source. The line of an
episode is on the disk before its file is, so an episode is never written twice: a line whose episode is not
there was the last one, and is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.errors import DatasetError
from diamond_gym.world.action_space import ActionSpace

NAME = "import.jsonl"
_MAX_BYTES = 2**31


@dataclass
class Entry:
    """What became of an episode of the source.

    Attributes:
        number: Its number in the source.
        name: Its name there.
        stamps: Size in bytes and time in nanoseconds of the files that it was read from.
        split: Where it was written, "train" or "test"; "" when it was skipped.
        index: Its number there.
        steps: Number of steps.
        num_actions: Number of actions that the source states, else the largest action plus 1.
        action_space: The action space where it is not discrete.
        frame_shape: Shape (c, h, w) of the frames.
        rewards: Number of steps with a negative, a zero and a positive reward.
        terminated: Whether it terminated.
        has_final: Whether the frame after its last step is known.
        skipped: Why it was skipped.
        left_out: Which part of it was left out, and why.
    """

    number: int
    name: str
    stamps: dict[str, list[int]] = field(default_factory=dict)
    split: str = ""
    index: int = -1
    steps: int = 0
    num_actions: int = 0
    action_space: str = ""
    frame_shape: list[int] = field(default_factory=list)
    rewards: list[int] = field(default_factory=lambda: [0, 0, 0])
    terminated: bool = False
    has_final: bool = False
    skipped: str = ""
    left_out: str = ""


class Journal:
    """The file of an import.

    Args:
        folder: The folder that is filled.
        is_written: Whether the episode of an entry is there.

    Attributes:
        about: What is imported; None where there is no file yet.
        entries: What became of the episodes so far.

    Raises:
        DatasetError: The file is damaged.
    """

    def __init__(self, folder: Path, is_written: Callable[[Entry], bool] = lambda _: True) -> None:
        self.path = folder / NAME
        self.about: dict[str, Any] | None = None
        self.entries: list[Entry] = []
        if self.path.is_file():
            text = untrusted.read_text(self.path, DatasetError, "the journal of an import", _MAX_BYTES)
            lines = text.split("\n")[:-1]  # a torn line has no end
            with untrusted.reading(self.path, DatasetError, "the journal of an import"):
                self.about = json.loads(lines[0]) if lines else None
                entries = [Entry(**json.loads(line)) for line in lines[1:]]
            self.entries = [entry for entry in entries if entry.skipped or is_written(entry)]
            self._is_clean = text.endswith("\n") and len(self.entries) == len(entries)

    def begin(self, about: dict[str, Any]) -> None:
        """Write what is imported, and drop what a killed process began and did not do.

        Raises:
            CacheError: The folder cannot be written.
        """
        if self.about is None or not self._is_clean:
            self.about = about
            lines = [about, *map(asdict, self.entries)]
            disk.write_file(self.path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def add(self, entry: Entry) -> None:
        """Write a line, before the episode itself is written.

        Raises:
            CacheError: The folder cannot be written.
        """
        disk.append_line(self.path, json.dumps(asdict(entry)), sync=True)
        self.entries.append(entry)

    @property
    def action_space(self) -> ActionSpace | None:
        """The action space of the episodes; None where it is discrete, or there are none."""
        found = next((entry.action_space for entry in self.entries if entry.split), "")
        return ActionSpace.parse(found) if found else None

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of the frames; empty where there are no episodes."""
        return next((tuple(entry.frame_shape) for entry in self.entries if entry.split), ())

    @property
    def stamps(self) -> dict[str, list[int]]:
        """The files that were read, as they were then."""
        return {path: stamp for entry in self.entries for path, stamp in entry.stamps.items()}
