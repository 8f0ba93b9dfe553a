"""Bias, dark and flat files: counts, errors and masks as calculated by hand; what is wrong is named."""

import numpy as np
import pytest
from astropy.io import fits

from survey.config import InputSettings, load_config
from survey.io import calibration, frames
from survey.io.calibration import calibration_identity, check_calibration
from survey.io.frames import (
    DQ_NO_DATA,
    DQ_SATURATED,
    DQ_UNCALIBRATED,
    FrameError,
    read_frame,
    read_header,
)
from survey.kernels.pattern import Pattern

SHAPE = (24, 30)
GAIN, READ_NOISE = 2.0, 6.0


def write(path, values, **cards):
    header = fits.Header({"MJD-OBS": 60000.0, "EXPTIME": 30.0, **cards})
    fits.PrimaryHDU(np.asarray(values, np.float32), header).writeto(path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(2)
    bias = rng.uniform(290, 310, SHAPE)
    dark = rng.uniform(0, 40, SHAPE)
    flat = rng.uniform(0.8, 1.2, SHAPE)
    flat[3, 4] = 0.0
    scene = np.full(SHAPE, 500.0)
    scene[10, 12] = 30000.0
    raw = scene * flat + 0.5 * dark + bias
    return {
        "frame": write(tmp_path / "frame.fits", raw),
        "bias": write(tmp_path / "bias.fits", bias),
        "dark": write(tmp_path / "dark.fits", dark, EXPTIME=60.0),
        "flat": write(tmp_path / "flat.fits", 7000 * flat),
        "scene": scene,
        "photons": raw - bias,
        "relative": flat / np.median(flat),
        "level": np.median(flat),
    }


def settings(files, *kinds, **own):
    options = {"gain": GAIN, "read_noise": READ_NOISE, "noise": "model", "grow_saturated": 0, **own}
    return InputSettings(**options, **{kind: files[kind] for kind in kinds})


def test_counts_errors_and_masks_are_those_calculated(files):
    frame = read_frame(files["frame"], settings(files, "bias", "dark", "flat", saturation=20000.0))
    blind = np.zeros(SHAPE, bool)
    blind[3, 4] = True
    expected = files["scene"] * files["level"]
    assert np.allclose(frame.flux[~blind], expected[~blind], rtol=1e-5)
    good = ~frame.mask
    noise = np.sqrt((READ_NOISE / GAIN) ** 2 + files["photons"][good] / GAIN)
    assert np.allclose(frame.error[good], noise / files["relative"][good], rtol=1e-4)
    assert frame.dq[3, 4] == DQ_UNCALIBRATED
    # the limit is that of the counts as they were read
    assert frame.dq[10, 12] == DQ_SATURATED
    assert frame.mask.sum() == 2


def test_limits_are_those_of_counts_as_read(files):
    frame = read_frame(files["frame"], settings(files, "bias", minimum=250.0))
    assert not (frame.dq & DQ_NO_DATA).any()


def test_a_band_of_rows_is_that_of_the_whole(files):
    for noise in ("model", "measured"):
        options = settings(files, "bias", "dark", "flat", noise=noise)
        rng = np.random.default_rng(4)
        pattern = Pattern(
            rng.normal(0, 3, SHAPE).astype(np.float32),
            rng.uniform(0.5, 2, SHAPE).astype(np.float32),
            rng.random(SHAPE) < 0.05,
            30.0,
        )
        header = read_header(files["frame"], options)
        whole, band = (read_frame(header, options, rows, pattern) for rows in (None, (5, 17)))
        for name in ("flux", "error", "mask", "dq"):
            assert np.array_equal(getattr(whole, name)[5:17], getattr(band, name), equal_nan=True), name
        assert ((whole.dq & DQ_UNCALIBRATED) > 0)[pattern.mask].all()


def test_the_patterns_noise_is_in_the_errors(files):
    options = settings(files, "bias")
    pattern = Pattern(
        np.full(SHAPE, 5.0, np.float32), np.full(SHAPE, 12.0, np.float32), np.zeros(SHAPE, bool), 30.0
    )
    plain, less = (read_frame(files["frame"], options, None, own) for own in (None, pattern))
    assert np.allclose(less.flux, plain.flux - 5, atol=1e-3)
    assert np.allclose(less.error, np.hypot(plain.error, 12), rtol=1e-5)
    # a frame's own scatter holds what all its pixels have of it
    options = settings(files, "bias", noise="measured")
    plain, less = (read_frame(files["frame"], options, None, own) for own in (None, pattern))
    assert np.allclose(less.error, plain.error, rtol=1e-3)


def test_what_does_not_fit_is_named(files, tmp_path):
    small = write(tmp_path / "small.fits", np.ones((5, 6)))
    with pytest.raises(FrameError, match=r"small\.fits: is 5 x 6 px, the frame frame\.fits 24 x 30"):
        read_frame(files["frame"], settings({**files, "flat": small}, "flat"))
    with pytest.raises(FrameError, match=r"none\.fits: no such file; set \[input\]"):
        read_frame(files["frame"], settings({**files, "dark": str(tmp_path / "none.fits")}, "dark"))
    with pytest.raises(FrameError, match=r"dark\.fits: is a dark of 60 s, frame\.fits was exposed for 30 s"):
        read_frame(files["frame"], settings(files, "dark"))
    negative = write(tmp_path / "negative.fits", -np.ones(SHAPE))
    with pytest.raises(FrameError, match=r"negative\.fits: a flat's median must be positive"):
        read_frame(files["frame"], settings({**files, "flat": negative}, "flat"))
    other = Pattern(*(np.zeros((4, 4), t) for t in (np.float32, np.float32, bool)), 30.0)
    with pytest.raises(FrameError, match=r"is 24 x 30 px, the field's pattern 4 x 4 px"):
        read_frame(files["frame"], settings(files), None, other)
    longer = Pattern(*(np.zeros(SHAPE, t) for t in (np.float32, np.float32, bool)), 90.0)
    with pytest.raises(FrameError, match=r"exposed for 30 s; the field's pattern is that of 90 s"):
        read_frame(files["frame"], settings(files), None, longer)


def test_a_dark_that_holds_the_bias_is_no_light(files, tmp_path):
    raw = write(tmp_path / "raw.fits", np.full(SHAPE, 1000.0))
    dark = write(tmp_path / "long.fits", np.full(SHAPE, 900.0))
    frame = read_frame(raw, settings({"dark": dark}, "dark", gain=1.0, read_noise=5.0))
    assert np.allclose(frame.flux, 100)
    assert np.allclose(frame.error, np.sqrt(125), rtol=1e-4)


def test_a_flat_is_divided_by_its_median_once(files, monkeypatch):
    level = calibration._flat_level
    calls = []
    monkeypatch.setattr(calibration, "_flat_level", lambda *args: calls.append(args) or level(*args))
    for first in range(0, 20, 5):
        read_frame(files["frame"], settings(files, "flat"), (first, first + 5))
    assert len(calls) == 1


def test_a_sky_is_measured_once_a_pattern_and_again_for_other_files(files):
    options = settings(files, "flat", noise="measured")
    header = read_header(files["frame"], options)

    def measured(key="a"):
        zero = np.zeros(SHAPE, np.float32)
        pattern = Pattern(zero, zero, zero.astype(bool), 30.0, key)
        before = frames._sky.cache_info().misses
        read_frame(header, options, (3, 9), pattern)
        return frames._sky.cache_info().misses - before

    assert [measured(), measured(), measured("b")] == [1, 0, 1]
    other = np.ones(SHAPE)
    other[0, 0] = 2
    fits.PrimaryHDU(other.astype(np.float32)).writeto(files["flat"], overwrite=True)
    assert measured() == 1


def test_files_that_changed_are_told(files):
    options = settings(files, "bias", "flat")
    identity = calibration_identity(options)
    check_calibration(options, identity, "field")
    fits.PrimaryHDU(np.ones(SHAPE, np.float32)).writeto(files["flat"], overwrite=True)
    with pytest.raises(FrameError, match=r"flat\.fits: is not the flat that the frames of field"):
        check_calibration(options, identity, "field")


def test_a_cutout_takes_its_part_of_the_files(files):
    whole = read_frame(files["frame"], settings(files, "bias", "flat"))
    part = read_frame(files["frame"], settings(files, "bias", "flat", cutout=(6, 20, 4, 28)))
    assert part.shape == (14, 24)
    assert np.isfinite(part.flux).all()
    assert np.corrcoef(part.flux.ravel(), whole.flux[6:20, 4:28].ravel())[0, 1] > 0.9999


def test_paths_are_relative_to_the_settings_file(files, tmp_path):
    (tmp_path / "night.toml").write_text('[input]\nbias = "bias.fits"\nflat = "flat.fits"\n')
    config = load_config(tmp_path / "night.toml")
    assert (config.input.bias, config.input.flat) == (files["bias"], files["flat"])
