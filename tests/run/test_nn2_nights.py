"""NN2 with frames that come later: pairs of the frames before stay, bit for bit."""

import shutil
from types import SimpleNamespace

import numpy as np

from survey.config import make_config
from survey.io.store import Field
from survey.run import nn2_nights
from survey.run.api import append_frames, create_field
from survey.run.nn2 import nn2_light_curves, run_nn2
from survey.run.nn2_nights import CarriedKeys, Nights
from survey.run.targets import sky_to_pixel
from survey.simulate.nn2_images import simulate_nn2_images
from survey.stages.nn2_plan import epoch_pairs, later_pairs, object_groups
from survey.tiles import tile_grid
from tests.run.nn2_fields import FEW

PAIRS = "lightcurves/nn2/pairs/oversampled.parts"
CONFIG = {"nn2": {"errors": "noise", "cell": 96, "margin": 8}}


def measured(path, objects):
    summary = run_nn2(path, make_config(CONFIG), objects=objects, client="synchronous")
    assert summary.ok, summary.failures
    return summary


def parts(path):
    return {file.name: file.read_bytes() for file in (path / PAIRS).glob("*.parquet")}


def test_only_pairs_with_the_new_frame_are_measured__to_the_same_bits_as_all_at_once(tmp_path):
    """Of four frames and a fifth; objects whose places are given are then the same in all."""
    path = tmp_path / "field"
    sim = simulate_nn2_images(tmp_path, size=96, n_stars=25, observations=FEW[:5], seed=5)
    files = [sim.paths[k] for k in np.argsort(sim.time)]
    create_field(path, files[:4], client="synchronous")
    x, y = sky_to_pixel(Field.open(path), sim.ra[0], sim.dec[0])
    first, second = (
        {"object_id": name, "kind": "event", "y": y + off, "x": x, "refine": False}
        for name, off in (("E00001", 20), ("E00002", 0))
    )
    measured(path, [first, second])
    before = parts(path)
    append_frames(path, files[4:], client="synchronous")
    # events are numbered by strength, anew with every search
    now = [{**second, "object_id": "E00001"}, {**first, "object_id": "E00002"}]
    assert measured(path, now).stages["nn2_pairs"]["units"] == 1
    after, rows = parts(path), nn2_light_curves(path)
    assert {name: after[name] for name in before} == before
    assert [name.partition("+")[2] for name in set(after) - set(before)] == ["4.parquet"]
    assert all(len(row["pair_flux"]) == 10 for row in rows)
    assert measured(path, now).computed == 0
    for ledger in (path / "ledger").glob("oversampled.*"):
        shutil.rmtree(ledger)
    shutil.rmtree(path / "lightcurves")
    assert measured(path, now).stages["nn2_pairs"]["units"] == 1
    np.testing.assert_equal(nn2_light_curves(path), rows)
    assert len(parts(path)) == 1


def nights_of(n, **settings):
    """Groups as a run on so many frames finds them; ledgers of its own."""
    config = make_config({"nn2": {"pairs": 4, **settings}})
    ledgers = {}

    class Memory(SimpleNamespace):
        def has(self, unit, key):
            return unit in self.records and self.records[unit].key == key

        def record(self, unit, key, payload):
            self.records[unit] = SimpleNamespace(key=key, payload=payload)

        def invalidate(self, units):
            for unit in units:
                self.records.pop(unit, None)

    engine = SimpleNamespace(config=config, ledger=lambda name: ledgers.setdefault(name, Memory(records={})))
    keys = [f"frame {k}" for k in range(99)]
    return Nights(engine, np.arange(n), lambda group: keys), keys, engine


