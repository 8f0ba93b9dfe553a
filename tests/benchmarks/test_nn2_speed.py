"""Objects a second that NN2 solves on one core."""

import logging
import time

import numpy as np
import pytest

from survey.kernels.nn2 import solve_nn2

LOG = logging.getLogger(__name__)


@pytest.mark.benchmark
def test_nn2__forty_thousand_objects_a_second():
    rng = np.random.default_rng(0)
    n, objects = 16, 10_000
    flux = rng.normal(size=(objects, n))
    difference = flux[:, None, :] - flux[:, :, None] + rng.normal(size=(objects, n, n))
    error = np.sqrt(rng.uniform(0.5, 2, (objects, n, n)))
    solve_nn2(difference[:2], error[:2])
    seconds = []
    for _ in range(7):
        start = time.process_time()
        solution = solve_nn2(difference, error)
        total, partitioned = solution.total_error, solution.partitioned_error(0.5)
        seconds.append(time.process_time() - start)
    rate = objects / min(seconds)
    LOG.info("nn2: %.0f objects/s of CPU time at N = 16 with both errors and the covariance", rate)
    assert np.isfinite(total).all()
    assert np.isfinite(partitioned).all()
    assert rate >= 40_000
