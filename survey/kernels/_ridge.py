"""Ridge regression seen through its residual matrix R = I - H, which gives exact held-out residuals.

For rows S left out of the fit, the residual of the refitted model is ``R_SS^-1 (R y)_S``: no refit is needed.
Rows are whitened (divided by their relative error) by the caller; the constant is not penalised.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpotrf, dpotri

Array = NDArray[np.float64]


class ResidualMatrix(Protocol):
    """What both factorisations offer."""

    def apply(self, y: Array) -> Array:
        """R y for y (rows, targets)."""

    def block(self, rows: NDArray[np.int64]) -> Array:
        """R[rows, rows]."""

    def square(self, rows: NDArray[np.int64], block: Array) -> Array:
        """(R R)[rows, rows], given R[rows, rows]: R is no projection once there is a ridge."""

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""


class PrimalResidual:
    """R by the inverse of the n x n normal matrix N: for more rows than predictors.

    With W = x N^-1 everything is a product of thin matrices: R = I - P - W x^T, where P projects on the
    constant and x is freed of it, and R R = R - ridge W W^T.

    Parameters
    ----------
    x : array (n, rows)
        Whitened predictors, one a row: time runs along memory.
    one : array (rows,) or None
        Whitened constant column; None leaves the constant out.
    ridge : float
        Penalty on the squared coefficients.
    gram : array (n, n), optional
        ``x @ x.T`` where it is known already.
    """

    def __init__(self, x: Array, one: Array | None, ridge: float, gram: Array | None = None) -> None:
        self._ridge = ridge
        self._one = np.zeros(x.shape[1]) if one is None else one / np.sqrt(one @ one)
        self._length = 0.0 if one is None else float(np.sqrt(one @ one))
        self._mean = x @ self._one
        self._x = x - self._mean[:, None] * self._one
        normal = self._x @ self._x.T if gram is None else gram - np.outer(self._mean, self._mean)
        normal[np.diag_indices(len(x))] += ridge
        self._w = _inverse(normal) @ self._x

    def apply(self, y: Array) -> Array:
        """R y for y (rows, targets)."""
        return y - self._one[:, None] * (self._one @ y) - self._x.T @ (self._w @ y)

    def block(self, rows: NDArray[np.int64]) -> Array:
        """R[rows, rows]."""
        one = self._one[rows]
        r = -(self._x[:, rows].T @ self._w[:, rows]) - np.outer(one, one)
        r[np.diag_indices(len(rows))] += 1
        return r

    def square(self, rows: NDArray[np.int64], block: Array) -> Array:
        """(R R)[rows, rows], given R[rows, rows]."""
        w = self._w[:, rows]
        return block - self._ridge * (w.T @ w)

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""
        a = self._w @ y
        if not self._length:
            return a, np.zeros(y.shape[1])
        return a, (self._one @ y - self._mean @ a) / self._length


def _inverse(normal: Array) -> Array:
    """Inverse of a positive definite matrix, symmetric to the last bit."""
    low, failed = dpotrf(normal.T, lower=1, clean=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("the normal matrix is singular: give a ridge > 0")
    half = np.asarray(dpotri(low, lower=1, overwrite_c=1)[0])
    diagonal = half.diagonal().copy()
    whole = half + half.T  # the other triangle is zero
    whole[np.diag_indices(len(half))] = diagonal
    return whole


class DualResidual:
    """R by the inverse of the rows x rows kernel matrix: for fewer rows than predictors (n, rows)."""

    def __init__(self, x: Array, one: Array | None, ridge: float) -> None:
        kernel = x.T @ x
        kernel[np.diag_indices(len(kernel))] += ridge
        factor = cho_factor(kernel, lower=True, check_finite=False)
        b = cho_solve(factor, np.eye(len(kernel)), check_finite=False)
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

    def square(self, rows: NDArray[np.int64], block: Array) -> Array:
        """(R R)[rows, rows]."""
        return self._r[rows] @ self._r[rows].T

    def coefficients(self, y: Array) -> tuple[Array, Array]:
        """Coefficients (n, targets) and constants (targets,)."""
        a = self._x @ (self._r @ y) / self._ridge
        constant = np.zeros(y.shape[1]) if self._one_b is None else self._one_b @ y
        return a, constant


def residual_matrix(x: Array, one: Array | None, ridge: float, gram: Array | None = None) -> ResidualMatrix:
    """The cheaper factorisation of predictors (n, rows); without a ridge only the normal matrix will do."""
    if ridge > 0 and gram is None and x.shape[1] < x.shape[0]:
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
        block = r.block(fold)
        inverse = np.linalg.inv(block)
        residual[np.ix_(fold, whole)] = inverse @ ry[np.ix_(fold, whole)]
        variance[np.ix_(fold, whole)] = _white_variance(inverse, r.square(fold, block))[:, None]
        for j in partial:
            rows = np.union1d(fold, np.nonzero(missing[:, j])[0])
            block = r.block(rows)
            inverse = np.linalg.inv(block)
            at = np.searchsorted(rows, fold)
            residual[fold, j] = (inverse @ ry[rows, j])[at]
            variance[fold, j] = _white_variance(inverse, r.square(rows, block))[at]
    return residual, variance


def _white_variance(inverse: NDArray[np.floating], square: Array) -> Array:
    return np.asarray(((inverse @ square) * inverse).sum(1))
