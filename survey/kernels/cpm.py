"""Causal pixel model: each pixel's time series predicted from pixels that share only systematics with it.

Wang et al. 2017 ("A pixel-level model for event discovery in time-domain imaging"). Frames stay on the
detector grid. Held-out residuals are the product: in-sample ones eat the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._cpm_blocks import (
    RIDGE_GRID,
    best,
    check_predicted,
    choose,
    counts_of,
    lattice_blocks,
    lattice_scores,
    overlap,
)
from survey.kernels._cpm_fill import FILL_REACH
from survey.kernels._cpm_setup import make_tile
from survey.kernels._cpm_single import CPMSolution, solve_cpm
from survey.kernels._cpm_tile import Tile
from survey.kernels._predictors import Choice

__all__ = [
    "FILL_REACH",
    "RIDGE_GRID",
    "CPMFit",
    "CPMSolution",
    "best",
    "fit_and_score",
    "fit_cpm",
    "ridge_scores",
    "solve_cpm",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Counts = int | Sequence[int]


@dataclass(frozen=True)
class CPMFit:
    """Predictions of a window of pixels, shapes (time, y, x).

    Attributes
    ----------
    prediction, residual : array
        Residual ``flux - prediction`` with each epoch's fold held out (or not, on request); NaN where
        ``mask`` is set.
    error : array
        1-sigma error of the residual: photon error, noise of the predictors and of the fit.
    mask : bool array
        Bad samples, and pixels that could not be predicted.
    ridge : float
        Penalty in units of n_predictors x (median target variance of a block).
    n_predictors : int array (y, x)
        How many pixels predicted each target.
    fit_mask : bool array
        Good samples of epochs that ``train`` leaves out, or in which predictors of the pixel have none.
    leverage : float32 array
        Weight of a sample in its own prediction: 0 where folds are held out.
    """

    prediction: Array
    residual: Array
    error: Array
    mask: Mask
    ridge: float
    n_predictors: NDArray[np.int64]
    fit_mask: Mask
    leverage: NDArray[np.float32]


def fit_cpm(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    *,
    target: tuple[slice, slice] | None = None,
    n_predictors: Counts = 400,
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
    components: int | None = None,
    time_order: int = 0,
    time: ArrayLike | None = None,
    weights: Literal["epoch", "pixel"] = "epoch",
    held_out: bool = True,
    start: int = 0,
) -> CPMFit:
    """Held-out prediction of every pixel of a window from other pixels of the same epochs.

    Parameters
    ----------
    flux, error, mask : array (time, y, x)
        Frames as they were taken (detector grid); mask True = bad. Gaps of a predictor are filled from the
        pixels around it; an epoch in which a predictor has no sample at all trains no target of its, and is
        predicted from the others.
    target : tuple of slices (y, x), optional
        Window of pixels to predict; all by default.
    n_predictors : int or sequence of int
        How many pixels predict a block of targets (fewer where there are not as many); of several numbers
        the best is chosen by cross-validation.
    exclusion, row_column_exclusion : float, int
        Predictors are at least ``exclusion`` pixels away and in none of the targets' rows and columns or
        the next ``row_column_exclusion``; both shrink in frames less than four exclusions wide.
    predictors : {"closest", "brightness", "similarity", "cosine", "l1", "random"}
        How predictors are chosen among the allowed. Similarity (correlation), cosine and l1 look at the
        targets in all training epochs.
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
        so that a pixel's prediction is the same in every tile that holds it, this halo and two pixels more.
    epoch_error : array (time,), optional
        Relative error of every epoch, median 1; by default measured in this tile. Epochs weigh by its
        inverse square.
    origin : tuple of int (y, x)
        Where the arrays begin on the detector: blocks begin at multiples of ``block`` there.
    components : int, optional
        So many principal components of a block's predictors predict in their place.
    time_order : int
        Degree of a polynomial in time that is fitted with the predictors, without a penalty.
    time : array (time,), optional
        Times of the epochs, for the polynomial; by default they are equally spaced.
    weights : {"epoch", "pixel"}
        Weigh epochs alike for all pixels, or each target's samples by their own errors: no factorisation is
        shared then, and a pixel takes as long as a block.
    held_out : bool
        False: residuals of a fit to all training epochs. They look better and have eaten of the signal; their
        errors are upper limits.
    start : int
        Predict the epochs from this one on, and no others, from a fit to all before: what later epochs cost
        then is one fit without folds. Results have these epochs alone.

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
    tile = make_tile(
        (flux, error, mask), train=train, exclude=exclude, exclusion=exclusion,
        row_column_exclusion=row_column_exclusion, farthest=farthest, predictors=predictors, folds=folds,
        epoch_error=epoch_error, components=components, time_order=time_order, time=time, weights=weights,
        held_out=held_out, start=start,
    )  # fmt: skip
    return _fit(tile, np.asarray(flux), target, block, origin, n_predictors, ridge)


