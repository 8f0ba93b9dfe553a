"""Every option of `fit_cpm` against normal equations written down as they stand, to 1e-9."""

import numpy as np
import pytest
from numpy.polynomial.legendre import legvander
from numpy.testing import assert_allclose, assert_array_equal

from survey.kernels._group_lasso import select
from survey.kernels._predictors import allowed_predictors, choose_predictors
from survey.kernels.cpm import fit_cpm, solve_cpm

EPOCHS, SHAPE = 90, (22, 24)
ROWS, COLUMNS = (8, 12), (12, 16)  # one block of 4 x 4
TARGET = (slice(*ROWS), slice(*COLUMNS))
GIVEN = {"exclusion": 5.0, "row_column_exclusion": 2, "folds": 6, "block": 4, "farthest": 10, "ridge": 3.0}


@pytest.fixture(scope="module")
def cube():
    """Trends, flat-field errors and noise that is another in every epoch and pixel."""
    rng = np.random.default_rng(11)
    trends = np.cumsum(rng.normal(size=(EPOCHS, 3)), axis=0)
    flux = rng.uniform(20, 60, SHAPE) * (
        1 + 0.02 * np.einsum("tk,kyx->tyx", trends, rng.normal(size=(3, *SHAPE)))
    )
    error = (
        rng.uniform(0.5, 1.5, (EPOCHS, 1, 1))
        * rng.uniform(0.3, 0.6, SHAPE)
        * rng.uniform(0.9, 1.1, flux.shape)
    )
    error = error.astype(np.float32).astype(float)  # as the series keep it
    return flux + error * rng.normal(size=flux.shape), error


def nearest(n):
    """The paper's choice, pixel by pixel: the n nearest to the block of those that every target allows."""
    found = []
    for y in range(SHAPE[0]):
        for x in range(SHAPE[1]):
            apart = [(abs(y - ty), abs(x - tx)) for ty in range(*ROWS) for tx in range(*COLUMNS)]
            near = min(np.hypot(*d) for d in apart)
            lines = min(min(d) for d in apart)
            reach = max(min(d[axis] for d in apart) for axis in (0, 1))
            if near >= 5 and lines > 2 and reach <= 10:
                found.append((near, y * SHAPE[1] + x))
    return np.array([pixel for _, pixel in sorted(found)[:n]])


class Direct:
    """The fit of one target, written down once more."""

    def __init__(
        self, cube, pixel, chosen, *, train=None, order=0, time=None, weights="epoch", components=None
    ):
        flux, error = (a.reshape(EPOCHS, -1) for a in cube)
        self.train = np.arange(EPOCHS) if train is None else np.nonzero(train)[0]
        median, typical = (np.median(a[self.train], axis=0) for a in (flux, error))
        scale = np.hypot(median, typical)
        self.values, self.noise, self.typical = (flux - median) / scale, error / scale, typical / scale
        relative = np.median(error / typical, axis=1)
        self.relative = self.noise[:, pixel] / self.typical[pixel] if weights == "pixel" else relative
        self.pixel, self.chosen, self.scale, self.level = pixel, chosen, scale[pixel], median[pixel]
        when = np.arange(EPOCHS) if time is None else time
        first, last = when[self.train].min(), when[self.train].max()
        basis = legvander((2 * when - first - last) / (last - first), order)
        x, self.free = (a / self.relative[:, None] for a in (self.values[:, chosen], basis))
        if components is not None:
            q = np.linalg.qr(self.free[self.train])[0]
            centred = x[self.train] - q @ (q.T @ x[self.train])
            x = x @ np.linalg.svd(centred)[2][:components].T
        self.x = x
        block = [y * SHAPE[1] + x for y in range(*ROWS) for x in range(*COLUMNS)]
        self.ridge = GIVEN["ridge"] * len(chosen) * np.median(self.typical[block] ** 2)

    def refit(self, rows, wanted):
        """Prediction of some epochs from a fit to others, and the weights of these in it."""
        z = np.column_stack([self.x, self.free])
        penalty = self.ridge * np.diag(np.repeat([1.0, 0.0], [self.x.shape[1], self.free.shape[1]]))
        solved = np.linalg.solve(z[rows].T @ z[rows] + penalty, z[rows].T)
        self.coefficients = solved @ (self.values[rows, self.pixel] / self.relative[rows])
        weights = z[wanted] @ solved
        predicted = (z[wanted] @ self.coefficients) * self.relative[wanted]
        return predicted * self.scale + self.level, weights

    def prediction(self):
        """Every training epoch from the others' folds, the rest from all."""
        found = np.empty(EPOCHS)
        for fold in np.array_split(self.train, GIVEN["folds"]):
            found[fold] = self.refit(np.setdiff1d(self.train, fold), fold)[0]
        rest = np.setdiff1d(np.arange(EPOCHS), self.train)
        found[rest] = self.refit(self.train, rest)[0]
        return found


