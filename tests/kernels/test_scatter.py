"""Excess scatter: measured where it is, not where an event or bad data are."""

import numpy as np
import pytest

from survey.kernels.scatter import excess_scatter


def test_excess_is_measured_and_events_hardly_count():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 40, 40))
    z[:, :10] *= 3.0
    z[80:90, 20:30] += 50.0
    factor = excess_scatter(z * 7, np.full(z.shape, 7.0), np.zeros(z.shape, bool))
    assert np.median(factor[:10]) == pytest.approx(3.0, rel=0.05)
    assert np.median(factor[30:]) == 1.0
    assert np.median(factor[20:30]) < 1.3


def test_bad_samples_do_not_count():
    z = np.ones((30, 4, 4))
    mask = np.zeros(z.shape, bool)
    z[:5], mask[:5] = 1e9, True
    z[5:8] = np.nan
    mask[:, 2, 2] = True
    assert (excess_scatter(z, np.ones_like(z), mask) == 1).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="is meant"):
        excess_scatter(np.zeros((3, 4, 4)), np.zeros((3, 4, 4)), np.zeros((4, 4), bool))
