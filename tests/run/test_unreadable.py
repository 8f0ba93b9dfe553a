"""A shard of images that cannot be read: the rest goes on, and later all is as ever."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from survey.config import Config
from survey.io.locations import folders, remove
from survey.io.store import Field
from survey.run.api import create_field, run
from survey.run.differences import RunError
from survey.run.engine import Engine
from survey.run.executor import InlineExecutor
from survey.run.oversampled import OversampledDifferences
from survey.run.pipeline import Pipeline
from survey.run.refinement import _shown, refine_frames
from survey.simulate import simulate_field
from survey.stages.protocol import Unit
from survey.tiles import tile_grid
from tests.run.conftest import assert_same_bits

# Four windows of 96 pixels, which overlap; the first 32 pixels are in the first alone.
WIDE = 128


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A field of frames that nobody has refined."""
    folder = tmp_path_factory.mktemp("wide")
    simulate_field(folder / "frames", size=WIDE, frames=24, seed=3, events=0)
    config = Config(grid={"tile": 32}, psf={"size": 11}, reference={"n_basis": 3})
    create_field(folder / "field", [folder / "frames"], config, client="synchronous")
    return folder / "field", config


def corner(path):
    """The shard of the field's first tile, and what is in it."""
    shard = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0" / "0" / "0"
    return shard, shard.read_bytes()


def refine(path, config):
    """What failed of a refinement, and the scales that came of it."""
    engine = Engine(Field.open(path), config, InlineExecutor())
    refine_frames(engine)
    engine.finish()
    scales = Field.open(path).table("registration")["scale"].values
    return [(f.stage, f.unit) for f in engine.failures], scales, len(engine.reports)


def test_a_window_that_cannot_be_read_is_told_and_left_out(wide, tmp_path):
    path, whole = tmp_path / "field", tmp_path / "whole"
    for place in (path, whole):
        shutil.copytree(wide[0], place)
    failed, sound, _ = refine(whole, wide[1])
    assert failed == []
    shard, data = corner(path)
    shard.write_bytes(b"x" * len(data))
    failed, without, _ = refine(path, wide[1])
    assert failed == [("refine 1", "window-0")]
    assert not np.array_equal(without, sound)
    np.testing.assert_allclose(without, sound, rtol=5e-3)
    failed, again, done = refine(path, wide[1])
    assert failed == [("refine again", "window-0")], "whoever runs again hears of it again"
    assert done == 0
    assert np.array_equal(again, without), "and what was made without it stands"
    shard.write_bytes(data)
    failed, mended, _ = refine(path, wide[1])
    assert failed == []
    assert np.array_equal(mended, sound)
    assert refine(path, wide[1])[2] == 0


def test_where_no_window_can_be_read_the_run_says_why(wide, tmp_path):
    path = tmp_path / "field"
    shutil.copytree(wide[0], path)
    flux = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0"
    for y, x in ((0, 0), (0, 3), (3, 0), (3, 3)):
        (flux / str(y) / str(x)).write_bytes(b"x" * 1000)
    with pytest.raises(RunError, match=r"refine: .* \(read window-3\)"):
        refine(path, wide[1])


def test_a_window_lost_on_a_later_night_leaves_the_nights_before_alone(wide, tmp_path, monkeypatch):
    path = tmp_path / "field"
    shutil.copytree(wide[0], path)
    field = Field.open(path)
    frames = field.frames()
    field.write_table("frames", frames.isel(time=slice(0, 16)))
    _, first, _ = refine(path, wide[1])
    field.write_table("frames", frames)
    monkeypatch.setattr("survey.run.refinement._can_add", lambda engine, known: True)
    field.require_group("reference", {"y": WIDE, "x": WIDE, "ky": 3, "kx": 3})
    rough = np.random.default_rng(0).normal(0, 100, (WIDE, WIDE, 3, 3))
    field.write("reference", {"coefficients": rough}, (slice(0, WIDE), slice(0, WIDE)))
    shard = next(p for p in (path / "cube.zarr/reference/coefficients/c/0/0").rglob("*") if p.is_file())
    shard.write_bytes(b"x" * 1000)
    failed, _, _ = refine(path, wide[1])
    assert failed == [("refine later", "window-0")]
    failed, scales, done = refine(path, wide[1])
    assert (failed, done) == ([], 0)
    assert np.array_equal(scales[:16], first)
    assert len(scales) == 24


