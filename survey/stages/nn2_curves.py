"""NN2's light curves in one table, which is neither written nor read as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from survey.io.files import parquet_blocks, read_parquet, write_parquet_blocks
from survey.io.locations import Location
from survey.io.store import Field
from survey.stages import nn2

# Bytes of light curves and their pairs in memory at a time; as Python objects they are ten times that.
BLOCK_BYTES = 4 * 2**20


def nn2_path(field: Field, method: str) -> Location:
    """File of NN2's light curves."""
    return field.path / nn2.FOLDER / f"{method}.parquet"


def gather(field: Field, method: str, units: Sequence[str]) -> int:
    """Put the units' light curves into one file, in the units' order; returns how many there are."""
    folder = field.path / nn2.FOLDER / f"{method}.parts"
    parts = (read_parquet(folder / f"{name}.parquet") for name in units)
    if not units:
        parts = (nn2.table([]) for _ in range(1))
    return write_parquet_blocks(nn2_path(field, method), parts, BLOCK_BYTES)


def row_blocks(field: Field, method: str) -> Iterator[list[dict[str, Any]]]:
    """Light curves a block at a time, with their pairs; none where NN2 was not run."""
    path = nn2_path(field, method)
    if path.exists():
        for block in parquet_blocks(path):
            yield block.to_pylist()