def test_nights__are_added_one_after_the_other_and_begun_anew_where_old_frames_changed():
    (group,) = object_groups([{"object_id": "a", "kind": "event", "y": 5.0, "x": 5.0}], 96, 32)
    nights, keys, _ = nights_of(30)
    assert nights.recall(group) is None
    (placed,) = object_groups(
        [{"object_id": "a", "kind": "event", "y": 5.4, "x": 5.0, "position_error": 0.1}], 96, 32
    )
    assert nights.begin(group, placed).ends == (30,)
    for n, ends in ((31, (30, 31)), (31, (30, 31)), (40, (30, 31, 40))):
        nights.epochs = np.arange(n)
        assert nights.recall(group).ends == ends
    found = nights.recall(group)
    pairs = np.concatenate([unit.items[1] for unit in nights.units(found)])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert np.unique(pairs).tolist() == list(range(40))
    assert len({unit.name for unit in nights.units(found)}) == len(nights.units(found))
    keys[3] = "another image"
    assert nights.recall(group) is None
    keys[3] = "frame 3"
    keys[39] = "another image"
    assert nights.recall(group) is None
    keys[39] = "frame 39"
    (moved,) = object_groups([{"object_id": "b", "kind": "event", "y": 5.0, "x": 5.9}], 96, 32)
    (item,) = nights.recall(moved).named(moved).objects
    assert (item["object_id"], item["measured_as"], item["y"], item["x"]) == ("b", "a", 5.4, 5.0)
    for other in ({"y": 5.0, "x": 6.9}, {"y": 5.0, "x": 5.0, "kind": "target"}):
        (changed,) = object_groups([{"object_id": "a", "kind": "event", **other}], 96, 32)
        assert nights.recall(changed) is None


def test_nights__while_few_frames_fix_a_place_all_is_measured_anew():
    (group,) = object_groups([{"object_id": "a", "kind": "event", "y": 5.0, "x": 5.0}], 96, 32)
    (fixed,) = object_groups(
        [{"object_id": "a", "kind": "target", "y": 5.0, "x": 5.0, "refine": False}], 96, 32
    )
    for item, kept in ((group, False), (fixed, True)):
        nights = nights_of(23)[0]
        nights.begin(item, item)
        assert nights.recall(item) is not None
        nights.epochs = np.arange(24)
        assert (nights.recall(item) is not None) == kept


def test_later_pairs__are_those_that_the_new_frames_bring():
    whole = {tuple(pair) for pair in epoch_pairs(np.arange(20), "all").tolist()}
    old = {tuple(pair) for pair in epoch_pairs(np.arange(15), "all").tolist()}
    new = [tuple(pair) for pair in later_pairs(np.arange(20), 15, "all").tolist()]
    assert len(set(new)) == len(new)
    assert set(new) == whole - old
    some = later_pairs(np.arange(20), 15, 4, seed=1)
    assert len(some) == 5 * 4
    assert (some[:, 0] < 15).all()
    assert np.bincount(some[:, 1])[15:].tolist() == [4] * 5
    assert some.tolist() == later_pairs(np.arange(20), 15, 4, seed=1).tolist()


def test_carried_pairs__depend_on_the_psf_and_on_the_reference_as_it_was(monkeypatch):
    monkeypatch.setattr(nn2_nights, "epoch_keys", lambda field, frames: ["a", "b", "c"])
    (near, far) = tile_grid((40, 80), 40)
    (group,) = object_groups([{"object_id": "a", "kind": "event", "y": 20.0, "x": 15.0}], 96, 32)

    def keys(psf="psf", far_root="far", **payload):
        payloads = {near.name: {"first": "root", **payload}, far.name: {"first": far_root}}
        oversampled = {name: SimpleNamespace(payload=p) for name, p in payloads.items()}
        ledgers = {"oversampled.oversampled": oversampled, "psf": {"psf": SimpleNamespace(key=psf)}}
        field = SimpleNamespace(
            tiles=[near, far], shape=(40, 80), ledger=lambda name: SimpleNamespace(records=ledgers[name])
        )
        return CarriedKeys(field, None)(group)

    plain = keys()
    assert keys(far_root="another") == plain
    assert not set(keys(psf="another")) & set(plain)
    added = keys(first="new", root="root", appended=[2])
    assert added[:2] == plain[:2]
    assert added[2] != plain[2]
    assert not set(keys(excluded=[[1, 2, 3, 4]])) & set(plain)
