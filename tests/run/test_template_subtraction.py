"""A template made by `survey template` is what the method sfft subtracts, in it or not."""

import numpy as np
import pytest

from survey.io.store import Field
from survey.run.api import run, stored_config
from survey.run.template import make_template
from survey.stages.stack import Choice
from tests.run.test_template_surveys import field, stars  # noqa: F401  (fixtures)


def chi2(path, epochs):
    """Mean squared difference over error of some epochs: in the sky, and in the template's stars."""
    target = Field.open(path)
    flux, error, mask = (
        np.asarray(target.array("difference/sfft", name)[epochs]) for name in ("flux", "error", "mask")
    )
    star = np.nan_to_num(np.asarray(target.array("template/early", "flux")[...])) > 100
    scaled = np.where(mask, np.nan, flux / error) ** 2
    return float(np.nanmean(scaled[:, ~star])), float(np.nanmean(scaled[:, star]))


@pytest.mark.slow
def test_frames_outside_a_stack_have_differences_of_unit_variance(field):  # noqa: F811
    time = field.frames()["time"].values
    make_template(
        field.path, "stack", "early", choice=Choice(count=5, before=float(time[5])), client="synchronous"
    )
    config = stored_config(field.path)
    config.method, config.subtraction.template, config.psf.fwhm = "sfft", "early", 2.7
    assert run(field.path, config, client="synchronous").status == "done"
    later, own = chi2(field.path, slice(5, None)), chi2(field.path, slice(0, 5))
    assert later == pytest.approx((1, 1), abs=0.15)
    # a frame in its own template of five keeps (1 - h) of its noise, and is told (1 + h)
    assert own[0] == pytest.approx(0.8 / 1.2, abs=0.1)
