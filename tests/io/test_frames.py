"""Frames read from files: pixels, masks, errors, and what is refused and why."""

import bz2
import gzip

import numpy as np
import pytest
from astropy.io import fits
from frame_files import SHAPE, sky_image, tan_wcs, write

from survey.config import InputSettings
from survey.io.frames import (
    DQ_BAD_ERROR,
    DQ_NO_DATA,
    DQ_SATURATED,
    FrameError,
    find_frames,
    read_frame,
    read_frames,
    read_header,
    scan,
    scan_file,
)

# --- pixels


@pytest.mark.parametrize("ending", [".fits", ".fits.gz", ".fits.fz"])
def test_same_pixels_plain_gzipped_and_fpacked(tmp_path, ending):
    data = np.arange(2000, dtype=np.int16).reshape(SHAPE)
    path = tmp_path / f"frame{ending}"
    if ending.endswith("fz"):
        header = fits.Header({"MJD-OBS": 60000.5, "EXPTIME": 120.0})
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, header)]).writeto(path)
    else:
        write(path, data)
    frame = read_frame(path, InputSettings(gain=2, read_noise=5))
    np.testing.assert_array_equal(frame.flux, data)
    assert frame.flux.dtype == frame.error.dtype == np.float32
    assert (frame.mask.dtype, frame.dq.dtype) == (bool, np.uint32)
    assert frame.time == 60000.5 + 60 / 86400
    assert frame.metadata["frame_id"] == "frame"


@pytest.mark.parametrize("compressed", [False, True])
def test_scaled_integers_with_blank(tmp_path, compressed):
    stored = np.arange(2000, dtype=np.int16).reshape(SHAPE)
    stored[3, 4] = -32768
    hdu = fits.CompImageHDU(stored) if compressed else fits.ImageHDU(stored)
    hdu.header.update({"MJD-OBS": 60000.5, "EXPTIME": 1.0})
    hdu.header.update({"BLANK": -32768, "BSCALE": 0.5, "BZERO": 1000.0})
    path = tmp_path / "scaled.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    frame = read_frame(path, InputSettings(gain=1, read_noise=3))
    assert frame.flux[10, 7] == 0.5 * stored[10, 7] + 1000
    assert np.isnan(frame.flux[3, 4])
    assert frame.mask.sum() == 1
    assert frame.dq[3, 4] & DQ_NO_DATA


def test_unsigned_integers(tmp_path):
    data = (np.arange(2000).reshape(SHAPE) + 60000).astype(np.uint16)
    frame = read_frame(write(tmp_path / "u.fits", data), InputSettings(gain=1, read_noise=3))
    assert frame.flux[1, 2] == data[1, 2]


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [("ERR", "auto", 4.0), ("VAR", "auto", 16.0), ("IVAR", "auto", 1 / 16.0), ("ERR", "variance", 16.0)],
)
def test_error_planes(tmp_path, name, kind, value):
    plane = np.full(SHAPE, value, np.float32)
    plane[0, :4] = [0, -1, np.nan, np.inf]
    path = write(tmp_path / "e.fits", extensions=[(name, plane)])
    frame = read_frame(path, InputSettings(error_kind=kind))
    np.testing.assert_allclose(frame.error[1:], 4.0)
    assert frame.mask[0, :4].all()
    assert frame.mask.sum() == 4
    assert (frame.dq[0, :4] & DQ_BAD_ERROR).all()
    assert np.isnan(frame.error[0, :4]).all()
    assert frame.metadata["error_source"] == "plane"


def test_chosen_bits_of_the_quality_plane_are_bad(tmp_path):
    dq = np.zeros(SHAPE, np.int32)
    dq[2, 3], dq[4, 5] = 4, 32
    path = write(tmp_path / "dq.fits", extensions=[("ERR", np.ones(SHAPE, np.float32)), ("DQ", dq)])
    every, chosen = read_frame(path), read_frame(path, InputSettings(bad_bits=4))
    assert every.mask.sum() == 2
    assert chosen.mask[2, 3]
    assert chosen.mask.sum() == 1
    assert chosen.dq[4, 5] == 32
    assert read_frame(path, InputSettings(bad_bits=[4, 32])).mask.sum() == 2
    assert not read_frame(path, InputSettings(dq="none")).mask.any()


