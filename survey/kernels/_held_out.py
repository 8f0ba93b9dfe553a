"""Residuals of rows from fits that never saw them, from one factorisation (`survey.kernels._ridge`)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from survey.kernels._ridge import (
    Array,
    PrimalResidual,
    ResidualMatrix,
    Rows,
    missing_values,
    symmetric_inverse,
)

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


class ShortFold:
    """Rows S fewer than the predictors: R_SS is inverted as it stands."""

    def __init__(self, r: ResidualMatrix, rows: Rows) -> None:
        block = r.block(rows, rows)
        self._square = r.square(rows, rows, block)
        self._inverse = symmetric_inverse(block)

    def solve(self, v: Array) -> Array:
        """R_SS^-1 v."""
        return self._inverse @ v

    def square(self, v: Array) -> Array:
        """(R R)_SS v."""
        return self._square @ v

    @cached_property
    def variance(self) -> Array:
        """Diagonal of R_SS^-1 (R R)_SS R_SS^-1."""
        return np.asarray(((self._inverse @ self._square) * self._inverse).sum(1))


class LongFold:
    """More rows S than predictors: they are taken out of the normal matrix, nothing is as large as S x S.

    With F = (x, Q^T)_S and N the normal matrix of both, R_SS = I - F^T N^-1 F and R_SS^-1 = I + F^T V, where
    V = (N - F F^T)^-1 F; V holds the held-out fit's own inverse times its predictors.
    """

    def __init__(self, r: PrimalResidual, rows: Rows) -> None:
        n = len(r.x)
        self._f = np.vstack([r.x[:, rows], r.q[rows].T])
        left = -(self._f @ self._f.T)
        left[:n, :n] += r.normal
        left[np.arange(n, len(left)), np.arange(n, len(left))] += 1
        self._v = symmetric_inverse(left) @ self._f
        self._x, self._q, self._w, self._ridge = self._f[:n], self._f[n:], r.w[:, rows], r.ridge

    def solve(self, v: Array) -> Array:
        """R_SS^-1 v."""
        return v + self._f.T @ (self._v @ v)

    def square(self, v: Array) -> Array:
        """(R R)_SS v."""
        wv = self._w @ v
        return v - self._x.T @ wv - self._q.T @ (self._q @ v) - self._ridge * (self._w.T @ wv)

    @cached_property
    def variance(self) -> Array:
        """Diagonal of R_SS^-1 (R R)_SS R_SS^-1."""
        leverage = (self._f * self._v).sum(0)
        return np.asarray(1 + leverage - self._ridge * (self._v[: len(self._x)] ** 2).sum(0))


def as_slice(rows: Index) -> Rows:
    """A slice where indices are neighbours: what it picks is not copied."""
    neighbours = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    return slice(int(rows[0]), int(rows[-1]) + 1) if neighbours else rows


def picked(values: NDArray, pixels: Index, at: Rows) -> NDArray:
    """A copy of some epochs of some pixels of (pixels, time), without one of all of them."""
    return np.asarray(values[:, at][pixels] if isinstance(at, slice) else values[pixels][:, at])


def _fold(r: ResidualMatrix, rows: Rows, count: int) -> ShortFold | LongFold:
    if isinstance(r, PrimalResidual) and count > len(r.x) + r.q.shape[1]:
        return LongFold(r, rows)
    return ShortFold(r, rows)


def fill_missing(r: ResidualMatrix, y: Array, missing: Mask) -> Array:
    """y with its missing entries replaced by their prediction from the others, column by column.

    A fit to the filled column is the fit without the missing rows.
    """
    if not missing.any():
        return y
    filled = np.where(missing, 0.0, y)
    rows = np.nonzero(missing.any(1))[0]
    filled[rows] += missing_values(r.block(rows, rows), r.fit(filled).residual[rows], missing[rows])
    return filled


def held_out(r: ResidualMatrix, residual: Array, missing: Mask, folds: list[Index]) -> tuple[Array, Array]:
    """Residuals of every row from the fit without its fold, and their variance in units of the noise.

    Parameters
    ----------
    r : ResidualMatrix
    residual : array (rows, targets)
        R y, of whitened targets in which missing entries hold anything finite.
    missing : bool array (rows, targets)
        Entries of y that never enter a fit.
    folds : list of int arrays
        Rows left out together.

    Returns
    -------
    residual, variance : arrays (rows, targets)
        The variance, one column for all targets where no entry is missing, is
        ``diag(R_SS^-1 (R R)_SS R_SS^-1)`` under white noise: 1 for the row itself, the rest for what the
        noise of the training rows does to the prediction. It does not know of a model that does not fit.
    """
    gone = np.nonzero(missing.any(1))[0]
    out, variance = np.empty_like(residual), np.empty((len(residual), residual.shape[1] if len(gone) else 1))
    for rows in folds:
        if len(rows) == 0:
            continue
        at = as_slice(rows)
        fold = _fold(r, at, len(rows))
        out[at] = fold.solve(residual[at])
        variance[at] = fold.variance[:, None]
        others = np.setdiff1d(gone, rows) if len(gone) else gone
        if len(others):
            _leave_out(r, fold, at, others, (residual, missing), (out, variance))
    return out, variance


def _leave_out(
    r: ResidualMatrix, fold: ShortFold | LongFold, rows: Rows, others: Index,
    given: tuple[Array, Mask], results: tuple[Array, Array],
) -> None:  # fmt: skip
    """Take each target's own missing rows m, outside the fold S, out of its held-out fit as well.

    The inverse of R over S and m has the first block row (B, 0) + G (D^T, -I), where B = R_SS^-1, D = B R_Sm,
    G = D C^-1 and C = R_mm - R_mS D.
    """
    (residual, missing), (out, variance) = given, results
    cross = r.block(others, rows)
    d = fold.solve(cross.T)
    own = r.block(others, others)
    c = own - cross @ d
    left = residual[others] - cross @ out[rows]
    qd = fold.square(d)
    q_cross = r.square(others, rows, cross)
    mixed = fold.solve(qd - q_cross.T)
    inner = d.T @ qd - q_cross @ d
    inner += -(q_cross @ d).T + r.square(others, others, own)
    for j in np.nonzero(missing[others].any(0))[0]:
        m = np.nonzero(missing[others, j])[0]
        g = np.linalg.solve(c[np.ix_(m, m)], d[:, m].T).T
        out[rows, j] -= g @ left[m, j]
        variance[rows, j] += (2 * g * mixed[:, m] + (g @ inner[np.ix_(m, m)]) * g).sum(1)


def in_sample(r: ResidualMatrix, residual: Array, folds: list[Index]) -> tuple[Array, Array, Array]:
    """Residuals R y of a fit that saw every row, their variance diag(R R) and the leverage 1 - diag(R)."""
    variance, leverage = np.empty((2, len(residual)))
    for rows in folds:
        if len(rows):
            at = as_slice(rows)
            block = r.block(at, at)
            variance[at], leverage[at] = r.square(at, at, block).diagonal(), 1 - block.diagonal()
    return residual, variance[:, None], leverage
