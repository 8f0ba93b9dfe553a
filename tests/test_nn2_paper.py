"""The simulation of Barris et al. 2005: Tables 1 and 2, and single templates from the same matrix."""

import logging

import numpy as np
import pytest
from numpy.testing import assert_allclose

from survey.kernels.nn2 import solve_nn2
from survey.kernels.nn2_templates import compare_templates, light_curve_rms, single_template
from survey.simulate.nn2 import (
    N_OBJECTS,
    PAPER_KS,
    PAPER_KS_ALL,
    PAPER_KS_BINS,
    PAPER_NN2_RMS,
    PAPER_RATIO,
    PAPER_RMS,
    ramp,
    simulate_nn2,
)

LOG = logging.getLogger(__name__)


def solve(seed, n_objects=N_OBJECTS, gauge="zero-sum"):
    pairs = simulate_nn2(n_objects, seed)
    solution = solve_nn2(pairs.difference, pairs.error, gauge=gauge)
    return pairs, solution, compare_templates(solution.flux, pairs.difference, pairs.error, pairs.flux)


@pytest.fixture(scope="module")
def paper():
    return solve(0)


def test_single_template__is_a_row_of_the_matrix_and_uses_reverse_pairs():
    flux = np.array([1.0, 4.0, -5.0, 0.5])
    d = flux - flux[:, None]
    upper = np.where(np.triu(np.ones((4, 4), bool), 1), d, np.nan)
    for matrix in (d, upper):
        curves, errors = single_template(matrix, np.full((4, 4), 0.2))
        assert_allclose(curves, d)
        assert_allclose(errors, 0.2 * (1 - np.eye(4)))
    one, _ = single_template(upper, np.ones((4, 4)), 2)
    assert_allclose(one, d[2])
    upper[0, 3] = np.nan
    assert np.isnan(single_template(upper, np.ones((4, 4)), 3)[0][0])
    with pytest.raises(ValueError, match=r"must be \(..., N, N\)"):
        single_template(np.zeros((2, 3)), np.ones((2, 3)))


def test_light_curve_rms__takes_the_offset_out():
    truth = np.arange(4.0)
    assert_allclose(light_curve_rms(truth + 7, truth), 0, atol=1e-15)
    assert_allclose(light_curve_rms([1.0, -1.0, np.nan, 1.0, -1.0]), 1)
    assert np.isnan(light_curve_rms([np.nan, np.nan]))


def test_ramp__is_straight_and_ends():
    flux = ramp(np.array([0.0, 20, 40, 60, 80, 90]), np.array([40.0]), np.array([2.0]), 40)
    assert_allclose(flux[0], [0, 1, 2, 1, 0, 0])


def test_paper__table_1(paper):
    _, _, table = paper
    nn2 = np.median(table.nn2_rms)
    LOG.info("median RMS: NN2 %.3f (paper %.3f), templates %s", nn2, PAPER_NN2_RMS, table.median_rms.round(3))
    assert nn2 < np.median(table.template_rms)
    assert np.sum(nn2 < table.median_rms) >= 15
    assert_allclose(nn2, PAPER_NN2_RMS, atol=0.02)
    assert_allclose(table.ratio, PAPER_RATIO, atol=0.03)
    # All but the clouded observation 4, which the mix makes 10 % too good.
    assert_allclose(np.delete(table.median_rms, 3), np.delete(PAPER_RMS, 3), atol=0.04)
    assert np.all(table.better > 0.5)


def test_paper__table_2(paper):
    pairs, _, table = paper
    pooled = table.kolmogorov_smirnov()
    single = np.array([table.kolmogorov_smirnov(k) for k in range(16)])
    for k in range(16):
        LOG.info("observation %d: K-S %.4f, paper %.4f", k + 1, single[k, 0], PAPER_KS[k, 0])
    assert_allclose(pooled[0], PAPER_KS_ALL[0], atol=0.02)
    assert pooled[1] < 1e-4
    assert_allclose(np.median(single[:, 0] / PAPER_KS[:, 0]), 1, atol=0.35)
    # Observation 4 is different beyond doubt, 11 too, and these two only.
    assert single[3, 1] < 1e-30
    assert single[10, 1] < 1e-10
    assert np.argsort(single[:, 0])[-2:].tolist() == [10, 3]
    order, start = np.argsort(pairs.magnitude), 0
    for size, statistic, _ in PAPER_KS_BINS:
        found = table.kolmogorov_smirnov(objects=order[start : start + size])
        LOG.info("%d objects: K-S %.4f (%.1e), paper %.4f", size, *found, statistic)
        assert found[1] < 0.1
        start += size


def test_paper__errors_hold_in_the_weighted_gauge():
    pairs, solution, _ = solve(1, gauge="weighted")
    weight = 1 / (pairs.error**2 + np.where(np.eye(16), np.inf, 0))
    weight = weight.sum(1) / weight.sum((1, 2))[:, None]
    residual = solution.flux - pairs.flux + np.sum(weight * pairs.flux, axis=1, keepdims=True)
    partitioned = residual / solution.partitioned_error(solution.pooled_ratio())
    total = residual / solution.total_error
    LOG.info("pull widths: partitioned %.3f, paper's recipe %.3f", partitioned.std(), total.std())
    assert_allclose(partitioned.std(), 1, atol=0.06)
    assert_allclose(total.std(), 1, atol=0.1)


def test_comparison__rows_are_the_table(paper):
    _, _, table = paper
    rows = table.rows()
    assert [row["template"] for row in rows] == list(range(16))
    assert rows[3]["ks_statistic"] == table.kolmogorov_smirnov(3)[0]
    assert rows[10]["ratio"] == table.ratio[10]
    with pytest.raises(ValueError, match="needed"):
        compare_templates(np.zeros(3), np.zeros((3, 3)), np.ones((3, 3)))


@pytest.mark.slow
def test_paper__every_seed_of_twenty():
    ratios = []
    for seed in range(20):
        _, _, table = solve(seed)
        assert np.median(table.nn2_rms) < np.median(table.template_rms)
        assert np.sum(np.median(table.nn2_rms) < table.median_rms) >= 15
        ratios.append(table.ratio)
    off = np.mean(ratios, axis=0) - PAPER_RATIO
    LOG.info(
        "mean ratio less the paper's: %s; worst seed %.3f", off.round(3), np.abs(ratios - PAPER_RATIO).max()
    )
    assert np.all(np.abs(off) < 0.03)
