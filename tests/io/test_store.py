import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from zarr.core.attributes import Attributes

from survey.io.checksums import cells_of
from survey.io.store import Field, FieldError, open_field
from survey.schema import ARRAYS, SchemaError, arrays_of


@pytest.fixture
def field(tmp_path):
    return Field.create(tmp_path / "f", (100, 90), {"tile_size": 64, "time_block": 16, "units": "count"})


def test_regions_come_back_and_the_rest_is_masked(field):
    field.require_group("images/sky", {"time": 20, "y": 100, "x": 90})
    values = np.arange(20 * 64 * 26, dtype=np.float32).reshape(20, 64, 26)
    tile = field.tiles[1]
    region = (slice(0, 20), *tile.core)
    first = field.write("images/sky", {"flux": values, "mask": values < 0}, region)
    assert first == field.write("images/sky", {"flux": values, "mask": values < 0}, region)
    np.testing.assert_array_equal(field.array("images/sky", "flux")[region], values)
    assert np.isnan(field.array("images/sky", "flux")[:, 0, 0]).all()
    assert field.array("images/sky", "mask")[:, 0, 0].all()


def test_a_field_that_was_being_made_when_a_kill_came_is_one_or_none(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    attrs = {"tile_size": 64, "time_block": 16, "units": "count"}
    (tmp_path / "begun" / "cube.zarr").mkdir(parents=True)
    monkeypatch.setattr(Attributes, "update", killed)
    for name in ("begun", "new"):
        with suppress(KeyboardInterrupt):
            Field.create(tmp_path / name, (100, 90), attrs)
        assert Field.open(tmp_path / name).tile_size == 64
    with pytest.raises(FieldError, match="there is a field already"):
        Field.create(tmp_path / "new", (100, 90), attrs)


def test_values_that_have_no_room_are_refused(field):
    field.require_group("images/sky", {"time": 4, "y": 100, "x": 90})
    place = (slice(0, 10), slice(0, 10))
    for values, times in ((6, slice(0, 6)), (6, slice(0, 4)), (3, slice(2, 5)), (3, slice(0, 4))):
        with pytest.raises(FieldError, match="did the field's frames change"):
            field.write("images/sky", {"flux": np.ones((values, 10, 10))}, (times, *place))
    assert np.isnan(field.array("images/sky", "flux")[...]).all()


def test_growing_in_time_keeps_what_is_there(field):
    field.require_group("images/sky", {"time": 3, "y": 100, "x": 90})
    field.write("images/sky", {"flux": np.ones((3, 100, 90))}, (slice(0, 3), slice(0, 100), slice(0, 90)))
    field.require_group("images/sky", {"time": 40, "y": 100, "x": 90})
    flux = field.array("images/sky", "flux")
    assert flux.shape == (40, 100, 90)
    assert (flux[:3] == 1).all()
    assert np.isnan(flux[3:]).all()


def test_a_group_of_another_shape_is_refused(field):
    field.require_group("images/sky", {"time": 3, "y": 100, "x": 90})
    with pytest.raises(FieldError, match="rebuild"):
        field.require_group("images/sky", {"time": 3, "y": 50, "x": 90})


def test_no_field_second_field_and_unknown_schema(tmp_path, field):
    with pytest.raises(FieldError, match="not a field"):
        Field.open(tmp_path / "nothing")
    with pytest.raises(FieldError, match="a field already"):
        Field.create(field.path, (10, 10), {})
    meta = field.cube / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["schema_version"] = 99
    meta.write_text(json.dumps(document))
    with pytest.raises(SchemaError, match="schema version 99"):
        Field.open(field.path)


def test_tables_are_replaced_whole_and_half_replacements_undone(field):
    table = xr.Dataset({"frame_id": ("time", np.array(["a", "b"], object))}, {"time": [1.0, 2.0]})
    field.write_table("frames", table)
    field.write_table("frames", table.isel(time=[0]))
    assert Field.open(field.path).frames().sizes["time"] == 1
    (field.cube / "frames").rename(field.cube / ".frames.old")
    assert list(Field.open(field.path).frames()["frame_id"].values) == ["a"]


def named(*names):
    return xr.Dataset({"frame_id": ("time", np.array(names, object))}, {"time": np.arange(len(names)) * 1.0})


def test_a_reader_between_the_two_renames_of_a_living_writer_disturbs_nothing(field, monkeypatch):
    field.write_table("frames", named("a"))
    rename, read = Path.rename, []

    def rename_and_be_read(place, target):
        done = rename(place, target)
        if Path(target).name == ".frames.old":
            read.append(Field.open(field.path).frames().sizes["time"])
        return done

    monkeypatch.setattr(Path, "rename", rename_and_be_read)
    field.write_table("frames", named("a", "b"))
    assert read == [2]
    assert list(Field.open(field.path).frames()["frame_id"].values) == ["a", "b"]
    assert list(field.cube.glob(".*")) == []


@pytest.mark.parametrize("open_again", [True, False])
def test_a_swap_that_a_kill_cut_in_two_is_finished(field, monkeypatch, open_again):
    """By the next who opens the field, or who writes to it and opened it before."""

    def killed(table, *_, **__):
        raise KeyboardInterrupt

    field.write_table("frames", named("a", "b"))
    (field.cube / "frames").rename(field.cube / ".frames.new")
    field.write_table("stars", named("a"))
    (field.cube / "stars").rename(field.cube / ".frames.old")
    if not open_again:
        monkeypatch.setattr(xr.Dataset, "to_zarr", killed)
        with pytest.raises(KeyboardInterrupt):
            field.write_table("frames", named("c"))
    assert list(Field.open(field.path).frames()["frame_id"].values) == ["a", "b"]


def test_the_cube_opens_as_a_tree(field):
    field.require_group("difference/oversampled", {"time": 20, "y": 100, "x": 90})
    field.write_table("frames", xr.Dataset(coords={"time": ("time", np.arange(20.0))}))
    tree = open_field(field.path)
    flux = tree["difference/oversampled/flux"]
    assert flux.dims == ("time", "y", "x")
    assert flux.attrs["units"] == "count"
    tree.close()


def test_schema_describes_every_array_once():
    names = [(spec.group, spec.name) for spec in ARRAYS]
    assert len(set(names)) == len(names)
    assert all(spec.meaning for spec in ARRAYS)
    assert {spec.name for spec in arrays_of("difference/anything")} >= {"flux", "error", "mask", "fit_mask"}
    with pytest.raises(SchemaError, match="no group"):
        arrays_of("nonsense")


def test_a_patch_gives_the_checksums_of_the_cells_it_touches(tmp_path):
    sizes = {"time": 20, "y": 200, "x": 256}
    field = Field.create(tmp_path / "p", (200, 256), {"tile_size": 256, "time_block": 16, "units": "count"})
    field.require_group("images/sky", sizes)
    region = (slice(0, 20), slice(0, 200), slice(0, 256))
    values = np.random.default_rng(1).normal(size=(20, 200, 256)).astype("f4")
    before = field.write("images/sky", {"flux": values}, region)["flux"]
    corners = ((10, 20), (60, 70), (150, 180), (190, 230))
    for number in (1, 2, 4):
        parts = []
        for y, x in corners[:number]:
            part = (slice(0, 20), slice(y, y + 9), slice(x, x + 11))
            parts.append((part, np.full((20, 9, 11), float(number), "f4")))
            values[part] = number
        cells = field.patch("images/sky", "flux", region, parts)
        np.testing.assert_array_equal(field.array("images/sky", "flux")[region], values)
        known = dict(zip(cells_of(region), before, strict=True))
        before = field.checksums("images/sky", "flux", region)
        assert list({**known, **cells}.values()) == before
        assert number > 2 or len(cells) <= 6
