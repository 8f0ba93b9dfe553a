"""The small operations, on files and on objects alike."""

import errno
import json
import pickle
import time

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
import zarr

from survey.config import Config
from survey.io import locations
from survey.io.files import parquet_blocks, read_parquet, write_parquet_blocks
from survey.io.ledger import FieldBusyError, Lease, Ledger, holder_of
from survey.io.locations import locate, zarr_place
from survey.io.objects import ObjectPath, StoreError
from survey.io.store import Field, FieldError, holds_frames, is_field, open_field
from survey.io.versions import Versions
from survey.run.upkeep import prune
from survey.stages.matching import check_template
from tests.objects.bucket_server import KEY_ID, SECRET
from tests.objects.stores import OTHERS, other_store


@pytest.fixture(scope="module", params=["file", "object", *OTHERS])
def root(request, tmp_path_factory):
    """URL of a bucket, of each kind of store in turn; None for a file system."""
    if request.param == "file":
        yield None
    elif request.param == "object":
        yield request.getfixturevalue("bucket").url
    else:
        with other_store(request.param, tmp_path_factory.mktemp(request.param)) as url:
            yield url


@pytest.fixture
def place(root, tmp_path):
    """An empty folder of either kind."""
    return tmp_path if root is None else locate(f"{root}/{tmp_path.name}-{time.time_ns()}")


def kept_array(place):
    """A shard that is kept under another name, and what it held."""
    array = zarr.create_array(zarr_place(place / "a"), shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="f4")
    array[:] = before = np.arange(64, dtype=np.float32).reshape(8, 8)
    locations.keep(place / "a" / "zarr.json", place / "kept" / "zarr.json")
    for name in ("c/0/0", "c/1/0"):
        locations.keep(place / "a" / name, place / "kept" / name)
    return array, before


def test_what_is_kept_stays_as_it_was(place):
    """Zarr puts a new file in the old one's place, whole or in parts; nothing that is kept is kept again."""
    array, before = kept_array(place)
    for region in (slice(0, 2), slice(None)):
        array[region] = -1
        locations.keep(place / "a" / "c/0/0", place / "kept" / "c/0/0")
        assert np.array_equal(zarr.open_array(zarr_place(place / "kept"), mode="r")[:], before)
    # a file that was not there is kept as one that is empty
    locations.keep(place / "a" / "c/0/0", place / "kept" / "c/1/0")
    assert locations.size_of(place / "kept" / "c/1/0") == 0
    assert locations.size_of(place / "kept" / "c/0/0") > 0