def test_saturated_pixels_grow_and_are_marked(tmp_path):
    data = sky_image()
    data[10, 10] = 5000
    path = write(tmp_path / "sat.fits", data, SATURATE=5000.0)
    frame = read_frame(path, InputSettings(gain=1, read_noise=3, grow_saturated=2))
    marked = (frame.dq & DQ_SATURATED) != 0
    assert marked.sum() == 25
    np.testing.assert_array_equal(marked, frame.mask)
    assert read_frame(path, InputSettings(gain=1, read_noise=3, grow_saturated=0)).mask.sum() == 1


def test_nan_pixels_are_masked_and_poison_no_neighbour(tmp_path):
    data = sky_image()
    data[5, 6] = np.nan
    frame = read_frame(write(tmp_path / "nan.fits", data), InputSettings(gain=1, read_noise=3))
    assert frame.mask.sum() == 1
    assert np.isfinite(frame.error[~frame.mask]).all()


def test_items_are_read_from_the_keywords_that_the_settings_name(tmp_path):
    """[input.keywords]: a list is tried in order, an empty one switches the item off."""
    cards = {"PASS": "R", "EADU": 2.0, "SHUTTER": 60.0, "GAIN": 9.0, "RON": 6.0}
    path = write(tmp_path / "k.fits", **cards)
    usual = read_header(path)
    assert (usual.band, usual.gain, usual.exposure) == ("W146", 9.0, 120.0)
    names = {"band": ["NONE", "PASS"], "gain": ["EADU"], "exposure": ["SHUTTER"]}
    settings = InputSettings(keywords={**names, "read_noise": ["RON"]})
    header = read_header(path, settings)
    assert (header.band, header.gain, header.exposure) == ("R", 2.0, 60.0)
    assert header.time == 60000.5 + 30 / 86400
    frame = read_frame(path, settings)
    np.testing.assert_allclose(frame.error, np.sqrt(9 + frame.flux / 2), rtol=1e-5)
    assert read_header(path, InputSettings(keywords={"gain": []})).gain is None


# --- errors made


def test_error_from_gain_and_read_noise(tmp_path):
    path = write(tmp_path / "m.fits", GAIN=2.0, RDNOISE=6.0)
    frame = read_frame(path)
    np.testing.assert_allclose(frame.error, np.sqrt(9 + frame.flux / 2), rtol=1e-5)
    assert frame.metadata["error_source"] == "model"


def test_sky_subtracted_frame_is_measured_though_gain_and_read_noise_are_known(tmp_path):
    path = write(tmp_path / "s.fits", sky_image(level=0.0, sigma=30.0), GAIN=4.0, RDNOISE=12.0)
    frame = read_frame(path)
    assert frame.metadata["error_source"] == "measured"
    assert np.median(frame.error) == pytest.approx(30, rel=0.05)


def test_measured_error_holds_the_stars_photon_noise(tmp_path):
    data = sky_image(level=350.0, sigma=1.5, shape=(128, 128))
    data[60, 60] = 350.0 + 1600.0
    frame = read_frame(write(tmp_path / "g.fits", data), InputSettings(gain=16))
    assert frame.error[60, 60] == pytest.approx(np.hypot(1.5, 10), rel=0.01)
    assert frame.error[0, 0] == pytest.approx(1.5, rel=0.1)


def test_noise_model_without_read_noise_says_what_to_set(tmp_path):
    path = write(tmp_path / "m.fits", GAIN=2.0)
    with pytest.raises(FrameError, match=r"m\.fits: no read_noise .*\[input\] read_noise"):
        read_frame(path, InputSettings(noise="model"))


# --- parts of frames


@pytest.mark.parametrize("ending", [".fits", ".fits.fz"])
def test_rows_equal_the_whole_frame(tmp_path, ending):
    data = sky_image(shape=(96, 70))
    data[30, 30] = 5000
    path = tmp_path / f"rows{ending}"
    hdu = (fits.CompImageHDU if ending.endswith("fz") else fits.ImageHDU)(data)
    hdu.header.update({"MJD-OBS": 60000.5, "EXPTIME": 1.0, "SATURATE": 4000.0})
    hdu.header.update(tan_wcs().to_header())
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    settings = InputSettings(gain=3, cutout=(8, 90, 4, 66))
    whole = read_frame(path, settings)
    assert whole.shape == (82, 62)
    for y0 in range(0, 82, 11):
        y1 = min(y0 + 11, 82)
        part = read_frame(path, settings, rows=(y0, y1))
        for name in ("flux", "error", "mask", "dq"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[y0:y1])
        np.testing.assert_allclose(
            part.wcs.all_pix2world(3, 2, 0), whole.wcs.all_pix2world(3, 2 + y0, 0), rtol=1e-13
        )