WINDOW = np.abs(np.arange(EPOCHS) - 40) > 8
TIMES = np.cumsum(np.random.default_rng(0).uniform(0.1, 2, EPOCHS))


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({}, {}),
        ({"train": WINDOW}, {"train": WINDOW}),
        ({"time_order": 2}, {"order": 2}),
        ({"time_order": 3, "time": TIMES}, {"order": 3, "time": TIMES}),
        ({"components": 5}, {"components": 5}),
        ({"components": 5, "train": WINDOW, "time_order": 1}, {"components": 5, "train": WINDOW, "order": 1}),
        ({"weights": "pixel"}, {"weights": "pixel"}),
        (
            {"weights": "pixel", "train": WINDOW, "time_order": 1},
            {"weights": "pixel", "train": WINDOW, "order": 1},
        ),
    ],
    ids=lambda value: ",".join(value),
)  # fmt: skip
@pytest.mark.parametrize("n", [12, 80])
def test_held_out_predictions_are_those_of_refits(cube, options, direct, n):
    """Fewer predictors than training epochs, and more than a fold leaves."""
    mask = np.zeros(cube[0].shape, bool)
    fit = fit_cpm(*cube, mask, target=TARGET, n_predictors=n, **GIVEN, **options)
    chosen = nearest(n)
    assert (fit.n_predictors == len(chosen)).all()
    for y, x in ((8, 12), (11, 14)):
        expected = Direct(cube, y * SHAPE[1] + x, chosen, **direct).prediction()
        got = fit.prediction[:, y - 8, x - 12]
        assert_allclose(got, expected, rtol=1e-9)
        assert_allclose(fit.residual[:, y - 8, x - 12], cube[0][:, y, x] - expected, rtol=0, atol=1e-9 * 60)


@pytest.mark.parametrize("n", [12, 80])
def test_fit_that_saw_all_and_its_leverage(cube, n):
    """In-sample residuals are those of one solve; leverage is the hat matrix's diagonal, 0 where held out."""
    mask = np.zeros(cube[0].shape, bool)
    seen, held = (
        fit_cpm(*cube, mask, target=TARGET, n_predictors=n, held_out=held, train=WINDOW, **GIVEN)
        for held in (False, True)
    )
    direct = Direct(cube, 8 * SHAPE[1] + 12, nearest(n), train=WINDOW)
    expected, weights = direct.refit(direct.train, np.arange(EPOCHS))
    assert_allclose(seen.prediction[:, 0, 0], expected, rtol=1e-9)
    assert_allclose(seen.leverage[WINDOW, 0, 0], weights[WINDOW].diagonal(), rtol=1e-5)  # float32
    assert_array_equal(seen.leverage[~WINDOW], 0)
    assert_array_equal(held.leverage, 0)
    assert_array_equal(seen.fit_mask, np.broadcast_to(~WINDOW[:, None, None], seen.fit_mask.shape))


@pytest.mark.parametrize("n", [12, 80])
def test_errors_of_epochs_that_do_not_train_are_exact(cube, n):
    """Photon error, the fit's noise through the weights of all training epochs, the predictors' own noise."""
    fit = fit_cpm(*cube, np.zeros(cube[0].shape, bool), target=TARGET, n_predictors=n, train=WINDOW, **GIVEN)
    direct = Direct(cube, 8 * SHAPE[1] + 12, nearest(n), train=WINDOW)
    out = np.nonzero(~WINDOW)[0]
    _, weights = direct.refit(direct.train, out)
    own = direct.noise[out, direct.pixel] ** 2
    of_fit = (direct.typical[direct.pixel] * direct.relative[out]) ** 2 * (weights**2).sum(1)
    brought = direct.noise[out][:, direct.chosen] ** 2 @ direct.coefficients[:n][: len(direct.chosen)] ** 2
    assert_allclose(fit.error[out, 0, 0], np.sqrt(own + of_fit + brought) * direct.scale, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "pixel"}, {"components": 5}, {"time_order": 1}, {"train": WINDOW}],
    ids=lambda value: ",".join(value),
)
@pytest.mark.parametrize("n", [12, 80])
def test_later_epochs_are_predicted_by_a_fit_to_all_before(cube, options, n):
    """As if they were there and did not train; the epochs before are left alone."""
    start = 78
    mask = np.zeros(cube[0].shape, bool)
    mask[5, 3, 2:6] = mask[80, 3, 4] = True
    options = dict(options)
    given = options.pop("train", np.ones(EPOCHS, bool))
    args = {"target": TARGET, "n_predictors": n, **GIVEN, **options}
    later = fit_cpm(*cube, mask, start=start, train=given, **args)
    whole = fit_cpm(*cube, mask, train=given & (np.arange(EPOCHS) < start), **args)
    assert later.residual.shape == (EPOCHS - start, 4, 4)
    # medians, and with them all that is fitted, are of the epochs that train
    assert_allclose(later.prediction, whole.prediction[start:], rtol=1e-9)
    assert_allclose(later.error, whole.error[start:], rtol=1e-6)
    assert_array_equal(later.mask, whole.mask[start:])
    assert not later.fit_mask.any()


