"""Time a pixel of the held-out prediction, ridge chosen and errors made, one thread (process CPU time).

Measured 0.30 and 1.30 ms/px with blocks of 16 on two cores shared by several busy processes; wanted were 0.6
and 2.0.
"""

import logging
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from survey.kernels.cpm import fit_cpm

pytestmark = pytest.mark.benchmark
LOG = logging.getLogger(__name__)


def milliseconds_a_pixel(shape, repeats, **kwargs):
    """Least of several repeats on series that share a few trends."""
    rng = np.random.default_rng(0)
    trends = np.cumsum(rng.normal(size=(shape[0], 6)), axis=0) / shape[0] ** 0.5
    flux = 1 + 0.05 * np.tensordot(trends, rng.normal(size=(6, *shape[1:])), axes=1)
    flux += 1e-3 * rng.normal(size=shape)
    error, mask = np.full(shape, 1e-3), np.zeros(shape, bool)
    times = []
    with threadpool_limits(1):
        for _ in range(repeats):
            start = time.process_time()
            fit = fit_cpm(flux, error, mask, n_predictors=400, folds=10, block=16, **kwargs)
            times.append(time.process_time() - start)
    assert np.isfinite(fit.residual).all()
    return 1e3 * min(times) / (shape[1] * shape[2])


@pytest.mark.parametrize(("shape", "limit"), [((1000, 80, 80), 0.6), ((3000, 64, 50), 2.0)])
def test_time_a_pixel(shape, limit):
    measured = milliseconds_a_pixel(shape, 2)
    given = milliseconds_a_pixel(shape, 2, ridge=1.0)
    LOG.info("%s: %.2f ms/px, %.2f with a given ridge", shape, measured, given)
    assert measured <= limit
