"""Cubes as input: FITS files of many planes, and arrays without any file."""

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

from survey import create_field_from_cube
from survey.config import Config, InputSettings
from survey.io.frames import FrameError, find_frames, read_frame, read_header, scan, scan_file
from survey.io.store import Field, FieldError
from survey.report import write_report
from survey.run.api import run
from survey.simulate.wander import simulate_wander

CONFIG = {"registration": {"mode": "none"}, "calibrate": {"scale": "unit", "background": "none"}}


def write_cube(path, *, planes=5, times=True, **columns):
    rng = np.random.default_rng(0)
    flux = rng.normal(100, 3, (planes, 20, 24)).astype(np.float32)
    hdus = [fits.PrimaryHDU(header=fits.Header({"FILTER": "r", "EXPTIME": 30.0, "GAIN": 2.0}))]
    hdus += [fits.ImageHDU(flux, name="SCI"), fits.ImageHDU(np.full((20, 24), 9.0, np.float32), name="VAR")]
    quality = np.zeros((planes, 20, 24), np.uint8)
    quality[1, 3, 4] = 1
    hdus.append(fits.ImageHDU(quality, name="DQ"))
    if times:
        found = [fits.Column("TIME", "D", array=60000 + np.arange(planes) / 10)]
        found += [fits.Column(name, "J", array=values) for name, values in columns.items()]
        hdus.append(fits.BinTableHDU.from_columns(found))
    fits.HDUList(hdus).writeto(path)
    return flux


def test_a_plane_is_a_frame(tmp_path):
    path = tmp_path / "stack.fits"
    flux = write_cube(path, QUALITY=[0, 0, 4, 0, 0])
    assert len(find_frames([path])) == 5
    found = scan([path])
    assert [h.source.index for h in found.headers] == [0, 1, 3, 4]
    assert [(r.kind, r.reason) for r in found.rejected] == [("filtered", "stack.fits: plane 2: QUALITY 4")]
    frame = read_frame(found.headers[1])
    np.testing.assert_array_equal(frame.flux, flux[1])
    assert (frame.error == 3).all()
    assert frame.mask.sum() == 1
    assert frame.mask[3, 4]
    assert (frame.band, frame.time) == ("r", 60000.1)
    np.testing.assert_array_equal(read_frame(found.headers[2], rows=(4, 9)).flux, flux[3][4:9])
    assert read_header(found.headers[3].source) == found.headers[3]
    allowed = scan_file(path, InputSettings(bad_bits=1))
    assert len(allowed.headers) == 5


def test_a_cube_without_times_is_refused(tmp_path):
    write_cube(tmp_path / "stack.fits", times=False)
    with pytest.raises(FrameError, match=r"a cube of 5 planes without times; add a table with a column TIME"):
        read_header(tmp_path / "stack.fits")


@pytest.fixture(scope="module")
def mock():
    return simulate_wander(
        shape=(30, 32), n_frames=80, n_stars=60, noise=1e-3, amplitude=0.3, pointing=0.2, rotation=0.1, seed=2
    )


def test_arrays_become_a_field_and_run(mock, tmp_path):
    """From arrays to differences by prediction, with a plane and a corner without any value."""
    flux = mock.flux.copy()
    flux[7] = np.nan
    flux[:, :3, :4] = np.nan
    times = xr.DataArray(60000.5 + np.arange(80) / 48, dims="time")
    cube = xr.DataArray(flux, dims=("time", "y", "x"), coords={"time": times}, attrs={"units": "e-/s"})
    cpm = {"exclusion": 5, "row_column_exclusion": 2, "n_predictors": 24, "reach": 12, "ridge": 1.0}
    config = Config(**CONFIG, method="cpm", cpm=cpm, psf={"fwhm": 2.5}, reference={"n_basis": 2})
    summary = create_field_from_cube(
        tmp_path / "field",
        cube.transpose("y", "x", "time"),
        mock.error[0],
        config=config,
        client="synchronous",
    )
    assert summary.added == 79
    done = run(tmp_path / "field", config, client="synchronous")
    assert done.ok, done.failures
    field = Field.open(tmp_path / "field")
    assert field.attrs["units"] == "e-/s"
    np.testing.assert_allclose(field.frames()["time"].values, np.delete(times.values, 7))
    difference, mask = (np.asarray(field.array("difference/cpm", n)[...]) for n in ("flux", "mask"))
    assert mask[:, :3, :4].all()
    assert mask.mean() < 0.02
    y, x = (round(p) for p in mock.variable)
    deviation = np.asarray(field.array("variability/cpm", "deviation")[...])
    assert (deviation[:3, :4] == 0).all()
    assert deviation[y, x] > 5 * np.median(deviation)
    assert "Map of variables" in write_report(field.path, method="cpm").read_text()
    curve, truth = difference[:, y, x], np.delete(mock.signal_image[:, y, x], 7)
    assert np.corrcoef(curve, truth)[0, 1] > 0.85
    assert 0.8 < curve @ truth / (truth @ truth) < 1.2


def test_a_refused_field_of_arrays_can_be_made_again(tmp_path):
    flux = np.random.default_rng(3).normal(100, 3, (3, 20, 24))
    config, path = Config(**CONFIG), tmp_path / "field"
    with pytest.raises(ValueError, match="neither MJD nor JD"):
        create_field_from_cube(path, flux, time=np.arange(3), config=config, client="synchronous")
    made = create_field_from_cube(path, flux, time=60000 + np.arange(3), config=config, client="synchronous")
    assert made.added == 3
    assert [file.name for file in (path / "input").iterdir()] == ["cube.fits"]
    np.testing.assert_allclose(Field.open(path).frames()["time"].values, 60000 + np.arange(3))
    before = (path / "input" / "cube.fits").read_bytes()
    with pytest.raises(FieldError, match="there is a field already"):
        create_field_from_cube(path, flux + 1, time=np.arange(3), config=config)
    assert (path / "input" / "cube.fits").read_bytes() == before


def test_a_cube_that_a_kill_cut_off_is_no_field(tmp_path, monkeypatch):
    def killed(path, *rest):
        path.write_bytes(b"SIMPLE")
        raise KeyboardInterrupt

    monkeypatch.setattr("survey.run.cubes.write_cube", killed)
    with pytest.raises(KeyboardInterrupt):
        create_field_from_cube(tmp_path / "field", np.ones((3, 4, 5)), time=np.arange(3))
    assert list((tmp_path / "field" / "input").iterdir()) == []


def test_a_field_of_arrays_is_made_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FieldError, match="s3://bucket/field: arrays are kept as a file beside the field"):
        create_field_from_cube("s3://bucket/field", np.ones((3, 4, 5)), time=np.arange(3))
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_fit(mock, tmp_path):
    with pytest.raises(ValueError, match="no times: give time = MJD"):
        create_field_from_cube(tmp_path / "a", mock.flux)
    with pytest.raises(ValueError, match=r"time has shape \(3,\), flux 80 planes"):
        create_field_from_cube(tmp_path / "b", mock.flux, time=np.arange(3))
    with pytest.raises(ValueError, match=r"error of shape \(4,\) does not fit flux"):
        create_field_from_cube(tmp_path / "c", mock.flux, np.ones(4), time=np.arange(80))
    (tmp_path / "d" / "cube.zarr" / "frames").mkdir(parents=True)
    with pytest.raises(FieldError, match="there is a field already"):
        create_field_from_cube(tmp_path / "d", mock.flux, time=np.arange(80))
