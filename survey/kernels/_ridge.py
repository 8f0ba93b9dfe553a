"""Ridge regression seen through its residual matrix R = I - H, which gives exact held-out residuals.

For rows S left out of the fit, the residual of the refitted model is ``R_SS^-1 (R y)_S``: no refit is needed
(`survey.kernels._held_out`). Rows are whitened (divided by their relative error) by the caller; the free
columns, a constant or a polynomial in time, are not penalised.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

Array = NDArray[np.float64]
# Indices of rows; a slice where they are neighbours, which copies nothing.
Rows = NDArray[np.int64] | slice


class Fitted(NamedTuple):
    """Residuals (rows, targets), coefficients (n, targets) and those of the free columns (p, targets)."""

    residual: Array
    coefficients: Array
    free: Array


class ResidualMatrix(Protocol):
    """What both factorisations offer."""

    def fit(self, y: Array, product: Array | None = None) -> Fitted:
        """R y and coefficients for y (rows, targets); ``product`` is x @ y where it is known already."""

    def block(self, a: Rows, b: Rows) -> Array:
        """R[a, b]."""

    def square(self, a: Rows, b: Rows, block: Array) -> Array:
        """(R R)[a, b], given R[a, b]: R is no projection once there is a ridge."""

    def inverse_columns(self, columns: NDArray[np.int64]) -> Array:
        """Columns (n, columns) of the inverse of the predictors' normal matrix, freed of the free columns."""


class PrimalResidual:
    """R by the inverse of the n x n normal matrix N: for more rows than predictors.

    With W = N^-1 x everything is a product of thin matrices: R = I - Q Q^T - x^T W, where Q spans the free
    columns and x is freed of them, and R R = R - ridge W^T W.

    Parameters
    ----------
    x : array (n, rows)
        Whitened predictors, one a row: time runs along memory.
    free : array (rows, p)
        Whitened columns that are not penalised; p may be 0.
    ridge : float
        Penalty on the squared coefficients.
    gram : array (n, n), optional
        ``x @ x.T`` where it is known already.
    """

    def __init__(self, x: Array, free: Array, ridge: float, gram: Array | None = None) -> None:
        self.ridge = ridge
        self.q, self._triangle = np.linalg.qr(free)
        self._mean = x @ self.q
        self.x = x - self._mean @ self.q.T
        self.normal = self.x @ self.x.T if gram is None else gram - self._mean @ self._mean.T
        self.normal[np.diag_indices(len(x))] += ridge
        self._inverse = symmetric_inverse(self.normal.copy())
        self.w: Array = self._inverse @ self.x

    def fit(self, y: Array, product: Array | None = None) -> Fitted:
        """R y and coefficients for y (rows, targets); ``product`` is x @ y where it is known already."""
        qy = self.q.T @ y
        a = self.w @ y if product is None else self._inverse @ (product - self._mean @ qy)
        residual = y - self.x.T @ a
        residual -= self.q @ qy
        return Fitted(residual, a, np.linalg.solve(self._triangle, qy - self._mean.T @ a))

    def block(self, a: Rows, b: Rows) -> Array:
        """R[a, b]."""
        r = -(self.x[:, a].T @ self.w[:, b]) - self.q[a] @ self.q[b].T
        return _add_identity(r, a, b, len(self.q))

    def square(self, a: Rows, b: Rows, block: Array) -> Array:
        """(R R)[a, b], given R[a, b]."""
        return np.asarray(block - self.ridge * (self.w[:, a].T @ self.w[:, b]))

    def inverse_columns(self, columns: NDArray[np.int64]) -> Array:
        """Columns of the inverse of the normal matrix."""
        return self._inverse[:, columns]


def _cholesky(matrix: Array) -> Array:
    """Lower factor of a symmetric matrix, which it takes the place of."""
    low, failed = dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("the normal matrix is singular: give a ridge > 0")
    return np.asarray(low)


def symmetric_inverse(matrix: Array) -> Array:
    """Inverse of a positive definite matrix, symmetric to the last bit; takes the matrix's place."""
    half = np.asarray(dpotri(_cholesky(matrix), lower=1, overwrite_c=1)[0])
    diagonal = half.diagonal().copy()
    whole = half + half.T  # the other triangle is zero
    whole[np.diag_indices(len(half))] = diagonal
    return whole


def _add_identity(r: Array, a: Rows, b: Rows, count: int) -> Array:
    if a is b:
        r[np.diag_indices(len(r))] += 1
        return r
    every = np.arange(count)
    r += every[a][:, None] == every[b]
    return r


class DualResidual:
    """R by the inverse of the rows x rows kernel matrix: for fewer rows than predictors (n, rows)."""

    def __init__(self, x: Array, free: Array, ridge: float) -> None:
        kernel = x.T @ x
        kernel[np.diag_indices(len(kernel))] += ridge
        b = symmetric_inverse(kernel)
        bf = b @ free
        self._free = np.linalg.solve(free.T @ bf, bf.T)
        b -= bf @ self._free
        self._x, self._b, self.ridge = x, b, ridge

    def fit(self, y: Array, product: Array | None = None) -> Fitted:
        """R y and coefficients for y (rows, targets)."""
        by = self._b @ y
        return Fitted(self.ridge * by, self._x @ by, self._free @ y)

    def block(self, a: Rows, b: Rows) -> Array:
        """R[a, b]."""
        return np.asarray(self.ridge * self._b[a][:, b])

    def square(self, a: Rows, b: Rows, block: Array) -> Array:
        """(R R)[a, b]."""
        return np.asarray(self.ridge**2 * (self._b[a] @ self._b[:, b]))

    def inverse_columns(self, columns: NDArray[np.int64]) -> Array:
        """Columns of the inverse of the normal matrix, by the matrix inversion lemma."""
        whole = -(self._x @ (self._b @ self._x[columns].T))
        whole[columns, np.arange(len(columns))] += 1
        return np.asarray(whole / self.ridge)


def residual_matrix(x: Array, free: Array, ridge: float, gram: Array | None = None) -> ResidualMatrix:
    """The cheaper factorisation of predictors (n, rows); without a ridge only the normal matrix will do."""
    if ridge > 0 and gram is None and x.shape[1] < x.shape[0]:
        return DualResidual(x, free, ridge)
    return PrimalResidual(x, free, ridge, gram)