def test_fit_cpm__start_has_to_be_one_of_the_epochs(cube):
    with pytest.raises(ValueError, match="start = 90: there are 90 epochs"):
        fit_cpm(*cube, np.zeros(cube[0].shape, bool), start=90)


def test_single_precision_loses_nothing(cube):
    narrow = [a.astype(np.float32) for a in cube]
    wide = [a.astype(float) for a in narrow]
    mask = np.zeros(cube[0].shape, bool)
    one, two = (fit_cpm(*c, mask, target=TARGET, n_predictors=40, **GIVEN) for c in (narrow, wide))
    assert_array_equal(one.residual, two.residual)
    assert_array_equal(one.error, two.error)


def test_values_that_are_none_are_as_if_masked(cube):
    """NaN cadences, pixels without any value, errors that are none."""
    flux, error = (a.copy() for a in cube)
    mask = np.zeros(flux.shape, bool)
    mask[17] = mask[:, 2, 3] = mask[:, 9, 13] = mask[30, 20, 20] = mask[31, 20, 21] = True
    args = {"target": TARGET, "n_predictors": 40, **GIVEN}
    told = fit_cpm(flux, error, mask, **args)
    flux[17] = flux[:, 2, 3] = flux[:, 9, 13] = np.nan
    error[30, 20, 20], error[31, 20, 21] = np.nan, 0.0
    seen = fit_cpm(flux, error, np.zeros_like(mask), **args)
    assert_array_equal(seen.mask, mask[:, 8:12, 12:16])
    assert_array_equal(seen.residual, told.residual)
    assert np.isfinite(seen.residual[~seen.mask]).all()


def pool():
    """Candidates around the block, random series, brightness."""
    rng = np.random.default_rng(5)
    candidates, distance = allowed_predictors(np.ones(SHAPE, bool), ROWS, COLUMNS, 5, 2)
    size = SHAPE[0] * SHAPE[1]
    return candidates, distance, rng.normal(size=(size, 60)), rng.uniform(1, 100, size)


TARGETS = np.array([y * SHAPE[1] + x for y in range(*ROWS) for x in range(*COLUMNS)])


def test_brightness_takes_the_nearest_in_flux():
    candidates, distance, series, brightness = pool()
    chosen = choose_predictors("brightness", 25, candidates, distance, series, brightness, TARGETS)
    apart = np.abs(brightness - np.median(brightness[TARGETS]))
    assert apart[chosen].max() <= np.sort(apart[candidates])[24]


def test_similarity_takes_the_largest_correlations():
    candidates, distance, series, brightness = pool()
    chosen = choose_predictors("similarity", 25, candidates, distance, series, brightness, TARGETS)
    mean = series[TARGETS].mean(0)
    alike = np.abs([np.corrcoef(series[c], mean)[0, 1] for c in candidates])
    assert set(chosen) == set(candidates[np.argsort(-alike)[:25]])


def test_cosine_takes_the_smallest_angles_means_not_taken_off():
    candidates, distance, series, brightness = pool()
    series = series + np.random.default_rng(8).normal(0.0, 2.0, len(series))[:, None] * series.std()
    chosen = choose_predictors("cosine", 25, candidates, distance, series, brightness, TARGETS)
    mean = series[TARGETS].mean(0)
    alike = np.abs(series[candidates] @ mean) / np.linalg.norm(series[candidates], axis=1)
    assert set(chosen) == set(candidates[np.argsort(-alike)[:25]])
    by_correlation = choose_predictors("similarity", 25, candidates, distance, series, brightness, TARGETS)
    assert set(chosen) != set(by_correlation)


