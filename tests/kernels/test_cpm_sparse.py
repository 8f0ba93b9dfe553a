"""Few data, constant pixels, gaps in many predictors: no error where there is nothing, no wrong ridge."""

import numpy as np
import pytest

from survey.kernels._cpm_blocks import best
from survey.kernels._group_lasso import select
from survey.kernels.cpm import RIDGE_GRID, fit_cpm, ridge_scores
from survey.simulate.wander import simulate_wander

MODEL = {"exclusion": 5, "row_column_exclusion": 2, "folds": 5, "block": 8, "farthest": 14}


@pytest.fixture(scope="module")
def mock():
    return simulate_wander(
        shape=(32, 32), n_frames=100, n_stars=60, noise=1e-3, amplitude=0.0, pointing=0.3, rotation=0.1
    )


def test_a_tile_with_data_in_a_few_epochs_is_masked(mock):
    mask = np.ones(mock.flux.shape, bool)
    mask[:30] = False
    fit = fit_cpm(mock.flux, mock.error, mask, n_predictors=40, ridge=1.0, **MODEL)
    assert fit.mask.all()
    with pytest.raises(ValueError, match="no pixel may predict"):
        fit_cpm(mock.flux, mock.error, np.zeros_like(mask), exclude=np.ones((32, 32), bool), **MODEL)


def test_several_numbers_of_predictors_where_samples_are_missing(mock):
    mask = np.zeros(mock.flux.shape, bool)
    mask[:70, :, 12:20] = True
    scores = ridge_scores(mock.flux, mock.error, mask, n_predictors=[10, 80], lattice=1, **MODEL)
    assert (scores[0, :, 1] == scores[1, :, 1]).all()
    assert scores[0, 0, 1] > 0
    fit = fit_cpm(mock.flux, mock.error, mask, n_predictors=[10, 80], **MODEL)
    assert np.isfinite(fit.residual[:, :, :8]).all()


def test_a_constant_pixel_does_not_choose_the_ridge(mock):
    mask = np.zeros(mock.flux.shape, bool)
    args = {"n_predictors": [10, 80], "lattice": 1, **MODEL}
    clean = ridge_scores(mock.flux, mock.error, mask, **args)
    flux = mock.flux.copy()
    flux[:, 0, 0] = 3.0
    scores = ridge_scores(flux, mock.error, mask, **args)
    assert np.isfinite(scores).all()
    assert best(scores, [10, 80]) == best(clean, [10, 80])


def test_a_number_that_cannot_be_fitted_is_not_chosen():
    totals = np.ones((2, len(RIDGE_GRID), 2))
    totals[1, :, 0] = np.inf
    totals[0, 2, 0] = 0.5
    assert best(totals, [10, 80]) == (10, RIDGE_GRID[2])
    totals[0, :, 0] = np.inf
    assert best(totals, [10, 80]) is None


def test_predictors_that_lose_most_epochs_together_stay_out(mock):
    """Every other column loses its own four epochs for good: with all of them no epoch would train."""
    mask = np.zeros(mock.flux.shape, bool)
    for i, x in enumerate(range(0, 32, 8)):
        for part in range(4):
            at = (i * 4 + part) * 4
            mask[at : at + 4, part * 8 : part * 8 + 8, x : x + 8] = True
    fit = fit_cpm(mock.flux, mock.error, mask, n_predictors=300, ridge=1.0, **MODEL)
    assert (fit.mask & ~mask).mean() < 0.01


def test_l1_of_constant_predictors_takes_the_first():
    assert select(np.ones((9, 20)), np.random.default_rng(0).normal(size=(3, 20)), 4).tolist() == [0, 1, 2, 3]
