"""A candidate near which every sample is bad: only samples in its far tails are left."""

import numpy as np
import pytest

from survey.kernels._epsf import gaussian_epsf
from survey.kernels.candidates import EventFlag, exact_significance, measure_candidate

EPOCHS, SIDE = 60, 13


@pytest.mark.parametrize("good_from", [14, 18, 22, 26, 30])
@pytest.mark.parametrize("n_basis", [0, 2])
def test_it_has_no_significance_and_nothing_overflows(n_basis, good_from):
    """Tails of 3e-43 to 4e-196 of the maximum; warnings are errors."""
    rng = np.random.default_rng(1)
    shape = (EPOCHS, SIDE, SIDE)
    flux, error = rng.normal(size=shape), np.ones(shape)
    mask = np.zeros(shape, bool)
    mask[: 4 + good_from] = True
    place = {"y": 6, "x": 6, "t0": 4.0, "temporal_sigma": 1.0, "psf": gaussian_epsf(2.2)}
    phase_y, phase_x = rng.uniform(-0.5, 0.5, (2, EPOCHS))
    more = {"phase_y": phase_y, "phase_x": phase_x, "n_basis": n_basis}
    fit = exact_significance(flux, error, mask, **place, **more)
    assert (fit.snr, fit.amplitude, fit.amplitude_error) == (0.0, 0.0, 0.0)
    found = measure_candidate(flux, error, mask, **place, **more)
    assert (found.snr, found.amplitude, found.n_epochs) == (0.0, 0.0, 0)
    assert np.isnan(found.position_error)
    assert found.flags & EventFlag.EDGE
