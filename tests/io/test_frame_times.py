"""When frames were taken, by whatever their headers say."""

import pytest
from frame_files import sky_image, write

from survey.config import InputSettings, Keywords
from survey.io.frames import (
    FrameError,
    find_files,
    read_header,
    scan,
)


@pytest.mark.parametrize(
    ("cards", "settings", "mjd"),
    [
        ({"MJD_OBS": 60000.25}, {"time_reference": "middle"}, 60000.25),
        ({"MJD_OBS": 60000.25}, {"time_reference": "end"}, 60000.25 - 60 / 86400),
        ({"MJD_OBS": 2460000.75}, {"time_reference": "middle"}, 60000.25),
        ({"MJD_OBS": 60000.25}, {"time_offset_days": -0.5}, 59999.75 + 60 / 86400),
        (
            {"TBJD": 3000.5},
            {"keywords": {"time": ["TBJD"]}, "time_format": "btjd", "time_reference": "middle"},
            60000.0,
        ),
        ({"DATE_OBS": "2023-02-25T06:00:00"}, {"keywords": {"time": ["DATE-OBS"]}}, 60000.25 + 60 / 86400),
        (
            {"DATE_OBS": "2023-02-24T23:00:00-0700"},
            {"keywords": {"time": ["DATE-OBS"]}},
            60000.25 + 60 / 86400,
        ),
        (
            {"DATE_OBS": "2023-02-25", "UT": "06:00:00"},
            {"keywords": {"time": ["UT"]}, "date_keyword": "DATE-OBS"},
            60000.25 + 60 / 86400,
        ),
        (
            {"DATE_OBS": "2023-02-24", "UT": "06:00:00"},
            {"keywords": {"time": ["UT"]}, "date_keyword": "DATE-OBS", "day_starts": 12},
            60000.25 + 60 / 86400,
        ),
        (
            {"UNIXT": 1677283200.0},
            {"keywords": {"time": ["UNIXT"]}, "time_format": "unix"},
            60000 + 60 / 86400,
        ),
    ],
)
def test_times(tmp_path, cards, settings, mjd):
    path = write(tmp_path / "t.fits", **cards)
    header = read_header(path, InputSettings(**settings))
    assert header.time == pytest.approx(mjd, abs=1e-9)
    assert header.time_scale == "utc"


def test_a_night_does_not_jump_at_midnight(tmp_path):
    clocks = ["22:30:00", "23:59:30", "00:01:00", "03:00:00"]
    for k, clock in enumerate(clocks):
        write(tmp_path / f"n{k}.fits", sky_image(k), DATE_OBS="2023-02-24", UT=clock, MJD_OBS="drop")
    by_clock = {"keywords": Keywords(time=["UT"]), "date_keyword": "DATE-OBS"}
    good = scan(find_files([tmp_path]), InputSettings(**by_clock, day_starts=12))
    assert [header.frame_id for header in good.headers] == ["n0", "n1", "n2", "n3"]
    assert good.headers[-1].time - good.headers[0].time == pytest.approx(4.5 / 24)
    assert not [text for text in good.warnings if "jumps" in text]
    jumped = scan(find_files([tmp_path]), InputSettings(**by_clock))
    assert any("day_starts = 12" in text for text in jumped.warnings)


def test_time_scale_of_the_header_or_the_settings(tmp_path):
    path = write(tmp_path / "t.fits", TIMESYS="TAI")
    assert read_header(path).time_scale == "tai"
    assert read_header(path, InputSettings(time_scale="tdb")).time_scale == "tdb"


def test_disagreeing_times_are_told(tmp_path):
    header = read_header(write(tmp_path / "t.fits", DATE_OBS="2023-02-25T13:00:00"))
    assert any("MJD-OBS and DATE-OBS" in text for text in header.warnings)


@pytest.mark.parametrize(
    ("cards", "settings", "message"),
    [
        ({"MJD_OBS": "drop"}, {}, r"no time in the header .*\[input.keywords\] time"),
        ({"MJD_OBS": "yesterday"}, {}, r"MJD-OBS = 'yesterday' is no time"),
        ({"MJD_OBS": 12.5}, {}, r"MJD-OBS = 12.5 is no time .*neither MJD nor JD"),
        ({"EXPTIME": "drop"}, {}, r"no exposure time .*\[input\] exposure"),
        ({"EXPTIME": "long"}, {}, r"EXPTIME = 'long' is no number; set \[input.keywords\] exposure"),
        (
            {"UT": "06:00:00"},
            {"keywords": {"time": ["UT"]}, "date_keyword": "NIGHT"},
            r"no NIGHT in the header",
        ),
        (
            {"MJD_OBS": "drop", "DATE_OBS": "2023-02-25"},
            {},
            r"DATE-OBS = '2023-02-25' is no time \(a date without time of day",
        ),
        ({}, {"time_format": "mjdd"}, r"no time format 'mjdd'"),
    ],
)
def test_times_that_cannot_be_read(tmp_path, cards, settings, message):
    path = write(tmp_path / "t.fits", **cards)
    with pytest.raises(FrameError, match=r"t\.fits: .*" + message):
        read_header(path, InputSettings(**settings))
