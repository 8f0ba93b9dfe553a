"""Frames damaged where only placing reads them: left out, and the field is that of the others."""

import shutil

import numpy as np
import pytest
from astropy.io import fits

from survey.io.frames import read_frame
from survey.io.store import Field
from survey.run.executor import InlineExecutor
from survey.run.ingest import IngestError, ingest
from survey.run.verify import verify
from survey.simulate import simulate_field
from survey.stages import measure
from tests.run.conftest import small_config


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eight frames, row by row packed, in a folder."""
    folder = tmp_path_factory.mktemp("packed")
    simulate_field(folder / "plain", size=96, frames=8, seed=4, events=0, variables=0)
    for file in sorted((folder / "plain").glob("*.fits")):
        with fits.open(file) as hdul:
            images = [
                fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name, compression_type="GZIP_1",
                                  tile_shape=(1, 96), quantize_level=0)
                for hdu in hdul[1:]
            ]  # fmt: skip
            fits.HDUList([hdul[0], *images]).writeto(folder / f"{file.name}.fz")
    shutil.rmtree(folder / "plain")
    return sorted(folder.glob("*.fz"))


@pytest.fixture(autouse=True)
def middle(monkeypatch):
    monkeypatch.setattr(measure, "MEASURED_EDGE", 84)


def with_damage(files, folder, *damaged):
    """Copies of the files; in some a row at the edge cannot be unpacked."""
    folder.mkdir()
    copies = []
    for k, file in enumerate(files):
        copies.append(folder / file.name)
        content = file.read_bytes()
        if k in damaged:
            with fits.open(file, disable_image_compression=True) as hdul:
                row = bytes(hdul["SCI"].data["COMPRESSED_DATA"][92])
            content = content.replace(row, bytes(len(row)))
        copies[-1].write_bytes(content)
    return copies


def take_in(path, files, **options):
    return ingest(path, files, small_config(), InlineExecutor(), **options)


def assert_same_field(first, second):
    a, b = Field.open(first), Field.open(second)
    assert a.attrs["reference_frame"] == b.attrs["reference_frame"]
    assert a.frames().drop_vars(["header", "path"]).equals(b.frames().drop_vars(["header", "path"]))
    for name in ("flux", "error", "mask", "dq"):
        np.testing.assert_array_equal(a.array("images/sky", name)[...], b.array("images/sky", name)[...])
    assert {n: r.key for n, r in a.ledger("place").records.items()} == {
        n: r.key for n, r in b.ledger("place").records.items()
    }
    assert verify(first).problems == []


def test_the_damage_is_seen_by_placing_alone(packed, tmp_path):
    copies = with_damage(packed, tmp_path / "frames", 3)
    read_frame(copies[3], rows=(6, 90))
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_frame(copies[3])


@pytest.mark.parametrize("damaged", [(6,), (1, 3, 4, 6)])
def test_a_new_field_is_that_of_the_whole_frames(packed, tmp_path, damaged):
    copies = with_damage(packed, tmp_path / "frames", *damaged)
    summary = take_in(tmp_path / "field", copies)
    assert [path for path, _ in summary.rejected] == [str(copies[k]) for k in damaged]
    assert all("truncated or damaged" in reason for _, reason in summary.rejected)
    assert (summary.added, summary.failures) == (8 - len(damaged), [])
    take_in(tmp_path / "whole", [file for k, file in enumerate(copies) if k not in damaged])
    assert_same_field(tmp_path / "field", tmp_path / "whole")


def test_a_field_that_is_there_is_not_harmed(packed, tmp_path):
    copies = with_damage(packed, tmp_path / "frames", 5)
    for name in ("field", "whole"):
        take_in(tmp_path / name, copies[:4])
    with pytest.raises(IngestError, match=r"1 frames cannot be used \(--strict\): .*truncated or damaged"):
        take_in(tmp_path / "field", copies[4:], strict=True)
    assert Field.open(tmp_path / "field").frames().sizes["time"] == 4
    assert verify(tmp_path / "field").problems == []
    summary = take_in(tmp_path / "field", copies[4:])
    assert ([path for path, _ in summary.rejected], summary.added) == ([str(copies[5])], 3)
    take_in(tmp_path / "whole", [copies[4], *copies[6:]])
    assert_same_field(tmp_path / "field", tmp_path / "whole")


def test_where_all_are_damaged_no_field_comes_of_it_and_the_next_attempt_stands(packed, tmp_path):
    copies = with_damage(packed[:3], tmp_path / "frames", 0, 1, 2)
    with pytest.raises(IngestError, match=r"none of the 3 files gave a usable frame: .*truncated or damaged"):
        take_in(tmp_path / "field", copies)
    take_in(tmp_path / "field", packed)
    take_in(tmp_path / "whole", packed)
    assert_same_field(tmp_path / "field", tmp_path / "whole")