def test_random_is_a_draw_of_all_that_may_and_always_the_same():
    candidates, distance, series, brightness = pool()
    one, two = (
        choose_predictors("random", 80, candidates, distance, series, brightness, TARGETS) for _ in "12"
    )
    assert_array_equal(one, two)
    assert np.isin(one, candidates).all()
    # neither the nearest nor the first: about as far as all are
    assert np.isin(candidates, one)[: len(candidates) // 2].mean() == pytest.approx(
        80 / len(candidates), abs=0.15
    )
    mean = distance[np.isin(candidates, one)].mean()
    assert mean == pytest.approx(distance.mean(), abs=3 * distance.std() / np.sqrt(80))


def test_l1_of_uncorrelated_predictors_keeps_the_strongest():
    """Their coefficients are soft-thresholded projections: the largest projections come first."""
    rng = np.random.default_rng(2)
    q = np.linalg.qr(np.column_stack([np.ones(60), rng.normal(size=(60, 12))]))[0].T[1:]
    y = rng.normal(size=(3, 60))
    strength = np.sqrt(((q @ y.T) ** 2).sum(1))
    assert set(select(q, y, 5)) == set(np.argsort(-strength)[:5])


def test_l1_finds_the_pixels_that_a_target_is_made_of(cube):
    """Of the twelve nearest, the three whose sum the block is; the fit is that to these three."""
    rng = np.random.default_rng(9)
    flux = 30 + rng.normal(size=(EPOCHS, *SHAPE))
    error = np.full(flux.shape, 0.01)
    three = nearest(12)[[2, 7, 10]]
    flux[(slice(None), *TARGET)] = flux.reshape(EPOCHS, -1)[:, three].sum(1)[:, None, None] - 60
    flux += error * rng.normal(size=flux.shape)
    fit = fit_cpm(flux, error, np.zeros(flux.shape, bool), target=TARGET, n_predictors=3, predictors="l1",
                  **GIVEN)  # fmt: skip
    expected = Direct((flux, error), 8 * SHAPE[1] + 12, np.sort(three)).prediction()
    assert_allclose(fit.prediction[:, 0, 0], expected, rtol=1e-9)


@pytest.mark.parametrize("constant", [True, False])
def test_solve_cpm__polynomial_in_time(constant):
    rng = np.random.default_rng(3)
    x, y, time = rng.normal(size=(70, 4)), rng.normal(size=70), np.sort(rng.uniform(0, 9, 70))
    error, train = rng.uniform(0.5, 2, 70), rng.random(70) < 0.7
    s = solve_cpm(x, y, ridge=0.4, error=error, train=train, constant=constant, time_order=3, time=time)
    first, last = time[train].min(), time[train].max()
    basis = legvander((2 * time - first - last) / (last - first), 3)[:, 0 if constant else 1 :]
    z, w = np.column_stack([x, basis]), train / error**2
    penalty = 0.4 * np.diag(np.repeat([1.0, 0.0], [4, basis.shape[1]]))
    a = np.linalg.solve(z.T @ (w[:, None] * z) + penalty, z.T @ (w * y))
    assert_allclose(s.coefficients, a[:4], rtol=1e-9, atol=1e-9)
    assert_allclose(s.polynomial, a[-3:], rtol=1e-9, atol=1e-9)
    assert_allclose(s.prediction, z @ a, rtol=1e-9, atol=1e-9)


def test_solve_cpm__principal_components():
    """A fit to the leading ones by singular values; all of them are a turn of the predictors."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 9)) + 0.1 * rng.normal(size=(60, 9))
    y = rng.normal(size=60)
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    leading = (left * values)[:, :3]
    expected = y.mean() + leading @ np.linalg.solve(leading.T @ leading + 0.7 * np.eye(3), leading.T @ y)
    s = solve_cpm(x, y, ridge=0.7, components=3)
    assert_allclose(s.prediction, expected, atol=1e-9)
    assert_allclose(s.coefficients, right[:3].T @ (right[:3] @ s.coefficients), atol=1e-9)
    whole, plain = solve_cpm(x, y, ridge=0.7, components=9), solve_cpm(x, y, ridge=0.7)
    assert_allclose(whole.coefficients, plain.coefficients, atol=1e-9)
