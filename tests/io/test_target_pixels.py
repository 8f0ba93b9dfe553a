"""Frames of Kepler, K2 and TESS target-pixel files: cadences, quality bits, origins."""

import numpy as np
import pytest
from astropy.io import fits

from survey.config import InputSettings
from survey.io.frames import FrameError, find_frames, read_frame, read_header, scan
from tests.io.test_frames import tan_wcs


def write_target_pixels(path, *, telescope="Kepler", n=6, **cards):
    rng = np.random.default_rng(3)
    flux = rng.normal(200, 5, (n, 5, 7)).astype(np.float32)
    error = np.full((n, 5, 7), 5.0, np.float32)
    flux[2] = np.nan
    flux[:, 0, 0] = np.nan
    time = 2700.0 + 0.02 * np.arange(n)
    time[3] = np.nan
    quality = np.zeros(n, np.int32)
    quality[1], quality[4] = 8192, 1 << 20
    columns = [
        fits.Column("TIME", "D", unit="BJD - 2454833", array=time),
        fits.Column("FLUX", "35E", dim="(7,5)", unit="e-/s", array=flux),
        fits.Column("FLUX_ERR", "35E", dim="(7,5)", unit="e-/s", array=error),
        fits.Column("QUALITY", "J", array=quality),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="TARGETTABLES")
    table.header.update({"BJDREFI": 2454833, "BJDREFF": 0.0, "TIMESYS": "TDB", "TIMEDEL": 0.02})
    table.header.update({"INT_TIME": 6.0, "NUM_FRM": 270, "1CRV2P": 84, "2CRV2P": 52, "TELESCOP": telescope})
    table.header.update(cards)
    aperture = np.full((5, 7), 3, np.int32)
    aperture[0, 0], aperture[4, 6] = 0, 0
    primary = fits.PrimaryHDU(header=fits.Header({"TELESCOP": telescope, "CHANNEL": 32}))
    plane = fits.ImageHDU(aperture, header=tan_wcs().to_header(), name="APERTURE")
    fits.HDUList([primary, table, plane]).writeto(path)
    return flux


def test_target_pixels_are_one_frame_a_cadence(tmp_path):
    path = tmp_path / "ktwo1_lpd-targ.fits.gz"
    flux = write_target_pixels(path)
    assert len(find_frames([path])) == 6
    found = scan([path])
    assert [header.source.index for header in found.headers] == [0, 1, 5]
    assert {rejected.kind for rejected in found.rejected} == {"filtered"}
    reasons = " ".join(rejected.reason for rejected in found.rejected)
    assert "cadence 2 is all NaN" in reasons
    assert "cadence 3 has no time" in reasons
    assert "cadence 4: QUALITY 1048576 (ThrusterFiring)" in reasons
    frame = read_frame(found.headers[1])
    np.testing.assert_array_equal(frame.flux, flux[1])
    assert frame.mask.sum() == 2
    assert frame.mask[0, 0]
    assert frame.mask[4, 6]
    assert (frame.dq[~frame.mask] == 8192).all()
    assert frame.time == pytest.approx(2700.02 + 2454833 - 2400000.5, abs=1e-9)
    assert (frame.metadata["time_scale"], frame.metadata["exposure"]) == ("tdb", 1620.0)
    assert (frame.band, frame.detector, frame.metadata["origin"]) == ("Kepler", "32", (52, 84))
    assert frame.wcs.has_celestial
    np.testing.assert_array_equal(read_frame(found.headers[1], rows=(1, 3)).flux, flux[1][1:3])


def test_tess_target_pixels(tmp_path):
    path = tmp_path / "tess1_tp.fits"
    write_target_pixels(path, telescope="TESS", CAMERA=2, CCD=3, BJDREFI=2457000)
    found = scan([path])
    assert [header.source.index for header in found.headers] == [0, 1, 4, 5], "bit 20 is none of TESS's"
    header = found.headers[0]
    assert (header.band, header.detector) == ("TESS", "2-3")
    assert header.time == pytest.approx(2700.0 + 2457000 - 2400000.5, abs=1e-9)


def test_quality_bits_of_target_pixels_by_name(tmp_path):
    path = tmp_path / "k.fits"
    write_target_pixels(path)
    chosen = scan([path], InputSettings(bad_bits=["CollateralCosmic"]))
    assert [header.source.index for header in chosen.headers] == [0, 4, 5]
    with pytest.raises(FrameError, match=r"unknown bit 'Thruster' .*; did you mean"):
        read_header(path, InputSettings(bad_bits=["Thruster"]))
