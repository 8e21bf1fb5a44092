"""Parquet files written and read with at most one row group in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_PER_GROUP = 8192


class RowWriter:
    """An open Parquet file; columns that a row does not have are null."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pq.ParquetWriter(path, schema)
        self._rows: list[dict[str, object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def write(self, **row: object) -> None:
        """Write one row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, range]]:
    """The row groups of a file, each with its rows."""
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        yield group, range(start, end)
        start = end


def count_rows(path: Path) -> int:
    """The number of rows of a file."""
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def column_values(path: Path, column: str, rows: range) -> list[Any]:
    """The values of a column in these neighbouring rows of a file."""
    values: list[Any] = []
    with pq.ParquetFile(path) as file:
        for group, span in row_groups(file):
            first, last = max(rows.start, span.start), min(rows.stop, span.stop)
            if first < last:
                read = file.read_row_group(group, columns=[column])[column]
                values += read.slice(first - span.start, last - first).to_pylist()
    return values
