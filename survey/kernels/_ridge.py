"""Ridge regression seen through its residual matrix R = I - H, which gives exact held-out residuals.

For rows S left out of the fit, the residual of the refitted model is ``R_SS^-1 (R y)_S``: no refit is needed.
Rows are whitened (divided by their relative error) by the caller; the constant is not penalised.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Array = NDArray[np.float64]


class ResidualMatrix(Protocol):
    """What both factorisations offer."""

    def apply(self, y: Array) -> Array:
        """R y for y (rows, targets)."""

    def block(self, rows: NDArray[np.int64]) -> Array:
        """R[rows, rows]."""

    def square(self, rows: NDArray[np.int64]) -> Array:
        """(R R)[rows, rows]: R is no projection once there is a ridge."""

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""


class PrimalResidual:
    """R by a Cholesky factor of the n x n normal matrix: for more rows than predictors.

    Parameters
    ----------
    x : array (rows, n)
        Whitened predictors.
    one : array (rows,) or None
        Whitened constant column; None leaves the constant out.
    ridge : float
        Penalty on the squared coefficients.
    gram : array (n, n), optional
        ``x.T @ x`` where it is known already.
    """

    def __init__(self, x: Array, one: Array | None, ridge: float, gram: Array | None = None) -> None:
        n = x.shape[1]
        g = x.T @ x if gram is None else gram
        self._n, self._constant = n, one is not None
        z = x
        normal = np.array(g)
        normal[np.diag_indices(n)] += ridge
        if one is not None:
            z = np.column_stack([x, one])
            cross = one @ x
            normal = np.block([[normal, cross[:, None]], [cross[None, :], np.array([[one @ one]])]])
        low = cho_factor(normal, lower=True, check_finite=False)[0]
        self._low = low
        self._uu: Array | None = None
        self._u = solve_triangular(low, z.T, lower=True, check_finite=False).T

    def apply(self, y: Array) -> Array:
        """R y for y (rows, targets)."""
        return y - self._u @ (self._u.T @ y)

    def block(self, rows: NDArray[np.int64]) -> Array:
        """R[rows, rows]."""
        u = self._u[rows]
        return np.eye(len(rows)) - u @ u.T

    def square(self, rows: NDArray[np.int64]) -> Array:
        """(R R)[rows, rows]."""
        if self._uu is None:
            self._uu = self._u.T @ self._u
        u = self._u[rows]
        return np.eye(len(rows)) + u @ (self._uu @ u.T - 2 * u.T)

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""
        a = solve_triangular(self._low, self._u.T @ y, lower=True, trans=1, check_finite=False)
        return a[: self._n], a[self._n] if self._constant else np.zeros(y.shape[1])


class DualResidual:
    """R by the inverse of the rows x rows kernel matrix: for fewer rows than predictors."""

    def __init__(self, x: Array, one: Array | None, ridge: float) -> None:
        kernel = x @ x.T
        kernel[np.diag_indices(len(x))] += ridge
        factor = cho_factor(kernel, lower=True, check_finite=False)
        b = cho_solve(factor, np.eye(len(x)), check_finite=False)
        self._one_b = None
        if one is not None:
            ob = b @ one
            self._one_b = ob / (one @ ob)
            b -= np.outer(ob, self._one_b)
        self._x, self._one, self._ridge, self._r = x, one, ridge, ridge * b

    def apply(self, y: Array) -> Array:
        """R y for y (rows, targets)."""
        return self._r @ y

    def block(self, rows: NDArray[np.int64]) -> Array:
        """R[rows, rows]."""
        return self._r[np.ix_(rows, rows)]

    def square(self, rows: NDArray[np.int64]) -> Array:
        """(R R)[rows, rows]."""
        return self._r[rows] @ self._r[rows].T

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""
        a = self._x.T @ (self._r @ y) / self._ridge
        constant = np.zeros(y.shape[1]) if self._one_b is None else self._one_b @ y
        return a, constant


def residual_matrix(x: Array, one: Array | None, ridge: float, gram: Array | None = None) -> ResidualMatrix:
    """The cheaper factorisation for this shape; without a ridge only the normal matrix will do."""
    if ridge > 0 and gram is None and x.shape[0] < x.shape[1]:
        return DualResidual(x, one, ridge)
    return PrimalResidual(x, one, ridge, gram)


def fill_missing(r: ResidualMatrix, y: Array, missing: NDArray[np.bool_]) -> Array:
    """y with its missing entries replaced by their prediction from the others, column by column.

    A fit to the filled column is the fit without the missing rows.
    """
    filled = np.where(missing, 0.0, y)
    for j in np.nonzero(missing.any(0))[0]:
        rows = np.nonzero(missing[:, j])[0]
        filled[rows, j] = -np.linalg.solve(r.block(rows), r.apply(filled[:, j : j + 1])[rows, 0])
    return filled


def held_out(
    r: ResidualMatrix,
    y: Array,
    missing: NDArray[np.bool_],
    folds: list[NDArray[np.int64]],
    *,
    with_variance: bool = True,
) -> tuple[Array, Array]:
    """Residuals of every row from the fit without its fold, and their variance in units of the noise.

    Parameters
    ----------
    r : ResidualMatrix
    y : array (rows, targets)
        Whitened targets, filled by `fill_missing`.
    missing : bool array (rows, targets)
        Entries of y that never enter a fit.
    folds : list of int arrays
        Rows left out together.
    with_variance : bool
        If not, the variance is 1 throughout.

    Returns
    -------
    residual, variance : arrays (rows, targets)
        Variance ``diag(R_SS^-1 (R R)_SS R_SS^-1)`` under white noise: 1 for the row itself, the rest for what
        the noise of the training rows does to the prediction. It does not know of a model that does not fit.
    """
    ry = r.apply(y)
    residual, variance = np.empty_like(y), np.ones_like(y)
    whole = np.nonzero(~missing.any(0))[0]
    partial = np.nonzero(missing.any(0))[0]
    for fold in folds:
        inverse = np.linalg.inv(r.block(fold))
        residual[np.ix_(fold, whole)] = inverse @ ry[np.ix_(fold, whole)]
        if with_variance:
            variance[np.ix_(fold, whole)] = _white_variance(inverse, r.square(fold))[:, None]
        for j in partial:
            rows = np.union1d(fold, np.nonzero(missing[:, j])[0])
            inverse = np.linalg.inv(r.block(rows))
            at = np.searchsorted(rows, fold)
            residual[fold, j] = (inverse @ ry[rows, j])[at]
            if with_variance:
                variance[fold, j] = _white_variance(inverse, r.square(rows))[at]
    return residual, variance


def _white_variance(inverse: NDArray[np.floating], square: Array) -> Array:
    return np.asarray(((inverse @ square) * inverse).sum(1))
