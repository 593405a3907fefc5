"""Atomic writes of files, unique names, and folders that only one process works in.

Several processes may write the same file at once: a reader sees one version or another, never a mixture.
Where each file needs a name of its own, `adding` finds a free one when the file is complete. No file is ever
opened for writing through a link that somebody else has put in its place.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from diamond_gym.errors import CacheError, DiamondGymError, FolderInUseError

try:
    import fcntl
except ImportError:  # without POSIX locks two processes are not kept apart
    fcntl = None

LOCK_FILE = ".lock"
_OF_THE_SYSTEM = (LOCK_FILE, ".DS_Store", ".localized", "Thumbs.db", "desktop.ini")
"""Files that file managers and our locks leave in folders; they are hidden, as all names with `._` are."""
_TEMPORARY = ".*.*-*.tmp"
"""Files and folders that are not complete, or are about to be removed."""


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the entries of a folder, sorted by name, without hidden ones.

    Macs put a companion `._x.npz` beside each `x.npz` on other systems' disks, and a `.DS_Store` everywhere.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def is_empty(folder: Path) -> bool:
    """Whether a folder holds no files except those that file managers or locks leave behind."""
    return not any(path for path in folder.iterdir() if not _is_of_the_system(path))


def _is_of_the_system(path: Path) -> bool:
    return path.name in _OF_THE_SYSTEM or path.name.startswith("._")


def prepare_folder(folder: Path, num_bytes: int = 2**20) -> None:
    """Make a folder and test that files of a size can be written there, before hours of work.

    Only writing shows a full disk, a quota, or a network folder that refuses files.

    Args:
        folder: The folder.
        num_bytes: About how many bytes will be written.

    Raises:
        CacheError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(min(num_bytes, 2**20)))
            file.flush()
            if num_bytes > 2**20 and hasattr(os, "posix_fallocate"):  # blocks are reserved, none is written
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            os.fsync(file.fileno())
    except OSError as error:
        raise CacheError(
            f"cannot write to the folder {folder}: {error.strerror or error}; {num_bytes / 1e6:,.0f} MB are "
            "needed there"
        ) from None


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: The folder to write to; it may not exist yet.
        num_bytes: How many bytes will be written.
        what: What will be written, for the error message.

    Raises:
        CacheError: There is less space.
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


