"""Small files written whole or not at all, and read whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from survey.io.locations import Location, opened, write_atomic, writing

__all__ = [
    "parquet_blocks",
    "read_parquet",
    "write_atomic",
    "write_json",
    "write_parquet",
    "write_parquet_blocks",
]


def write_json(path: Location, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, json.dumps(value, indent=1, default=str).encode())


def write_parquet(path: Location, table: Any) -> None:
    """Write a pyarrow table atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_parquet(path: Location) -> Any:
    """Read a pyarrow table.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(path.read_bytes()))


def write_parquet_blocks(path: Location, tables: Iterable[Any], size: int) -> int:
    """Write tables of one schema as one, atomically, with no more of them in memory than it takes.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        At least one.
    size : int
        Bytes in memory from which on rows make a block, which `parquet_blocks` gives back.

    Returns
    -------
    int
        Rows.
    """
    import pyarrow.parquet as pq

    blocks = _blocks(tables, size)
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"{path}: no table to write")
    count = 0
    with writing(path) as stream, pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
        for block in chain([first], blocks):
            writer.write_table(block)
            count += len(block)
    return count


def _blocks(tables: Iterable[Any], size: int) -> Iterator[Any]:
    """Rows of tables in their order, in tables of about so many bytes."""
    import pyarrow as pa

    held, weight = [], 0
    for table in tables:
        step = max(1, len(table) * size // max(table.nbytes, 1))
        for start in range(0, max(len(table), 1), step):
            held.append(table.slice(start, step))
            weight += held[-1].nbytes
            if weight >= size:
                yield pa.concat_tables(held).combine_chunks()
                held, weight = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def parquet_blocks(path: Location, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """The blocks of a pyarrow table, one at a time.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    import pyarrow.parquet as pq

    with opened(path) as stream, pq.ParquetFile(stream) as file:
        for k in range(file.num_row_groups):
            yield file.read_row_group(k, columns=columns)
