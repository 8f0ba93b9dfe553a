"""A K2 stamp through the whole run: from target pixels to events, the map of variables and the report."""

import numpy as np
import pytest

from survey.config import make_config
from survey.io.store import Field
from survey.report import write_report
from survey.run.api import run

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_stamp_without_five_clean_stars(real_data, tmp_path):
    """Campaign 9, first stack: the star in the middle varies; the rest stays near FLUX_ERR."""
    config = make_config(
        {
            "method": "cpm",
            "registration": {"mode": "none"},
            "calibrate": {"scale": "unit", "background": "none"},
            "cpm": {"exclusion": 3, "row_column_exclusion": 0, "block": 1},
            "psf": {"fwhm": 1.6},
        }
    )
    files = [next((real_data / "k2").glob("ktwo221312395-c91*"))]
    done = run(tmp_path / "field", config, frames=files, client="synchronous")
    assert done.ok, done.failures
    field = Field.open(tmp_path / "field")
    deviation = np.asarray(field.array("variability/cpm", "deviation")[...])
    y, x = np.unravel_index(np.argmax(deviation), deviation.shape)
    assert (y, x) in [(5, 5), (4, 6), (5, 6)]
    assert deviation[y, x] > 10 * np.median(deviation)
    difference = np.asarray(field.array("difference/cpm", "flux")[...])
    error = np.asarray(field.array("images/sky", "error")[...])
    scatter = np.median(1.4826 * np.median(np.abs(difference) / error, axis=0))
    assert scatter <= 2.1
    page = write_report(field.path, method="cpm").read_text()
    assert "Map of variables" in page
