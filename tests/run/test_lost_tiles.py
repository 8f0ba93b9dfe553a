"""Methods that sum over all tiles, on a field with a shard that cannot be read; and killed between writes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from survey.config import Config
from survey.io.locations import remove
from survey.io.store import Field
from survey.run.api import create_field, run
from survey.run.differences import RunError
from survey.run.engine import Engine, StoppedError
from survey.run.executor import InlineExecutor
from survey.run.frame_psfs import ensure_frame_psfs, frame_psf_units, own_pixels
from survey.run.pipeline import Pipeline
from survey.run.progress import Silent
from survey.run.rebuild import begin_rebuild, end_rebuild
from survey.run.subtraction import SubtractionDifferences
from survey.simulate import simulate_field
from survey.stages import detect, frame_psf
from survey.stages.calibrated import calibrated_frames, read_calibrated
from survey.stages.protocol import STAGES
from survey.stages.readable import read_readable

METHODS = ("sfft", "zogy", "hotpants")
# Three tiles of 32 pixels in a row, two blocks of two frames; the third tile sees nothing of the first.
SIZE, FRAMES, BLOCK = 96, 4, 2
FIRST = "tile-00000-block-00000"


def settings(method, block=BLOCK, psf="frames", **changes):
    config = Config(
        method=method, grid={"tile": 32, "time_block": block}, reference={"n_basis": 1}, psf={"fwhm": 2.2}
    )
    wanted = {"psf": psf, "kernel_size": 3, "kernel_order": 0, "background_order": 0}
    changes = {**wanted, **changes}
    for name, value in changes.items():
        setattr(config.subtraction, name, value)
    return config


def make(path, config):
    """Make the differences alone; returns the engine, what is waiting, and the differences."""
    pipeline = Pipeline(Engine(Field.open(path), config, InlineExecutor()))
    pipeline.prepare()
    waiting = pipeline.differences.submit()
    pipeline.engine.finish()
    return pipeline, waiting


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A field with a reference."""
    folder = tmp_path_factory.mktemp("ready")
    simulate_field(
        folder / "frames", size=SIZE, frames=FRAMES, seed=2, events=0, variables=0, density=0.03,
        psf_fwhm=2.2, saturation=None, bad_pixels=0, cosmic_rays=0,
    )  # fmt: skip
    config = settings("oversampled")
    config.input.cutout = (0, 32, 0, SIZE)
    summary = run(folder / "field", config, frames=[folder / "frames"], client="synchronous")
    assert summary.ok, summary.failures
    return folder / "field"


def bits(path, method):
    field, found = Field.open(path), {}
    for name in sorted(field.root[f"difference/{method}"].array_keys()):
        found[name] = np.asarray(field.array(f"difference/{method}", name)[...]).tobytes()
    return found