def test_cutout_shifts_the_wcs_and_the_origin(tmp_path):
    data = sky_image()
    path = write(tmp_path / "w.fits", data, GAIN=1.0, RDNOISE=3.0, **dict(tan_wcs().to_header()))
    cut = read_frame(path, InputSettings(cutout=(10, 30, 5, 45)))
    np.testing.assert_array_equal(cut.flux, data[10:30, 5:45])
    np.testing.assert_allclose(cut.wcs.all_pix2world(2, 3, 0), tan_wcs().all_pix2world(7, 13, 0), rtol=1e-13)
    assert cut.metadata["origin"] == (10, 5)


def test_several_science_extensions_are_several_frames_with_their_own_planes(tmp_path):
    path = tmp_path / "chips.fits"
    hdus = [fits.PrimaryHDU(header=fits.Header({"MJD-OBS": 60000.0, "EXPTIME": 10.0, "FILTER": "F606W"}))]
    for version in (1, 2):
        science = fits.ImageHDU(sky_image(version), name="SCI", ver=version)
        science.header["CCDNUM"] = version
        hdus += [science, fits.ImageHDU(np.full(SHAPE, version, np.float32), name="ERR", ver=version)]
    fits.HDUList(hdus).writeto(path)
    sources = find_frames([path])
    assert [source.index for source in sources] == [0, 1]
    frames = list(read_frames(sources))
    assert [float(frame.error[0, 0]) for frame in frames] == [1.0, 2.0]
    assert [frame.detector for frame in frames] == ["1", "2"]
    found = scan([path], InputSettings(detector="2"))
    assert [header.frame_id for header in found.headers] == ["chips#1"]
    assert [rejected.kind for rejected in found.rejected] == ["filtered"]


def test_a_broken_wcs_is_told_and_left_out(tmp_path):
    cards = {**tan_wcs().to_header(), "CTYPE1": "RA---XYZ"}
    header = read_header(write(tmp_path / "w.fits", **cards))
    assert not header.has_wcs
    assert any("WCS cannot be used" in text for text in header.warnings)


# --- refused


def test_files_that_are_no_frames(tmp_path):
    whole = (tmp_path / "whole.fits", sky_image())
    write(*whole)
    bytes_ = (tmp_path / "whole.fits").read_bytes()
    (tmp_path / "short.fits").write_bytes(bytes_[:6000])
    (tmp_path / "short.fits.gz").write_bytes(gzip.compress(bytes_)[:4000])
    (tmp_path / "tail.fits.gz").write_bytes(gzip.compress(bytes_)[:-300])
    (tmp_path / "text.fits").write_text("no FITS file at all")
    (tmp_path / "empty.fits").write_bytes(b"")
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "headeronly.fits")
    write(tmp_path / "cube.fits", np.zeros((3, 4, 5), np.float32))
    expected = {
        "short.fits": "truncated",
        "text.fits": "not a FITS file",
        "empty.fits": "the file is empty",
        "headeronly.fits": "no image in the file",
        "cube.fits": "a cube of 3 planes without times",
        "missing.fits": "no such file",
        "short.fits.gz": "truncated",
        "tail.fits.gz": "truncated",
    }
    for name, message in expected.items():
        with pytest.raises(FrameError, match=rf"{name}: .*({message})"):
            read_frame(tmp_path / name, InputSettings(gain=1, read_noise=1))


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """A file of three extensions and its bytes."""
    path = tmp_path_factory.mktemp("planes") / "whole.fits"
    extensions = [("ERR", np.ones(SHAPE, np.float32)), ("DQ", np.zeros(SHAPE, np.int16))]
    write(path, extensions=extensions)
    with fits.open(path) as hdul:
        starts = [hdul.fileinfo(index)["hdrLoc"] for index in range(3)]
    return path.read_bytes(), starts


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("share", [0.9, 0.95, 0.985, 0.9999])
def test_a_compressed_file_is_read_to_its_end(planes, tmp_path, pack, share):
    packed = pack(planes[0])
    path = tmp_path / ("cut.fits.gz" if pack is gzip.compress else "cut.fits.bz2")
    path.write_bytes(packed)
    assert read_header(path).has_dq
    path.write_bytes(packed[: int(len(packed) * share)])
    (rejected,) = scan_file(path).rejected
    assert "truncated" in rejected.reason
    path.write_bytes(pack(planes[0][: planes[1][2] + 500]))
    with pytest.raises(FrameError, match="truncated or damaged: 500 bytes after extension 1 are no"):
        read_header(path)


