"""Positions on the sky of a field whose stored WCS has a distortion polynomial."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import survey
from survey.io._fits_header import wcs_text
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.run.api import run
from survey.run.results import light_curve, list_events
from survey.run.targets import TargetError, pixel_to_sky, sky_to_pixel
from tests.run.conftest import small_config


@pytest.fixture
def field():
    cards = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": 150.0, "CRVAL2": 20.0}
    cards |= {"CRPIX1": 500.5, "CRPIX2": 400.5, "CD1_1": -1e-3, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-3}
    cards |= {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-5, "B_0_2": 2e-5}
    text = wcs_text(WCS(fits.Header(cards)))
    return SimpleNamespace(attrs={"wcs": text}, path="field", shape=(800, 1000))


def test_a_target_lies_where_the_distortion_puts_it(field):
    """399.5 pixels right of the centre x moves by 2e-5 u^2 = 3.2 pixels before the linear part."""
    ra, dec = pixel_to_sky(field, [899.0], [399.5])
    u = 399.5 + 2e-5 * 399.5**2  # pixels from the centre on the tangent plane
    assert np.degrees(np.arctan(np.radians(1e-3 * u))) / np.cos(np.radians(20)) == pytest.approx(
        150.0 - ra[0], rel=1e-4
    )
    assert sky_to_pixel(field, ra[0], dec[0]) == pytest.approx((899.0, 399.5), abs=1e-4)


@pytest.mark.parametrize("place", [(330.0, -20.0), (100.0, 20.0)])
def test_a_position_that_does_not_project_is_an_error(field, place):
    with pytest.raises(TargetError, match="cannot be projected"):
        sky_to_pixel(field, *place)


def test_nobody_else_leaves_the_distortion_out():
    root = Path(survey.__file__).parent
    linear = re.compile(r"\.wcs_(world2pix|pix2world)")
    found = {str(p.relative_to(root)) for p in root.rglob("*.py") if linear.search(p.read_text())}
    assert found == {"io/sky_positions.py", "simulate/nn2_images.py"}


def test_magnitudes_stand_beside_the_fluxes_where_the_zero_point_is_known(finished):
    """PHOTZPT of the frames comes through the store; magnitudes are of reference and difference together."""
    assert Field.open(finished.path).attrs["zero_point"] == 27.615
    counts = np.zeros(2, int)
    for name in list_events(finished.path)["object_id"]:
        curve = light_curve(finished.path, event=str(name))
        total = curve.meta["reference_flux"] + np.asarray(curve["flux"])
        error = np.asarray(curve["error"])
        seen = total >= 3 * error
        np.testing.assert_allclose(curve["magnitude"][seen], 27.615 - 2.5 * np.log10(total[seen]))
        np.testing.assert_allclose(curve["magnitude_error"][seen], 1.0857362 * error[seen] / total[seen])
        assert np.isnan(curve["magnitude_limit"][seen]).all()
        faint = np.isfinite(total) & ~seen
        limit = np.maximum(total[faint], 0) + 3 * error[faint]
        np.testing.assert_allclose(curve["magnitude_limit"][faint], 27.615 - 2.5 * np.log10(limit))
        assert np.isnan(curve["magnitude"][faint]).all()
        counts += seen.sum(), faint.sum()
    assert counts.min() > 10, "both are seen: magnitudes and limits"


def test_targets_of_a_table_get_light_curves_in_the_run(finished, tmp_path):
    variable = finished.truth.truth[finished.truth.truth["kind"] != "microlensing"][0]
    table = tmp_path / "targets.csv"
    table.write_text(f"name,ra,dec\nvariable,{float(variable['ra'])!r},{float(variable['dec'])!r}\n")
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    config = small_config()
    config.photometry.targets = str(table)
    summary = run(path, config, client="synchronous")
    assert summary.ok, summary.failures
    assert set(summary.stages) == {"photometry"}
    rows = read_parquet(Field.open(path).light_curves_path("oversampled")).to_pylist()
    (row,) = (r for r in rows if r["object_id"] == "variable")
    assert row["kind"] == "target"
    assert len(rows) == summary.events + 1
    alone = light_curve(path, ra=variable["ra"], dec=variable["dec"])
    np.testing.assert_allclose(row["flux"], alone["flux"], rtol=1e-6)
    nearest = list_events(path)
    nearest = nearest[np.argmin(np.hypot(nearest["x"] - row["x"], nearest["y"] - row["y"]))]
    assert np.hypot(nearest["x"] - row["x"], nearest["y"] - row["y"]) < 0.5
    table.write_text("name,x,y\nfar,500,20\n")
    with pytest.raises(TargetError, match=r"far: pixel .* outside the field"):
        run(path, config, client="synchronous")
