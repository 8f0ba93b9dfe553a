"""A field goes on with its last run's settings; those its images were made by stay, and it is said."""

import shutil

import numpy as np
import pytest
from astropy.io import fits

from survey.config import to_store
from survey.io.files import read_parquet
from survey.io.store import Field, FieldError
from survey.report import residuals
from survey.report.data import load
from survey.report.quality import quality
from survey.run.api import append_frames, run, stored_config
from survey.run.opening import kept_settings
from survey.run.progress import Silent
from survey.run.results import light_curve, list_events
from survey.stages.calibrated import calibrated_frames, differenced_frames
from tests.run.conftest import small_config


@pytest.fixture
def field(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "field")
    return tmp_path / "field"


def test_a_run_without_settings_goes_on_with_those_of_the_last(field):
    config = small_config()
    config.photometry.size = 11
    config.cluster.scheduler = "tcp://127.0.0.1:1"
    changed = run(field, config, client="synchronous")
    assert changed.computed > 0
    kept = stored_config(field)
    assert kept.photometry.size == 11
    assert kept.cluster.scheduler is None, "where it ran is nobody else's affair"
    assert kept.reference.n_basis == config.reference.n_basis, "as asked for, not as the epochs allowed"
    again = run(field, client="synchronous")
    assert again.computed == 0
    (row, *_) = read_parquet(Field.open(field).light_curves_path("oversampled")).to_pylist()
    printed = light_curve(field, event=row["object_id"])
    np.testing.assert_allclose(printed["flux"], row["flux"], rtol=1e-6, atol=1e-6)


def test_settings_of_the_images_are_not_changed_silently(field, finished):
    config = small_config()
    config.input.saturation = 100.0
    config.grid.tile = 64
    config.registration.refine_offsets = True
    files = sorted(finished.frames.glob("*.fits"))[:2]
    told = append_frames(field, files, config, client="synchronous").warnings
    (words,) = [text for text in told if "other settings" in text]
    assert "[input] saturation, [grid] tile" in words
    assert "refine_offsets" not in words
    assert stored_config(field).input.saturation is None
    assert not [t for t in append_frames(field, files, client="synchronous").warnings if "other" in t]


def test_settings_of_the_images_hold_for_a_run_too(field):
    """Whoever asks with others finds everything done."""
    told = []

    class Listener(Silent):
        def message(self, text):
            told.append(text)

    config = small_config()
    config.input.frames = ["night2/*.fits"]
    config.calibrate.scale = "unit"
    summary = run(field, config, client="synchronous", progress=Listener())
    assert (summary.computed, summary.ok) == (0, True)
    assert [text for text in told if text.startswith("[calibrate] scale: as the field's images were made")]
    assert stored_config(field).calibrate.scale == "stars"


def test_detector_grids_are_placed_by_the_kept_settings(field, tmp_path):
    """Their keys hold all of [input]: frames of another night, and calibration files that have moved."""
    target, given = Field.open(field), small_config()
    given.input.frames, given.input.flat = ["night2/*.fits"], str(tmp_path / "flat.fits")
    given.registration.refine_offsets = True
    kept = kept_settings(target, given)
    assert kept.input == small_config().input
    assert kept.registration.refine_offsets
    old = small_config()
    old.input.flat = str(tmp_path / "gone.fits")
    target.root.attrs["config"] = to_store(old)
    assert kept_settings(Field.open(field), given).input.flat == given.input.flat
    (tmp_path / "gone.fits").touch()
    assert kept_settings(Field.open(field), given).input == old.input


@pytest.fixture
def longer(field, finished, tmp_path):
    """A field with a frame more than its differences hold."""
    with fits.open(sorted(finished.frames.glob("*.fits"))[7]) as hdul:
        for hdu in hdul[:2]:
            for name in ("MJD-OBS", "MJD-AVG"):
                hdu.header[name] += 5.0
            hdu.header["DATE-OBS"] = "2027-05-02T00:00:00"
        hdul.writeto(tmp_path / "later.fits")
    assert append_frames(field, [tmp_path / "later.fits"], client="synchronous").added == 1
    return field


def test_a_field_with_more_frames_than_differences_can_be_read(longer, finished):
    target = Field.open(longer)
    refined = calibrated_frames(Field.open(finished.path))
    frames = calibrated_frames(target)
    assert target.frames().sizes["time"] == 73
    np.testing.assert_array_equal(frames["scale"].values, refined["scale"].values)
    assert differenced_frames(target, "oversampled").sizes["time"] == 72
    event = str(list_events(longer)["object_id"][0])
    np.testing.assert_array_equal(
        light_curve(longer, event=event)["flux"], light_curve(finished.path, event=event)["flux"]
    )
    data = load(longer, "oversampled")
    assert "72 frames" in quality(data, residuals.accumulate(data, budget=10**6))


def test_peaks_beyond_the_limit_are_told(field):
    config = small_config()
    config.detect.max_events = 3
    summary = run(field, config, client="synchronous")
    assert any("raise [detect] max_events" in text for text in summary.warnings)


def test_a_run_of_no_field_leaves_nothing_behind(tmp_path):
    with pytest.raises(FieldError, match="not a field"):
        run(tmp_path / "typo", client="synchronous")
    assert not (tmp_path / "typo").exists()
