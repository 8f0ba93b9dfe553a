"""Bad samples of predictors, filled from the pixels around them with an error of their own.

A predictor that lost a few epochs to cosmic rays still predicts all of them. What stands in the gap must be
an estimate of what the pixel would have shown, not its median: where the pointing moves, a star's pixel is
hundreds of errors from its median, and so would be the prediction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A pixel that is bad in a larger part of the epochs in which its neighbours are good predicts nobody.
MAX_BAD = 0.05
# Pixels around a gap that fill it: two on every side, and one where there are too few epochs for that.
FILL_REACH = 2
_LEAST_NEIGHBOURS = 5
# Epochs a fit needs beyond two for each coefficient.
_SPARE_EPOCHS = 10
# Share of the signal's variance that keeps the normal matrix regular.
_RIDGE = 1e-9


def fill(
    values: Array, noise: Array, bad: Mask, shape: tuple[int, int], may: Mask,
    train: NDArray[np.int64], epoch_error: Array,
) -> tuple[Mask, Mask]:  # fmt: skip
    """Fill gaps of the pixels that may predict, in ``values`` and ``noise``.

    Each pixel is fitted to its neighbours in the training epochs in which all of them are good; a gap is
    filled from the neighbours that are good in it. What a pixel becomes depends on no pixel further away
    than `FILL_REACH`.

    Parameters
    ----------
    values, noise : arrays (pixels, time)
        Normalised series and errors, 0 where bad. Changed in place.
    bad : bool array (pixels, time)
    shape : tuple of int
        (y, x) of the tile.
    may : bool array (pixels,)
        Pixels that may predict.
    train : int array
        Epochs to train on.
    epoch_error : array (time,)
        Relative error of an epoch.

    Returns
    -------
    usable : bool array (pixels,)
        Of those that may, the pixels that are good often enough.
    available : bool array (pixels, time)
        Samples that are good or were filled.
    """
    good = ~bad
    available, usable = good.copy(), may.copy()
    trained = np.zeros(bad.shape[1], bool)
    trained[train] = True
    for pixel in np.nonzero(may & bad.any(1))[0].tolist():
        around = _around(pixel, shape, FILL_REACH)
        seen = good[around].sum(0) >= min(_LEAST_NEIGHBOURS, len(around))
        alone = bad[pixel] & seen
        if alone[train].sum() > MAX_BAD * len(train) or good[pixel, train].mean() < 0.5:
            usable[pixel] = False
            continue
        epochs = np.nonzero(alone)[0]
        if len(epochs):
            _fill_pixel(pixel, epochs, shape, (values, noise, good, available), trained, epoch_error)
    return usable, available


def _around(pixel: int, shape: tuple[int, int], reach: int) -> NDArray[np.int64]:
    """The pixels of the square around one, without it."""
    y, x = divmod(pixel, shape[1])
    rows = np.arange(max(y - reach, 0), min(y + reach + 1, shape[0]))
    columns = np.arange(max(x - reach, 0), min(x + reach + 1, shape[1]))
    square = (rows[:, None] * shape[1] + columns).ravel()
    return square[square != pixel]


def _fill_pixel(pixel, epochs, shape, arrays, trained: Mask, epoch_error: Array) -> None:
    """Fill one pixel's gaps, from two pixels around it, or from one where the epochs are few."""
    values, noise, good, available = arrays
    for reach in range(FILL_REACH, 0, -1):
        around = _around(pixel, shape, reach)
        own = good[pixel] & trained
        around = around[good[around][:, own].mean(1) >= 1 - MAX_BAD]
        complete = own & good[around].all(0)
        if len(around) and complete.sum() >= 2 * len(around) + _SPARE_EPOCHS:
            break
    else:
        return
    x = values[np.append(around, pixel)][:, complete] / epoch_error[complete]
    one = 1 / epoch_error[complete]
    length = one @ one
    mean = x @ one / length
    gram = x @ x.T - length * np.outer(mean, mean)
    n = len(around)
    solved: dict[bytes, tuple[Array, float]] = {}
    for epoch in epochs:
        use = good[around, epoch]
        if use.sum() < min(_LEAST_NEIGHBOURS, n):
            continue
        key = use.tobytes()
        if key not in solved:
            solved[key] = _regress(gram, np.nonzero(use)[0], int(complete.sum()))
        a, variance = solved[key]
        values[pixel, epoch] = mean[n] + a @ (values[around[use], epoch] - mean[:n][use])
        noise[pixel, epoch] = np.sqrt(variance) * epoch_error[epoch]
        available[pixel, epoch] = True


def _regress(gram: Array, use: NDArray[np.int64], rows: int) -> tuple[Array, float]:
    """Coefficients on some of the neighbours, and the variance of what they leave of the last pixel."""
    normal = gram[np.ix_(use, use)]
    normal[np.diag_indices(len(use))] += _RIDGE * np.trace(normal) / len(use)
    a = np.linalg.solve(normal, gram[use, -1])
    left = gram[-1, -1] - 2 * a @ gram[use, -1] + a @ gram[np.ix_(use, use)] @ a
    return a, max(float(left), 0.0) / (rows - len(use) - 1)
