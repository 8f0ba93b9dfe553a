"""What gain, zero point, exposure and time scale mean in the headers that cameras and telescopes write."""

import numpy as np
import pytest

from survey.config import InputSettings
from survey.io.frames import read_frame, read_header
from tests.io.frame_files import write


@pytest.mark.parametrize(
    ("cards", "gain"),
    [
        ({"GAIN": 2.0}, 2.0),
        ({"GAIN": 2.0, "BUNIT": "ADU"}, 2.0),
        # CMOS cameras: GAIN is a setting.
        ({"GAIN": 100, "EGAIN": 0.25}, 0.25),
        ({"GAIN": 2.0, "BUNIT": "electron"}, 1.0),
        ({"BUNIT": "ELECTRONS/S", "GAIN": 2.0}, 120.0),
        ({"BUNIT": "e-/s"}, 120.0),
        ({"BUNIT": "counts s-1", "GAIN": 2.0}, 240.0),
        ({"BUNIT": "adu/sec", "GAIN": 2.0}, 240.0),
        ({"BUNIT": "count / s", "GAIN": 2.0, "EXPTIME": 0.0}, None),
        ({"GAIN": -1.0}, None),
    ],
)
def test_gain_is_electrons_per_unit_of_the_pixels(tmp_path, cards, gain):
    header = read_header(write(tmp_path / "g.fits", **cards))
    assert header.gain == gain
    assert any("no gain" in text for text in header.warnings) == (gain is None)


def test_a_gain_says_nothing_of_physical_units(tmp_path):
    path = write(tmp_path / "g.fits", GAIN=2.0, BUNIT="nJy")
    header = read_header(path)
    assert header.gain is None
    assert "the gain of counts says nothing of njy; set [input] gain" in header.warnings
    assert read_header(path, InputSettings(gain=7.0)).gain == 7.0


def test_errors_of_a_rate_are_those_of_its_counts(tmp_path):
    flux = np.full((64, 64), 500.0, np.float32)
    counts = read_frame(write(tmp_path / "c.fits", flux, GAIN=2.0, RDNOISE=6.0), InputSettings(noise="model"))
    rate = read_frame(
        write(tmp_path / "r.fits", flux / 120, GAIN=2.0, RDNOISE=6.0, BUNIT="count / s"),
        InputSettings(noise="model"),
    )
    np.testing.assert_allclose(rate.error, counts.error / 120, rtol=1e-5)


@pytest.mark.parametrize(
    ("cards", "zero_point"),
    [
        ({"MAGZPT": 25.3}, 25.3),
        ({"PHOTZPT": 27.6}, 27.6),
        # ACS/WFC F606W: STmag zero point 26.66 (of an electron a second).
        ({"PHOTZPT": -21.1, "PHOTFLAM": 7.8625e-20, "BUNIT": "ELECTRONS/S"}, 26.661),
        ({"PHOTZPT": -21.1, "PHOTFLAM": 7.8625e-20, "BUNIT": "ELECTRONS"}, 26.661 + 5.198),
        ({"PHOTZPT": -21.1}, None),
        ({}, None),
    ],
)
def test_zero_points(tmp_path, cards, zero_point):
    header = read_header(write(tmp_path / "z.fits", GAIN=1.0, **cards))
    assert header.zero_point == (None if zero_point is None else pytest.approx(zero_point, abs=2e-3))
    assert bool(header.warnings) == (zero_point is None and bool(cards))


def test_exposures_in_days(tmp_path):
    path = write(tmp_path / "d.fits", EXPTIME="drop", EXPOSURE=(0.02, "[d] time on source"))
    assert read_header(path).exposure == pytest.approx(1728.0)
    path = write(tmp_path / "s.fits", EXPTIME=(30.0, "[s] time on source"))
    assert read_header(path).exposure == 30.0


@pytest.mark.parametrize(
    ("system", "scale", "told"),
    [
        ("UTC", "utc", False),
        ("TDB", "tdb", False),
        ("ET", "tt", False),
        ("IAT", "tai", False),
        ("GPS", "utc", True),
    ],
)
def test_time_systems(tmp_path, system, scale, told):
    path = write(tmp_path / "t.fits", GAIN=1.0, TIMESYS=system)
    header = read_header(path)
    assert header.time_scale == scale
    assert any("is not known and taken for UTC; set [input] time_scale" in w for w in header.warnings) == told
    assert read_header(path, InputSettings(time_scale="tt")).time_scale == "tt"
