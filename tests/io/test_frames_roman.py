"""Roman level-2 files, written with roman_datamodels."""

import sys

import numpy as np
import pytest

from survey.config import InputSettings
from survey.io.frames import DQ_SATURATED, FrameError, find_files, read_frame, read_header, scan

SHAPE = (48, 64)


def write_roman(path, *, seed=1, start="2027-02-01T00:00:00", seconds=140.0, band="F146"):
    pytest.importorskip("asdf", reason="the extra 'roman' is not installed")
    datamodels = pytest.importorskip(
        "roman_datamodels.datamodels", reason="the extra 'roman' is not installed"
    )
    from astropy.time import Time, TimeDelta

    model = datamodels.ImageModel.create_fake_data(shape=SHAPE)
    rng = np.random.default_rng(seed)
    model.data = rng.normal(5.0, 0.2, SHAPE).astype(np.float32)
    model.err = np.full(SHAPE, 0.25, np.float16)
    dq = np.zeros(SHAPE, np.uint32)
    dq[3, 4], dq[20, 30], dq[40, 50] = 1, 2, 4
    model.dq = dq
    model.meta.exposure.start_time = Time(start)
    model.meta.exposure.end_time = Time(start) + TimeDelta(seconds, format="sec")
    model.meta.exposure.exposure_time = seconds
    model.meta.instrument.optical_element = band
    model.meta.instrument.detector = "WFI07"
    model.save(path)
    return model


def test_roman_image(tmp_path):
    path = tmp_path / "r0001_wfi07_cal.asdf"
    model = write_roman(path)
    frame = read_frame(path)
    np.testing.assert_array_equal(frame.flux, model.data)
    np.testing.assert_array_equal(frame.error, 0.25)
    assert frame.time == pytest.approx(61437.0 + 70 / 86400, abs=1e-9)
    assert (frame.band, frame.detector) == ("F146", "WFI07")
    assert frame.metadata["exposure"] == 140.0
    assert frame.metadata["units"] == "DN/s"
    assert frame.mask[3, 4]
    assert not frame.mask[40, 50], "a jump that the ramp fit mended is no bad pixel"
    assert (frame.dq[19:22, 29:32] & DQ_SATURATED).all()
    assert frame.mask.sum() == 10


def test_roman_wcs_within_a_hundredth_of_a_pixel(tmp_path):
    path = tmp_path / "r0001_wfi07_cal.asdf"
    model = write_roman(path)
    y, x = np.mgrid[0 : SHAPE[0] : 7, 0 : SHAPE[1] : 7].astype(float)
    sky = model.meta.wcs(x, y)
    frame = read_frame(path)
    xy = frame.wcs.all_world2pix(*sky, 0)
    np.testing.assert_allclose(xy, (x, y), atol=0.01)
    cut = read_frame(path, InputSettings(cutout=(8, 40, 16, 48)))
    np.testing.assert_allclose(cut.wcs.all_world2pix(*sky, 0), (x - 16, y - 8), atol=0.01)
    np.testing.assert_array_equal(cut.flux, frame.flux[8:40, 16:48])
    np.testing.assert_array_equal(read_frame(path, rows=(5, 9)).flux, frame.flux[5:9])


def test_distorted_wcs_of_a_whole_detector_within_a_hundredth_of_a_pixel():
    pytest.importorskip("gwcs", reason="the extra 'roman' is not installed")
    import gwcs
    from astropy import coordinates, units
    from astropy.modeling import models
    from gwcs import coordinate_frames

    from survey.io._asdf import fits_wcs

    bend_x = models.Polynomial2D(5, c1_0=1.0, c2_0=2e-6, c1_1=1e-6, c0_2=-1e-6, c3_0=1e-10)
    bend_y = models.Polynomial2D(5, c0_1=1.0, c2_0=1e-6, c1_1=-2e-6, c0_3=1e-10)
    scale = models.Scale(0.11 / 3600) & models.Scale(0.11 / 3600)
    centre = models.Shift(-2043.5) & models.Shift(-2043.5)
    sky = models.Pix2Sky_TAN() | models.RotateNative2Celestial(268.0, -29.0, 180.0)
    model = centre | models.Mapping((0, 1, 0, 1)) | (bend_x & bend_y) | scale | sky
    pixels = coordinate_frames.Frame2D(name="detector", unit=(units.pix, units.pix))
    icrs = coordinate_frames.CelestialFrame(reference_frame=coordinates.ICRS(), name="icrs")
    true = gwcs.WCS([(pixels, model), (icrs, None)])
    y, x = np.mgrid[0:4088:500, 0:4088:500].astype(float)
    np.testing.assert_allclose(fits_wcs(true, (4088, 4088)).all_world2pix(*true(x, y), 0), (x, y), atol=0.01)


def test_roman_bits_by_name(tmp_path):
    path = tmp_path / "r0001_wfi07_cal.asdf"
    write_roman(path)
    frame = read_frame(path, InputSettings(bad_bits=["JUMP_DET"], grow_saturated=0))
    assert frame.mask[40, 50]
    assert not frame.mask[3, 4]
    with pytest.raises(FrameError, match=r"unknown bit 'JUMPDET' .* did you mean 'JUMP_DET'"):
        read_frame(path, InputSettings(bad_bits=["JUMPDET"]))


def test_roman_files_make_a_field(tmp_path):
    for k in range(3):
        write_roman(tmp_path / f"r{k}_cal.asdf", seed=k, start=f"2027-02-01T0{k}:00:00")
    (tmp_path / "junk.asdf").write_text("junk")
    cut = (tmp_path / "r0_cal.asdf").read_bytes()
    (tmp_path / "short.asdf").write_bytes(cut[: len(cut) // 3])
    found = scan(find_files([tmp_path]))
    assert [header.frame_id for header in found.headers][:1] == ["r0_cal"]
    assert len(found.headers) + len(found.rejected) == 5
    assert all(rejected.kind == "bad" for rejected in found.rejected)
    with pytest.raises(FrameError, match=r"short\.asdf: .*(truncated|damaged)"):
        read_frame(tmp_path / "short.asdf")


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "asdf", None)
    (tmp_path / "r0_cal.asdf").write_bytes(b"#ASDF 1.0.0\n")
    with pytest.raises(FrameError, match=r"pip install 'survey\[roman\]'"):
        read_header(tmp_path / "r0_cal.asdf")
