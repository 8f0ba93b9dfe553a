"""A DECam frame of another night as the template of a field of DECam frames."""

import numpy as np
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.run.api import create_field
from survey.run.template import make_template

pytestmark = pytest.mark.real


def test_a_frame_of_another_night(real_data, tmp_path):
    config = Config(input={"duplicates": "content"})  # all headers carry one date
    create_field(
        tmp_path / "field", sorted((real_data / "decam").glob("DEC-OBS04*")), config, client="synchronous"
    )
    target = Field.open(tmp_path / "field")
    found = make_template(
        target.path, str(real_data / "decam" / "DEC-OBS18a.mini.fits"), "night", client="synchronous"
    )
    assert found.coverage > 0.99
    assert found.attrs["scale"] == pytest.approx(0.98, abs=0.06)
    assert np.hypot(*found.attrs["offset"]) < 1
    assert 3.0 < found.attrs["psf_fwhm"] < 4.0
    stack = make_template(target.path, "stack", client="synchronous")
    night, own = (np.asarray(target.array(f"template/{name}", "flux")[...]) for name in ("night", "stack"))
    assert stack.coverage > 0.95
    both = np.isfinite(night) & np.isfinite(own)
    star = both & (own > 20 * np.nanmedian(np.asarray(target.array("template/stack", "error")[...])))
    assert night[star].sum() / own[star].sum() == pytest.approx(1, abs=0.1)
