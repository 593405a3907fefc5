"""Safe readers of untrusted files as plain data, one for each kind of file.

Any problem of a file becomes one error of the caller's kind, which names the file and never advises an
unsafe load (`reading`). The unpacked size of a file is bounded before any of it is unpacked, and nothing in a
file is ever run, looked up or instantiated. The module does not know what the data mean.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.errors import CheckpointError, CheckpointNotFoundError, DiamondGymError, first_line

MAX_TEXT = 2**20
"""Largest size of a text file; the longest are descriptions of worlds, of some kilobytes."""
MAX_YAML = 2**16
"""Largest size of a YAML file, which takes ten times as long to read; configurations have kilobytes."""
MAX_UNPACKED = 2**31
"""Largest unpacked size of a file; the largest are recordings of a whole game in its raw screens."""
_MAX_DEPTH = 50
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHARED = 4
"""Largest ratio of the size of all tensors to that of their file, whose bytes they may share."""
_UNSAFE_ADVICE = re.compile(r"weights_only|weights only|allow_pickle|safe_globals|trust", re.IGNORECASE)
_PICKLED = (
    "it holds more than plain data and tensors: loading it could run code, so it was not loaded and nothing "
    "in it was run"
)


@contextlib.contextmanager
def reading(path: Path | str, kind: type[DiamondGymError], what: str) -> Iterator[None]:
    """Turn any error with a file into one kind of error that names it.

    Args:
        path: The file, or another source.
        kind: The kind of error. Errors of this kind that already name the file are not changed.
        what: What the file should be, such as "an episode".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, kind) and str(path) in str(error):
            raise
        raise kind(f"{path} cannot be read as {what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return an exception's message in one line, without a library's advice to load unsafe data."""
    if isinstance(error, MemoryError):
        return "it claims more than fits into memory"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    line = (isinstance(error, OSError) and error.strerror) or first_line(error)
    if _UNSAFE_ADVICE.search(line):
        return _PICKLED
    if " " not in line:  # such as a KeyError's key, which does not help
        name = type(error).__name__
        return f"it is damaged or of another kind ({name if line in ('', name) else f'{name}: {line}'})"
    return re.split(r"\.\s", line)[0].rstrip(".")


# --- text


def read_text(path: Path, kind: type[DiamondGymError], what: str, max_bytes: int = MAX_TEXT) -> str:
    """Read a file of UTF-8.

    Raises:
        kind: It is missing, not a regular file, too large, or not UTF-8.
    """
    with reading(path, kind, what), opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it has {size} bytes, at most {max_bytes} are accepted")
        return file.read(max_bytes).decode("utf-8")


def read_json(path: Path, kind: type[DiamondGymError], what: str) -> Any:
    """Read a file of JSON.

    Raises:
        kind: It cannot be read, or is not JSON.
    """
    text = read_text(path, kind, what)
    with reading(path, kind, what):
        return parse_json(text)


def parse_json(text: str) -> Any:
    """Parse JSON of limited depth and without NaN. Infinity is accepted, as Python writes it.

    Raises:
        ValueError: It is not such JSON.
        RecursionError: It is nested too deep.
    """

    def infinity(name: str) -> float:
        if name == "NaN":
            raise ValueError("NaN is not JSON")
        return float(name)

    return json.loads(text, parse_constant=infinity)


def read_yaml(path: Path, kind: type[DiamondGymError], what: str) -> Any:
    """Read a file of YAML: plain data, without aliases, which can make small files huge.

    Raises:
        kind: It cannot be read, or is not such YAML.
    """
    text = read_text(path, kind, what, MAX_YAML)
    with reading(path, kind, what):
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it refers to itself (*{event.anchor}), which is not accepted")
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
        return yaml.load(text, Loader=_LOADER)


# --- tensors and arrays


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors, on the CPU, and the metadata of a safetensors file, which cannot claim more bytes.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It cannot be read, is truncated, or is not a safetensors file.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # errors of safetensors, or of torch for unknown types
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a safetensors file: {reason(error)}. It "
            "is truncated, damaged or of another kind: copy, download or save it again"
        ) from error


