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
    x: Array, one: Array, y: Array, use: NDArray[np.bool_], folds: list[NDArray[np.int64]],
    ridges: Sequence[float],
) -> Array:  # fmt: skip
    """Mean square held-out residual of every target for every ridge.

    Parameters
    ----------
    x : array (n, rows)
        Whitened predictors.
    one : array (rows,)
        Whitened constant, not penalised.
    y : array (rows, targets)
        Whitened targets.
    use : bool array (rows, targets)
        Which residuals count; all rows are fitted.
    folds : list of int arrays
        Rows left out together.
    ridges : sequence of float, > 0

    Returns
    -------
    array (ridges, targets)
    """
    length = np.sqrt(one @ one)
    unit = one / length
    z = np.vstack([x - (x @ unit)[:, None] * unit, one])
    cut = [(z[:, fold], y[fold]) for fold in folds]
    grams = [zk @ zk.T for zk, _ in cut]
    sides = [zk @ yk for zk, yk in cut]
    gram, side = sum(grams), sum(sides)
    penalty = np.append(np.ones(len(x)), 0.0)
    squares = np.zeros((len(ridges), y.shape[1]))
    for i, ridge in enumerate(ridges):
        for fold, (zk, yk), g, b in zip(folds, cut, grams, sides, strict=True):
            normal = gram - g
            normal[np.diag_indices(len(z))] += ridge * penalty
            low, failed = dpotrf(normal.T, lower=1, overwrite_a=1)
            if failed:
                raise np.linalg.LinAlgError(f"the normal matrix is singular at ridge {ridge}: give a larger")
            a = dpotrs(low, side - b, lower=1)[0]
            squares[i] += (np.where(use[fold], yk - zk.T @ a, 0.0) ** 2).sum(0)
    return squares / np.maximum(use.sum(0), 1)