def test_frames_are_added_where_most_windows_have_a_reference():
    """One tile of nine that cannot be read does not have all frames refined anew, night by night."""
    windows, tiles = tile_grid((96, 96), 32), tile_grid((96, 96), 24)
    names = {tile.name for tile in tiles}
    assert _shown(windows, tiles, names) == 9
    assert _shown(windows, tiles, names - {tiles[0].name}) == 8
    assert _shown(windows, tiles, names - {tiles[5].name}) == 5
    assert _shown(windows, tiles, set()) == 0


def test_what_the_reference_began_as_does_not_change_with_a_tile_that_was_lost():
    """Else the PSF, and with it every tile's search, would be made anew each night."""
    units = [Unit(tile.name, tile) for tile in tile_grid((32, 64), 32)]
    found = OversampledDifferences.__new__(OversampledDifferences)
    payload = {"first": "key of 30", "root": "key of 20"}
    found.records = {units[0].name: SimpleNamespace(payload=payload)}
    found._key = lambda unit, epochs, history, events=(): f"{unit.name} of {epochs} {history}"
    found.epochs, found.history = 20, {unit.name: [] for unit in units}
    first = found.root(units[1])
    for epochs, history in ((30, [20]), (40, [20, 30])):
        found.epochs, found.history = epochs, {units[0].name: history, units[1].name: []}
        assert found.root(units[1]) == first
        assert found.root(units[0]) == "key of 20"


def test_a_method_that_leans_on_the_reference_refines_once(wide, tmp_path, monkeypatch):
    path, calls = tmp_path / "field", []
    shutil.copytree(wide[0], path)
    monkeypatch.setattr("survey.run.pipeline.refine_frames", lambda engine: calls.append(engine))
    monkeypatch.setattr("survey.run.oversampled.OversampledDifferences.ensure", lambda self, lag: None)
    monkeypatch.setattr(Pipeline, "has_psf", lambda self: True)
    config = wide[1].model_copy(update={"method": "sfft"})
    Pipeline(Engine(Field.open(path), config, InlineExecutor())).prepare()
    assert len(calls) == 1


@pytest.mark.slow
def test_a_run_goes_on_without_a_shard_of_its_images(tmp_path):
    """Refinement, differences and search do without it; once it is mended, all is as ever."""
    simulate_field(tmp_path / "frames", size=WIDE, frames=72, seed=3, events=2)
    config = Config(grid={"tile": 32}, psf={"size": 11})
    whole, path = tmp_path / "whole", tmp_path / "field"
    create_field(path, [tmp_path / "frames"], config, client="synchronous")
    shutil.copytree(path, whole)
    assert run(whole, client="synchronous").ok
    shard, data = corner(path)
    shard.write_bytes(b"x" * len(data))
    for _ in range(2):
        summary = run(path, client="synchronous")
        assert summary.status == "failed"
        assert {f.unit for f in summary.failures if f.stage.startswith("refine")} == {"window-0"}
        assert 1 <= len({f.unit for f in summary.failures if f.stage == "oversampled"}) <= 4
        assert summary.events >= 1
    shard.write_bytes(data)
    assert run(path, client="synchronous").ok
    assert_same_bits(whole, path)


@pytest.mark.slow
def test_cpm_goes_on_without_a_shard_of_its_images(tmp_path):
    """Its first pass knows nothing of the tiles around; once the shard is mended, all is as ever."""
    simulate_field(tmp_path / "frames", size=WIDE, frames=72, seed=3, events=2)
    config = Config(method="cpm", grid={"tile": 32}, psf={"size": 11}, cpm={"grid": "sky", "reach": 6})
    whole, path = tmp_path / "whole", tmp_path / "field"
    create_field(path, [tmp_path / "frames"], config, client="synchronous")
    shutil.copytree(path, whole)
    assert run(whole, client="synchronous").ok
    shutil.copytree(whole, tmp_path / "made")
    shard, data = corner(tmp_path / "made")
    for ledger in folders(tmp_path / "made" / "ledger"):
        if ledger.name.startswith("cpm."):
            remove(ledger)
    shard.write_bytes(b"x" * len(data))
    summary = run(tmp_path / "made", client="synchronous")
    assert summary.status == "failed"
    failed = {f.unit for f in summary.failures}
    assert "tile-00000" in failed
    assert {f.stage for f in summary.failures} == {"cpm (sums)"}
    assert len(Field.open(tmp_path / "made").ledger("cpm.cpm").records) == 16 - len(failed) > 0
    shard.write_bytes(data)
    assert run(tmp_path / "made", client="synchronous").ok
    a, b = (Field.open(place).array("difference/cpm", "flux") for place in (whole, tmp_path / "made"))
    assert np.asarray(a[...]).tobytes() == np.asarray(b[...]).tobytes()


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
