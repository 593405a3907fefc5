"""Files that are written as a whole or not at all, and safetensors files that are read with clear errors.

Several processes may write the same file at once: a reader sees one version or another, never a mixture. The
module does not know what the tensors mean.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diamond_gym.errors import CacheError, CheckpointError, CheckpointNotFoundError, DiamondGymError


def prepare_folder(folder: Path, num_bytes: int = 2**20) -> None:
    """Makes a folder and writes so much there, for a moment, before hours go into what is to be written.

    Only writing finds a disk that is full, a quota, or a share that takes no files.

    Args:
        folder: The folder.
        num_bytes: About how much will be written.

    Raises:
        CacheError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(min(num_bytes, 2**20)))
            file.flush()
            if num_bytes > 2**20 and hasattr(os, "posix_fallocate"):  # blocks are taken, none is written
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            os.fsync(file.fileno())
    except OSError as error:
        raise CacheError(
            f"cannot write to the folder {folder}: {error.strerror or error}; {num_bytes / 1e6:,.0f} MB are "
            "needed there"
        ) from None


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Checks that a disk has room, before what needs it is made.

    Args:
        folder: Where it will be written; it may not be there yet.
        num_bytes: How much will be written.
        what: What that is, for the message.

    Raises:
        CacheError: There is less room.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise CacheError(
            f"{what} need {num_bytes / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free: "
            "make room, choose another folder or ask for less"
        )
    if existing.is_dir():
        prepare_folder(existing, num_bytes)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once all of it is on the disk.

    When the block fails, or the disk does, nothing is left of it and whatever was at `path` is still there.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error}; choose a folder that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # gone already, unless something failed


def write_file(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, see `replacing`.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with replacing(path) as file:
        file.write(content)


def write_torch(path: Path, content: object) -> None:
    """Writes what `torch.load` reads.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides the disk's error behind one of its own
            raise OSError(str(error.__context__ or error).partition("\n")[0]) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(contiguous, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It cannot be read, is truncated, or is no safetensors file.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a safetensors file: {error}. It is "
            "truncated, damaged or of another kind: copy, download or save it again"
        ) from error


@contextlib.contextmanager
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
