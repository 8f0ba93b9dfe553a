"""Filters on the cutout around a candidate."""

import numpy as np
import pytest

from survey.kernels._event_fit import EventStamp

EPOCHS, SIDE = 30, 9


@pytest.mark.parametrize(("n_basis", "turned"), [(0, False), (2, False), (2, True)])
def test_filters_of_single_pixels_are_those_of_templates_without_the_others(n_basis, turned):
    """Also where every pixel has phases of its own."""
    rng = np.random.default_rng(3)
    shape = (EPOCHS, SIDE, SIDE)
    phases = rng.uniform(-0.5, 0.5, (2, *shape) if turned else (2, EPOCHS))
    stamp = EventStamp(
        rng.normal(size=shape), rng.uniform(0.5, 2.0, shape), rng.random(shape) < 0.1, *phases, 4, 2, 5,
        fit_mask=rng.random(shape) < 0.1, n_basis=n_basis,
    )  # fmt: skip
    template = rng.normal(size=stamp.flux.shape) * stamp.inside
    sums, covariance, response = stamp.pixels(template)
    every = np.argwhere(stamp.inside)
    assert len(sums) == len(every) == 25
    alone = np.zeros((len(every), *template.shape))
    for a, (j, i) in enumerate(every):
        alone[a, :, j, i] = template[:, j, i]
    expected, u = stamp.apply(alone)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)
    np.testing.assert_allclose(covariance, stamp.covariance(u), rtol=1e-12, atol=0)
    np.testing.assert_allclose(response, (u * template).sum((1, 2, 3)), rtol=1e-12)
