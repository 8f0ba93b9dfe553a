"""A later night of cpm: predicted by all nights before, which stay as they are."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from survey.config import make_config
from survey.io.store import Field
from survey.report import write_report
from survey.run.api import append_frames, run
from survey.run.engine import Engine
from survey.run.executor import InlineExecutor
from survey.run.pipeline import Pipeline
from survey.run.progress import Silent
from survey.run.results import list_events
from survey.run.settle import settle
from survey.run.verify import verify
from survey.stages import cpm
from survey.stages.protocol import STAGES
from tests.run.conftest import FIRST

NAMES = ("flux", "error", "mask", "fit_mask", "leverage")
GROUPS = ("difference/cpm", "variability/cpm", "search/cpm")
ALL = 72


def settings(path):
    config = make_config(Field.open(path).attrs["config"])
    config.method = "cpm"
    config.cpm.n_predictors, config.cpm.block, config.cpm.exclusion, config.cpm.reach = 40, 16, 6, 8
    config.cpm.grid = "sky"  # which "auto" settles for these dithered frames
    return config


def predict(path, config=None):
    """Differences alone, as a run makes them; returns the engine."""
    engine = Engine(Field.open(path), config or settings(path), InlineExecutor())
    pipeline = Pipeline(engine)
    pipeline.prepare()
    pipeline.differences.submit()
    engine.collect()
    pipeline._note_versions()
    engine.finish()
    assert not engine.failures
    return engine


def graft(source, target):
    """What cpm made of the first nights, in a field to which the later one was appended."""
    for part in ("cube.zarr/difference/cpm", "cube.zarr/variability/cpm", "ledger/cpm.cpm"):
        shutil.copytree(source / part, target / part)


@pytest.fixture(scope="module")
def added(nights, tmp_path_factory):
    """Fields of cpm's differences: the first 60 frames, the same with 12 more."""
    base = tmp_path_factory.mktemp("added")
    for name in ("early", "later"):
        shutil.copytree(nights[0] / name, base / name)
    predict(base / "early")
    graft(base / "early", base / "later")
    return base, predict(base / "later")


@pytest.fixture(scope="module")
def cpm_nights(nights, tmp_path_factory):
    """Whole runs of cpm: the first 60 frames, the same with 12 more, all 72 at once."""
    made = nights[0]
    base = tmp_path_factory.mktemp("cpm")
    for name in ("early", "whole"):
        shutil.copytree(made / name, base / name)
        summary = run(base / name, settings(base / name), client="synchronous")
        assert summary.ok, summary.failures
    shutil.copytree(base / "early", base / "later")
    later = run(base / "later", settings(base / "later"), frames=new_frames(base), client="synchronous")
    assert later.ok, later.failures
    return base, later


def new_frames(base):
    return [str(path) for path in Field.open(base / "whole").frames()["path"].values[FIRST:]]


def cube(path, name, group="difference/cpm"):
    return np.asarray(Field.open(path).array(group, name)[...])


def same_bits(first, second, groups=GROUPS):
    for group in groups:
        for name in sorted(Field.open(first).root[group].array_keys()):
            assert cube(first, name, group).tobytes() == cube(second, name, group).tobytes(), (
                f"{group}/{name}"
            )


def test_old_differences_stay_bit_for_bit(added):
    base, engine = added
    for group, names in (("difference/cpm", NAMES), ("variability/cpm", ("deviation", "excluded"))):
        for name in names:
            before, after = (cube(base / field, name, group)[:FIRST] for field in ("early", "later"))
            assert before.tobytes() == after.tobytes(), name
    assert cube(base / "early", "excluded", "variability/cpm").any()
    assert cube(base / "later", "version").tolist() == [0] * FIRST + [1] * (ALL - FIRST)
    # no first pass, no tile as a whole: each tile once, its later epochs
    made = [(r.stage, r.step, r.unit) for r in engine.reports if r.stage == "cpm"]
    assert made == [("cpm", "apply", f"tile-{i:05d}+{FIRST}") for i in range(4)]
    assert not verify(base / "later").problems
    assert not [r for r in predict(base / "later").reports if r.stage == "cpm"]