def test_what_is_kept_is_copied_where_files_have_one_name(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    array, before = kept_array(tmp_path)
    array[:] = -1
    locations.keep(tmp_path / "a" / "c/0/0", tmp_path / "kept" / "c/0/0")
    assert np.array_equal(zarr.open_array(tmp_path / "kept", mode="r")[:], before)


def test_files_are_written_found_and_removed(place):
    for name in ("a/1.json", "a/2.json", "b/c/1.json", "d.txt"):
        locations.write_atomic(place / name, name.encode())
    assert (place / "b" / "c" / "1.json").read_text() == "b/c/1.json"
    assert [p.name for p in locations.folders(place)] == ["a", "b"]
    assert [p.name for p in locations.files(place, "*/*.json")] == ["1.json", "2.json"]
    assert sorted(e.size for e in locations.entries(place)) == [5, 8, 8, 10]
    assert abs(locations.changed(place / "d.txt") - time.time()) < 60
    locations.remove(place / "a")
    assert not (place / "a").exists()
    assert (place / "b").exists()
    assert (place / "b").is_dir()
    locations.remove(place / "a")
    (place / "d.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (place / "d.txt").read_bytes()


def test_a_table_is_written_and_read_in_blocks(place):
    def tables(fails=False):
        for k in range(4):
            yield pa.table({"n": np.arange(3) + 3 * k, "text": ["x" * 50] * 3})
        if fails:
            raise RuntimeError("no more")

    file = place / "a" / "table.parquet"
    assert write_parquet_blocks(file, tables(), 200) == 12
    blocks = list(parquet_blocks(file))
    assert [len(block) for block in blocks] == [6, 6]
    assert np.concatenate([block["n"] for block in blocks]).tolist() == list(range(12))
    assert next(parquet_blocks(file, ["n"])).column_names == ["n"]
    assert read_parquet(file)["n"].to_pylist() == list(range(12))
    # What is not written to its end is not there.
    with pytest.raises(RuntimeError, match="no more"):
        write_parquet_blocks(file, (t.slice(0, 1) for t in tables(fails=True)), 1)
    assert len(read_parquet(file)) == 12
    assert [p.name for p in locations.files(place, "a/*")] == ["table.parquet"]
    with pytest.raises(FileNotFoundError):
        next(parquet_blocks(place / "b.parquet"))


def test_a_table_replaced_while_it_is_read_is_an_error(place):
    """On a file system the old file is read to its end; an object's half would be another's."""
    file = place / "table.parquet"
    write_parquet_blocks(file, (pa.table({"n": [k] * 1000}) for k in range(3)), 8000)
    blocks = parquet_blocks(file)
    next(blocks)
    write_parquet_blocks(file, (pa.table({"n": [k] * 1000}) for k in range(4)), 8000)
    if isinstance(file, ObjectPath):
        with pytest.raises(StoreError, match="was replaced while it was read"):
            list(blocks)
    else:
        assert len(list(blocks)) == 2


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_what_is_gone_is_deleted_where_the_store_says_so(scheme, tmp_path, monkeypatch):
    """A store of files, like Google's and Azure's, refuses to delete what is not there, and stops at it."""
    store = pytest.importorskip("obstore.store", reason="needs the extra `objects`")
    monkeypatch.setattr("survey.io.objects.open_store", lambda url: store.LocalStore(tmp_path))
    place = locate(f"{scheme}://bucket/field")
    locations.remove(place)
    (place / "none").unlink(missing_ok=True)
    for name in ("a/1", "a/2", "b", "c"):
        locations.write_atomic(place / name, b"x")
    locations.remove(place / "a")  # no object has the folder's own name
    locations.remove_files([place / "b", place / "gone", place / "c"])
    assert list(locations.entries(place)) == []


def test_only_the_first_creates_and_only_who_knows_replaces(place):
    file = place / "x.json"
    assert locations.create(file, b"1")
    assert not locations.create(file, b"2")
    assert not locations.replace(file, b"3", b"2")
    assert locations.replace(file, b"3", b"1")
    assert file.read_bytes() == b"3"
    assert not locations.replace(place / "none", b"1", b"")


def test_a_ledger_survives_and_compacts(place):
    ledger = Ledger(place / "ledger")
    for i in range(4):
        ledger.record(f"u{i}", f"k{i}")
        ledger.flush()
    ledger.invalidate(["u3"])
    stale = locations.files(place / "ledger", "*.jsonl")
    kept = {file: file.read_bytes() for file in stale}
    ledger.compact()
    assert len(locations.files(place / "ledger", "*.jsonl")) == 1
    # Whatever subset of the old segments a kill leaves says nothing new.
    locations.write_atomic(stale[3], kept[stale[3]])
    assert set(Ledger(place / "ledger").records) == {"u0", "u1", "u2"}


def test_one_run_holds_a_lease(place, monkeypatch):
    monkeypatch.setattr("survey.io.ledger.HEARTBEAT_SECONDS", 0.1)
    path = place / "leases" / "group.json"
    with Lease(path, "first"):
        assert holder_of(path) == "first"
        with pytest.raises(FieldBusyError, match="run first"), Lease(path, "second"):
            pass
    assert holder_of(path) is None
    dead = {"owner": "old", "host": "elsewhere", "pid": 1, "beat": time.time() - 3600}
    locations.write_atomic(path, json.dumps(dead).encode())
    with Lease(path, "new"):
        assert holder_of(path) == "new"


def test_a_beat_does_not_take_a_lost_lease_back(place, monkeypatch, caplog):
    monkeypatch.setattr("survey.io.ledger.HEARTBEAT_SECONDS", 1.0)
    path = place / "group.json"
    with Lease(path, "first"):
        first = path.read_bytes()
        while path.read_bytes() == first:  # right after a beat: files know no exact replacement
            time.sleep(0.02)
        path.unlink()
        assert locations.create(path, json.dumps({"owner": "other"}).encode())
        deadline = time.monotonic() + 20
        while "no longer held" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert holder_of(path) == "other"
    assert holder_of(path) == "other", "what belongs to another run is not deleted"


def test_tables_are_replaced_as_a_whole(place):
    field = Field.create(place / "field", (8, 8), {"tile_size": 8, "time_block": 4, "units": "count"})
    assert is_field(place / "field")
    assert not holds_frames(place / "field")
    for n in (3, 2):
        field.write_table("frames", xr.Dataset({"frame_id": ("time", [f"f{i}" for i in range(n)])}))
        found = Field.open(place / "field").frames()
        assert list(found["frame_id"].values) == [f"f{i}" for i in range(n)]
        tree = open_field(place / "field")
        assert list(tree["frames"]["frame_id"].values) == [f"f{i}" for i in range(n)]
    field.remove_table("frames")
    assert not holds_frames(place / "field")


def write_version(field, version, value):
    """Replace a template by one of a single value."""
    with field.replacing("template/own", version) as fresh:
        field.require_group(fresh, {"y": 16, "x": 16}, {"version": version})
        field.write(fresh, {"flux": np.full((16, 16), value)}, (slice(0, 16), slice(0, 16)))


def version_of(field):
    """Version of the template and the values in it, as a process sees them that has just opened the field."""
    field = Field.open(field.path)
    values = np.unique(np.asarray(field.array("template/own", "flux")[...]))
    return field.group_attrs("template/own")["version"], values.tolist()


@pytest.mark.parametrize("moment", ["written", "replaced"])
def test_a_killed_replacement_leaves_one_whole_version(place, monkeypatch, moment):
    """Killed when the new one is written, it leaves the old one; when that has its place, the new one."""

    def killed(*_):
        raise KeyboardInterrupt

    attrs = {"tile_size": 8, "time_block": 4, "units": "count"}
    field = Field.create(place / "field", (16, 16), attrs)
    for number in (1, 2):
        write_version(field, f"v{number}", number)
        assert version_of(field) == (f"v{number}", [number])
    with monkeypatch.context() as patch:
        if moment == "written":
            patch.setattr("survey.io.tables.swap", killed)
            patch.setattr(Versions, "point", killed)
        else:
            patch.setattr("survey.io.locations.remove", killed)
            patch.setattr(Versions, "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            write_version(field, "v3", 3)
    assert version_of(field) == (("v2", [2]) if moment == "written" else ("v3", [3]))
    assert field.replaced() == ["own"]
    write_version(field, "v4", 4)
    assert version_of(field) == ("v4", [4])
    tree = open_field(place / "field")
    assert np.unique(tree["template/own/flux"]) == [4]
    assert list(tree["template"].children) == ["own"], "readers who know Zarr only see no version"


def test_a_template_made_before_there_were_versions_is_one(place):
    """Its tiles are recorded by their names, and in a bucket nothing points to it."""
    attrs = {"tile_size": 8, "time_block": 4, "units": "count"}
    field = Field.create(place / "field", (16, 16), attrs)
    field.require_group("template/old", {"y": 16, "x": 16}, {"name": "old"})
    ledger = field.ledger("template/old")
    for tile in field.tiles:
        field.write("template/old", {"flux": np.ones(tile.shape)}, tile.core)
        ledger.record(tile.name, "key")
    ledger.flush()
    config = Config(subtraction={"template": "old"})
    assert field.replaced() == ["old"]
    check_template(field, config)
    ledger.invalidate([field.tiles[1].name])
    with pytest.raises(FieldError, match="1 of 4 tiles have no record"):
        check_template(field, config)
    assert prune(field.path, template="old", delete=True)
    assert field.replaced() == []


def test_a_reader_in_the_middle_of_a_version_finds_it_whole(bucket):
    attrs = {"tile_size": 8, "time_block": 4, "units": "count"}
    field = Field.create(f"{bucket.url}/reader-{time.time_ns()}", (16, 16), attrs)
    write_version(field, "v1", 1)
    flux = field.array("template/own", "flux")
    write_version(field, "v2", 2)
    assert np.unique(np.asarray(flux[...])) == [1]
    versions = field.versions("template/own")
    assert [p.name for p in field.unused_places()] == [".own.v1"]
    (versions.plain / "flux" / "c" / "0" / "0").unlink()
    assert not versions.is_copied()
    versions.copy()
    assert versions.is_copied()


def test_arrays_are_the_same_bits(place):
    field = Field.create(place / "field", (48, 40), {"tile_size": 16, "time_block": 4, "units": "count"})
    field.require_group("images/sky", {"time": 8, "y": 48, "x": 40})
    flux = np.random.default_rng(1).normal(size=(8, 16, 16)).astype("f4")
    region = (slice(0, 8), slice(16, 32), slice(16, 32))
    written = field.write("images/sky", {"flux": flux}, region)
    assert Field.open(place / "field").checksums("images/sky", "flux", region) == written["flux"]
    part = (slice(2, 3), slice(20, 24), slice(16, 20))
    field.patch("images/sky", "flux", region, [(part, np.zeros((1, 4, 4)))])
    flux[2, 4:8, :4] = 0
    assert np.asarray(field.array("images/sky", "flux")[region]).tobytes() == flux.tobytes()
    field.remove_group("images/sky")
    assert not field.has("images/sky", "flux")


def test_a_url_names_a_place_and_nothing_more():
    assert str(locate("s3://bucket//a/b/")) == "s3://bucket/a/b"
    assert locate("gs://bucket/a").parent == locate("gs://bucket/a/b").parent.parent
    for name in ("s3://key:secret@bucket/a", "s3://bucket/a?secret=1", "s3://bucket"):
        with pytest.raises(ValueError, match="environment") as caught:
            locate(name)
        assert "secret" not in str(caught.value)


def test_a_store_is_no_cargo_and_a_place_carries_a_url_only(bucket):
    place = locate(f"{bucket.url}/cargo")
    store = zarr_place(place)
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(store)
    (place / "x").exists()
    cargo = pickle.dumps(place)
    assert SECRET.encode() not in cargo
    assert KEY_ID.encode() not in cargo


def test_errors_name_the_place_and_no_server_words(bucket, monkeypatch):
    with pytest.raises(FileNotFoundError, match="s3://nobody-made-this/x: no such"):
        locate("s3://nobody-made-this/x").write_bytes(b"")

    def refuse(*args, **kwargs):
        from obstore.exceptions import GenericError

        raise GenericError(f"status code: 503 Service Unavailable: <KeyId>{KEY_ID}</KeyId>")

    monkeypatch.setattr("obstore.get", refuse)
    with pytest.raises(StoreError, match="503 Service Unavailable") as caught:
        locate(f"{bucket.url}/x").read_bytes()
    assert KEY_ID not in str(caught.value)
    assert caught.value.__cause__ is None
