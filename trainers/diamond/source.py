"""Which source trains a run: its commit, and what differs from it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_SECONDS = 30
_UNKNOWN = "an unknown version"


@dataclass(frozen=True)
class Source:
    """The source of a run.

    Attributes:
        version: Of the package, and the commit where it runs from a repository.
        diff: What `git diff` says of files that differ from the commit, empty where none does.
    """

    version: str
    diff: bytes = b""

    def text(self) -> str:
        """What to write into a run folder."""
        return f"diamond-gym {self.version}{' with the changes in source.diff' if self.diff else ''}\n"


def find_source(file: Path = Path(__file__)) -> Source:
    """The source that this process runs.

    Args:
        file: One of its files. A repository that does not track it, such as a project in whose virtual
            environment the package is installed, is not its own.
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
    """What git answers; nothing where it cannot, or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout
