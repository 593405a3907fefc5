"""The run folder, laid out as published: checkpoints, config, datasets, metrics.

This module does not depend on what is trained.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.checkpoints.locate import WORLD_FOLDER
from diamond_gym.errors import CacheError, CheckpointError, CheckpointNotFoundError
from diamond_gym.files import write_file, write_torch
from diamond_gym.ranges import check_integer

# --- source
# The source that trains a run: its commit, and the differences from it.


_SECONDS = 30
_UNKNOWN = "an unknown version"


@dataclass(frozen=True)
class Source:
    """The source of a run.

    Attributes:
        version: Version of the package, and the commit where it runs from a repository.
        diff: Output of `git diff` for files that differ from the commit; empty if there are none.
    """

    version: str
    diff: bytes = b""

    def text(self) -> str:
        """The text for the run folder."""
        return f"diamond-gym {self.version}{' with the changes in source.diff' if self.diff else ''}\n"


def find_source(file: Path = Path(__file__)) -> Source:
    """Find the source that this process runs.

    Args:
        file: One of its files. A repository that does not track this file, such as a project in whose virtual
            environment the package is installed, is not the package's.
    """
    try:
        known = version("diamond-gym")
    except PackageNotFoundError:
        known = _UNKNOWN
    folder = file.resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", file.name):
        return Source(known)
    diff = _git(folder, "diff", "--binary", "HEAD", "--", ":(top)")
    return Source(f"{known}, commit {commit.decode().strip()}", diff)


def _git(folder: Path, *arguments: str) -> bytes:
    """The output of git; empty where git fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout


# --- run folder


