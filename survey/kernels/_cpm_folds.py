"""Held-out residuals for many ridges at once, by taking each fold's rows out of the normal matrix.

Costs a factorisation a fold and ridge, and nothing that grows with the square of a fold: what choosing a
ridge needs. It gives no variances, for which `survey.kernels._ridge` has the whole residual matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

Array = NDArray[np.float64]


def held_out_squares(
    x: Array, free: Array, y: Array, use: NDArray[np.bool_], folds: list[NDArray[np.int64]],
    ridges: Sequence[float], judged: slice = slice(None),
) -> Array:  # fmt: skip
    """Mean square held-out residual of every target for every ridge.

    Parameters
    ----------
    x : array (n, rows)
        Whitened predictors.
    free : array (rows, p)
        Whitened columns that are not penalised.
    y : array (rows, targets)
        Whitened targets.
    use : bool array (rows, targets)
        Which residuals count; all rows are fitted.
    folds : list of int arrays
        Rows left out together.
    ridges : sequence of float, > 0
    judged : slice
        Which of the folds are held out; all rows are fitted.

    Returns
    -------
    array (ridges, targets)
        NaN of targets without a row in the folds that are judged.
    """
    q = np.linalg.qr(free)[0]
    z = np.vstack([x - (x @ q) @ q.T, q.T])
    grams = [z[:, fold] @ z[:, fold].T for fold in folds]
    gram, side = sum(grams), z @ y
    penalty = np.repeat([1.0, 0.0], [len(x), q.shape[1]])
    squares, count = np.zeros((len(ridges), y.shape[1])), np.zeros(y.shape[1])
    for fold, g in list(zip(folds, grams, strict=True))[judged]:
        zk, yk, seen = z[:, fold], y[fold], use[fold]
        left, b = gram - g, side - zk @ yk
        count += seen.sum(0)
        for i, ridge in enumerate(ridges):
            normal = left.copy()
            normal[np.diag_indices(len(z))] += ridge * penalty
            low, failed = dpotrf(normal.T, lower=1, overwrite_a=1)
            if failed:
                raise np.linalg.LinAlgError(f"the normal matrix is singular at ridge {ridge}: give a larger")
            a = dpotrs(low, b, lower=1)[0]
            squares[i] += (np.where(seen, yk - zk.T @ a, 0.0) ** 2).sum(0)
    return np.where(count > 0, squares / np.maximum(count, 1), np.nan)
