"""Causal pixel model: each pixel's time series predicted from pixels that share only systematics with it.

Wang et al. 2017 ("A pixel-level model for event discovery in time-domain imaging"). Frames stay on the
detector grid. Held-out residuals are the product: in-sample ones eat the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._cpm_blocks import (
    RIDGE_GRID,
    best_ridge,
    block_scores,
    check_predicted,
    lattice_blocks,
)
from survey.kernels._cpm_tile import Tile
from survey.kernels._predictors import Choice, fitting_exclusion
from survey.kernels._ridge import residual_matrix

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Pixels, and blocks at least, on which the ridge is cross-validated.
_CV_PIXELS, _CV_BLOCKS = 128, 4


@dataclass(frozen=True)
class CPMSolution:
    """One target's ridge fit: prediction ``constant + predictors @ coefficients``."""

    coefficients: Array
    constant: float
    prediction: Array
    residual: Array


@dataclass(frozen=True)
class CPMFit:
    """Predictions of a window of pixels, shapes (time, y, x).

    Attributes
    ----------
    prediction, residual : array
        Residual ``flux - prediction`` with each epoch's fold held out; NaN where ``mask`` is set.
    error : array
        1-sigma error of the residual: photon error, noise of the predictors and of the fit.
    mask : bool array
        Bad samples, and pixels that could not be predicted.
    ridge : float
        Penalty in units of n_predictors x (median target variance of a block).
    n_predictors : int array (y, x)
        How many pixels predicted each target.
    """

    prediction: Array
    residual: Array
    error: Array
    mask: Mask
    ridge: float
    n_predictors: NDArray[np.int64]


def solve_cpm(
    predictors: ArrayLike,
    target: ArrayLike,
    *,
    ridge: float,
    error: ArrayLike | None = None,
    train: ArrayLike | None = None,
    constant: bool = True,
) -> CPMSolution:
    """Ridge regression of one time series on others.

    Minimises ``sum_train ((target - constant - predictors @ a) / error)^2 + ridge sum(a^2)``.

    Parameters
    ----------
    predictors : array (time, n)
    target : array (time,)
    ridge : float
        Penalty, in units of 1/predictors^2 where error is given, else target^2/predictors^2.
    error : array (time,), optional
        1-sigma errors of the target.
    train : bool array (time,), optional
        Epochs that enter the fit; the others are predicted all the same. Epochs whose target, error or
        predictors are not finite never enter.
    constant : bool
        Fit an unpenalised constant.

    Raises
    ------
    ValueError
        If shapes do not match, the ridge is negative, or no epoch is left to train on.

    References
    ----------
    Wang et al. 2017, eqs. 1-3.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> solution = solve_cpm(x, [1.0, 3.0, 5.0], ridge=0.0)
    >>> solution.coefficients.round(12).tolist(), round(solution.constant, 12)
    ([2.0], 1.0)
    """
    x, y = np.asarray(predictors, float), np.asarray(target, float)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"predictors must be (time, n) and target (time,), not {x.shape} and {y.shape}")
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, not {ridge}")
    sigma = np.ones_like(y) if error is None else np.broadcast_to(np.asarray(error, float), y.shape)
    use = np.isfinite(y) & np.isfinite(sigma) & (sigma > 0) & np.isfinite(x).all(1)
    if train is not None:
        use &= np.asarray(train, bool)
    if not use.any():
        raise ValueError("no epoch is left to train on: all are masked, not finite or outside train")
    weight = 1 / sigma[use]
    one = weight if constant else None
    r = residual_matrix((x[use] * weight[:, None]).T, one, float(ridge))
    a, c = r.coefficients((y[use] * weight)[:, None])
    prediction = x @ a[:, 0] + c[0]
    return CPMSolution(a[:, 0], float(c[0]), prediction, y - prediction)