def test_many_samples_without_a_prediction_are_told(added):
    """At the rim of dithered frames; the count is that of good images without a difference."""
    base, _ = added
    engine = Engine(Field.open(base / "later"), settings(base / "later"), InlineExecutor())
    pipeline = Pipeline(engine)
    pipeline.prepare()
    assert pipeline.differences.refit({}) == {}
    lost = (cube(base / "later", "mask") & ~cube(base / "later", "mask", "images/sky")).sum()
    assert engine.warnings[0].startswith(f"cpm: {lost} good samples (2%) could not be predicted")


def test_an_interrupted_addition_goes_on_with_the_tiles_that_lack_it(added, tmp_path):
    """Strike one tile's addition and spoil its data: what comes back is the undisturbed run, to the bit."""
    base, _ = added
    path = tmp_path / "field"
    shutil.copytree(base / "later", path)
    field = Field.open(path)
    field.ledger("cpm.cpm").invalidate([f"tile-00001+{FIRST}"])
    y, x = field.tiles[1].core
    field.array("difference/cpm", "flux")[FIRST:, y, x] = np.float32(7)
    made = [r.unit for r in predict(path).reports if r.stage == "cpm"]
    assert made == [f"tile-00001+{FIRST}"]
    same_bits(base / "later", path, ("difference/cpm",))


def test_two_additions_of_a_tile_are_written_one_after_the_other(added, tmp_path, monkeypatch):
    """They share a shard in time; where the first is still to be done, the second waits for it."""
    base, _ = added
    path, waits = tmp_path / "field", {}
    shutil.copytree(base / "later", path)
    engine = Engine(Field.open(path), settings(path), InlineExecutor())
    pipeline = Pipeline(engine)
    pipeline.prepare()
    submit = engine.submit

    def spy(stage, units, *, after, **options):
        tickets = submit(stage, units, after=after, **options)
        waits.update({u.name: [t.unit.name for t in after(u)] for u, _ in units})
        return tickets

    monkeypatch.setattr(engine, "submit", spy)
    pipeline.differences._ends = [FIRST, FIRST + 5, ALL]
    pipeline.differences.submit()
    engine.collect()
    assert not engine.failures
    made = [r.unit for r in engine.reports if r.stage == "cpm"]
    for i in range(4):
        tile = f"tile-{i:05d}"
        first, second = f"{tile}+{FIRST}", f"{tile}+{FIRST + 5}"
        assert waits[second][0] == first
        assert made.index(first) < made.index(second)
    assert not verify(path).problems
    assert cube(path, "flux")[:FIRST].tobytes() == cube(base / "early", "flux").tobytes()


def test_a_tile_that_cannot_be_read_costs_nothing_again_and_comes_back(added, nights, tmp_path, monkeypatch):
    """Later runs try it alone, a night is added without it; once it can be read, all is as if it had been."""
    base, _ = added
    path, whole = tmp_path / "field", cpm.STAGE
    tries: list[bool] = []

    def broken(field, unit, config):
        if unit.name.startswith("tile-00001"):
            raise OSError("tile 1 cannot be read")
        return whole.read(field, unit, config)

    def go(place):
        engine = Engine(Field.open(place), settings(place), InlineExecutor())
        pipeline = Pipeline(engine)
        pipeline.prepare()
        tries.append(pipeline.differences.tries_again())
        pipeline.differences.submit()
        engine.collect()
        engine.finish()
        return [(r.step, r.unit) for r in engine.reports if r.stage == "cpm"], len(engine.failures)

    shutil.copytree(nights[0] / "early", path)
    monkeypatch.setitem(STAGES, "cpm", whole)
    dataclasses.replace(whole, read=broken)  # registers itself
    others = ["tile-00000", "tile-00002", "tile-00003"]
    assert go(path) == ([(step, name) for step in ("partial", "apply") for name in others], 1)
    assert go(path) == ([], 1)
    shutil.copytree(nights[0] / "later", tmp_path / "later")
    graft(path, tmp_path / "later")
    assert go(tmp_path / "later") == ([("apply", f"{name}+{FIRST}") for name in others], 1)
    monkeypatch.setitem(STAGES, "cpm", whole)
    made, failures = go(path)
    assert failures == 0
    assert [unit for step, unit in made if step == "apply"] == sorted([*others, "tile-00001"])
    assert tries == [False, True, True, True]
    assert go(path) == ([], 0)
    assert not tries[-1]
    same_bits(base / "early", path, ("difference/cpm", "variability/cpm"))


