"""CPM against direct solves, brute-force refits, and a mock drifting field."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import erf

from survey.kernels._cpm_folds import held_out_squares
from survey.kernels._held_out import fill_missing, held_out, in_sample
from survey.kernels._predictors import (
    Neighbourhood,
    allowed_predictors,
    choose_predictors,
    fitting_exclusion,
)
from survey.kernels._ridge import residual_matrix
from survey.kernels.cpm import fit_and_score, fit_cpm, ridge_scores, solve_cpm


def direct_ridge(x, y, ridge, error, train, constant):
    """Normal equations written down as they stand."""
    z = np.column_stack([x, np.ones(len(x))]) if constant else x
    penalty = ridge * np.eye(z.shape[1])
    if constant:
        penalty[-1, -1] = 0
    w = train / error**2
    return np.linalg.solve(z.T @ (w[:, None] * z) + penalty, z.T @ (w * y)), z


@pytest.mark.parametrize("shape", [(50, 8), (30, 70)])
@pytest.mark.parametrize("constant", [True, False])
def test_solve_cpm__equals_direct_solve(shape, constant):
    rng = np.random.default_rng(1)
    x = rng.normal(5, 1, shape)
    y, error = rng.normal(size=shape[0]), rng.uniform(0.5, 2, shape[0])
    train = rng.random(shape[0]) < 0.8
    s = solve_cpm(x, y, ridge=0.7, error=error, train=train, constant=constant)
    a, z = direct_ridge(x, y, 0.7, error, train, constant)
    n = shape[1]
    assert_allclose(s.coefficients, a[:n], rtol=1e-9, atol=1e-9)
    assert_allclose(s.constant, a[n] if constant else 0, rtol=1e-9, atol=1e-9)
    assert_allclose(s.prediction, z @ a, rtol=1e-9, atol=1e-9)
    assert_allclose(s.residual, y - z @ a, rtol=1e-9, atol=1e-9)


def test_solve_cpm__ignores_bad_epochs():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    clean = solve_cpm(x[5:], y[5:], ridge=0.1)
    y[:5] = np.nan
    assert_allclose(solve_cpm(x, y, ridge=0.1).coefficients, clean.coefficients, atol=1e-12)


def test_solve_cpm__errors_are_clear():
    with pytest.raises(ValueError, match=r"predictors must be \(time, n\)"):
        solve_cpm(np.zeros((3, 2)), np.zeros(4), ridge=1)
    with pytest.raises(ValueError, match="ridge must be >= 0, not -1"):
        solve_cpm(np.zeros((3, 2)), np.zeros(3), ridge=-1)
    with pytest.raises(ValueError, match="no epoch is left"):
        solve_cpm(np.zeros((3, 2)), np.zeros(3), ridge=1, train=np.zeros(3, bool))


def refit(z, y, ridge, n_free, train):
    """Inverse normal matrix and coefficients of a fit to some rows, the last columns not penalised."""
    penalty = ridge * np.diag(np.repeat([1.0, 0.0], [z.shape[1] - n_free, n_free]))
    inverse = np.linalg.inv(z[train].T @ z[train] + penalty)
    return inverse, inverse @ z[train].T @ y[train]


# Fewer predictors than rows, more, and folds longer than there are predictors.
@pytest.mark.parametrize("shape", [(60, 14), (40, 90), (120, 6)])
@pytest.mark.parametrize("order", [0, 2])
def test_held_out__equals_refits(shape, order):
    """Residuals of a fold, with and without missing samples, are those of a fit that never saw it."""
    rng = np.random.default_rng(3)
    x = rng.normal(1, 1, shape)
    weight = rng.uniform(0.5, 1, shape[0])
    free = weight[:, None] * np.vander(np.linspace(-1, 1, shape[0]), order + 1)
    y = rng.normal(size=(shape[0], 3))
    missing = np.zeros(y.shape, bool)
    missing[[2, 7, 30], 1] = True
    missing[5:25, 2] = True
    r = residual_matrix(x.T, free, 2.0)
    folds = np.array_split(np.arange(shape[0]), 5)
    residual, variance = held_out(r, r.fit(y).residual, missing, folds)
    z = np.column_stack([x, free])
    for fold in folds:
        for j in range(3):
            train = ~missing[:, j]
            train[fold] = False
            inverse, a = refit(z, y[:, j], 2.0, order + 1, train)
            assert_allclose(residual[fold, j], y[fold, j] - z[fold] @ a, atol=1e-9)
            weights = z[fold] @ inverse @ z[train].T
            assert_allclose(variance[fold, j], 1 + (weights**2).sum(1), rtol=1e-8)


@pytest.mark.parametrize("shape", [(60, 14), (40, 90)])
def test_missing_rows_leave_the_fit_and_dropped_predictors_too(shape):
    rng = np.random.default_rng(8)
    x, y, free = rng.normal(1, 1, shape), rng.normal(size=(shape[0], 2)), np.ones((shape[0], 1))
    missing = np.zeros(y.shape, bool)
    missing[4:9, 1] = True
    r = residual_matrix(x.T, free, 2.0)
    fitted = r.fit(fill_missing(r, y, missing))
    z = np.column_stack([x, free])
    for j in range(2):
        _, a = refit(z, y[:, j], 2.0, 1, ~missing[:, j])
        assert_allclose(fitted.coefficients[:, j], a[:-1], atol=1e-9)
        assert_allclose(fitted.free[0, j], a[-1], atol=1e-9)
    inverse, _ = refit(z, y[:, 0], 2.0, 1, np.ones(shape[0], bool))
    assert_allclose(r.inverse_columns(np.array([1, 5])), inverse[:-1, [1, 5]], atol=1e-9)


def test_in_sample__is_the_plain_residual():
    rng = np.random.default_rng(9)
    x, y, free = rng.normal(size=(50, 7)), rng.normal(size=(50, 2)), np.ones((50, 1))
    r = residual_matrix(x.T, free, 3.0)
    residual, variance, leverage = in_sample(r, r.fit(y).residual, np.array_split(np.arange(50), 4))
    z = np.column_stack([x, free])
    inverse, a = refit(z, y, 3.0, 1, np.ones(50, bool))
    matrix = np.eye(50) - z @ inverse @ z.T
    assert_allclose(residual, y - z @ a, atol=1e-12)
    assert_allclose(variance[:, 0], (matrix @ matrix).diagonal(), rtol=1e-10)
    assert_allclose(leverage, 1 - matrix.diagonal(), rtol=1e-9)


@pytest.mark.parametrize("order", [0, 2])
def test_held_out_squares__are_those_of_the_residual_matrix(order):
    rng = np.random.default_rng(6)
    x, y = rng.normal(1, 1, (20, 90)), rng.normal(size=(90, 4))
    free = rng.uniform(0.5, 1, (90, 1)) * np.vander(np.linspace(-1, 1, 90), order + 1)
    use = rng.random((90, 4)) < 0.8
    folds = np.array_split(np.arange(90), 7)
    got = held_out_squares(x, free, y, use, folds, [0.3, 30.0])
    for ridge, found in zip([0.3, 30.0], got, strict=True):
        r = residual_matrix(x, free, ridge)
        residual, _ = held_out(r, r.fit(y).residual, np.zeros(y.shape, bool), folds)
        expected = np.where(use, residual, 0.0) ** 2
        assert_allclose(found, expected.sum(0) / use.sum(0), rtol=1e-9)


def drifting_field(n_time=160, size=44, noise=1e-3, seed=0, n_stars=60):
    """Gaussian stars on a detector with flat-field errors, whose pointing wanders within a pixel."""
    rng = np.random.default_rng(seed)
    x0, y0 = rng.uniform(-2, size + 2, (2, n_stars))
    amplitude = 10 ** rng.uniform(0, 1.5, n_stars)
    flat = 1 + 0.01 * rng.normal(size=(size, size))
    edges = np.arange(size + 1) - 0.5
    flux = np.empty((n_time, size, size))
    for k, (dx, dy) in enumerate(rng.uniform(0, 1, (n_time, 2))):
        gx, gy = (np.diff(erf((edges[:, None] - p) / (0.9 * 2**0.5)), axis=0) / 2 for p in (x0 + dx, y0 + dy))
        flux[k] = flat * (1 + (gy * amplitude) @ gx.T)
    return flux + noise * rng.normal(size=flux.shape), np.full(flux.shape, noise)


WINDOW = (slice(16, 28), slice(18, 26))


def test_fit_cpm__follows_pointing_where_a_constant_cannot():
    flux, error = drifting_field()
    fit = fit_cpm(flux, error, np.zeros(flux.shape, bool), target=WINDOW, exclusion=8, row_column_exclusion=3)
    window = flux[(slice(None), *WINDOW)]
    assert fit.residual.shape == window.shape
    assert_allclose(fit.prediction + fit.residual, window, rtol=1e-12)
    assert fit.residual.std() < 0.1 * (window - window.mean(0)).std()
    assert fit.residual.std() < 1.15e-3  # photon noise is 1e-3
    assert 0.9 < (fit.residual / fit.error).std() < 1.1
    assert not fit.mask.any()
    assert np.all(fit.n_predictors == 400)


def test_fit_cpm__errors_match_the_scatter_where_the_model_holds():
    """Series in the span of two common trends: scatter/error 1 within 10 % at any noise level."""
    rng = np.random.default_rng(5)
    trends = np.cumsum(rng.normal(size=(300, 2)), axis=0)
    trends /= np.abs(trends).max()
    level = rng.uniform(50, 100, (20, 20))
    flux = level * (1 + 0.05 * np.einsum("tk,kyx->tyx", trends, rng.normal(size=(2, 20, 20))))
    sigma = rng.uniform(0.5, 1.5, (300, 1, 1)) * np.sqrt(level / 75)
    flux += sigma * rng.normal(size=flux.shape)
    fit = fit_cpm(flux, np.broadcast_to(sigma, flux.shape), np.zeros(flux.shape, bool), exclusion=5,
                  row_column_exclusion=2, n_predictors=60)  # fmt: skip
    assert 0.9 < (fit.residual / fit.error).std() < 1.1
    assert 0.9 < np.median((fit.residual / fit.error).std(0)) < 1.1


def test_fit_cpm__keeps_an_injected_signal():
    flux, error = drifting_field()
    signal = 0.05 * np.sin(np.arange(len(flux)) / 7)
    flux[:, 20, 20] += signal
    fit = fit_cpm(flux, error, np.zeros(flux.shape, bool), target=(slice(20, 21), slice(20, 21)), exclusion=8,
                  row_column_exclusion=3)  # fmt: skip
    # above 1: a slow signal tilts the fit to the other folds the other way
    assert 0.97 < signal @ fit.residual[:, 0, 0] / (signal @ signal) < 1.06


def test_fit_cpm__predictions_outside_train_and_event_kept_whole():
    flux, error = drifting_field()
    train = np.ones(len(flux), bool)
    train[60:90] = False
    flux[60:90, 21, 21] += 0.3
    fit = fit_cpm(flux, error, np.zeros(flux.shape, bool), target=(slice(20, 24), slice(20, 24)), exclusion=8,
                  row_column_exclusion=3, train=train)  # fmt: skip
    assert abs(fit.residual[60:90, 1, 1].mean() - 0.3) < 3e-3
    assert abs(fit.residual[~train][:, 2, 2].std() / fit.error[~train][:, 2, 2].mean() - 1) < 0.3


def test_fit_cpm__later_epochs_are_as_good_as_held_out_ones():
    """Their errors hold, and they scatter as in a fit to everything."""
    flux, error = drifting_field(n_time=200)
    args = {"target": WINDOW, "exclusion": 8, "row_column_exclusion": 3, "ridge": 10.0, "n_predictors": 200}
    later, whole = (
        fit_cpm(flux, error, np.zeros(flux.shape, bool), start=start, **args) for start in (180, 0)
    )
    left, of_all = later.residual, whole.residual[180:]
    assert (left / later.error).std() == pytest.approx(1, abs=0.1)
    assert left.std() == pytest.approx(of_all.std(), rel=0.1)


def test_fit_cpm__bad_samples_do_not_touch_others():
    flux, error = drifting_field()
    mask = np.zeros(flux.shape, bool)
    kwargs = {"target": WINDOW, "exclusion": 8, "row_column_exclusion": 3, "ridge": 10}
    mask[5, 20, 20] = True
    mask[11] = True
    clean = fit_cpm(flux, error, mask, **kwargs)
    flux[5, 20, 20] = 1e6
    flux[11] = np.nan
    poisoned = fit_cpm(flux, error, mask, **kwargs)
    assert poisoned.mask[5, 4, 2]
    assert poisoned.mask[11].all()
    assert poisoned.mask.sum() == 1 + clean.mask[11].size
    assert_allclose(poisoned.residual[~poisoned.mask], clean.residual[~clean.mask], rtol=0, atol=1e-12)
    assert np.isfinite(poisoned.prediction[5, 4, 2])


def test_fit_cpm__background_subtracted_sky_is_no_poison():
    """Pixels whose median is zero keep their noise as unit: nothing diverges."""
    flux, error = drifting_field(n_time=60, size=24)
    fit = fit_cpm(flux - 1, error, np.zeros(flux.shape, bool), target=(slice(8, 16), slice(8, 16)))
    assert np.isfinite(fit.residual).all()
    assert fit.residual.std() < 3e-3


def test_fit_cpm__window_does_not_change_a_pixel():
    flux, error = drifting_field(n_time=80, size=32)
    kwargs = {"exclusion": 6, "row_column_exclusion": 2, "ridge": 10.0, "n_predictors": 100}
    mask = np.zeros(flux.shape, bool)
    large = fit_cpm(flux, error, mask, target=(slice(8, 24), slice(8, 24)), **kwargs)
    small = fit_cpm(flux, error, mask, target=(slice(12, 16), slice(16, 20)), **kwargs)
    np.testing.assert_array_equal(small.residual, large.residual[:, 4:8, 8:12])


@pytest.mark.parametrize("choice", ["closest", "brightness", "similarity", "cosine", "l1", "random"])
def test_predictors__respect_the_exclusions(choice):
    rng = np.random.default_rng(4)
    usable = rng.random((60, 60)) < 0.9
    candidates, distance = allowed_predictors(usable, (28, 32), (30, 34), 16, 10)
    series, brightness = rng.normal(size=(3600, 50)), rng.random(3600)
    chosen = choose_predictors(
        choice, 200, candidates, distance, series, brightness, np.array([28 * 60 + 30])
    )
    assert len(chosen) == 200
    assert np.all(np.diff(chosen) > 0)
    y, x = np.divmod(chosen, 60)
    assert usable[y, x].all()
    for ty in range(28, 32):
        for tx in range(30, 34):
            assert np.hypot(y - ty, x - tx).min() >= 16
            assert np.abs(y - ty).min() > 10
            assert np.abs(x - tx).min() > 10


@pytest.mark.parametrize(("rows", "columns"), [((28, 32), (30, 34)), ((0, 4), (56, 60)), ((56, 60), (5, 8))])
@pytest.mark.parametrize("farthest", [20, 24.0, 100])
def test_predictors__a_neighbourhood_allows_the_same_nearest_first(rows, columns, farthest):
    usable = np.random.default_rng(5).random((60, 60)) < 0.9
    candidates, distance = allowed_predictors(usable, rows, columns, 10, 4, farthest)
    order = np.argsort(distance, kind="stable")
    size = rows[1] - rows[0], columns[1] - columns[0]
    found, far = Neighbourhood(size, 10, 4, farthest).of(usable, rows, columns)
    assert len(found) > 100
    np.testing.assert_array_equal(found, candidates[order])
    np.testing.assert_array_equal(far, distance[order])


def test_predictors__small_frame_shrinks_the_exclusion():
    assert fitting_exclusion((100, 80), 16, 10) == (16, 10)
    assert fitting_exclusion((23, 23), 16, 10) == (6, 3)
    flux, error = drifting_field(n_time=60, size=12, n_stars=8)
    fit = fit_cpm(flux, error, np.zeros(flux.shape, bool))
    assert np.isfinite(fit.residual).all()
    assert fit.n_predictors.min() > 10


def test_fit_cpm__errors_are_clear():
    flux, error = drifting_field(n_time=30, size=12, n_stars=5)
    mask = np.zeros(flux.shape, bool)
    with pytest.raises(ValueError, match="30 training epochs are too few for 20 folds"):
        fit_cpm(flux, error, mask, folds=20)
    with pytest.raises(ValueError, match="no pixel may predict the block at rows"):
        fit_cpm(flux, error, mask, exclude=np.ones((12, 12), bool), folds=3)
    with pytest.raises(ValueError, match="unknown predictors 'nearest'"):
        fit_cpm(flux, error, mask, predictors="nearest", folds=3)
    with pytest.raises(ValueError, match=r"one \(time, y, x\) shape"):
        fit_cpm(flux, error, mask[:5], folds=3)


def test_fit_cpm__a_pixel_is_the_same_in_every_tile_that_holds_its_halo():
    flux, error = drifting_field(n_time=80, size=56)
    kwargs = {
        "exclusion": 8, "row_column_exclusion": 2, "ridge": 1.0, "n_predictors": 60, "farthest": 14,
        "block": 8, "epoch_error": np.ones(80),
    }  # fmt: skip
    mask = np.zeros(flux.shape, bool)
    whole = fit_cpm(flux, error, mask, **kwargs)
    for y0, x0, size in ((20, 22, 11), (0, 30, 9)):
        halo = 22
        rows, columns = slice(max(y0 - halo, 0), y0 + size + halo), slice(max(x0 - halo, 0), x0 + size + halo)
        cut = (slice(None), rows, columns)
        target = (
            slice(y0 - rows.start, y0 - rows.start + size),
            slice(x0 - columns.start, x0 - columns.start + size),
        )
        origin = (rows.start, columns.start)
        tile = fit_cpm(flux[cut], error[cut], mask[cut], target=target, origin=origin, **kwargs)
        at = (slice(None), slice(y0, y0 + size), slice(x0, x0 + size))
        np.testing.assert_array_equal(tile.n_predictors, whole.n_predictors[at[1:]])
        assert_allclose(tile.residual, whole.residual[at], atol=1e-10)
        assert_allclose(tile.error, whole.error[at], rtol=1e-8)


def test_ridge_scores__tiles_add_up_to_the_field():
    flux, error = drifting_field(n_time=60, size=48)
    kwargs = {
        "exclusion": 6, "row_column_exclusion": 2, "n_predictors": 40, "farthest": 12, "block": 8,
        "lattice": 2, "epoch_error": np.ones(60),
    }  # fmt: skip
    mask = np.zeros(flux.shape, bool)
    whole = ridge_scores(flux, error, mask, **kwargs)
    parts = [
        ridge_scores(flux, error, mask, target=(slice(*rows), slice(0, 48)), **kwargs)
        for rows in ((0, 20), (20, 48))
    ]
    assert_allclose(parts[0] + parts[1], whole, rtol=1e-9)
    kwargs["counts"] = [kwargs.pop("n_predictors")]
    fit, scores = fit_and_score(flux, error, mask, n_predictors=20, ridge=2.0, **kwargs)
    np.testing.assert_array_equal(scores, whole)
    for name in ("counts", "lattice"):
        del kwargs[name]
    alone = fit_cpm(flux, error, mask, n_predictors=20, ridge=2.0, **kwargs)
    np.testing.assert_array_equal(fit.residual, alone.residual)
    assert (whole[0, :, 1] == 9 * 32).all()
