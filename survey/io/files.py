"""Small files written whole or not at all, and read whole."""

from __future__ import annotations

import json
from typing import Any

from survey.io.locations import Location, write_atomic

__all__ = ["read_parquet", "write_atomic", "write_json", "write_parquet"]


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