def recorded(path, method):
    return {name: r.key for name, r in Field.open(path).ledger(f"{method}.{method}").records.items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_rest_goes_on_without_a_tile_and_heals(ready, hotpants, tmp_path, method):
    hotpants("works")
    whole, path = tmp_path / "whole", tmp_path / "field"
    for place in (path, whole):
        shutil.copytree(ready, place)
    pipeline, waiting = make(whole, settings(method))
    assert (pipeline.engine.failures, waiting) == ([], {})
    shard = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0" / "0" / "0"
    sound = shard.read_bytes()
    shard.write_bytes(b"x" * len(sound))

    pipeline, waiting = make(path, settings(method))
    failed = {f.unit for f in pipeline.engine.failures}
    assert FIRST in failed
    assert {unit[:10] for unit in failed} == {"tile-00000", "tile-00001"}
    assert all("block-00000" in unit for unit in failed), "the other block's frames are all there"
    assert set(waiting) == {unit[:10] for unit in failed}
    assert len(pipeline.engine.failures) == len(failed), "each told once"
    first = recorded(path, method)
    assert set(first) == {unit.name for unit in pipeline.differences.units} - failed
    halo = detect.tile_halo(pipeline.config)
    unsearched = {unit.name for unit in pipeline.units if pipeline.futures(waiting, unit, halo)}
    assert set(waiting) <= unsearched

    pipeline, again = make(path, settings(method))
    assert {f.unit for f in pipeline.engine.failures} == failed, "whoever runs again hears of it again"
    assert recorded(path, method) == first, "and what was made without it stands"
    assert not [r for r in pipeline.engine.reports if r.step == "apply"]
    assert set(again) == set(waiting)

    shard.write_bytes(sound)
    pipeline, waiting = make(path, settings(method))
    assert (pipeline.engine.failures, waiting) == ([], {})
    assert bits(path, method) == bits(whole, method)
    assert recorded(path, method) == recorded(whole, method)


def test_psfs_of_frames_do_without_a_tile_and_are_measured_again(ready, tmp_path):
    """The middle of this field is the middle tile and a column of the last."""
    path, psfs = tmp_path / "field", []
    shutil.copytree(ready, path)
    shard = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0" / "0" / "1"
    sound = shard.read_bytes()
    field, window = Field.open(path), (slice(0, 32), slice(40, 80))
    whole = read_calibrated(field, window)

    def ensure():
        engine = Engine(Field.open(path), settings("zogy"), InlineExecutor())
        images = own_pixels(engine, calibrated_frames(engine.target))
        made = ensure_frame_psfs(engine, frame_psf_units(engine, images))
        psfs.append(
            {k: p.samples.tobytes() for k, p in frame_psf.load(engine.target, np.arange(FRAMES)).items()}
        )
        return made, engine.warnings, len(engine.reports)

    keys, warnings, _ = ensure()
    assert warnings == []
    remove(path / "ledger" / "oversampled.frame_psf")
    shard.write_bytes(b"x" * len(sound))
    part, lost = read_readable(field, window)
    assert lost == ["tile-00001"]
    assert part.mask[:BLOCK, :, :24].all()
    for name in ("flux", "error", "mask"):
        there, expected = getattr(part, name), getattr(whole, name)
        np.testing.assert_array_equal(there[:, :, 24:], expected[:, :, 24:])
    for _ in range(2):
        without, warnings, done = ensure()
        assert done == 1
        assert without == [f"{keys[0]} without ['tile-00001']"]
        assert warnings == ["PSFs of frames are measured without tile-00001, which cannot be read"]
    shard.write_bytes(sound)
    assert ensure() == (keys, [], 1)
    assert ensure() == (keys, [], 0)
    assert psfs[0] == psfs[3] == psfs[4]


def failing(monkeypatch, stage, index):
    """Have a stage fail on a tile while it is subtracted or fitted."""
    old = STAGES[stage]
    monkeypatch.setitem(STAGES, stage, old)

    def apply(data, state, config):
        if data.tile.index == index:
            raise ValueError("no such luck")
        return old.apply(data, state, config)

    replace(old, apply=apply)  # which puts itself in the old one's place


@pytest.mark.parametrize("method", ["sfft", "hotpants"])
def test_a_tile_that_fails_once_its_sums_are_in_is_tried_alone(
    ready, hotpants, tmp_path, monkeypatch, method
):
    hotpants("works")
    path = tmp_path / "field"
    shutil.copytree(ready, path)
    lost = ["tile-00000-block-00000", "tile-00000-block-00001"]
    with monkeypatch.context() as patch:
        failing(patch, method, 0)
        for _ in range(2):
            pipeline, waiting = make(path, settings(method))
            assert [f.unit for f in pipeline.engine.failures] == lost
            assert list(waiting) == ["tile-00000"]
            assert len(recorded(path, method)) == 4
        assert not [r for r in pipeline.engine.reports if r.step == "apply"]
    pipeline, waiting = make(path, settings(method))
    assert (pipeline.engine.failures, waiting) == ([], {})
    assert [r.unit for r in pipeline.engine.reports if r.step == "apply"] == lost
    assert pipeline.engine.skipped >= 4
    assert len(recorded(path, method)) == 6


def test_a_reference_lost_while_events_are_taken_out_is_none(ready, tmp_path, monkeypatch):
    path = tmp_path / "field"
    shutil.copytree(ready, path)
    pipeline = Pipeline(Engine(Field.open(path), settings("sfft"), InlineExecutor()))
    pipeline.prepare()
    time = float(pipeline.frames["time"].values[2])
    event = {"y": 16.0, "x": 48.0, "time": time, "sigma_days": 0.01, "kind": "event"}
    failing(monkeypatch, "oversampled", 1)
    pipeline.differences.taken._refit({"tile-00000": [], "tile-00001": [event], "tile-00002": []})
    assert [f.unit for f in pipeline.engine.failures] == ["tile-00001"]
    coefficients = np.asarray(pipeline.field.array("reference", "coefficients")[...])
    assert not coefficients[:, 32:64].any()
    assert coefficients[:, :32].any()


def test_where_no_tile_can_be_read_the_run_says_why(ready, tmp_path):
    path = tmp_path / "field"
    shutil.copytree(ready, path)
    for shard in (path / "cube.zarr" / "images" / "sky" / "flux" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"x" * 1000)
    with pytest.raises(RunError, match=r"^sfft: .* \(read tile-"):
        make(path, settings("sfft"))
    assert recorded(path, "sfft") == {}


def test_a_run_killed_between_kernels_and_differences(ready, tmp_path, monkeypatch):
    """Of other settings: nothing vouches any more for differences whose kernels have gone."""
    path = tmp_path / "field"
    shutil.copytree(ready, path)
    make(path, settings("sfft"))
    before, records = bits(path, "sfft"), recorded(path, "sfft")
    keep = SubtractionDifferences._keep

    def killed(self, span, fit):
        keep(self, span, fit)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SubtractionDifferences, "_keep", killed)
        with pytest.raises(KeyboardInterrupt):
            make(path, settings("sfft", clip=2.5))
    assert bits(path, "sfft")["kernel"] != before["kernel"]
    assert set(recorded(path, "sfft")) == {name for name in records if "block-00001" in name}
    pipeline, _ = make(path, settings("sfft"))
    assert len([r for r in pipeline.engine.reports if r.step == "apply"]) == 3
    assert bits(path, "sfft") == before
    assert recorded(path, "sfft") == records


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    """A field of 16 tiles with two events, and what `settings` say of it, before any run."""
    folder = tmp_path_factory.mktemp("eventful")
    simulate_field(
        folder / "frames", size=128, frames=32, seed=3, events=2, variables=0, density=0.05, psf_fwhm=2.2,
        event_snr=(60, 90), event_duration=(4, 6), saturation=None, bad_pixels=0, cosmic_rays=0,
    )  # fmt: skip
    create_field(folder / "field", [folder / "frames"], settings("sfft", 16), client="synchronous")
    return folder / "field"


