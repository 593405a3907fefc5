"""A folder that appears as a whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diamond_gym.errors import CacheError, DiamondGymError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` when the block ends without an error.

    Raises:
        CacheError: `out` is there and not empty, or cannot be written.
    """
    out = out.expanduser().absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CacheError(f"out={out} is there already and not empty: choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary, out.name)
            folder.mkdir()
            yield folder
            if out.is_dir():
                out.rmdir()
            os.replace(folder, out)
    except OSError as error:
        if isinstance(error, DiamondGymError):
            raise
        raise CacheError(f"cannot write {out}: {error}") from error