def test_the_grid_of_the_first_frames_stays(added, monkeypatch):
    """However the stars move in later ones; all of it made again may lie elsewhere."""
    base, _ = added
    config = settings(base / "later")
    config.cpm.grid = "auto"
    monkeypatch.setattr("survey.run.settle.star_motion", lambda *_: 0.0)
    field = Field.open(base / "later")
    assert settle(field, config, Silent())[0].cpm.grid == "sky"
    assert settle(field, config, Silent(), rebuild=True)[0].cpm.grid == "detector"


@pytest.mark.parametrize("change", ["settings", "tile"])
def test_everything_is_predicted_anew(added, tmp_path, change):
    """With other settings, or where a tile of the first epochs is missing."""
    base, _ = added
    path, config = tmp_path / "field", settings(base / "later")
    shutil.copytree(base / "later", path)
    if change == "settings":
        config.cpm.time_order = 1
    else:
        Field.open(path).ledger("cpm.cpm").invalidate(["tile-00002"])
    pipeline = Pipeline(Engine(Field.open(path), config, InlineExecutor()))
    pipeline.prepare()
    assert pipeline.differences.additions() == []
    assert pipeline.differences.before(pipeline.units[0]) is None


@pytest.mark.slow
def test_new_differences_are_as_good_as_a_full_runs(cpm_nights):
    """Scatter over error 1.17 and 1.19 here, where stars are undersampled and dithered; 1.0 on the mock."""
    base, _ = cpm_nights
    found = [{name: cube(base / field, name)[FIRST:] for name in NAMES} for field in ("later", "whole")]
    # a pixel at the rim has samples in half of the training epochs, or not quite
    assert (found[0]["mask"] != found[1]["mask"]).mean() < 0.003
    good = np.all([~f["mask"] & ~f["fit_mask"] for f in found], axis=0)
    assert good.mean() > 0.5
    pulls = [f["flux"][good] / f["error"][good] for f in found]
    widths = [np.subtract(*np.percentile(pull, [84, 16])) / 2 for pull in pulls]
    assert all(abs(np.median(pull)) < 0.1 for pull in pulls)
    assert widths[0] == pytest.approx(widths[1], rel=0.05)
    assert max(widths) < 1.25
    assert np.corrcoef(*pulls)[0, 1] > 0.9
    scatter = [np.median(np.abs(f["flux"][good])) for f in found]
    assert scatter[0] == pytest.approx(scatter[1], rel=0.05)


@pytest.mark.slow
def test_the_same_events_are_found(cpm_nights, nights):
    base, _ = cpm_nights
    added, whole = (list_events(base / name, "cpm") for name in ("later", "whole"))
    for source in nights[2].truth:
        if source["kind"] == "microlensing":
            for table in (added, whole):
                cosine = np.cos(np.radians(source["dec"]))
                distance = np.hypot((table["ra"] - source["ra"]) * cosine, table["dec"] - source["dec"])
                assert distance.min() * 3600 < 0.2


@pytest.mark.slow
def test_a_field_with_a_later_night_is_whole_and_needs_nothing(cpm_nights):
    base, later = cpm_nights
    assert later.inputs == ALL - FIRST
    assert later.stages["cpm"]["units"] == 4
    assert not {"cpm (partial)", "refine (partial)", "psf (partial)"} & set(later.stages)
    assert not verify(base / "later").problems
    summary = run(base / "later", settings(base / "later"), client="synchronous")
    assert summary.ok
    assert not {"cpm", "cpm (partial)", "detect"} & set(summary.stages)


@pytest.mark.slow
def test_cpm_and_oversampled_stand_side_by_side_in_the_report(cpm_nights):
    """Of one field and one file of settings, later night and all; each with its own figures."""
    base, _ = cpm_nights
    text = write_report(base / "later").read_text()
    part = text[text.index('<section id="methods"') :]
    assert "<b>oversampled</b>" in part
    assert "<b>cpm</b>" in part