def assert_same_results(path, whole, method):
    """Differences, events and light curves, bit for bit."""
    assert bits(path, method) == bits(whole, method)
    for first, second in (
        (Field.open(path).events_path(method), Field.open(whole).events_path(method)),
        (Field.open(path).light_curves_path(method), Field.open(whole).light_curves_path(method)),
    ):
        assert first.read_bytes() == second.read_bytes(), first


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_goes_on_without_a_shard(eventful, hotpants, tmp_path, method):
    """From the first frame on: reference, differences, search and light curves; then it is mended."""
    hotpants("works")
    whole, path, config = tmp_path / "whole", tmp_path / "field", settings(method, 16)
    for place in (path, whole):
        shutil.copytree(eventful, place)
    assert run(whole, config, client="synchronous").ok
    shard = path / "cube.zarr" / "images" / "sky" / "flux" / "c" / "0" / "3" / "0"
    sound = shard.read_bytes()
    shard.write_bytes(b"x" * len(sound))
    computed = []
    for _ in range(2):
        summary = run(path, config, client="synchronous")
        assert summary.status == "failed"
        assert any(f.unit.startswith("tile-00012") for f in summary.failures)
        assert summary.events >= 1
        assert len(Field.open(path).ledger(f"{method}.detect").records) >= 16 - 9
        computed.append(summary.stages.get(method, {}).get("units", 0))
    assert computed[0] > 0
    assert computed[1] == 0
    shard.write_bytes(sound)
    assert run(path, config, client="synchronous").ok
    assert_same_results(path, whole, method)


@pytest.mark.slow
def test_a_run_killed_while_it_takes_events_out_of_the_reference(eventful, tmp_path, monkeypatch):
    """Once the reference is made again, between kernels and differences, and before it says so."""
    whole, config = tmp_path / "whole", settings("sfft", 16)
    shutil.copytree(eventful, whole)
    summary = run(whole, config, client="synchronous")
    assert summary.ok
    assert summary.events >= 1
    assert Field.open(whole).ledger("sfft.taken").records["events"].payload["made"]
    keep = SubtractionDifferences._keep

    def in_the_middle(self, span, fit):
        keep(self, span, fit)
        if self.taken.interrupted() is not None:
            raise KeyboardInterrupt

    def never(*_):
        raise KeyboardInterrupt

    moments = {
        "survey.run.taken.TakenEvents._refit": never,
        "survey.run.subtraction.SubtractionDifferences._keep": in_the_middle,
        "survey.run.taken.TakenEvents.end": never,
    }
    for number, (place, killed) in enumerate(moments.items()):
        path = tmp_path / f"field-{number}"
        shutil.copytree(eventful, path)
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(KeyboardInterrupt):
                run(path, config, client="synchronous")
        again = run(path, config, client="synchronous")
        assert again.ok, again.failures
        assert "detect" not in again.stages, "nobody searches again"
        assert_same_results(path, whole, "sfft")


def test_who_loses_the_reference_alone_stops(ready, tmp_path):
    """A method's own lease does not serve for the reference, which another run may be writing by now."""
    path = tmp_path / "field"
    shutil.copytree(ready, path)
    field = Field.open(path)
    field.ledger("oversampled.oversampled").invalidate(["tile-00001"])
    with field.lease("difference/sfft", "mine"), field.lease("difference/oversampled", "another"):
        engine = Engine(field, settings("sfft"), InlineExecutor(), holder=("difference/sfft", "mine"))
        with pytest.raises(StoppedError, match="no longer holds difference/oversampled"):
            Pipeline(engine).prepare()


def test_a_rebuild_that_did_not_end_goes_on(ready, tmp_path):
    path, config, said = tmp_path / "field", settings("oversampled"), []
    shutil.copytree(ready, path)
    field = Field.open(path)
    progress = Silent()
    progress.message = said.append
    ledger = "oversampled.oversampled"
    assert field.ledger(ledger).records
    begin_rebuild(field, config, "first", progress)
    assert not field.ledger(ledger).records
    kept = field.ledger(ledger)
    kept.record("tile-00000", "made by the first")
    kept.flush()
    begin_rebuild(field, config, "second", progress)
    assert list(field.ledger(ledger).records) == ["tile-00000"]
    assert said == ["a rebuild was begun and did not end: it goes on"]
    end_rebuild(field, config)
    begin_rebuild(field, config, "third", progress)
    assert not field.ledger(ledger).records
