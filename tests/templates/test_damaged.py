"""Files of the cache that cannot be read: damaged ones go, others stay."""

import gzip
import os
import zlib

import pytest

from survey.templates.fetch import ArchiveError, discarded_if_damaged


@pytest.mark.parametrize("damage", ["cut", "bits"])
def test_a_damaged_gz_is_deleted(tmp_path, damage):
    path = tmp_path / "bricks.fits.gz"
    whole = gzip.compress(os.urandom(4000) + bytes(4000))
    path.write_bytes(whole[:2000] if damage == "cut" else whole[:10] + bytes([0xFF]) * 40 + whole[50:])
    with (
        pytest.raises(ArchiveError, match="deleted, so that it is fetched anew") as told,
        discarded_if_damaged(path),
        gzip.open(path) as stream,
    ):
        stream.read()
    assert isinstance(told.value.__cause__, EOFError if damage == "cut" else zlib.error)
    assert not path.exists()


def test_a_file_that_the_system_does_not_open_stays(tmp_path):
    path = tmp_path / "whole.fits"
    path.write_bytes(b"data")
    with pytest.raises(ArchiveError, match="try again"), discarded_if_damaged(path):
        raise OSError(24, "Too many open files")
    assert path.exists()
