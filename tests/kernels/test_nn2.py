"""NN2 against exact pairs, invariances, its noise statistics and its gauges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from survey.kernels.nn2 import pooled_subtraction_error, solve_nn2


def pairs_of(flux):
    """difference[..., i, j] = V_j - V_i."""
    return flux[..., None, :] - flux[..., :, None]


def noisy_pairs(rng, n_objects, n, image_error=0.0, pair_error=1.0):
    """Fluxes, antisymmetric differences and errors E for images with own and pair noise."""
    e = image_error * rng.uniform(0.5, 2.0, n)
    s = pair_error * rng.uniform(0.5, 2.0, (n, n))
    s = np.triu(s, 1) + np.triu(s, 1).T
    flux = rng.normal(0, 10, (n_objects, n))
    seen = flux + e * rng.normal(size=(n_objects, n))
    noise = np.triu(s * rng.normal(size=(n_objects, n, n)), 1)
    difference = pairs_of(seen) + noise - noise.transpose(0, 2, 1)
    return flux, difference, np.sqrt(e[:, None] ** 2 + e**2 + s**2 + np.eye(n)), e


def test_nn2__exact_on_noise_free_pairs():
    rng = np.random.default_rng(1)
    flux = rng.normal(100, 30, (5, 16))
    error = rng.uniform(0.1, 3.0, (16, 16))
    s = solve_nn2(pairs_of(flux), error)
    assert_allclose(s.flux, flux - flux.mean(-1, keepdims=True), atol=1e-10)
    assert_allclose(s.flux.sum(-1), 0, atol=1e-9)
    assert np.all(s.chi2 < 1e-18)
    assert np.all(s.dof == 15 * 14 // 2)
    assert s.connected.all()


def test_nn2__solves_the_paper_normal_equations():
    rng = np.random.default_rng(2)
    _, d, e, _ = noisy_pairs(rng, 1, 9)
    d, w = d[0], 1 / e**2
    np.fill_diagonal(w, 0)
    gbar = w.sum() / (9 * 8)
    c = -w + gbar
    np.fill_diagonal(c, w.sum(1) + gbar)
    s = solve_nn2(d, e)
    assert_allclose(s.flux, np.linalg.solve(c, (w * d).sum(0)), atol=1e-10)
    assert_allclose(s.covariance, np.linalg.inv(c), rtol=1e-9, atol=1e-13)
    chi2 = np.sum(np.triu(w * (d - pairs_of(s.flux)) ** 2))
    assert_allclose(s.chi2, chi2, rtol=1e-9)
    assert_allclose(s.internal_error, np.sqrt(np.diag(np.linalg.inv(c)) * chi2 / s.dof), rtol=1e-9)
    m = w**2 + np.diag((w**2).sum(1))
    external = np.linalg.solve(m, w.sum(1))
    assert np.all(external > 0)
    assert_allclose(s.external_error**2, external, rtol=1e-6)
    assert_allclose(s.total_error**2, external + s.internal_error**2, rtol=1e-6)


def test_nn2__paper_errors_from_exact_pair_variances():
    e = np.array([0.5, 1.0, 2.0, 4.0, 0.1])
    s = solve_nn2(pairs_of(np.zeros(5)), np.sqrt(e[:, None] ** 2 + e**2))
    assert_allclose(s.external_error, e, rtol=1e-6)
    assert_allclose(s.internal_error, 0, atol=1e-12)
    assert_allclose(s.total_error, e, rtol=1e-6)


def test_nn2__negative_variance_is_floored():
    error = np.array([[1, 1, 1], [1, 1, 2], [1, 2, 1.0]])  # e_0^2 = (1 + 1 - 4)/2 = -1
    s = solve_nn2(pairs_of(np.arange(3.0)), error)
    assert_allclose(s.external_error[0], 0.01, rtol=1e-6)
    assert np.all(s.external_error > 0)


def test_nn2__two_epochs_share_their_pair_variance():
    s = solve_nn2([[np.nan, 3.0], [np.nan, np.nan]], np.full((2, 2), np.sqrt(2.0)))
    assert_allclose(s.flux, [-1.5, 1.5])
    assert_allclose(s.external_error, 1.0, rtol=1e-6)
    assert s.dof == 0
    assert_allclose(s.internal_error, 0)


@pytest.mark.parametrize("gauge", ["zero-sum", "weighted", "baseline"])
def test_nn2__chi2_and_pulls_on_pair_noise(gauge):
    flux, d, e, _ = noisy_pairs(np.random.default_rng(3), 2000, 8)
    s = solve_nn2(d, e, gauge=gauge, baseline=[0, 3])
    ratio = s.chi2.sum() / s.dof.sum()
    assert abs(ratio - 1) < 5 * np.sqrt(2 / s.dof.sum())
    constant = {"zero-sum": flux.mean(-1), "baseline": flux[:, [0, 3]].mean(-1)}.get(gauge)
    if constant is None:
        weight = (1 / e**2 * (1 - np.eye(8))).sum(0)
        constant = flux @ weight / weight.sum()
    residual = s.flux - flux + constant[:, None]
    scatter = np.cov(residual.T)
    expected = s.covariance[0].copy()
    if gauge == "zero-sum":  # the paper's C^-1 also holds the gauge term's own 1/(N^2 g)
        centre = np.eye(8) - 1 / 8
        expected = centre @ expected @ centre
    assert_allclose(scatter, expected, atol=6 * expected.max() / np.sqrt(2000))


def test_nn2__partitioned_errors_match_the_scatter_at_any_mix():
    for image_error, pair_error in [(1.0, 1e-3), (1.0, 0.5), (1.0, 1.0)]:
        flux, d, e, _ = noisy_pairs(np.random.default_rng(4), 1500, 16, image_error, pair_error)
        s = solve_nn2(d, e)
        c = s.chi2.sum() / s.dof.sum()
        pull = (s.flux - flux + flux.mean(-1, keepdims=True)) / s.partitioned_error(c)
        assert 0.9 < pull.std() < 1.05


def test_nn2__scale_and_offset_free():
    rng = np.random.default_rng(5)
    flux, d, e, _ = noisy_pairs(rng, 4, 10, 0.5)
    one = solve_nn2(d, e)
    tiny = solve_nn2(1e-12 * pairs_of(flux * 0 + 7) + 1e-12 * d, 1e-12 * e)
    assert_allclose(tiny.flux, 1e-12 * one.flux, rtol=1e-12)
    assert_allclose(tiny.total_error, 1e-12 * one.total_error, rtol=1e-9)
    assert_allclose(tiny.chi2, one.chi2, rtol=1e-10)


def test_nn2__order_of_epochs_does_not_matter():
    _, d, e, _ = noisy_pairs(np.random.default_rng(6), 3, 7, 0.5)
    p = np.random.default_rng(7).permutation(7)
    a, b = solve_nn2(d, e), solve_nn2(d[:, p][:, :, p], e[p][:, p])
    assert_allclose(b.flux, a.flux[:, p], atol=1e-11)
    assert_allclose(b.total_error, a.total_error[:, p], rtol=1e-9)


def test_nn2__half_of_the_matrix_is_enough_and_reverse_is_averaged():
    _, d, e, _ = noisy_pairs(np.random.default_rng(8), 1, 6)
    upper = np.where(np.triu(np.ones((6, 6), bool), 1), d[0], np.nan)
    assert_allclose(solve_nn2(upper, e).flux, solve_nn2(d[0], e).flux, atol=1e-12)
    both = d[0].copy()
    both[2, 4] += 0.3
    both[4, 2] += 0.3  # (A_ij - A_ji)/2 cancels a common offset
    assert_allclose(solve_nn2(both, e).flux, solve_nn2(d[0], e).flux, atol=1e-12)


def test_nn2__missing_pairs_keep_the_solution_exact():
    rng = np.random.default_rng(9)
    flux = rng.normal(size=12)
    d = pairs_of(flux)
    d[rng.random((12, 12)) < 0.6] = np.nan
    s = solve_nn2(d, np.ones((12, 12)))
    assert s.connected
    assert_allclose(s.flux, flux - flux.mean(), atol=1e-10)


def test_nn2__disconnected_epochs_are_nan():
    flux = np.arange(6.0)
    d = pairs_of(flux)
    d[:2, 2:] = d[2:, :2] = np.nan
    s = solve_nn2(d, np.ones((6, 6)))
    assert not s.connected
    assert np.isnan(s.flux[:2]).all()
    assert np.isnan(s.external_error[:2]).all()
    assert_allclose(s.flux[2:], flux[2:] - flux[2:].mean(), atol=1e-12)
    at_baseline = solve_nn2(d, np.ones((6, 6)), gauge="baseline", baseline=[0])
    assert_allclose(at_baseline.flux[:2], [0, 1], atol=1e-12)
    assert np.isnan(at_baseline.flux[2:]).all()
    assert np.isnan(solve_nn2(np.full((3, 3), np.nan), np.ones((3, 3))).flux).all()


def test_nn2__weighted_gauge_protects_from_a_bad_epoch():
    d = pairs_of(np.array([0.0, 0, 0, 0, 500.0]))
    e = np.ones((5, 5))
    e[4], e[:, 4] = 100.0, 100.0
    zero_sum, weighted = (solve_nn2(d, e, gauge=g).flux for g in ("zero-sum", "weighted"))
    assert_allclose(zero_sum[:4], -100)
    assert np.all(np.abs(weighted[:4]) < 0.05)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 12),
    seed=st.integers(0, 10_000),
    missing=st.floats(0, 0.9),
    scale=st.floats(-12, 12),
    gauge=st.sampled_from(["zero-sum", "weighted", "baseline"]),
)
def test_nn2__any_connected_pairs_give_exact_fluxes_in_any_unit(n, seed, missing, scale, gauge):
    rng = np.random.default_rng(seed)
    flux, unit = rng.normal(size=n), 10.0**scale
    d = pairs_of(flux)
    lost = rng.random((n, n)) < missing
    path = rng.permutation(n)
    lost[path[:-1], path[1:]] = False  # a path through all epochs keeps them tied together
    d[lost] = np.nan
    e = 10 ** rng.uniform(-1.5, 1.5, (n, n))
    s = solve_nn2(unit * d, unit * e, gauge=gauge, baseline=[0])
    assert s.connected
    error = s.partitioned_error(0.5) / unit
    assert_allclose(s.flux / unit - s.flux[0] / unit, flux - flux[0], atol=1e-7)
    assert np.all(s.external_error > 0)
    assert np.all(np.isfinite(error))
    assert_allclose(s.covariance, s.covariance.T, rtol=1e-9, atol=1e-12 * np.abs(s.covariance).max())
    assert np.linalg.eigvalsh(s.covariance / np.trace(s.covariance)).min() > -1e-10
    assert_allclose(solve_nn2(d, e, gauge=gauge, baseline=[0]).partitioned_error(0.5), error, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 10), seed=st.integers(0, 10_000))
def test_nn2__a_batch_is_its_objects(n, seed):
    rng = np.random.default_rng(seed)
    d, e = rng.normal(size=(2, 3, n, n)), rng.uniform(0.1, 3, (2, 3, n, n))
    d[rng.random(d.shape) < 0.4] = np.nan
    batch = solve_nn2(d, e)
    for k in np.ndindex(2, 3):
        alone = solve_nn2(d[k], e[k])
        for name in ("flux", "covariance", "external_error", "internal_error", "chi2", "dof", "connected"):
            assert_allclose(getattr(batch, name)[k], getattr(alone, name), rtol=0, atol=0)


def test_nn2__internal_weights_are_exact_where_images_share_all_noise():
    rng = np.random.default_rng(10)
    e, s = rng.uniform(0.5, 5, 7), rng.uniform(0.1, 1, (7, 7))
    s = np.sqrt((s**2 + s.T**2) / 2)
    solution = solve_nn2(
        pairs_of(rng.normal(size=7)), np.sqrt(e[:, None] ** 2 + e**2 + s**2), subtraction_error=s
    )
    assert solution.separate
    assert_allclose(solution.external_error, e, rtol=1e-6)
    laplacian = np.diag((1 / s**2).sum(1) - 1 / np.diag(s) ** 2) - (1 / s**2) * (1 - np.eye(7))
    centre = np.eye(7) - 1 / 7
    assert_allclose(centre @ solution.covariance @ centre, np.linalg.pinv(laplacian), atol=1e-9)


def test_nn2__internal_weights_lower_the_scatter_and_their_errors_hold():
    # One epoch's photons are poor, but its subtractions are as good as any; another's subtractions are bad.
    rng = np.random.default_rng(11)
    n, e, s = 12, np.full(12, 0.3), np.full((12, 12), 0.5)
    e[2] = 5.0
    s[4], s[:, 4] = 4.0, 4.0
    flux = np.zeros((1500, n))
    noise = np.triu(s * rng.normal(size=(1500, n, n)), 1)
    d = pairs_of(flux + e * rng.normal(size=flux.shape)) + noise - noise.transpose(0, 2, 1)
    pair_error = np.sqrt(e[:, None] ** 2 + e**2 + s**2)
    by_pair = solve_nn2(d, pair_error)
    pooled = pooled_subtraction_error(d, np.broadcast_to(pair_error, d.shape), by_pair)
    for _ in range(3):
        inner = solve_nn2(d, pair_error, subtraction_error=pooled)
        pooled = pooled_subtraction_error(d, pooled, inner)
    off = ~np.eye(n, dtype=bool)
    assert_allclose(np.median(pooled[0][off] / s[off]), 1, atol=0.03)
    inner = solve_nn2(d, pair_error, subtraction_error=pooled)
    good = np.arange(n) != 2
    scatter = [(v.flux - v.flux[:, good].mean(1, keepdims=True))[:, 2].std() for v in (by_pair, inner)]
    assert scatter[1] < scatter[0]
    assert 0.97 < inner.pooled_ratio() < 1.03
    pull = (inner.flux - inner.flux[:, good].mean(1, keepdims=True)) / inner.partitioned_error(1.0)
    assert_allclose(pull.std(0), 1, atol=0.08)


def test_nn2__pooled_ratio_needs_pairs_left_over():
    assert np.isnan(solve_nn2([[np.nan, 1.0], [-1.0, np.nan]], np.ones((2, 2))).pooled_ratio())


def test_nn2__errors_are_clear():
    with pytest.raises(ValueError, match="unknown gauge 'mean'"):
        solve_nn2(np.zeros((3, 3)), np.ones((3, 3)), gauge="mean")
    with pytest.raises(ValueError, match="at least one epoch in baseline"):
        solve_nn2(np.zeros((3, 3)), np.ones((3, 3)), gauge="baseline")
    with pytest.raises(ValueError, match=r"must be \(..., N, N\)"):
        solve_nn2(np.zeros((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"baseline \[7\] does not fit 3 epochs"):
        solve_nn2(np.zeros((3, 3)), np.ones((3, 3)), gauge="baseline", baseline=[7])
    with pytest.raises(ValueError, match=r"do not broadcast .* \(3, 3\), \(4, 4\)"):
        solve_nn2(np.zeros((3, 3)), np.ones((4, 4)))
    with pytest.raises(ValueError, match="a batch"):
        pooled_subtraction_error(
            np.zeros((3, 3)), np.ones((3, 3)), solve_nn2(np.zeros((3, 3)), np.ones((3, 3)))
        )
