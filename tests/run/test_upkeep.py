"""verify, prune and unlock: what they find, what they mend, and what they leave alone."""

import json
import math
import os
import shutil
import socket
import time
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.io.files import write_json
from survey.io.ledger import FieldBusyError
from survey.io.store import Field, FieldError
from survey.run.api import run
from survey.run.undone import note_additions, undo_additions
from survey.run.upkeep import prune, unlock
from survey.run.verify import verify
from survey.stages.methods import MethodError
from tests.run.conftest import assert_same_bits


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "field")
    return tmp_path / "field"


def survey(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def spoil(field, group, name, tile, value):
    """Other numbers in one tile, written behind the ledger's back."""
    target = Field.open(field)
    target.array(group, name)[(slice(None), *target.tiles[tile].core)] = value


def break_file(folder):
    """Bytes of one shard overwritten, as a bad disk does."""
    shard = max(
        (p for p in Path(folder).rglob("*") if p.is_file() and p.name != "zarr.json"),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = os.urandom(len(data) // 2)
    shard.write_bytes(data)


def test_a_sound_field_is_sound(finished):
    found = verify(finished.path)
    assert found.problems == []
    # Blocks of placed frames, and four tiles each of differences and of the search.
    assert found.checked >= math.ceil(72 / 32) + 2 * 4
    assert survey("verify", finished.path).exit_code == 0


def test_checksums_of_versions_before_are_compared_too(copy):
    target = Field.open(copy)
    ledger = target.ledger("oversampled.oversampled")
    for name, record in list(ledger.records.items()):
        written = []
        for piece in record.payload["written"]:
            region = tuple(slice(*ends) for ends in piece["region"])
            old = {n: zlib.crc32(target.stored(piece["group"], n, region).tobytes()) for n in piece["sums"]}
            written.append({"group": piece["group"], "region": piece["region"], "crc32": old})
        ledger.record(name, record.key, {**record.payload, "written": written})
    ledger.flush()
    assert verify(copy).problems == []
    spoil(copy, "difference/oversampled", "flux", 2, 1e9)
    assert {(p.unit, p.what) for p in verify(copy).problems} == {
        ("tile-00002", "difference/oversampled/flux is not what was written")
    }


def test_a_corrupt_tile_is_found_and_made_again_with_the_same_bits(finished, copy):
    spoil(copy, "difference/oversampled", "flux", 2, 1e9)
    break_file(copy / "cube.zarr" / "search" / "oversampled" / "significance")
    found = verify(copy)
    assert {p.ledger for p in found.problems} == {"oversampled.oversampled", "oversampled.detect"}
    assert [p.what for p in found.problems if p.unit == "tile-00002" and "difference" in p.what] == [
        "difference/oversampled/flux is not what was written"
    ]
    assert survey("verify", copy).exit_code == 1
    assert verify(copy, repair=True).hopeless == []
    assert run(copy, client="synchronous").ok
    assert verify(copy).problems == []
    assert_same_bits(finished.path, copy)


def test_what_is_struck_is_not_put_back_as_an_addition_that_did_not_end(copy):
    """A run was killed when the tile was recorded already, before it forgot that it was adding to it."""
    field = Field.open(copy)
    records = field.ledger("oversampled.oversampled").records
    note_additions(field, {"tile-00002": records["tile-00002"]})
    spoil(copy, "difference/oversampled", "flux", 2, 1e9)
    assert ("oversampled.oversampled", "tile-00002") in verify(copy, repair=True).repaired
    undo_additions(field, field.ledger("oversampled.oversampled"), "oversampled.oversampled")
    assert set(field.ledger("oversampled.oversampled").records) == set(records) - {"tile-00002"}


@pytest.mark.slow
def test_corrupt_images_are_placed_again_from_their_frames(finished, copy):
    break_file(copy / "cube.zarr" / "images" / "sky" / "flux")
    (problem,) = {(p.ledger, p.unit) for p in verify(copy).problems}
    assert problem[0] == "place"
    result = survey("verify", copy, "--repair")
    assert result.exit_code == 0
    assert run(copy, client="synchronous").ok
    assert verify(copy).problems == []
    assert_same_bits(finished.path, copy)


def test_corrupt_images_without_their_frames_are_hopeless_and_say_so(copy, monkeypatch):
    def gone(*_):
        raise FileNotFoundError("frame-0003.fits: no such file")

    spoil(copy, "images/sky", "flux", 0, 5.0)
    monkeypatch.setattr("survey.run.verify.place.read", gone)
    before = set(Field.open(copy).ledger("place").records)
    found = verify(copy, repair=True)
    assert found.hopeless
    assert {p.what for p in found.hopeless} == {"cannot be placed again: frame-0003.fits: no such file"}
    assert set(Field.open(copy).ledger("place").records) == before
    assert survey("verify", copy, "--repair").exit_code == 1


@pytest.mark.parametrize("method", ["", ".", "..", "a/b", "../images", "nn2", "*"])
def test_prune_removes_nothing_for_what_is_no_method(finished, method):
    with pytest.raises(MethodError, match="unknown method"):
        prune(finished.path, method=method, delete=True)
    assert survey("prune", finished.path, "--method", method, "--delete").exit_code == 2
    assert Field.open(finished.path).has("difference/oversampled", "flux")


def test_prune_lists_first_and_removes_only_what_nobody_uses(finished, copy):
    old = copy / "cube.zarr" / "images" / "sky" / "flux" / "c.123.partial"
    new = old.with_name("c.124.partial")
    for file in (old, new):
        file.write_bytes(b"x" * 1000)
    os.utime(old, (time.time() - 1e5,) * 2)
    part = copy / "lightcurves" / "oversampled.parts" / "tile-99999.parquet"
    part.write_bytes(b"x")
    (copy / "cube.zarr" / ".psf.old").mkdir()
    listed = prune(copy)
    assert {f.path for f in listed} == {old, part, copy / "cube.zarr" / ".psf.old"}
    assert old.exists()
    result = survey("prune", copy, "--delete", "--keep-runs", "0")
    assert result.exit_code == 0
    assert not old.exists()
    assert new.exists()
    assert list((copy / "runs").iterdir()) == []
    assert prune(copy) == []
    assert verify(copy).problems == []
    assert_same_bits(finished.path, copy)
    with pytest.raises(FieldError, match="oversampled"):
        prune(copy, method="oversampled")
    with pytest.raises(FieldError, match="nothing of a method 'zogy'"):
        prune(copy, method="zogy")


@pytest.mark.parametrize("group", ["template/own", "lightcurves/nn2", "difference/new"])
def test_what_is_made_for_the_first_time_is_not_removed(tmp_path, group):
    field = Field.create(tmp_path / "field", (10, 10), {"tile_size": 10, "time_block": 4, "units": "count"})
    making = field.cube / "template" / ".own.new"
    making.mkdir(parents=True)
    with field.lease(group, "someone"), pytest.raises(FieldBusyError, match="someone"):
        prune(field.path, delete=True)
    assert making.exists()
    assert list((field.path / "leases").iterdir()) == []
    assert [f.path for f in prune(field.path, delete=True)] == [making]
    assert not making.exists()


def test_a_methods_variability_goes_with_it(tmp_path):
    field = Field.create(tmp_path / "field", (10, 10), {"tile_size": 10, "time_block": 4, "units": "count"})
    groups = [f"{head}/cpm" for head in ("difference", "search", "variability")]
    for group in groups:
        field.root.require_group(group)
    assert [str(f.path.relative_to(field.cube)) for f in prune(field.path, method="cpm")] == groups


def test_nothing_is_removed_or_struck_while_a_run_writes(copy):
    spoil(copy, "difference/oversampled", "flux", 1, 1e9)
    with Field.open(copy).lease("difference/oversampled", "someone"):
        with pytest.raises(FieldBusyError, match="someone"):
            prune(copy, delete=True, keep_runs=0)
        with pytest.raises(FieldBusyError, match="someone"):
            verify(copy, repair=True)
    assert len(list((copy / "runs").iterdir())) > 0
    assert len(verify(copy).problems) == 1


def test_unlock_removes_the_dead_and_keeps_the_living(copy, monkeypatch):
    monkeypatch.setattr("survey.io.ledger.HEARTBEAT_SECONDS", 0.1)
    lease = copy / "leases" / "difference.oversampled.json"
    claim = {"owner": "r1", "host": socket.gethostname(), "pid": 2**22 + 1, "beat": time.time()}
    write_json(lease, claim)
    assert [(h.group, h.alive, h.removed) for h in unlock(copy)] == [("difference/oversampled", False, True)]
    assert not lease.exists()
    write_json(lease, {**claim, "pid": os.getpid()})
    result = survey("unlock", copy)
    assert (result.exit_code, lease.exists()) == (1, True)
    assert "--force" in result.stdout
    assert survey("unlock", copy, "--force").exit_code == 0
    assert not lease.exists()
    write_json(lease, {**claim, "host": "elsewhere", "beat": time.time() - 1e3})
    assert unlock(copy)[0].removed
    lease.write_text(json.dumps(claim)[:20])
    os.utime(lease, (time.time() - 1e4,) * 2)
    assert unlock(copy)[0].removed


def test_a_run_that_starts_is_no_old_one(tmp_path):
    field = Field.create(tmp_path / "field", (10, 10), {"tile_size": 10, "time_block": 4, "units": "count"})
    folder = field.path / "runs" / "20260101T000000-abc"
    write_json(folder / "job.json", {"run_id": folder.name, "submitted": time.time()})
    assert prune(field.path, keep_runs=0) == []
    write_json(folder / "job.json", {"run_id": folder.name, "submitted": 0.0})
    assert [f.why for f in prune(field.path, keep_runs=0)] == ["old run"]
