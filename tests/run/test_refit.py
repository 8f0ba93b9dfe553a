"""Only what an event reaches is fitted again, only what an object needs is read; the numbers are the same."""

import shutil

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.run.engine import Engine
from survey.run.verify import verify
from survey.run.worker import row_blocks
from survey.stages import differences, oversampled
from survey.stages.events import event_mask
from survey.stages.protocol import Unit
from survey.tiles import Tile
from tests.run.conftest import assert_same_bits, small_config


def copy_of(finished, path):
    shutil.copytree(finished.path, path)
    return path


def test_windows_give_what_whole_tiles_give(finished, tmp_path):
    path = copy_of(finished, tmp_path / "field")
    ledger = Field.open(path).ledger("oversampled.oversampled")
    refitted = [name for name, record in ledger.records.items() if record.payload["events"]]
    assert refitted
    before = {name: ledger.records[name].payload["written"] for name in refitted}
    # Without a record nothing is known of a tile: it is fitted as a whole, events left out.
    ledger.invalidate(refitted)
    assert run(path, small_config(), client="synchronous").ok
    assert_same_bits(finished.path, path)
    after = Field.open(path).ledger("oversampled.oversampled").records
    assert {name: after[name].payload["written"] for name in refitted} == before


def test_small_windows_give_what_one_read_gives(finished, tmp_path, monkeypatch):
    path = copy_of(finished, tmp_path / "field")
    for stage in ("candidates", "photometry"):
        shutil.rmtree(path / "ledger" / f"oversampled.{stage}")
    monkeypatch.setattr(differences, "_cost", lambda windows: -len(windows))
    assert run(path, small_config(), client="synchronous").ok
    assert_same_bits(finished.path, path)


def test_event_windows_join_where_they_touch_and_stay_in_the_tile():
    tile = Tile(0, 0, 64, 64, 128)
    events = [{"y": 3.2, "x": 66.0}, {"y": 9.0, "x": 70.0}, {"y": 50.0, "x": 120.0}]
    windows = oversampled.event_windows(tile, events, Config())
    assert [(w.y0, w.y1, w.x0, w.x1) for w in windows] == [(0, 15, 64, 76), (45, 56, 115, 126)]


def test_events_leave_every_pixel_its_reference():
    """Samples nearest in time leave the fit, in a pixel with bad ones fewer; a second event takes no more."""
    time, usable = np.arange(72.0), np.ones((72, 5, 5), bool)
    usable[:14, 2, 2] = False
    usable[:20, 2, 3] = False
    first = {"y": 12.0, "x": 22.0, "time": 36.0, "sigma_days": 4.0}
    window = (slice(10, 15), slice(20, 25))
    mask = event_mask([first, {**first, "time": 60.0}], time, window, 1.5, usable, 54)
    left = (usable & ~mask).sum(axis=0)
    assert left.min() == 52
    assert (left[1:4, 1:4] == [[54, 54, 54], [54, 54, 52], [54, 54, 54]]).all()
    assert np.flatnonzero(mask[:, 2, 1]).tolist() == list(range(27, 45))
    assert np.flatnonzero(mask[:, 2, 2]).tolist() == [34, 35, 36, 37]
    assert not mask[:, 0].any()


def test_events_leave_pixels_that_few_frames_cover():
    """At the border of drifting frames a share of all epochs would be more than the pixel has."""
    time = np.arange(100.0)
    event = {"kind": "event", "y": 0.0, "x": 0.0, "time": 10.0, "sigma_days": 1.0}
    usable = np.zeros((100, 1, 1), bool)
    usable[:34] = True
    mask = event_mask([event], time, (slice(0, 1), slice(0, 1)), 1.5, usable, 5)
    assert np.flatnonzero(mask[:, 0, 0]).tolist() == list(range(5, 16))


def test_an_event_beyond_the_tile_needs_no_window_of_it():
    assert oversampled.event_windows(Tile(0, 0, 64, 0, 64), [{"y": 80.0, "x": 10.0}], Config()) == ()


def test_object_windows_are_cut_at_what_may_be_read():
    whole = (slice(0, 100), slice(20, 120))
    (window, served), (other, _) = differences.object_windows(whole, [(2.0, 118.0), (50.4, 60.6)], 5)
    assert (window, served) == ((slice(0, 8), slice(113, 120)), [0])
    assert other == (slice(45, 56), slice(56, 67))


def test_a_tile_cut_where_memory_is_short_fits_its_part_of_the_windows(finished):
    field = Field.open(finished.path)
    events = [{"y": 46.0, "x": 20.0, "time": 0.0, "sigma_days": 0.1, "kind": "event"}]
    unit = Unit("t", Tile(0, 0, 48, 0, 48), (Tile(0, 41, 48, 15, 26),))
    above, below = row_blocks(unit, 2)
    assert not oversampled.read(field, above, small_config()).windows
    assert (
        oversampled.apply(oversampled.read(field, above, small_config()), events, small_config()).pieces == []
    )
    (window,) = oversampled.read(field, below, small_config()).windows
    assert (window.window.y0, window.window.y1) == (41, 48)


def test_windows_in_row_blocks_are_vouched_for_as_whole_ones(finished, tmp_path, monkeypatch):
    path = copy_of(finished, tmp_path / "field")
    ledger = Field.open(path).ledger("oversampled.oversampled")
    refitted = [name for name, record in ledger.records.items() if record.payload["events"]]
    before = {name: ledger.records[name].payload["written"] for name in refitted}
    for folder in (path / "ledger").glob("oversampled.*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(
        Engine, "_parts", lambda engine, stage, step, unit: 4 if stage == "oversampled" else 1
    )
    assert run(path, small_config(), client="synchronous").ok
    assert_same_bits(finished.path, path)
    found = verify(path)
    assert not found.problems
    assert found.checked > 0
    after = Field.open(path).ledger("oversampled.oversampled").records
    assert {name: after[name].payload["written"] for name in refitted} == before
