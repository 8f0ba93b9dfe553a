"""The transit of HAT-P-32 on the differences of stage sfft, its template a stack of the sharpest frames.

Apertures on the differences, each in units of its frame's kernel sum, beside plain apertures of the same run.
Measured: 2.69 %, 5.4 mmag, plain 2.45 %, 5.0 mmag. By PSF fits (kernel * the template's PSF) it is 4.0 % and
30 mmag: what the kernel misses in a star's core weighs most, and the hot-pixel pattern is in it. With that
taken away by hand PSF fits reach 2.1 % and 4 mmag (every third frame).
"""

import logging

import numpy as np
import pytest

from survey.io.store import Field
from survey.run.api import create_field, run
from survey.run.results import light_curve
from survey.run.template import make_template
from survey.stages.stack import Choice
from tests.real.hatp32 import night_settings, transit

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3600)]
logger = logging.getLogger(__name__)
SHARPEST = 24


@pytest.fixture(scope="module")
def field(real_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("hatp32") / "field"
    config = night_settings(real_data)
    create_field(path, config.input.frames, config)
    make_template(path, "stack", "sharp", choice=Choice(count=SHARPEST))
    config.method, config.subtraction.template = "sfft", "sharp"
    summary = run(path, config)
    assert summary.ok, summary.failures
    return path


@pytest.fixture(scope="module")
def measured(field):
    """Depth and scatter on the differences, and in plain apertures."""
    table = light_curve(field, "sfft", ra=31.0427, dec=46.6878, relative=True)
    curve = {name: np.asarray(table[name], float) for name in table.colnames}
    found = transit(curve, "flux"), transit(curve, "aperture_flux")
    for name, (depth, scatter) in zip(("sfft", "apertures"), found, strict=True):
        logger.info("%s: depth %.2f %%, scatter %.1f mmag", name, 100 * depth, 1085.7 * scatter)
    return found


def test_transit_on_differences(measured):
    (depth, _), _ = measured
    assert abs(depth - 0.025) <= 0.004


@pytest.mark.xfail(raises=AssertionError, strict=True, reason="5.4 mmag, plain apertures 5.0")
def test_scatter_is_at_most_that_of_plain_apertures(measured):
    (_, scatter), (_, aperture_scatter) = measured
    assert scatter <= aperture_scatter


def test_every_usable_frame_has_a_kernel(field):
    target = Field.open(field)
    kernels = np.asarray(target.array("difference/sfft", "kernel")[...])
    usable = target.frames()["flags"].values == 0
    assert np.isfinite(kernels[usable]).all(axis=(1, 2, 3)).mean() > 0.95
