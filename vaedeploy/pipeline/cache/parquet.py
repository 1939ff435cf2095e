"""Pictures in a column of a parquet file, as data sets of the Hugging Face hub have them. It needs pyarrow.

The column holds bytes, or a struct with a field ``bytes``. Pictures are read by row group, and two groups are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

BYTES = "bytes"
"""The field of a struct that holds a picture."""

_reading = threading.Lock()


class ParquetError(Exception):
    """A parquet file that cannot be read, or has no such column, in words."""


def rows(path: str, column: str) -> Iterator[tuple[int, int, bool]]:
    """(row group, row in it, whether there are bytes) for each row of a file.

    Raises ParquetError, and ModuleNotFoundError where pyarrow is not installed.
    """
    import pyarrow as pa

    try:
        with _opened(path) as file:
            _check(file, column)
            for group in range(file.num_row_groups):
                values = file.read_row_group(group, columns=[column]).column(column).combine_chunks()
                there = _bytes_of(values).is_valid().to_pylist()
                yield from ((group, row, valid) for row, valid in enumerate(there))
    except (pa.ArrowException, OSError) as error:
        raise ParquetError(f"it is not a parquet file, or is truncated or broken: {error}") from error


def cell(path: str, stamp: tuple[int, int], column: str, group: int, row: int) -> bytes:
    """The bytes of a picture. stamp: the file's size and time, which it had when the row was found.

    Raises ParquetError, and OSError where the system does not give the bytes.
    """
    import pyarrow as pa

    try:
        with _reading:  # threads that want the same group wait until the first has read it
            values = _group(path, stamp, column, group)
        data: bytes = values[row].as_py()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file may be whole; pyarrow's own have none
            raise
        raise ParquetError(f"it is not a parquet file, or is truncated or broken: {error}") from error
    return data


@lru_cache(2)  # at the end of a group, threads that read ahead are in two
def _group(path: str, stamp: tuple[int, int], column: str, group: int) -> Any:
    with _opened(path) as file:
        return _bytes_of(file.read_row_group(group, columns=[column]).column(column).combine_chunks())


def _opened(path: str) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path)


def _check(file: Any, column: str) -> None:
    from pyarrow import types

    schema = file.schema_arrow
    if column not in schema.names:
        columns = ", ".join(schema.names)
        raise ParquetError(f"it has no column {column!r}; it has {columns}. Name the column of pictures with --column")
    kind = schema.field(column).type
    if types.is_struct(kind) and kind.get_field_index(BYTES) >= 0:
        kind = kind.field(BYTES).type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise ParquetError(f"its column {column!r} is {kind}; pictures are bytes, or a struct with a field {BYTES!r}")


def _bytes_of(values: Any) -> Any:
    from pyarrow import compute, types

    return compute.struct_field(values, BYTES) if types.is_struct(values.type) else values