_RESUME_SCRIPT = """\
#!/usr/bin/env bash
# Resumes this run, from any folder.
set -euo pipefail
run="$(cd "$(dirname "${{BASH_SOURCE[0]}}")/.." && pwd)"
python={python}
exec "${{PYTHON:-$python}}" -m trainers.diamond resume run="$run" "$@"
"""
_AGENT_FILE = re.compile(r"agent_epoch_(\d+)\.pt")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and how its files are written."""

    path: Path

    @classmethod
    def new(cls, outputs: Path) -> RunFolder:
        """Make `outputs/YYYY-MM-DD/hh-mm-ss`, with `-2`, `-3`, ... where another run has that name.

        Raises:
            CacheError: The folder cannot be made.
        """
        for path in disk.numbered(outputs / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")):
            try:
                path.mkdir(parents=True)
                return cls(path)
            except OSError as error:
                if not path.is_dir():
                    raise CacheError(f"cannot make the run folder {path}: {error}") from error
        raise AssertionError("there is always another number")

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Make a chosen folder, or take one that is empty, or that a killed process had only begun.

        Raises:
            CacheError: The folder cannot be made, or is not empty.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            is_empty = disk.is_empty(path) or cls(path)._was_only_begun()
        except OSError as error:
            raise CacheError(f"cannot make the run folder {path}: {error}") from error
        if not is_empty:
            raise CacheError(
                f"the run folder {path} is not empty: choose another one, or resume the run that is in it "
                f"with `python -m trainers.diamond resume run={path}`"
            )
        return cls(path)

    def _was_only_begun(self) -> bool:
        """Whether there are but files that a run writes before its configuration, which makes it one."""
        first = (self.world_file, *self._source_files, self.resume_script)
        found = [path for path in self.path.rglob("*") if not path.is_dir()]
        return all(path in first or path.name.startswith(".") for path in found)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            CheckpointNotFoundError: The folder is not that of a run.
        """
        run = cls(path.expanduser())
        if not run.config_file.is_file():
            raise CheckpointNotFoundError(f"{path} is not a run folder: it has no config/trainer.yaml")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the run; the system releases a killed process's lock.

        Raises:
            FolderInUseError: Another process works on it.
            CacheError: The folder cannot be written.
        """
        with disk.locked(self.path):
            yield

    @property
    def config_file(self) -> Path:
        """The run's whole configuration."""
        return self.path / "config" / "trainer.yaml"

    @property
    def world_file(self) -> Path:
        """The description that `diamond_gym` needs to play the run's world model."""
        return self.path / "config" / "world.json"

    @property
    def world_folder(self) -> Path:
        """Folder of the finished run's exported world model, if the configuration asks for it."""
        return self.path / WORLD_FOLDER

    @property
    def contexts_file(self) -> Path:
        """Start contexts of the run's world model."""
        return self.path / "contexts.safetensors"

    @property
    def state_file(self) -> Path:
        """The state from which the run is resumed."""
        return self.path / "checkpoints" / "state.pt"

    @property
    def resume_script(self) -> Path:
        """Script that resumes the run."""
        return self.path / "scripts" / "resume.sh"

    def write_resume_script(self, python: str) -> None:
        """Write a script that works from any folder, and after the run folder was moved.

        Args:
            python: The interpreter that has this package; the environment variable PYTHON overrides it.

        Raises:
            CacheError: The script cannot be written.
        """
        with disk.replacing(self.resume_script) as file:
            file.write(_RESUME_SCRIPT.format(python=shlex.quote(python)).encode())
            os.chmod(file.name, 0o755)  # before anybody can put a link at its path

    def write_source(self, source: Source) -> None:
        """Record in config/ the source that trains the run: its version and commit, and later changes.

        Raises:
            CacheError: The files cannot be written.
        """
        text, diff = self._source_files
        write_file(text, source.text().encode())
        if source.diff:
            write_file(diff, source.diff)

    @property
    def _source_files(self) -> tuple[Path, Path]:
        return self.config_file.with_name("source.txt"), self.config_file.with_name("source.diff")

    def video_file(self, name: str, epoch: int) -> Path:
        """File of a video made after an epoch."""
        return self.path / "videos" / f"{name}_epoch_{epoch:05d}.gif"

    def dataset(self, split: str) -> Path:
        """Folder of the "train" or "test" episodes."""
        return self.path / "dataset" / split

    def agent_file(self, epoch: int) -> Path:
        """File of the weights after an epoch."""
        return self.path / "checkpoints" / "agent_versions" / f"agent_epoch_{epoch:05d}.pt"

    def newest_epoch(self) -> int:
        """The last epoch whose weights are kept.

        Raises:
            CheckpointNotFoundError: There are no weights.
        """
        epochs = self._agent_files().keys()
        if not epochs:
            raise CheckpointNotFoundError(f"{self.path} holds no weights yet: there is no agent_epoch_*.pt")
        return max(epochs)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state as a whole."""
        write_torch(self.state_file, state)

    def load_state(self) -> dict[str, Any]:
        """Read the state.

        Raises:
            CheckpointNotFoundError: No epoch of the run was finished.
            CheckpointError: The file is damaged.
        """
        if not self.state_file.is_file():
            raise CheckpointNotFoundError(f"{self.path} has no checkpoints/state.pt: no epoch was finished")
        what = "the state of a run"
        state = untrusted.read_torch(self.state_file, CheckpointError, what)
        with untrusted.reading(self.state_file, CheckpointError, what):
            check_integer("its epoch", state.get("epoch", 0), 0, 2**31)
            for part in state.get("parts", {}).values():
                untrusted.check_finite(part["module"])
        return state

    def save_agent(self, epoch: int, weights: dict[str, Tensor], every: int, num_to_keep: int | None) -> None:
        """Write the weights of an epoch and delete earlier ones.

        Args:
            epoch: The epoch, whose weights are kept at least until the next ones are written.
            weights: The weights.
            every: Epochs from one kept version to the next.
            num_to_keep: Number of versions that are kept, the newest ones; None for all.
        """
        write_torch(self.agent_file(epoch), weights)
        versions = self._agent_files()
        kept = sorted(number for number in versions if number % every == 0)
        kept = kept if num_to_keep is None else kept[-num_to_keep:]
        for number, path in versions.items():
            if number not in (*kept, epoch):
                path.unlink()

    def agent_files(self) -> list[Path]:
        """Weights of all epochs that are kept, oldest first."""
        return [file for _, file in sorted(self._agent_files().items())]

    def _agent_files(self) -> dict[int, Path]:
        matches = {file: _AGENT_FILE.fullmatch(file.name) for file in self.agent_file(0).parent.glob("*.pt")}
        return {int(match[1]): file for file, match in matches.items() if match is not None}

    def save_bad_batch(self, part: str, step: int, content: dict[str, Any]) -> Path:
        """Write the batch that made a loss or gradient infinite; return the file."""
        path = self.path / "diverged" / f"{part}_step_{step:06d}.pt"
        write_torch(path, content)
        return path

    @property
    def metrics_file(self) -> Path:
        """A line of JSON per epoch."""
        return self.path / "metrics.jsonl"

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            CacheError: The file cannot be written.
        """
        disk.append_line(self.metrics_file, json.dumps(metrics))

    def forget_metrics_after(self, num_epochs: int) -> None:
        """Drop the metrics that a killed process logged of later epochs, which will be trained again.

        Raises:
            CacheError: The file cannot be written.
        """
        if self.metrics_file.is_file():
            lines = self.metrics_file.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _is_of_epoch(line, num_epochs)]
            write_file(self.metrics_file, b"".join(kept))


def _is_of_epoch(line: bytes, last: int) -> bool:
    """Whether a line of metrics is whole, and of an epoch up to `last`; evaluations after it do not count."""
    try:
        metrics = json.loads(line)
        return metrics["epoch"] <= last and not any(name.startswith("final/") for name in metrics)
    except (ValueError, KeyError, TypeError):
        return False
