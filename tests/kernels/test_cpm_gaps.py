"""Samples and epochs that predictors lack: filled, left out or bridged, with errors, whatever the tile."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from survey.kernels._cpm_fill import FILL_REACH, fill
from survey.kernels._cpm_series import make_series
from survey.kernels._cpm_solve import Design, Rest, bridge
from survey.kernels._ridge import residual_matrix
from survey.kernels.cpm import fit_cpm
from survey.simulate.wander import simulate_wander

SHAPE, EPOCHS = (56, 56), 200
MODEL = {
    "exclusion": 8, "row_column_exclusion": 2, "n_predictors": 100, "ridge": 1.0, "block": 8, "farthest": 14,
    "epoch_error": np.ones(EPOCHS),
}  # fmt: skip


@pytest.fixture(scope="module")
def mock():
    return simulate_wander(
        shape=SHAPE, n_frames=EPOCHS, n_stars=200, noise=1e-3, amplitude=0.0, pointing=0.5, rotation=0.1
    )


def cosmics(rng, mask):
    """Two samples of a thousand, and as many again in groups of four."""
    mask |= rng.random(mask.shape) < 1e-3
    for k, y, x in zip(
        *rng.integers(0, (mask.shape[0], SHAPE[0] - 1, SHAPE[1] - 1), (150, 3)).T, strict=True
    ):
        mask[k, y : y + 2, x : x + 2] = True


def trails(rng, mask):
    """A trail across every twentieth frame."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for k in range(0, len(mask), 20):
        mask[k] |= np.abs(y - x + rng.integers(-30, 30)) < 3


def parts(rng, mask):
    """The left third has no data in fifteen epochs, the whole frame none in one."""
    mask[60:75, :, :19] = True
    mask[120] = True


@pytest.mark.parametrize("damage", [cosmics, trails, parts])
def test_what_predictors_lost_brings_no_residuals(mock, damage):
    """Scatter over error in the epochs with gaps is what it is without any; the gaps' own truth is met."""
    mask = np.zeros(mock.flux.shape, bool)
    damage(np.random.default_rng(1), mask)
    flux = np.where(mask, np.nan, mock.flux)
    clean = fit_cpm(mock.flux, mock.error, np.zeros_like(mask), **MODEL)
    fit = fit_cpm(flux, mock.error, mask, **MODEL)
    touched = mask.any((1, 2))
    assert_array_equal(fit.mask, mask)
    # deep in a part without data nothing is known, nor wanted
    gaps = mask & np.isfinite(fit.prediction)
    assert gaps.any()
    for where in (touched[:, None, None] & ~mask, gaps):
        pull = ((mock.flux - fit.prediction) / fit.error)[where]
        before = ((mock.flux - clean.prediction) / clean.error)[where]
        assert 0.85 < pull.std() / before.std() < 1.15
        assert np.median(np.abs(pull)) < 1.1 * np.median(np.abs(before))


def test_a_pixel_is_the_same_in_every_tile_whatever_is_missing(mock):
    mask = np.zeros(mock.flux.shape, bool)
    for damage in (cosmics, trails, parts):
        damage(np.random.default_rng(2), mask)
    mask[140:144, 10:, :] = True  # all that some tiles hold
    train = np.ones(EPOCHS, bool)
    train[30:36] = False
    flux = np.where(mask, np.nan, mock.flux)
    whole = fit_cpm(flux, mock.error, mask, train=train, **MODEL)
    halo = MODEL["farthest"] + MODEL["block"] + FILL_REACH
    for y0, x0, size in ((40, 22, 16), (0, 30, 9), (24, 0, 11)):
        rows, columns = (slice(max(a - halo, 0), a + size + halo) for a in (y0, x0))
        cut = (slice(None), rows, columns)
        target = tuple(slice(a - s.start, a - s.start + size) for a, s in ((y0, rows), (x0, columns)))
        tile = fit_cpm(
            flux[cut], mock.error[cut], mask[cut], target=target, origin=(rows.start, columns.start),
            train=train, **MODEL,
        )  # fmt: skip
        at = (slice(None), slice(y0, y0 + size), slice(x0, x0 + size))
        assert_array_equal(tile.mask, whole.mask[at])
        assert_array_equal(tile.n_predictors, whole.n_predictors[at[1:]])
        assert_allclose(tile.residual, whole.residual[at], atol=1e-9)
        assert_allclose(tile.error, whole.error[at], rtol=1e-6)