def fit_cpm(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    *,
    target: tuple[slice, slice] | None = None,
    n_predictors: int = 400,
    exclusion: float = 16,
    row_column_exclusion: int = 10,
    predictors: Choice = "closest",
    ridge: float | None = None,
    folds: int = 10,
    block: int = 4,
    train: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    farthest: float | None = None,
    epoch_error: ArrayLike | None = None,
    origin: tuple[int, int] = (0, 0),
) -> CPMFit:
    """Held-out prediction of every pixel of a window from other pixels of the same epochs.

    Parameters
    ----------
    flux, error, mask : array (time, y, x)
        Frames as they were taken (detector grid); mask True = bad.
    target : tuple of slices (y, x), optional
        Window of pixels to predict; all by default.
    n_predictors : int
        How many pixels predict a block of targets (fewer where there are not as many).
    exclusion, row_column_exclusion : float, int
        Predictors are at least ``exclusion`` pixels away and in none of the targets' rows and columns or
        the next ``row_column_exclusion``; both shrink in frames less than four exclusions wide.
    predictors : {"closest", "brightness", "similarity", "random"}
        How predictors are chosen among the allowed.
    ridge : float, optional
        In units of n_predictors x target variance; by default cross-validated over `RIDGE_GRID`.
    folds : int
        Contiguous blocks of training epochs held out in turn.
    block : int
        Targets in a block x block square share predictors and one factorisation.
    train : bool array (time,), optional
        Epochs to train on, for example those outside an event.
    exclude : bool array (y, x), optional
        Pixels that must not predict (known variables).
    farthest : float, optional
        Predictors are at most so many rows and columns away. With it the exclusions are taken as they are,
        so that a pixel's prediction is the same in every tile that holds it and this halo.
    epoch_error : array (time,), optional
        Relative error of every epoch, median 1; by default measured in this tile.
    origin : tuple of int (y, x)
        Where the arrays begin on the detector: blocks begin at multiples of ``block`` there.

    Raises
    ------
    ValueError
        If shapes do not match, there are too few epochs for the folds, or no pixel may predict.

    References
    ----------
    Wang et al. 2017, sec. 2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sky = 100 + rng.normal(size=(60, 1, 1))
    >>> flux = sky * rng.uniform(1, 2, (1, 12, 12)) + 0.01 * rng.normal(size=(60, 12, 12))
    >>> error, mask = np.full(flux.shape, 0.01), np.zeros(flux.shape, bool)
    >>> fit = fit_cpm(flux, error, mask, target=(slice(4), slice(4)))
    >>> bool(fit.residual.std() < 0.02)
    True
    """
    tile = _prepare(
        (flux, error, mask), (n_predictors, predictors, folds), train, exclude,
        (exclusion, row_column_exclusion, farthest), epoch_error,
    )  # fmt: skip
    ny, nx = tile.shape
    ys, xs, blocks = lattice_blocks(tile.shape, target, block, origin)
    tile.n_blocks = len(blocks)
    if ridge is None:
        sample = np.unique(
            np.linspace(0, len(blocks) - 1, max(_CV_PIXELS // block**2, _CV_BLOCKS)).round().astype(int)
        )
        factor = best_ridge(block_scores(tile, [blocks[i] for i in sample]))
    else:
        factor = float(ridge)
    prediction = np.full((len(tile.series), ny, nx), np.nan)
    variance, used = np.full_like(prediction, np.nan), np.zeros((ny, nx), np.int64)
    for rows, columns in blocks:
        where = (slice(None), slice(*rows), slice(*columns))
        pixels = tile.pixels(rows, columns)
        p, v, count = tile.predict(rows, columns, pixels, factor)
        shape = prediction[where].shape
        prediction[where], variance[where] = p.reshape(shape), v.reshape(shape)
        used[where[1:]] = count
    check_predicted(tile, used, blocks)
    window = (slice(None), slice(*ys[:2]), slice(*xs[:2]))
    prediction, variance = prediction[window], variance[window]
    bad = tile.bad.reshape(-1, ny, nx)[window] | ~np.isfinite(prediction)
    residual = np.where(bad, np.nan, np.asarray(flux, float)[window] - prediction)
    return CPMFit(prediction, residual, np.sqrt(variance), bad, factor, used[window[1:]])


def ridge_scores(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    *,
    target: tuple[slice, slice] | None = None,
    lattice: int = 4,
    n_predictors: int = 400,
    exclusion: float = 16,
    row_column_exclusion: int = 10,
    predictors: Choice = "closest",
    folds: int = 10,
    block: int = 4,
    train: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    farthest: float | None = None,
    epoch_error: ArrayLike | None = None,
    origin: tuple[int, int] = (0, 0),
) -> Array:
    """How well each ridge of `RIDGE_GRID` predicts blocks on a lattice of the detector.

    Parameters as in `fit_cpm`; every ``lattice``-th block along both axes that begins in the target
    window is looked at, so that sums over the tiles of a field do not depend on the tiles.

    Returns
    -------
    array (ridge, 2)
        Sum of the logarithms of pixels' mean square held-out residuals, and number of pixels.
    """
    tile = _prepare(
        (flux, error, mask), (n_predictors, predictors, folds), train, exclude,
        (exclusion, row_column_exclusion, farthest), epoch_error,
    )  # fmt: skip
    ys, xs, blocks = lattice_blocks(tile.shape, target, block, origin)
    chosen = [
        (rows, columns)
        for rows, columns in blocks
        if rows[0] >= ys[0] and columns[0] >= xs[0]
        and not ((rows[0] + origin[0]) // block % lattice or (columns[0] + origin[1]) // block % lattice)
    ]  # fmt: skip
    if not chosen:
        return np.zeros((len(RIDGE_GRID), 2))
    scores = block_scores(tile, chosen)
    return np.column_stack([scores.sum(1), np.full(len(scores), scores.shape[1])])


def _prepare(cube, model, train, exclude, exclusions, epoch_error) -> Tile:
    """The tile with its exclusions; see `fit_cpm` for what it is made of."""
    n_predictors, predictors, folds = model
    n_time = np.shape(cube[0])[0] if np.ndim(cube[0]) else 0
    given = None if epoch_error is None else np.broadcast_to(np.asarray(epoch_error, float), (n_time,))
    flux, error, mask = cube
    tile = Tile.prepare(flux, error, mask, train, exclude, predictors, n_predictors, folds, given)
    exclusion, row_column_exclusion, farthest = exclusions
    if farthest is None:
        tile.exclusion = fitting_exclusion(tile.shape, exclusion, row_column_exclusion)
    else:
        tile.exclusion, tile.farthest = (exclusion, row_column_exclusion), farthest
    return tile
