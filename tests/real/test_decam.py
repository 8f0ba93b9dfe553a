"""Stacks of two DECam epochs of one field, sparse and with correlated noise (issue 5, point 7)."""

import logging

import numpy as np
import pytest
import sep
from astropy.io import fits

from survey.kernels.sfft import subtract_sfft

LOG = logging.getLogger(__name__)
pytestmark = pytest.mark.real
# Electrons a count of one frame; frames of a stack.
GAIN, FRAMES = 4.0, 5
RADIUS = 5.0


def stack(folder, epoch):
    """Mean of five frames without cosmic rays, and its sky noise."""
    paths = sorted(folder.glob(f"DEC-OBS{epoch}*.fits"))
    if len(paths) != FRAMES:
        pytest.skip(f"the five DECam frames of epoch {epoch} are not in {folder}")
    frames = np.stack([fits.getdata(path).astype(float) for path in paths])
    middle = np.median(frames, axis=0)
    sky = 1.4826 * np.median(np.abs(frames - middle))
    limit = 4 * np.hypot(np.sqrt(sky**2 + np.maximum(middle, 0) / GAIN), 0.1 * np.maximum(middle, 0))
    kept = np.abs(frames - middle) < limit
    return (frames * kept).sum(0) / np.maximum(kept.sum(0), 1)


@pytest.mark.parametrize("size", [9, 11])
def test_what_is_left_of_bright_sources(real_data, size):
    """Net flux that remains of sources above 20 sigma; five bright stars fix one kernel for the field."""
    image, template = stack(real_data / "decam", "04"), stack(real_data / "decam", "18")
    gains = {"image_gain": GAIN * FRAMES, "template_gain": GAIN * FRAMES}
    s = subtract_sfft(
        image, template, kernel_shape=(size, size), kernel_poly_order=0, flux_poly_order=0,
        direction="template", **gains,
    )  # fmt: skip
    sky = sep.Background(image)
    found = sep.extract(image - sky.back(), 3 * sky.globalrms)
    inside = np.all([(found[c] > 14) & (found[c] < 241) for c in "xy"], axis=0)
    x, y = found["x"][inside], found["y"][inside]
    flux, error, _ = sep.sum_circle(
        image - sky.back(), x, y, RADIUS, err=sky.globalrms, gain=gains["image_gain"]
    )
    left, _, _ = sep.sum_circle(np.nan_to_num(s.difference), x, y, RADIUS)
    bright = flux > 20 * error
    share = np.abs(left / flux)[bright]
    LOG.info(
        "kernel %d: %d sources, median %.4f, of those above 100 sigma %.4f, kernel's sum %.3f", size,
        bright.sum(), np.median(share), np.median(share[(flux > 100 * error)[bright]]),
        s.kernel.flux_scale(128, 128),
    )  # fmt: skip
    assert bright.sum() >= 10
    assert abs(s.kernel.flux_scale(128, 128) - 1) < 0.03
    assert np.median(share) <= 0.035


def test_too_few_stars_are_said(real_data):
    image, template = stack(real_data / "decam", "04"), stack(real_data / "decam", "18")
    with pytest.raises(ValueError, match=r"misses bright stars by .* too few stars for these polynomials"):
        subtract_sfft(
            image, template, kernel_shape=(11, 11), kernel_poly_order=2, direction="template",
            image_gain=GAIN * FRAMES, template_gain=GAIN * FRAMES,
        )  # fmt: skip