def cache_folder() -> Path:
    """The folder of what can be made again: `$DIAMOND_GYM_CACHE`, else the platform's cache folder."""
    if given := os.environ.get("DIAMOND_GYM_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        usual = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        usual = "~/Library/Caches"
    else:
        usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(usual).expanduser() / "diamond_gym"


# --- whole files


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to, which replaces `path` once it is complete on the disk.

    If the block or the disk fails, the new file is removed and an existing `path` is kept.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with _complete(path, lambda temporary: os.replace(temporary, path)) as file:
        yield file


@dataclass
class NewFile:
    """A file that is being added to a folder.

    Attributes:
        file: The open file.
        path: The name that it would get now; after the block, the name that it has.
    """

    file: BinaryIO
    path: Path


@contextlib.contextmanager
def adding(names: Iterable[Path]) -> Iterator[NewFile]:
    """Open a file to write to, which gets the first free name once it is complete on the disk.

    The name is claimed atomically, so that any number of processes can add to a folder at once. If the block
    or the disk fails, the file is removed.

    Args:
        names: Endless names, all on one disk; the next is requested only when those before are taken.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    candidates = iter(names)
    first = next(candidates)

    def claim(temporary: Path) -> None:
        for name in itertools.chain([first], candidates):
            if _claimed(temporary, name):
                new.path = name
                return
        raise AssertionError("there is always another name")

    with _complete(first, claim) as file:
        new = NewFile(file, first)
        yield new


def numbered(path: Path) -> Iterator[Path]:
    """Yield `name.x`, `name-2.x`, `name-3.x` and so on, for `adding`."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _claimed(temporary: Path, path: Path) -> bool:
    """Try to give a finished file a name; return whether the name was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links
        return _claimed_in_turn(temporary, path)
    return True


def _claimed_in_turn(temporary: Path, path: Path) -> bool:
    """As `_claimed`, without a second name: whoever holds the folder's lock may look and rename.

    A process that is killed in between leaves neither the name taken nor the folder locked.
    """
    if fcntl is None:
        try:
            temporary.rename(path)  # outside POSIX, this never replaces a file
        except FileExistsError:
            return False
        return True
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
        return True
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else has, see `_TEMPORARY`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def _complete(path: Path, publish: Callable[[Path], None]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, and call `publish` with it once it is complete on the disk."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary)
    except OSError as error:
        if isinstance(error, DiamondGymError):
            raise
        raise CacheError(f"cannot write {path}: {error}; choose a folder that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it is gone already, unless an error occurred or it now has a second name


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, see `replacing`.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with replacing(path) as file:
        file.write(content)


def add_file(names: Iterable[Path], content: bytes) -> Path:
    """Write `content` to the first free name, see `adding`; return that name.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with adding(names) as new:
        new.file.write(content)
    return new.path


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append a line of text to a file, which is made if it does not exist.

    Args:
        path: The file.
        line: The line, without its end.
        sync: Whether to wait until it is on the disk.

    Raises:
        CacheError: It cannot be written, or is a link or not a regular file.
    """
    try:
        with os.fdopen(open_itself(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(f"{line}\n".encode())
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror or error}") from error


def save_torch(content: Any, file: BinaryIO) -> None:
    """Write a file for `torch.load`, and raise the disk's own errors.

    Raises:
        OSError: The disk is full, or fails otherwise.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch hides the disk's error behind one of its own
        raise OSError(str(error.__context__ or error).partition("\n")[0]) from error


def write_torch(path: Path, content: Any) -> None:
    """Write a file for `torch.load`, see `replacing`.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    with replacing(path) as file:
        save_torch(content, file)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        CacheError: The folder cannot be made or written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(contiguous, metadata))


# --- whole folders


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make a folder to fill, which becomes `out` when the block ends without an error.

    Raises:
        CacheError: `out` exists and is not empty, or cannot be written.
    """
    out = out.expanduser().absolute()
    try:
        if out.exists() and not (out.is_dir() and is_empty(out)):
            raise CacheError(f"out={out} is there already and not empty: choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as folder:
            yield folder
            fill_folder(folder, out)
    except OSError as error:
        if isinstance(error, DiamondGymError):
            raise
        raise CacheError(f"cannot write {out}: {error}") from error


def fill_folder(new: Path, out: Path) -> None:
    """Put a complete folder in the place of an empty one, or of none.

    Raises:
        OSError: It cannot be moved, or `out` is not empty.
    """
    if out.is_dir():
        for left in filter(_is_of_the_system, list(out.iterdir())):
            os.replace(left, new / left.name)
        out.rmdir()
    os.replace(new, out)


@contextlib.contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """A folder on the disk of `out`, which is removed at the end, unless it was moved to its place."""
    prefix = f".{out.name}.{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=prefix, suffix=".tmp") as temporary:
        folder = Path(temporary, out.name)
        folder.mkdir()
        yield folder


def replace_folder(new: Path, old: Path) -> None:
    """Puts a folder in the place of another, or of none.

    A process that is killed in between leaves one of them whole, or none and the new one where it was: at no
    time is a part of the old one there.

    Raises:
        CacheError: It cannot be moved.
    """
    leaving = _temporary(old)
    try:
        if old.exists():
            os.replace(old, leaving)
        os.replace(new, old)
    except OSError as error:
        if leaving.exists():
            os.replace(leaving, old)
        raise CacheError(f"cannot move {new} to {old}: {error}") from error
    shutil.rmtree(leaving, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, what: str = "the run") -> Iterator[None]:
    """Keep other processes from working in a folder; the system releases a killed process's lock.

    Temporary files that killed processes have left in it are removed.

    Args:
        folder: The folder.
        what: What it is, for the error message.

    Raises:
        FolderInUseError: Another process works in it.
        CacheError: The folder cannot be written, or its `.lock` is not a regular file.
    """
    try:
        descriptor = open_itself(folder / LOCK_FILE, os.O_RDWR)
    except OSError as error:
        raise CacheError(f"cannot write {folder / LOCK_FILE}: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb"):
        _take_lock(descriptor, folder, what)
        for leftover in list(folder.rglob(_TEMPORARY)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def begun(folder: Path, num_bytes: int) -> Iterator[None]:
    """Prepare and lock a folder; one that was made for work that failed before it wrote anything is removed.

    Args:
        folder: The folder.
        num_bytes: About how many bytes will be written.

    Raises:
        FolderInUseError: Another process works in it.
        CacheError: It cannot be made or written.
    """
    is_new = not folder.exists()
    prepare_folder(folder, num_bytes)
    with locked(folder):
        try:
            yield
        except BaseException:
            if is_new and is_empty(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _take_lock(descriptor: int, folder: Path, what: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUseError(
            f"another process is working on {what} {folder}: let it finish, or stop it"
        ) from error
    except OSError as error:
        raise CacheError(f"cannot lock {folder}: {error.strerror or error}") from error


def open_itself(path: Path, flags: int) -> int:
    """Open a file to write to, or make it; never follow a link, empty the file or wait for it.

    Raises:
        OSError: It is a link, not a regular file, or cannot be opened.
    """
    if path.is_symlink():
        raise OSError(f"it is a link to {os.readlink(path)}, which is not followed: remove it")
    asked = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")  # O_NOFOLLOW also refuses a link made just now
    descriptor = os.open(path, flags | os.O_CREAT | sum(getattr(os, name, 0) for name in asked), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file: remove it")
    return descriptor
