"""Columns of numbers in CSV and Parquet files, of bounded size. Only this module imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym import untrusted
from diamond_gym.errors import DatasetError, require

SUFFIXES = (".csv", ".parquet")
MAX_TABLE = 2**28
"""Largest size of a table in memory, in bytes; a step takes some tens."""

_MANY, _FEW = 1024, 16
"""Rows that are read at a time: numbers, and images."""


def column_names(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        DatasetError: It cannot be read.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow(path)
    with untrusted.reading(path, DatasetError, "a table"), untrusted.opened(path) as file:
        if path.suffix == ".parquet":
            return list(_parquet().ParquetFile(file).schema_arrow.names)
        return list(_csv().open_csv(file).schema.names)


def read_columns(
    path: Path, columns: Sequence[str], first: int = 0, last: int | None = None
) -> dict[str, NDArray[Any]]:
    """Read columns of a table.

    Args:
        path: A `.csv` file with a row of names, or a `.parquet` file.
        columns: Their names.
        first: The first row.
        last: The row after the last one; None for the end.

    Returns:
        Arrays (rows,), or (rows, *shape) where each row of a Parquet file holds a list of numbers; texts and
        bytes are of type object.

    Raises:
        DatasetError: It cannot be read, a column is missing, or has empty fields, or it is too large.
        MissingDependencyError: pyarrow is not installed.
    """
    names = column_names(path)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DatasetError(f"{path} has no column {missing[0]}; found {', '.join(names) or 'none'}")
    with untrusted.reading(path, DatasetError, "a table"):
        import pyarrow as pa

        batches = list(_bounded(_sliced(_batches(path, columns, first), first, last)))
        if not batches:
            return {name: np.zeros(0, np.int64) for name in columns}
        table = pa.Table.from_batches(batches)
        return {name: _array(name, table[name].combine_chunks()) for name in columns}


def read_values(path: Path, column: str, first: int, last: int) -> Iterator[Any]:
    """Yield the values of a Parquet file's column, such as bytes of images, from `first` to before `last`.

    Raises:
        DatasetError: It cannot be read, or some values are too large.
    """
    with untrusted.reading(path, DatasetError, "a table"):
        for batch in _sliced(_batches(path, [column], first, _FEW), first, last):
            yield from next(_bounded(iter([batch]))).column(0).to_pylist()


def _batches(path: Path, columns: Sequence[str], first: int, size: int = _MANY) -> Iterator[tuple[int, Any]]:
    """Yield batches of rows, each with the number of its first row."""
    with untrusted.opened(path) as file:
        if path.suffix == ".csv":
            options = _csv().ConvertOptions(include_columns=list(columns), strings_can_be_null=False)
            at = 0
            for batch in _csv().open_csv(file, convert_options=options):
                yield at, batch
                at += len(batch)
            return
        table = _parquet().ParquetFile(file)
        at = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if at + rows > first:
                for batch in table.iter_batches(size, row_groups=[group], columns=list(columns)):
                    yield at, batch
                    at += len(batch)
            else:
                at += rows


def _sliced(batches: Iterator[tuple[int, Any]], first: int, last: int | None) -> Iterator[Any]:
    """Yield the rows of batches from `first` to before `last`."""
    for at, batch in batches:
        if last is not None and at >= last:
            return
        begin = max(0, first - at)
        part = batch.slice(begin, None if last is None else max(0, last - at - begin))
        if len(part):
            yield part


def _bounded(batches: Iterator[Any]) -> Iterator[Any]:
    size = 0
    for batch in batches:
        size += batch.nbytes
        if size > MAX_TABLE:
            raise ValueError(f"its columns have more than {MAX_TABLE / 1e6:.0f} MB")
        yield batch


def _array(name: str, column: Any) -> NDArray[Any]:
    """Turn a column into an array.

    Raises:
        ValueError: It has empty fields, or lists of different lengths.
    """
    import pyarrow as pa

    if column.null_count:
        raise ValueError(f"its column {name} has {column.null_count} empty fields")
    kind, shape = column.type, [len(column)]
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = column.flatten()
        if len(column) and len(inner) % len(column):
            raise ValueError(f"its column {name} has lists of different lengths")
        if not pa.types.is_fixed_size_list(kind) and len(set(column.value_lengths().to_pylist())) > 1:
            raise ValueError(f"its column {name} has lists of different lengths")
        shape.append(len(inner) // max(1, len(column)))
        column, kind = inner, inner.type
        if column.null_count:
            raise ValueError(f"its column {name} has {column.null_count} empty fields")
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_struct(kind):
        return np.array([*column.to_pylist(), None], dtype=object)[:-1]
    numbers = column.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"its column {name} holds {kind}, accepted are numbers")
    return numbers.astype(np.float32).reshape(shape) if numbers.dtype.kind == "f" else numbers.reshape(shape)


def require_pyarrow(what: object) -> None:
    """Check that pyarrow is installed.

    Args:
        what: What needs it.

    Raises:
        MissingDependencyError: It is not installed.
    """
    require("pyarrow", "pyarrow", f"reading {what}", "data")


def _csv() -> Any:
    import pyarrow.csv

    return pyarrow.csv


def _parquet() -> Any:
    import pyarrow.parquet

    return pyarrow.parquet
