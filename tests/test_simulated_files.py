"""The simulator's files: headers, positions, seeds, truth tables, memory."""

import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from survey import simulate
from survey.simulate import (
    SceneSettings,
    expose,
    make_scene,
    simulate_field,
    true_light_curve,
)


@pytest.fixture(scope="module")
def small_field(tmp_path_factory):
    directory = tmp_path_factory.mktemp("field")
    return simulate_field(directory, size=(72, 64), frames=6, seed=4, events=3, variables=2, rotation=0.2)


def test_frame_says_how_it_was_taken(small_field):
    assert [p.name for p in small_field.paths] == [f"frame_{k:05d}.fits" for k in range(6)]
    with fits.open(small_field.paths[2]) as hdus:
        assert [h.name for h in hdus[1:]] == ["SCI", "ERR", "DQ"]
        assert [h.data.dtype.str for h in hdus[1:]] == [">f4", ">f4", ">i4"]
        assert hdus["SCI"].data.shape == (72, 64)
        for header in (hdus[0].header, hdus["SCI"].header):
            assert header["MJD-OBS"] + header["EXPTIME"] / 172800 == pytest.approx(
                small_field.time[2], abs=1e-9
            )
            assert (header["FILTER"], header["DETECTOR"]) == ("F146", "SIM01")
            assert (header["RDNOISE"], header["SATURATE"], header["PHOTZPT"]) == (12.0, 2900.0, 27.615)
        flux, error, dq = (hdus[name].data.astype(float) for name in ("SCI", "ERR", "DQ"))
        electrons = np.maximum(flux * hdus["SCI"].header["GAIN"], 0)
        expected = np.sqrt(electrons + 12.0**2) / hdus["SCI"].header["GAIN"]
        good = (dq == 0) & (flux > 0)
        np.testing.assert_allclose(error[good], expected[good], rtol=1e-5)


def test_sources_land_where_the_header_says(tmp_path):
    field = simulate_field(
        tmp_path,
        size=80,
        frames=4,
        events=0,
        variables=4,
        rotation=0.5,
        density=0.0,
        background=0.0,
        psf_fwhm=2.0,
    )
    for k, path in enumerate(field.paths):
        image = field.scene.noiseless(k)
        wcs = WCS(fits.getheader(path, "SCI"))
        xs, ys = wcs.all_world2pix(field.truth["ra"], field.truth["dec"], 0)
        if k == 0:
            np.testing.assert_allclose(xs, field.truth["x"], atol=1e-6)
            np.testing.assert_allclose(ys, field.truth["y"], atol=1e-6)
        for x, y in zip(xs, ys, strict=True):
            rows, columns = round(y) + np.arange(-5, 6), round(x) + np.arange(-5, 6)
            stamp = image[np.ix_(rows, columns)]
            assert np.sum(stamp * rows[:, None]) / stamp.sum() == pytest.approx(y, abs=0.01)
            assert np.sum(stamp * columns) / stamp.sum() == pytest.approx(x, abs=0.01)


def test_wcs_error_moves_the_header_alone():
    exact, off = (
        make_scene((64, 64), 4, seed=1, settings=SceneSettings(wcs_error=error)) for error in (0.0, 0.3)
    )
    np.testing.assert_array_equal(exact.noiseless(2), off.noiseless(2))
    shift = [
        simulate.frame_wcs_header(off, k)["CRPIX1"] - simulate.frame_wcs_header(exact, k)["CRPIX1"]
        for k in range(60)
    ]
    assert shift[0] == 0
    assert np.std(shift[1:]) == pytest.approx(0.3, rel=0.4)


def test_same_seed_writes_the_same_bytes(tmp_path):
    options = {"size": 40, "frames": 3, "events": 1, "variables": 1, "cosmic_rays": 1e-3}
    first = simulate_field(tmp_path / "a", **options)
    second = simulate_field(tmp_path / "b", threads=2, **options)
    other = simulate_field(tmp_path / "c", seed=2, **options)
    for a, b, c in zip(first.paths, second.paths, other.paths, strict=True):
        assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    assert (tmp_path / "a/truth.ecsv").read_text() == (tmp_path / "b/truth.ecsv").read_text()


def test_truth_table_gives_back_the_light_curves(small_field):
    truth = Table.read(small_field.directory / "truth.ecsv")
    assert list(truth["kind"]) == ["microlensing"] * 3 + ["sinusoid", "rrlyrae"]
    assert truth.meta["zero_point"] == 27.615
    for i, row in enumerate(truth):
        np.testing.assert_allclose(
            true_light_curve(row, small_field.time), small_field.light_curve(i), rtol=1e-12
        )


def test_frames_in_the_way_are_not_overwritten_unasked(tmp_path):
    options = {"size": 32, "events": 0, "variables": 0}
    simulate_field(tmp_path, frames=3, **options)
    with pytest.raises(FileExistsError, match="already holds 3 frames"):
        simulate_field(tmp_path, frames=2, **options)
    seen = []
    simulate_field(
        tmp_path, frames=2, overwrite=True, progress=lambda n, total: seen.append((n, total)), **options
    )
    assert seen == [(1, 2), (2, 2)]
    assert len(list(tmp_path.iterdir())) == 3


def test_only_one_frame_is_in_memory(tmp_path):
    frame = 256 * 256 * 8
    scene = make_scene((256, 256), 8, seed=1, settings=SceneSettings())
    expose(scene, 0)
    tracemalloc.start()
    simulate_field(tmp_path, size=256, frames=8, events=0, variables=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Noiseless image in double precision, three planes of 4 bytes, FITS buffers, the catalogue.
    assert peak < 6 * frame
