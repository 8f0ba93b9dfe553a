"""Real frames: HAT-P-32 by MicroObservatory, K2 target pixels, DECam cut-outs (../shared/data/README.md)."""

import os
from pathlib import Path

import numpy as np
import pytest

from survey.config import InputSettings, load_config
from survey.io.frames import DQ_NO_DATA, DQ_SATURATED, find_files, read_frame, read_frames, scan

DATA = Path(os.environ.get("SURVEY_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real observations in {DATA}; set SURVEY_TEST_DATA"),
]


@pytest.fixture(scope="module")
def hatp32():
    settings = load_config(Path(__file__).with_name("hatp32.toml")).input
    return scan(find_files([DATA / "hatp32" / "*.fits.fz"]), settings), settings


def test_hatp32_is_one_night_of_142_frames(hatp32):
    found, _ = hatp32
    assert (len(found.headers), found.rejected, found.warnings) == (142, [], [])
    time = np.array([header.time for header in found.headers])
    steps = np.diff(time) * 1440
    assert [header.frame_id for header in found.headers] == sorted(h.frame_id for h in found.headers)
    assert 2.4 < steps.min() <= steps.max() < 3.1
    assert (time[-1] - time[0]) * 24 == pytest.approx(7.041, abs=0.001)
    # the start, 2017-12-20T01:33:43.317 UT, and half of 60 s
    assert time[0] == pytest.approx(58107 + (1 * 3600 + 33 * 60 + 43.317 + 30) / 86400, abs=1e-9)
    assert {(h.band, h.detector, h.shape, h.has_wcs) for h in found.headers} == {
        ("Clear", "Main", (500, 650), False)
    }


def test_hatp32_without_settings_warns_of_the_rounded_time():
    found = scan(find_files([DATA / "hatp32"]))
    assert len(found.headers) == 142
    assert any("142 of 142 frames: MJD-OBS and DATE-OBS" in text for text in found.warnings)


def test_hatp32_pixels(hatp32):
    found, settings = hatp32
    for frame in read_frames(found.headers[::47], settings):
        saturated = frame.flux >= 4095
        assert 50 < saturated.sum() < 1000
        assert frame.mask[saturated].all()
        assert (frame.dq[saturated] & DQ_SATURATED).all()
        assert frame.mask.mean() < 0.01
        assert 340 < np.median(frame.flux) < 380
        sky = np.abs(frame.flux - np.median(frame.flux)) < 1.5
        assert 1.0 < np.median(frame.error[sky]) < 1.5
        part = read_frame(found.headers[0], settings, rows=(200, 240))
        assert part.flux.shape == (40, 650)


@pytest.mark.parametrize(
    ("name", "n", "good", "shape", "outside"),
    [
        ("ktwo200128910-c111", 1141, 1054, (23, 23), 529 - 437),
        ("ktwo221312395-c91", 1290, 1275, (10, 11), 0),
        ("ktwo221312395-c92", 2022, 1999, (10, 11), 0),
    ],
)
def test_k2_target_pixels(name, n, good, shape, outside):
    found = scan(find_files([DATA / "k2" / f"{name}*.fits.gz"]))
    assert (len(found.headers), len(found.headers) + len(found.rejected)) == (good, n)
    assert {rejected.kind for rejected in found.rejected} == {"filtered"}
    time = np.array([header.time for header in found.headers])
    assert np.diff(time).min() > 0.020
    assert {header.time_scale for header in found.headers} == {"tdb"}
    for frame in read_frames(found.headers[::400]):
        assert frame.shape == shape
        assert (frame.dq & DQ_NO_DATA != 0).sum() == outside
        assert outside <= frame.mask.sum() <= outside + 5
        assert np.isfinite(frame.flux[~frame.mask]).all()
        assert (frame.error[~frame.mask] > 0).all()
        assert frame.wcs.has_celestial


def test_decam_frames_share_one_time_and_the_message_says_what_to_do():
    files = find_files([DATA / "decam" / "DEC-OBS04*.fits"])
    found = scan(files)
    assert len(found.headers) == 1
    assert all("duplicates = 'content'" in rejected.reason for rejected in found.rejected)
    assert len(scan(files, InputSettings(duplicates="content")).headers) == 5


def test_decam_pixels_sky_subtracted_so_the_noise_is_measured():
    settings = InputSettings(duplicates="content", band="i")
    headers = scan(find_files([DATA / "decam"]), settings).headers
    assert len(headers) == 10
    for frame in read_frames(headers, settings):
        assert frame.metadata["error_source"] == "measured"
        sky = frame.flux[np.abs(frame.flux) < 100]
        assert np.median(frame.error) == pytest.approx(
            1.4826 * np.median(np.abs(sky - np.median(sky))), rel=0.15
        )
        ra, dec = frame.wcs.all_pix2world(128, 128, 0)
        assert ra == pytest.approx(318.1, abs=0.6)
        assert dec == pytest.approx(-66.0, abs=0.6)
