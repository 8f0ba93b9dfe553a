"""Tables that are larger than what of them is in memory."""

import numpy as np
import pyarrow as pa
import pytest

from survey.io.files import parquet_blocks, read_parquet, write_parquet_blocks

SIZE = 2**20


def parts(seen):
    """40 tables of 1 MiB; notes the memory of all tables that live when each is asked for."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        seen.append(pa.total_allocated_bytes())
        yield pa.table({"x": pa.array(rng.normal(size=SIZE // 8).tolist(), pa.float64())})


def test_blocks__are_all_of_a_table_that_is_in_memory(tmp_path):
    written, read, start = [], [], pa.total_allocated_bytes()
    assert write_parquet_blocks(tmp_path / "x.parquet", parts(written), 2 * SIZE) == 40 * SIZE // 8
    for block in parquet_blocks(tmp_path / "x.parquet"):
        read.append(pa.total_allocated_bytes())
        assert SIZE < block.nbytes < 4 * SIZE
    assert max(written) - start < 8 * SIZE
    assert max(read) - start < 8 * SIZE
    whole = read_parquet(tmp_path / "x.parquet")
    assert pa.total_allocated_bytes() - start >= 40 * SIZE
    assert whole["x"][0].as_py() == np.random.default_rng(0).normal()


def test_blocks__of_one_large_table_are_small(tmp_path):
    table = pa.table({"x": np.arange(SIZE)})
    assert write_parquet_blocks(tmp_path / "x.parquet", [table], SIZE) == SIZE
    blocks = list(parquet_blocks(tmp_path / "x.parquet"))
    assert len(blocks) == 8
    assert np.concatenate([block["x"] for block in blocks]).tolist() == list(range(SIZE))


def test_blocks__of_no_rows_still_have_columns(tmp_path):
    assert write_parquet_blocks(tmp_path / "x.parquet", [pa.table({"x": pa.array([], pa.int8())})], 9) == 0
    assert read_parquet(tmp_path / "x.parquet").column_names == ["x"]
    with pytest.raises(ValueError, match="no table to write"):
        write_parquet_blocks(tmp_path / "y.parquet", [], 9)
    assert not (tmp_path / "y.parquet").exists()
