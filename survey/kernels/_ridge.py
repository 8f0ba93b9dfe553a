"""Ridge regression seen through its residual matrix R = I - H, which gives exact held-out residuals.

For rows S left out of the fit, the residual of the refitted model is ``R_SS^-1 (R y)_S``: no refit is needed
(`survey.kernels._held_out`). Rows are whitened (divided by their relative error) by the caller; the free
columns, a constant or a polynomial in time, are not penalised.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

Array = NDArray[np.float64]
# Indices of rows; a slice where they are neighbours, which copies nothing.
Rows = NDArray[np.int64] | slice


class Fitted(NamedTuple):
    """Residuals (rows, targets), coefficients (n, targets) and those of the free columns (p, targets)."""

    residual: Array
    coefficients: Array
    free: Array


class Solution(Protocol):
    """What every factorisation offers."""

    def fit(self, y: Array, product: Array | None = None) -> Fitted:
        """R y and coefficients for y (rows, targets); ``product`` is x @ y where it is known already."""

    def new_variance(self, x: Array, free: Array) -> Array:
        """Variance (m,), in units of the noise, of the prediction of other rows: x (n, m), free (m, p)."""


class ResidualMatrix(Solution, Protocol):
    """What those offer that have an inverse."""

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

    @cached_property
    def w(self) -> Array:
        """N^-1 x, which only residuals need."""
        return np.asarray(self._inverse @ self.x)

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

    def new_variance(self, x: Array, free: Array) -> Array:
        """Variance of the prediction of other rows: squares of the training rows' weights in it, summed."""
        c = np.linalg.solve(self._triangle.T, free.T)
        x = x - self._mean @ c
        v = self._inverse @ x
        return np.asarray((x * v).sum(0) - self.ridge * (v**2).sum(0) + (c**2).sum(0))


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

    def new_variance(self, x: Array, free: Array) -> Array:
        """Variance of the prediction of other rows: squares of the training rows' weights in it, summed."""
        weights = self._b @ (self._x.T @ x) + self._free.T @ free.T
        return np.asarray((weights**2).sum(0))


class DualSolution:
    """Fits by the same matrix, without its inverse: where no row is left out.

    Parameters
    ----------
    x : array (n, rows)
        Whitened predictors.
    free : array (rows, p)
        Whitened columns that are not penalised.
    ridge : float, > 0
    """

    def __init__(self, x: Array, free: Array, ridge: float) -> None:
        kernel = dsyrk(1.0, x.T, lower=1)
        kernel.T.reshape(-1)[:: len(kernel) + 1] += ridge  # the diagonal
        self._low, failed = dpotrf(kernel, lower=1, clean=0, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("the kernel matrix is singular: give a larger ridge")
        self._x, self._free, self.ridge = x, free, ridge
        self._bf = self._solve(np.array(free, order="F"))
        normal = free.T @ self._bf
        self._to_free = 1 / normal if len(normal) == 1 else np.linalg.inv(normal)

    def _solve(self, v: Array) -> Array:
        """By the kernel matrix; v may be overwritten."""
        return np.asarray(dpotrs(self._low, v, lower=1, overwrite_b=1)[0])

    def fit(self, y: Array, product: Array | None = None, missing: NDArray[np.bool_] | None = None) -> Fitted:
        """R y and coefficients for y (rows, targets), of whose entries the ``missing`` do not enter."""
        rows = np.nonzero(missing.any(1))[0] if missing is not None else np.zeros(0, np.int64)
        count = y.shape[1]
        sides = np.zeros((len(y), count + len(rows)), order="F")
        sides[:, :count] = y
        if missing is not None and len(rows):
            sides[:, :count][missing] = 0.0
            sides[rows, np.arange(count, sides.shape[1])] = 1.0
        by = self._solve(sides)
        free = self._to_free @ (self._free.T @ by)
        by.T[:] -= free.T @ self._bf.T  # along memory
        (by, units), (free, of_units) = ((a[:, :count], a[:, count:]) for a in (by, free))
        if missing is not None and len(rows):
            values = missing_values(units[rows], by[rows], missing[rows])
            by += units @ values
            free = free + of_units @ values
        return Fitted(self.ridge * by, self._x @ by, free)

    def new_variance(self, x: Array, free: Array) -> Array:
        """Variance of the prediction of other rows: squares of the training rows' weights in it, summed."""
        bx = self._solve(np.asfortranarray(self._x.T @ x))
        weights = bx + self._bf @ (self._to_free @ (free.T - self._free.T @ bx))
        return np.asarray((weights**2).sum(0))


def missing_values(block: Array, residual: Array, missing: NDArray[np.bool_]) -> Array:
    """What entries of y, now 0, are predicted to be by the others of their column; 0 for those not missing.

    Parameters
    ----------
    block : array (rows, rows)
        R of the rows in which something is missing; or any multiple of it, with
    residual : array (rows, targets)
        that multiple of R y.
    missing : bool array (rows, targets)
    """
    values, counts = np.zeros(missing.shape), missing.sum(0)
    one = np.nonzero(counts == 1)[0]
    at = missing[:, one].argmax(0)
    values[at, one] = -residual[at, one] / block.diagonal()[at]
    for count in np.unique(counts[counts > 1]):  # targets that miss as many are solved together
        j = np.nonzero(counts == count)[0]
        at = np.nonzero(missing[:, j].T)[1].reshape(len(j), count)
        left = residual[at, j[:, None]]
        solved = np.linalg.solve(block[at[:, :, None], at[:, None]], left[..., None])[..., 0]
        values[at, j[:, None]] = -solved
    return values


def residual_matrix(x: Array, free: Array, ridge: float, gram: Array | None = None) -> ResidualMatrix:
    """The cheaper factorisation of predictors (n, rows); without a ridge only the normal matrix will do."""
    if is_dual(x, ridge, gram):
        return DualResidual(x, free, ridge)
    return PrimalResidual(x, free, ridge, gram)


def is_dual(x: Array, ridge: float, gram: Array | None) -> bool:
    """Whether the rows are fewer than the predictors, and their kernel matrix will do."""
    return ridge > 0 and gram is None and x.shape[1] < x.shape[0]
