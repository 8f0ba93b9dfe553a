"""The whole run on a small field: what it finds, that it is the same everywhere, and that it resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import numpy as np
import pytest
from astropy.io import fits

from survey.io.store import Field, FieldError
from survey.run.api import append_frames, create_field, run
from survey.run.ingest import IngestError
from survey.run.results import ResultError, light_curve, list_events
from survey.run.targets import TargetError
from survey.stages.calibrated import calibrated_frames
from tests.run.conftest import assert_same_bits, small_config


def test_events_of_the_truth_are_found(finished):
    events = list_events(finished.path)
    sky = np.column_stack([events["ra"], events["dec"]])
    for source in finished.truth.truth:
        distance = np.hypot(
            (sky[:, 0] - source["ra"]) * np.cos(np.radians(source["dec"])), sky[:, 1] - source["dec"]
        )
        nearest = int(distance.argmin())
        assert distance[nearest] * 3600 / 0.11 < 1.5, f"{source['kind']} of S/N {source['snr']:.0f} not found"
        if source["kind"] == "microlensing":
            assert events["kind"][nearest] == "event"
            assert events["snr"][nearest] > 0.6 * source["snr"]
    assert len(events) <= len(finished.truth.truth) + 1


def test_residuals_are_unit_gaussian(finished):
    field = Field.open(finished.path)
    flux, error, mask, kept_out = (
        np.asarray(field.array("difference/oversampled", n)[...])
        for n in ("flux", "error", "mask", "fit_mask")
    )
    good = ~mask & ~kept_out
    pull = flux[good] / error[good]
    assert abs(pull.std() - 1) < 0.03
    assert abs(pull.mean()) < 0.01


def test_scales_and_offsets_are_those_of_the_simulation(finished):
    frames = calibrated_frames(Field.open(finished.path))
    assert np.abs(frames["scale"].values - 1).max() < 0.01
    assert np.median(frames["registration_rms"].values) < 0.05


def test_light_curve_follows_the_truth(finished):
    events = list_events(finished.path)
    strongest = events["object_id"][np.argmax(np.where(events["kind"] == "event", events["snr"], 0))]
    curve = light_curve(finished.path, event=str(strongest))
    assert curve.colnames[:4] == ["time", "flux", "error", "flags"]
    good = np.isfinite(curve["flux"])
    assert good.mean() > 0.7
    at_peak = int(np.nanargmax(curve["flux"]))
    event = events[events["object_id"] == strongest][0]
    assert abs(curve["time"][at_peak] - event["time"]) < 3 * event["sigma_days"]
    assert curve["flux"].unit is not None


def test_a_second_run_does_nothing(finished):
    again = run(finished.path, client="synchronous")
    assert again.ok
    assert again.computed == 0
    assert again.events == finished.summary.events


def test_distributed_equals_local_bit_for_bit(finished, tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        summary = run(tmp_path / "field", small_config(), frames=[finished.frames], client=client)
    assert summary.ok, summary.failures
    assert_same_bits(finished.path, tmp_path / "field")


def test_the_tiles_do_not_matter(finished, tmp_path):
    config = small_config()
    config.grid.tile = 96
    assert run(tmp_path / "field", config, frames=[finished.frames], client="synchronous").ok
    assert_same_bits(finished.path, tmp_path / "field", ("reference", "difference/oversampled"))


@pytest.mark.parametrize("stage", [pytest.param("place", marks=pytest.mark.slow), "oversampled.oversampled"])
def test_killed_and_resumed_equals_undisturbed(finished, tmp_path, stage):
    field = tmp_path / "field"
    config = tmp_path / "run.toml"
    config.write_text(f'[input]\nframes = ["{finished.frames}"]\n[grid]\ntile = 48\n[psf]\nsize = 11\n')
    code = (
        "from survey.config import load_config; from survey.run.api import run\n"
        f"c = load_config({str(config)!r})\n"
        f"run({str(field)!r}, c, frames=c.input.frames, client='synchronous')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    data = (
        field / "cube.zarr" / ("images/sky" if stage == "place" else "difference/oversampled") / "error" / "c"
    )
    deadline = time.monotonic() + 120
    while not any(data.rglob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    summary = run(field, small_config(), frames=[finished.frames], client="synchronous")
    assert summary.ok, summary.failures
    assert_same_bits(finished.path, field)


def test_a_tile_of_corrupt_differences_is_made_again_on_rebuild(finished, tmp_path):
    field = tmp_path / "field"
    shutil.copytree(finished.path, field)
    target = Field.open(field)
    tile = target.tiles[0]
    target.array("difference/oversampled", "flux")[(slice(None), *tile.core)] = 1e9
    assert run(field, client="synchronous", rebuild=True).ok
    assert_same_bits(finished.path, field)


def test_bad_frames_are_listed_and_harm_nothing(finished, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(finished.frames, folder)
    good = sorted(folder.glob("*.fits"))[3]
    (folder / "truncated.fits").write_bytes(good.read_bytes()[: good.stat().st_size // 3])
    (folder / "text.fits").write_text("this is no image")
    shutil.copy(good, folder / "zz_copy.fits")
    with fits.open(good) as hdul:
        hdul[1].data = hdul[1].data[:50]
        hdul[0].header["MJD-OBS"] = hdul[1].header["MJD-OBS"] = 61510.0
        for extension in hdul[2:]:
            extension.data = extension.data[:50]
        hdul.writeto(folder / "small.fits")
    with fits.open(good) as hdul:
        hdul[1].data[:] = np.nan
        hdul[0].header["MJD-OBS"] = hdul[1].header["MJD-OBS"] = 61511.0
        hdul.writeto(folder / "nan.fits")
    with pytest.raises(IngestError, match="--strict"):
        create_field(tmp_path / "strict", [folder], small_config(), client="synchronous", strict=True)
    assert not (tmp_path / "strict" / "cube.zarr").exists()
    summary = create_field(tmp_path / "field", [folder], small_config(), client="synchronous")
    reasons = {Path(name).stem: reason for name, reason in summary.rejected}
    assert set(reasons) == {"truncated", "text", "zz_copy", "small", "nan"}
    assert "NaN" in reasons["nan"]
    assert summary.added == 72
    assert_images_equal(finished.path, tmp_path / "field")


def assert_images_equal(first, second):
    a, b = Field.open(first), Field.open(second)
    for name in ("flux", "error", "mask", "dq"):
        x, y = np.asarray(a.array("images/sky", name)[...]), np.asarray(b.array("images/sky", name)[...])
        np.testing.assert_array_equal(x, y)


def test_frames_appended_later_give_the_same_images(finished, tmp_path):
    files = sorted(finished.frames.glob("*.fits"))
    reference = Field.open(finished.path).attrs["reference_frame"]
    config = small_config()
    config.registration.reference = reference
    create_field(tmp_path / "field", files[:40], config, client="synchronous")
    summary = append_frames(tmp_path / "field", files[36:], client="synchronous")
    assert (summary.added, summary.rejected) == (32, [])
    assert "4 frames are in the field already" in summary.warnings
    assert_images_equal(finished.path, tmp_path / "field")
    with pytest.raises(FieldError, match="append_frames"):
        create_field(tmp_path / "field", files, config, client="synchronous")


def test_run_record_says_what_was_done(finished):
    folder = finished.path / "runs" / finished.summary.run_id
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    assert record["versions"]["numpy"] == np.__version__
    assert record["settings"]["grid"]["tile"] == 48
    assert record["inputs"] == len(record["added"]) == record["frames"]["number"] == 72
    assert record["added"][0][1] == str(sorted(finished.frames.glob("*.fits"))[0])
    units = [json.loads(line) for line in (folder / "units.jsonl").read_text().splitlines()]
    assert {u["stage"] for u in units} >= {
        "scan",
        "measure",
        "place",
        "refine",
        "oversampled",
        "psf",
        "detect",
        "candidates",
        "photometry",
    }
    assert all(u["peak_memory"] > 0 and u["seconds"]["compute"] >= 0 for u in units)


def test_positions_are_checked(finished):
    with pytest.raises(TargetError, match="outside"):
        light_curve(finished.path, x=500, y=3)
    with pytest.raises(TargetError, match="one of"):
        light_curve(finished.path, x=5)
    with pytest.raises(ResultError, match="no event 'E99999'"):
        light_curve(finished.path, event="E99999")