def test_epochs_that_gaps_of_predictors_cost_are_marked(mock):
    """Where the left third has no data, blocks that it predicts train no more, and those far from it do."""
    mask = np.zeros(mock.flux.shape, bool)
    mask[60:68, :, :19] = True
    target = (slice(24, 32), slice(0, 56))
    fit = fit_cpm(np.where(mask, np.nan, mock.flux), mock.error, mask, target=target, **MODEL)
    marked = fit.fit_mask.all(1)
    assert_array_equal(marked, fit.fit_mask.any(1))  # a block's rows alike
    near, far = slice(24, 32), slice(48, 56)  # predictors lie 8 to 14 pixels away
    assert_array_equal(marked[:, near].all(1), (np.arange(EPOCHS) >= 60) & (np.arange(EPOCHS) < 68))
    assert not marked[:, far].any()
    assert not (fit.fit_mask & fit.mask).any()


def test_a_gap_is_filled_by_what_its_neighbours_say():
    """A pixel that is a sum of its neighbours is known exactly; its error is what it scatters about that."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(25, 400))
    values[12] = values[6] - 0.5 * values[13] + 0.1 * rng.normal(size=400)
    truth = values[12].copy()
    bad = np.zeros(values.shape, bool)
    bad[12, 5:20] = True
    bad[13, 7] = True
    values[bad] = 0.0
    noise = np.where(bad, 0.0, 0.1)
    train = np.arange(400)
    usable, available = fill(values, noise, bad, (5, 5), np.ones(25, bool), train, np.ones(400))
    assert usable.all()
    assert available.all()
    assert np.std(values[12, 8:20] - truth[8:20]) < 0.2
    assert_allclose(noise[12, 8:20], 0.1, rtol=0.1)
    # without the neighbour on which half of it hangs the error grows
    assert noise[12, 7] == pytest.approx(0.5, rel=0.15)


def test_gaps_that_nothing_can_fill_stay():
    values, bad = np.random.default_rng(0).normal(size=(36, 300)), np.zeros((36, 300), bool)
    bad[:, 9] = True
    bad[0, 100:150] = True
    bad[35, 40] = True
    usable, available = fill(values, np.ones(values.shape), bad, (6, 6), np.ones(36, bool), np.arange(300),
                             np.ones(300))  # fmt: skip
    assert not available[:, 9].any()
    assert_array_equal(np.nonzero(~usable)[0], [0])
    assert available[35, 40]


@pytest.mark.parametrize("shape", [(12, 80), (60, 40)])
def test_an_epoch_without_some_predictors_is_predicted_as_if_there_were_none_of_them(shape):
    rng = np.random.default_rng(5)
    n, rows = shape
    x, y = rng.normal(2, 1, (n, rows)), rng.normal(size=(rows, 2))
    new, there = rng.normal(2, 1, (n, 2)), np.ones((n, 2), bool)
    there[[2, 7], 1] = False
    free, basis = np.ones((rows, 1)), np.ones((rows + 2, 1))
    r = residual_matrix(x, free, 0.7)
    fitted = r.fit(y)
    error = np.ones(rows + 2)
    design = Design(np.arange(n), np.arange(2), np.arange(rows), x, y, free, basis, error, 0.7, [],
                    None, None, None, True)  # fmt: skip
    values, extra = bridge(r, design, new, Rest(np.array([rows, rows + 1]), there), fitted.coefficients)
    keep = there[:, 1]
    fewer = residual_matrix(x[keep], free, 0.7).fit(y)
    assert_allclose(values.T[1] @ fitted.coefficients + fitted.free[0],
                    new[keep, 1] @ fewer.coefficients + fewer.free[0], atol=1e-9)  # fmt: skip
    assert_allclose(values[:, 0], new[:, 0])
    objective = [(f.residual**2).sum(0) + 0.7 * (f.coefficients**2).sum(0) for f in (fitted, fewer)]
    assert_allclose(extra[1], (objective[1] - objective[0]) / rows, rtol=1e-9)
    assert_array_equal(extra[0], 0)


def test_bad_samples_stay_out_of_medians_and_epoch_errors():
    rng = np.random.default_rng(7)
    flux, sigma = rng.normal(10, 0.1, (60, 5, 6)), rng.uniform(0.5, 2, 60)
    error = 0.1 * np.broadcast_to(sigma[:, None, None], flux.shape)
    mask = rng.random(flux.shape) < 0.02
    poisoned = np.where(mask, 1e9, flux)
    series = make_series((poisoned, error, mask), np.arange(60), None, None)
    expected = np.nanmedian(np.where(mask, np.nan, flux), axis=0).ravel()
    assert_allclose(series.brightness, expected)
    assert_allclose(series.epoch_error / series.epoch_error[0], sigma / sigma[0], rtol=1e-6)
    assert np.abs(series.values).max() < 0.1
