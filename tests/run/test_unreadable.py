"""A shard of images that cannot be read: the rest goes on, and later all is as if nothing had been."""

import pytest

from survey.config import Config
from survey.io.locations import folders, remove
from survey.io.store import Field
from survey.run.api import run
from tests.run.conftest import assert_same_bits


@pytest.mark.slow
def test_a_tile_that_cannot_be_read_does_not_end_the_search(frames, tmp_path):
    config = Config(grid={"tile": 24}, psf={"size": 11})
    path, whole = tmp_path / "field", tmp_path / "whole"
    assert run(whole, config, frames=[frames[0]], client="synchronous").ok
    assert run(path, config, frames=[frames[0]], client="synchronous").ok
    for ledger in folders(path / "ledger"):
        if ledger.name == "psf" or ledger.name.startswith("oversampled."):
            remove(ledger)
    shard = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0" / "3" / "3"
    sound = shard.read_bytes()
    shard.write_bytes(b"x" * len(sound))
    summary = run(path, client="synchronous")
    assert summary.status == "failed"
    failed = {f.unit for f in summary.failures if f.stage == "oversampled"}
    assert 1 <= len(failed) <= 4, "the tile and those that read a pixel of it"
    found = Field.open(path).ledger("oversampled.detect").records
    assert len(found) >= 16 - 9
    shard.write_bytes(sound)
    assert run(path, client="synchronous").ok
    assert_same_bits(whole, path)