@pytest.mark.parametrize("extension", [1, 2])
@pytest.mark.parametrize("more", [4, 500, 2879, 2880, 3000, 6879])
def test_a_file_cut_off_in_an_extension_is_refused(planes, tmp_path, extension, more):
    bytes_, starts = planes
    path = tmp_path / "cut.fits"
    path.write_bytes(bytes_[: starts[extension] + more])
    with pytest.raises(FrameError, match="truncated"):
        read_header(path)


def test_padding_may_be_missing_or_too_much(planes, tmp_path):
    bytes_, starts = planes
    path = tmp_path / "unpadded.fits"
    path.write_bytes(bytes_[: starts[2] + 2880 + 2 * SHAPE[0] * SHAPE[1]])
    assert read_frame(path).metadata["error_source"] == "plane"
    path.write_bytes(bytes_ + bytes(10240))
    assert read_header(path).has_dq


def test_a_header_of_a_broken_file_is_listed_not_raised(tmp_path):
    (tmp_path / "text.fits").write_text("no FITS file at all")
    (rejected,) = scan_file(tmp_path / "text.fits").rejected
    assert rejected.kind == "bad"
    assert rejected.reason.startswith("text.fits: not a FITS file")


@pytest.mark.parametrize(
    ("data", "extensions", "message"),
    [
        (np.full(SHAPE, np.nan, np.float32), [("ERR", np.ones(SHAPE))], "every pixel is NaN"),
        (np.full(SHAPE, np.nan, np.float32), [], "every pixel is NaN"),
        (sky_image(), [("ERR", np.zeros(SHAPE))], "zero, negative or missing error"),
        (sky_image(), [("ERR", np.ones((4, 5)))], r"error extension ERR is \(4, 5\) px"),
        (np.full(SHAPE, 7.0, np.float32), [], "measured noise is 0"),
    ],
)
def test_pixels_that_are_no_frame(tmp_path, data, extensions, message):
    path = write(tmp_path / "p.fits", data, extensions=extensions)
    with pytest.raises(FrameError, match=rf"p\.fits: .*{message}"):
        read_frame(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"science": "SCX"}, r"no image extension 'SCX'; did you mean 'SCI'\?"),
        ({"error": "ERRR"}, r"no error extension 'ERRR'; did you mean 'ERR'\?"),
        ({"dq": 9}, "no dq extension 9"),
        ({"bad_bits": 1 << 20}, r"bad_bits 1048576 has bit 20 .*16-bit dq extension DQ"),
        ({"bad_bits": ["SATURATED"]}, "unknown bit 'SATURATED'"),
        ({"cutout": (0, 41, 0, 50)}, r"cutout \[0, 41, 0, 50\] does not lie in the image of 40 x 50 px"),
    ],
)
def test_settings_that_do_not_fit_the_file(tmp_path, settings, message):
    hdus = [fits.PrimaryHDU(header=fits.Header({"MJD-OBS": 60000.0, "EXPTIME": 10.0}))]
    hdus += [fits.ImageHDU(sky_image(), name="SCI"), fits.ImageHDU(np.ones(SHAPE), name="ERR")]
    hdus += [fits.ImageHDU(np.zeros(SHAPE, np.int16), name="DQ")]
    fits.HDUList(hdus).writeto(tmp_path / "x.fits")
    with pytest.raises(FrameError, match=rf"x\.fits: .*{message}"):
        read_frame(tmp_path / "x.fits", InputSettings(**settings))
