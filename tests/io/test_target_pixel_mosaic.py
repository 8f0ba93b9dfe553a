"""Target pixel files of one detector joined cadence by cadence."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from survey.config import InputSettings
from survey.io import _target_pixels
from survey.io._mosaic import join_cadences
from survey.io.frames import combine_scans, read_frame, scan, scan_file
from survey.stages.frame_table import stored_headers, stretches
from tests.io.test_frames import tan_wcs

SHAPE = (4, 5)


def write_stamp(path, corner, *, cadences=range(100, 106), campaign=91, bad=(), late=0.0, **extra):
    """A K2 stamp whose pixels say where they are: 1000 x row + column, and the cadence in the decimals."""
    rows, columns = np.indices(SHAPE) + np.reshape(corner, (2, 1, 1))
    numbers = np.array(list(cadences))
    flux = (1000.0 * rows + columns)[None] + numbers[:, None, None] / 1000
    columns = [
        fits.Column("TIME", "D", array=2700 + 0.02 * numbers + late),
        fits.Column("CADENCENO", "J", array=numbers),
        fits.Column("FLUX", "20E", dim="(5,4)", unit="e-/s", array=flux),
        fits.Column("FLUX_ERR", "20E", dim="(5,4)", array=np.full(flux.shape, extra.pop("error", 2.0))),
        fits.Column("QUALITY", "J", array=np.where(np.isin(numbers, bad), 1 << 20, 0)),
    ]
    without = extra.pop("without", ())
    columns = [c for c in columns if c.name not in without] + extra.pop("more", [])
    table = fits.BinTableHDU.from_columns(columns, name="TARGETTABLES")
    which = [c.name for c in columns].index("FLUX") + 1
    table.header.update({"BJDREFI": 2454833, "TIMESYS": "TDB", "TIMEDEL": 0.02, f"1CRV{which}P": corner[1]})
    table.header[f"2CRV{which}P"] = corner[0]
    primary = fits.PrimaryHDU(header=fits.Header({"TELESCOP": "Kepler", "CHANNEL": 32, "CAMPAIGN": campaign}))
    primary.header.update(extra)
    aperture = np.ones(SHAPE, np.int32)
    aperture[0, 0] = 0
    wcs = tan_wcs()
    wcs.wcs.crpix = [20.0 - corner[1], 15.0 - corner[0]]
    plane = fits.ImageHDU(aperture, header=wcs.to_header(), name="APERTURE")
    fits.HDUList([primary, table, plane]).writeto(path)
    return str(path)


@pytest.fixture
def stamps(tmp_path):
    """Two stamps that touch at a corner, one of which lacks a cadence; times differ by light travel."""
    return [
        write_stamp(tmp_path / "a.fits", (50, 80)),
        write_stamp(tmp_path / "b.fits", (54, 85), bad=[103], late=1e-4),
    ]


def test_a_cadence_is_one_image_over_the_union_of_the_corners(stamps):
    found = scan(stamps)
    assert len(found.headers) == 6
    assert {h.shape for h in found.headers} == {(8, 10)}
    assert {h.origin for h in found.headers} == {(50, 80)}
    assert [r.kind for r in found.rejected] == ["filtered"]
    frame = read_frame(found.headers[1])
    good = ~frame.mask
    assert good.sum() == 2 * (20 - 1)
    rows, columns = np.nonzero(good)
    np.testing.assert_allclose(frame.flux[good], 1000 * (rows + 50) + columns + 80 + 0.101, atol=2e-3)
    assert frame.time == pytest.approx(54832.5 + 2700 + 2.02 + 5e-5, abs=1e-9)
    lacking = read_frame(found.headers[3])
    assert not lacking.mask[:4, :5].all()
    assert lacking.mask[4:].all()
    np.testing.assert_array_equal(read_frame(found.headers[1], rows=(3, 6)).flux, frame.flux[3:6])


def test_the_sky_is_where_the_single_file_says(stamps):
    (single, _), joined = (scan(stamps[1:]).headers[:2], scan(stamps).headers)
    assert len({h.wcs_text for h in joined}) == 1
    np.testing.assert_allclose(
        joined[3].wcs.wcs_pix2world(7.0, 6.0, 0), single.wcs.wcs_pix2world(2.0, 2.0, 0)
    )


def test_campaigns_share_the_grid_and_not_the_cadences(stamps, tmp_path):
    later = write_stamp(tmp_path / "c.fits", (50, 80), campaign=92, cadences=range(103, 108), late=30.0)
    headers = scan([*stamps, later]).headers
    assert len(headers) == 6 + 5
    assert {h.shape for h in headers} == {(8, 10)}
    table = _table(headers)
    np.testing.assert_array_equal(stretches(table), [0] * 6 + [1] * 5)
    assert stored_headers(table) == headers


def _table(headers):
    import xarray as xr

    from survey.stages.frame_table import _header_json

    return xr.Dataset({"header": ("time", np.array([_header_json(h) for h in headers], object))})


def test_the_same_stamp_twice_is_a_duplicate(stamps, tmp_path):
    again = write_stamp(tmp_path / "again.fits", (50, 80))
    found = scan([*stamps, again])
    assert len(found.headers) == 6
    assert [r.kind for r in found.rejected].count("duplicate") == 6


def test_a_night_more_joins_the_grid_that_is_there(stamps, tmp_path):
    known = scan(stamps).headers
    more = write_stamp(tmp_path / "more.fits", (54, 85), cadences=range(200, 203))
    outside = write_stamp(tmp_path / "outside.fits", (59, 85), cadences=range(200, 203))
    found = combine_scans([scan_file(p) for p in (*stamps, more, outside)], InputSettings(), known)
    assert [h.shape for h in found.headers] == [(8, 10)] * 3
    kinds = [r.kind for r in found.rejected]
    assert kinds.count("shape") == 3
    assert kinds.count("duplicate") == 0
    assert "6 frames are in the field already" in found.warnings


def test_full_frame_cutouts_are_joined_by_their_image(tmp_path):
    """TESSCut: CADENCENO all 0, FLUX_ERR 0 where the images bring none, FFI_FILE names the image."""
    paths = []
    for name, corner in (("a", (50, 80)), ("b", (54, 80))):
        files = np.array([f"tess-ffi-{k}.fits" for k in range(6)])
        more = [fits.Column("CADENCENO", "J", array=np.zeros(6)), fits.Column("FFI_FILE", "20A", array=files)]
        paths.append(
            write_stamp(
                tmp_path / f"{name}.fits",
                corner,
                without=("CADENCENO",),
                more=more,
                error=0.0,
                TELESCOP="TESS",
                SECTOR=17,
                CAMERA=1,
                CCD=2,
                CAMPAIGN="",
            )
        )
    headers = scan(paths).headers
    assert len(headers) == 6
    assert (headers[0].shape, headers[0].band, headers[0].detector) == ((8, 5), "TESS", "1-2")
    assert not headers[0].has_error
    assert stretches(_table(headers)).max() == 0


def test_files_are_kept_within_a_budget(stamps, monkeypatch):
    monkeypatch.setattr(_target_pixels, "_KEPT", {})
    first = _target_pixels.load(stamps[0])
    assert _target_pixels.load(stamps[0]) is first
    monkeypatch.setattr(_target_pixels, "KEPT_BYTES", 1)
    second = _target_pixels.load(stamps[1])
    assert _target_pixels.load(stamps[1]) is second
    assert _target_pixels.load(stamps[0]) is not first


def test_of_files_that_do_not_fit_the_first_are_kept(tmp_path, monkeypatch):
    """Frame after frame goes round all files: each round may read again only what has no room."""
    paths = [write_stamp(tmp_path / f"{k}.fits", (50, 80 + 5 * k)) for k in range(5)]
    read, clock = [], [0.0]
    load = _target_pixels._load
    monkeypatch.setattr(_target_pixels, "_load", lambda path: read.append(path) or load(path))
    monkeypatch.setattr(_target_pixels, "monotonic", lambda: clock[0])
    for name in ("_KEPT", "_USED"):
        monkeypatch.setattr(_target_pixels, name, {})
    monkeypatch.setattr(_target_pixels, "KEPT_BYTES", 3 * load(paths[0]).nbytes)
    for _ in range(4):
        for path in paths:
            _target_pixels.load(path)
    assert read == paths + 3 * paths[2:]
    assert len(_target_pixels._KEPT) == 3
    # files of a field that is done with make room in the end
    clock[0] = 1e4
    others = [write_stamp(tmp_path / f"other{k}.fits", (50, 80)) for k in range(3)]
    for path in 2 * others:
        _target_pixels.load(path)
    assert read[-3:] == others


def _calls(headers, known):
    """Python calls that joining takes."""
    count = [0]

    def profile(frame, event, arg):
        count[0] += event == "call"

    sys.setprofile(profile)
    try:
        join_cadences(headers, known)
    finally:
        sys.setprofile(None)
    return count[0]


def test_the_work_of_joining_is_linear_in_the_files_and_in_the_frames(stamps):
    first, *_ = scan(stamps[:1]).headers
    known = scan(stamps).headers[:1]

    def some(files, cadences):
        return [
            replace(first, frame_id=f"{f}#{c}", origin=(50, 80 + f), cards={**first.cards, "CADENCE": c})
            for f in range(files)
            for c in range(cadences)
        ]

    for files, cadences, there in ((1, 400, known), (5, 80, known), (40, 2, [])):
        once = _calls(some(files, cadences), there)
        assert _calls(some(files, 2 * cadences), 2 * there) < 2.5 * once
        assert _calls(some(2 * files, cadences), 2 * there) < 2.5 * once
    assert len(join_cadences(some(5, 4), known)[0]) == 4