def read_torch(path: Path, kind: type[DiamondGymError], what: str, safe_globals: Sequence[Any] = ()) -> Any:
    """Read plain data and dense tensors, on the CPU, from a file of `torch.save`.

    Args:
        path: The file.
        kind: The kind of error.
        what: What the file should be.
        safe_globals: Further types that it may hold.

    Raises:
        kind: It is missing, damaged, holds anything else, or tensors that are larger than the file.
    """
    with reading(path, kind, what), opened(path) as file:
        return load_torch(file, safe_globals)


def load_torch(file: BinaryIO, safe_globals: Sequence[Any] = ()) -> Any:
    """Read an open file as `read_torch` does, with the original errors.

    Raises:
        Exception: The file is damaged, or holds anything else.
    """
    size = file.seek(0, os.SEEK_END)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(
                        f"{info.filename} in it is compressed, as PyTorch never does: save it again"
                    )
            check_unpacked(archive, size)
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(safe_globals)):
            warnings.simplefilter("ignore")  # torch warns of files that are refused anyway
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(file, error)) from error
    _check_dense(content, size)
    return content


def _refusal(file: BinaryIO, error: pickle.UnpicklingError) -> str:
    names: list[str] = []
    file.seek(0)
    with contextlib.suppress(Exception):  # damaged files and torch's older format cannot be listed
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)  # pyright: ignore[reportArgumentType]
    if names:
        return f"{_PICKLED} (it refers to {', '.join(sorted(names)[:50])})"
    file.seek(0)
    is_pickle = "GLOBAL" in str(error) or file.read(1) == pickle.PROTO
    return f"{_PICKLED} (it is pickled Python)" if is_pickle else "it is damaged, or no PyTorch file"


def read_arrays(path: Path, kind: type[DiamondGymError], what: str) -> dict[str, NDArray[Any]]:
    """Read the plain arrays of an .npz file.

    Raises:
        kind: It is missing, damaged, holds anything but numbers, or unpacks to more than `MAX_UNPACKED`.
    """
    with reading(path, kind, what), opened(path) as file, zipfile.ZipFile(file) as archive:
        check_unpacked(archive, MAX_UNPACKED)
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}


def check_unpacked(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Check that an archive unpacks to at most `max_bytes` bytes, before any of it is unpacked.

    Raises:
        ValueError: It claims more, or uses an unusual compression.
    """
    total = sum(info.file_size for info in archive.infolist())
    if total > max_bytes:
        raise ValueError(f"it would unpack to {total / 1e6:.0f} MB, accepted are {max_bytes / 1e6:.0f}")
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} in it is compressed in an unknown way")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read; refuse pipes and devices, which may be endless.

    Raises:
        OSError: It is missing, cannot be opened, or is not a regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        yield file


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are finite numbers.

    Raises:
        ValueError: One holds NaN or an infinity; the message names it.
    """
    wrong = [name for name, x in tensors.items() if x.is_floating_point() and not bool(x.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more tensor(s)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more} holds numbers that are not finite")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """Read an array that is exactly as large as the archive claims."""
    content = archive.read(info)
    file = io.BytesIO(content)
    npy = np.lib.format
    is_old = npy.read_magic(file) == (1, 0)
    shape, is_fortran, dtype = (npy.read_array_header_1_0 if is_old else npy.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename}: {_PICKLED}")
    needed, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if needed != there:
        raise ValueError(f"{info.filename} has {there} bytes of numbers, its shape {shape} needs {needed}")
    array = np.frombuffer(content, dtype, offset=file.tell()) if there else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")


def _check_dense(content: Any, size: int) -> None:
    """Check that all tensors inside plain data are dense and no larger than the file.

    Raises:
        ValueError: One is not dense, or they claim far more than the file has.
    """
    left, seen, total = [content], set(), 0
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise ValueError(f"it holds a tensor that is not dense ({value.layout}, {value.device})")
            num_bytes = value.numel() * value.element_size()
            if num_bytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} claims more than the file has")
            total += num_bytes
    if total > _SHARED * size:
        raise ValueError(f"its tensors claim {total / 1e6:.0f} MB, the file has {size / 1e6:.0f}")
