"""Files that somebody else may have made, read as plain data: one reader for each kind of file.

Whatever is wrong with a file becomes one error of the caller's kind, which names the file and never advises
an unsafe load (`reading`). How much a file unpacks to is known and bounded before any of it is unpacked, and
nothing in a file is ever run, looked up or instantiated. The module does not know what the data mean.
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
"""Bytes of a file of text; longest are descriptions of worlds with their training, some kilobytes."""
MAX_YAML = 2**16
"""Bytes of a file of YAML, which takes ten times as long to read; a configuration has some kilobytes."""
MAX_UNPACKED = 2**31
"""Bytes that a file may unpack to; largest are recordings of a whole game in its raw screens."""
_MAX_DEPTH = 50
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHARED = 4
"""How many times over the tensors of a file may share its bytes."""
_UNSAFE_ADVICE = re.compile(r"weights_only|weights only|allow_pickle|safe_globals|trust", re.IGNORECASE)
_PICKLED = (
    "it holds more than plain data and tensors: loading it could run code, so it was not loaded and nothing "
    "in it was run"
)


@contextlib.contextmanager
def reading(path: Path | str, kind: type[DiamondGymError], what: str) -> Iterator[None]:
    """Make whatever goes wrong with a file, in any way, one kind of error that names it.

    Args:
        path: The file, or another source.
        kind: The kind of error. Others of this kind pass, as long as they name the file.
        what: What the file should be, such as "an episode".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, kind) and str(path) in str(error):
            raise
        raise kind(f"{path} cannot be read as {what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an exception says in a line, without a library's advice to load what may run code."""
    if isinstance(error, MemoryError):
        return "it claims more than fits into memory"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    line = (isinstance(error, OSError) and error.strerror) or first_line(error)
    if _UNSAFE_ADVICE.search(line):
        return _PICKLED
    if " " not in line:  # such as a KeyError's key, which tells nobody anything
        name = type(error).__name__
        return f"it is damaged or of another kind ({name if line in ('', name) else f'{name}: {line}'})"
    return re.split(r"\.\s", line)[0].rstrip(".")


# --- text


def read_text(path: Path, kind: type[DiamondGymError], what: str, max_bytes: int = MAX_TEXT) -> str:
    """A file of UTF-8.

    Raises:
        kind: It is missing, not a regular file, too large, or not UTF-8.
    """
    with reading(path, kind, what), opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it has {size} bytes, at most {max_bytes} are accepted")
        return file.read(max_bytes).decode("utf-8")


def read_json(path: Path, kind: type[DiamondGymError], what: str) -> Any:
    """A file of JSON.

    Raises:
        kind: It cannot be read, or is no JSON.
    """
    text = read_text(path, kind, what)
    with reading(path, kind, what):
        return parse_json(text)


def parse_json(text: str) -> Any:
    """What JSON says, of limited depth and without NaN. Infinity is accepted, as Python writes it.

    Raises:
        ValueError: It is something else.
        RecursionError: It is deep beyond reason.
    """

    def infinity(name: str) -> float:
        if name == "NaN":
            raise ValueError("NaN is no JSON")
        return float(name)

    return json.loads(text, parse_constant=infinity)


def read_yaml(path: Path, kind: type[DiamondGymError], what: str) -> Any:
    """A file of YAML: plain data, without aliases, which can make a small file a huge one.

    Raises:
        kind: It cannot be read, or is no such YAML.
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
    """Tensors, on the CPU, and metadata of a safetensors file, which holds no more than it has bytes.

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
    except Exception as error:  # besides safetensors' own, whatever torch says to types it lacks
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a safetensors file: {reason(error)}. It "
            "is truncated, damaged or of another kind: copy, download or save it again"
        ) from error


def read_torch(path: Path, kind: type[DiamondGymError], what: str, safe_globals: Sequence[Any] = ()) -> Any:
    """Plain data and dense tensors, on the CPU, of a file that `torch.save` wrote.

    Args:
        path: The file.
        kind: The kind of error.
        what: What the file should be.
        safe_globals: Types that it may hold besides.

    Raises:
        kind: It is missing, damaged, holds anything else, or tensors that are larger than the file.
    """
    with reading(path, kind, what), opened(path) as file:
        return load_torch(file, safe_globals)


def load_torch(file: BinaryIO, safe_globals: Sequence[Any] = ()) -> Any:
    """As `read_torch`, of an open file, with whatever errors come.

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
            warnings.simplefilter("ignore")  # torch's doubts about files that are refused anyway
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(file, error)) from error
    _check_dense(content, size)
    return content


def _refusal(file: BinaryIO, error: pickle.UnpicklingError) -> str:
    names: list[str] = []
    file.seek(0)
    with contextlib.suppress(Exception):  # a damaged file, or torch's older format, cannot be listed
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)  # pyright: ignore[reportArgumentType]
    if names:
        return f"{_PICKLED} (it refers to {', '.join(sorted(names)[:50])})"
    file.seek(0)
    is_pickle = "GLOBAL" in str(error) or file.read(1) == pickle.PROTO
    return f"{_PICKLED} (it is pickled Python)" if is_pickle else "it is damaged, or no PyTorch file"


def read_arrays(path: Path, kind: type[DiamondGymError], what: str) -> dict[str, NDArray[Any]]:
    """The plain arrays of an .npz file.

    Raises:
        kind: It is missing, damaged, holds anything but numbers, or unpacks to more than `MAX_UNPACKED`.
    """
    with reading(path, kind, what), opened(path) as file, zipfile.ZipFile(file) as archive:
        check_unpacked(archive, MAX_UNPACKED)
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}


def check_unpacked(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Make sure that an archive holds no more than so many bytes, before any of it is unpacked.

    Raises:
        ValueError: It says that it holds more, or is packed in a way that nobody here writes.
    """
    total = sum(info.file_size for info in archive.infolist())
    if total > max_bytes:
        raise ValueError(f"it would unpack to {total / 1e6:.0f} MB, accepted are {max_bytes / 1e6:.0f}")
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} in it is compressed in an unknown way")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read; a pipe or a device, which could be without end, is refused.

    Raises:
        OSError: It is missing, cannot be opened, or is not a regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        yield file


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Make sure that weights are numbers.

    Raises:
        ValueError: One holds NaN or an infinity; the message names it.
    """
    wrong = [name for name, x in tensors.items() if x.is_floating_point() and not bool(x.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more tensor(s)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more} holds numbers that are not finite")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """An array that is exactly as large as the archive says."""
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
    """Make sure that every tensor inside plain data is one of numbers that the file holds.

    Raises:
        ValueError: One is not, or all together claim far more than the file has.
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