def _fit(
    tile: Tile, flux: NDArray, target, block: int, origin: tuple[int, int], counts: Counts,
    ridge: float | None,
) -> CPMFit:  # fmt: skip
    """Every block of a window."""
    ny, nx = tile.series.shape
    ys, xs, blocks = lattice_blocks((ny, nx), target, block, origin)
    tile.n_blocks = len(blocks)
    count, factor = choose(tile, blocks, counts_of(counts), ridge, block)
    # blocks reach beyond the window, which is what is kept
    shape = (len(tile.time) - tile.start, ys[1] - ys[0], xs[1] - xs[0])
    prediction, error = np.full((2, *shape), np.nan)
    # where folds are held out it is nought
    leverage = np.broadcast_to(np.float32(0), shape) if tile.model.held_out else np.zeros(shape, np.float32)
    kept_out, used = np.zeros(shape, bool), np.zeros((ny, nx), np.int64)
    for rows, columns in blocks:
        found = tile.predict(rows, columns, count, factor)
        used[slice(*rows), slice(*columns)] = found.used
        there, of_block = zip(*(overlap(a, b) for a, b in ((rows, ys), (columns, xs))), strict=True)
        at, size = (slice(None), *of_block), (shape[0], rows[1] - rows[0], columns[1] - columns[0])
        prediction[:, *there] = found.prediction.reshape(size)[at]
        error[:, *there] = np.sqrt(found.variance.reshape(size)[at])
        if not tile.model.held_out:
            leverage[:, *there] = found.leverage.reshape(size)[at]
        kept_out[:, *there] = found.kept_out[:, None, None]
    check_predicted(tile, used, blocks)
    window = (slice(tile.start, None), slice(*ys[:2]), slice(*xs[:2]))
    bad = np.moveaxis(tile.series.bad.reshape(ny, nx, -1), 2, 0)[window] | ~np.isfinite(prediction)
    residual = np.subtract(flux[window], prediction, dtype=float)
    residual[bad] = np.nan
    return CPMFit(
        prediction, residual, error, bad, factor, used[window[1:]], kept_out & ~bad, leverage
    )  # fmt: skip


def ridge_scores(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    *,
    target: tuple[slice, slice] | None = None,
    lattice: int = 4,
    n_predictors: Counts = 400,
    block: int = 4,
    origin: tuple[int, int] = (0, 0),
    **model: Any,
) -> Array:
    """How well each ridge of `RIDGE_GRID` predicts blocks on a lattice of the detector.

    Parameters as in `fit_cpm`; every ``lattice``-th block along both axes that begins in the target
    window is looked at, so that sums over the tiles of a field do not depend on the tiles.

    Returns
    -------
    array (count, ridge, 2)
        For every number of predictors and ridge: sum of the logarithms of pixels' mean square held-out
        residuals, and number of pixels.
    """
    tile = make_tile((flux, error, mask), **model)
    return lattice_scores(tile, target, block, origin, lattice, counts_of(n_predictors))


def fit_and_score(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    *,
    counts: Sequence[int],
    lattice: int = 4,
    n_predictors: int = 400,
    ridge: float = 1.0,
    target: tuple[slice, slice] | None = None,
    block: int = 4,
    origin: tuple[int, int] = (0, 0),
    **model: Any,
) -> tuple[CPMFit, Array]:
    """`fit_cpm` with one number and ridge, and `ridge_scores` of several numbers, from series made once."""
    tile = make_tile((flux, error, mask), **model)
    scores = lattice_scores(tile, target, block, origin, lattice, counts)
    return _fit(tile, np.asarray(flux), target, block, origin, n_predictors, ridge), scores