@pytest.mark.slow
def test_rebuild_equals_a_full_run(cpm_nights, tmp_path):
    """Of a field that holds nothing but the frames: in the reference, which knows of no other search, too."""
    base, _ = cpm_nights
    config = settings(base / "whole")
    frames = [str(path) for path in Field.open(base / "whole").frames()["path"].values]
    assert run(tmp_path / "fresh", config, frames=frames, client="synchronous").ok
    shutil.copytree(base / "later", tmp_path / "field")
    summary = run(tmp_path / "field", config, client="synchronous", rebuild=True)
    assert summary.ok
    same_bits(tmp_path / "fresh", tmp_path / "field", (*GROUPS, "reference", "difference/oversampled"))
    fresh, again = (Field.open(tmp_path / name) for name in ("fresh", "field"))
    assert fresh.events_path("cpm").read_bytes() == again.events_path("cpm").read_bytes()
    assert fresh.light_curves_path("cpm").read_bytes() == again.light_curves_path("cpm").read_bytes()
    assert not [name for name in again.ledger("cpm.cpm").records if "+" in name]


@pytest.mark.slow
def test_two_nights_in_turn_and_one_that_was_never_predicted(cpm_nights, tmp_path):
    """Six frames, then six, with cpm run after each or only at the end of both: ends that stay apart."""
    base, _ = cpm_nights
    frames = new_frames(base)
    for name in ("each", "end"):
        shutil.copytree(base / "early", tmp_path / name)
    config = settings(base / "early")
    for part in (frames[:6], frames[6:]):
        assert run(tmp_path / "each", config, frames=part, client="synchronous").ok
    append_frames(tmp_path / "end", frames[:6], config, client="synchronous")
    assert run(tmp_path / "end", config, frames=frames[6:], client="synchronous").ok
    assert cube(tmp_path / "each", "version").tolist() == [0] * FIRST + [1] * 6 + [2] * 6
    assert cube(tmp_path / "end", "version").tolist() == [0] * FIRST + [1] * 12
    for name in ("each", "end"):
        assert cube(tmp_path / name, "flux")[:FIRST].tobytes() == cube(base / "early", "flux").tobytes()
        assert not verify(tmp_path / name).problems


@pytest.mark.slow
def test_on_the_detector_grid_too(nights, tmp_path):
    """Where the images of the first nights' last block are placed once more, as they were."""
    config = settings(nights[0] / "early")
    config.cpm.grid = "detector"
    shutil.copytree(nights[0] / "early", tmp_path / "field")
    predict(tmp_path / "field", config)
    before = [cube(tmp_path / "field", name) for name in NAMES]
    frames = [str(path) for path in Field.open(nights[0] / "whole").frames()["path"].values[FIRST:]]
    append_frames(tmp_path / "field", frames, config, client="synchronous")
    made = [r.unit for r in predict(tmp_path / "field", config).reports if r.stage == "cpm"]
    assert made == [f"tile-{i:05d}+{FIRST}" for i in range(4)]
    for name, values in zip(NAMES, before, strict=True):
        assert cube(tmp_path / "field", name)[:FIRST].tobytes() == values.tobytes()
    assert np.isfinite(cube(tmp_path / "field", "flux")[FIRST:]).mean() > 0.5
    assert not verify(tmp_path / "field").problems


def has_come(path):
    records = Field.open(path).ledger("cpm.cpm").records
    return any("+" in name for name in records)


@pytest.mark.slow
def test_a_killed_addition_is_taken_up_to_the_same_bits(cpm_nights, tmp_path):
    base, _ = cpm_nights
    path = tmp_path / "field"
    shutil.copytree(base / "early", path)
    config = settings(base / "early")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        # all tiles are done within the second after which a ledger is written: here it is at every tile
        "from survey.io.ledger import Ledger; record = Ledger.record; "
        "Ledger.record = lambda self, *entry: (record(self, *entry), self.flush()); "
        "import json, sys; from survey.config import make_config; from survey.run.api import run; "
        "config = make_config(json.load(open(sys.argv[2]))); "
        "run(sys.argv[1], config, frames=sys.argv[3:], client='synchronous')"
    )
    call = [sys.executable, "-c", code, path, tmp_path / "config.json", *new_frames(base)]
    with subprocess.Popen(call, env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
        while not has_come(path):
            assert process.poll() is None, "the addition ended before it was killed"
            time.sleep(0.005)
        process.kill()
    again = run(path, config, frames=new_frames(base), client="synchronous")
    assert again.ok, again.failures
    assert again.stages["cpm"]["units"] >= 1
    same_bits(base / "later", path)
