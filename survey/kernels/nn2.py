"""Light curves from all pairwise differences: the N(N-1)/2 method (NN2).

Barris et al. 2005, AJ 130, 2272. Every pair of epochs (i, j) was subtracted and the object's flux measured
in the difference, ``difference[i, j] = V_j - V_i`` with error ``E_ij``; NN2 finds the fluxes V that explain
all pairs best, so that no single template's flaw shifts the light curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Gauge = Literal["zero-sum", "weighted", "baseline"]
_GAUGES = {"zero-sum": 0, "weighted": 1, "baseline": 2}

# An epoch's variance from E_ij^2 = e_i^2 + e_j^2 can come out negative; it is not let below this part of
# the smallest pair variance the epoch takes part in (an error of one per cent of that pair's).
VARIANCE_FLOOR = 1e-4
# Where pairs form no odd cycle (two epochs, a star of one template) the e_i^2 are not unique; this relative
# weight on "each epoch carries half of its pairs' variance" then decides, and is invisible otherwise.
_EQUAL_SHARE = 1e-10


@dataclass(frozen=True)
class NN2Solution:
    """Fluxes and errors of a batch of objects, shape (..., N); see `solve_nn2`.

    Attributes
    ----------
    flux : array (..., N)
        V; NaN where an epoch is not tied to the others.
    covariance : array (..., N, N)
        C^-1 in the chosen gauge.
    external_error : array (..., N)
        e_i, each image's share of the pair errors.
    internal_error : array (..., N)
        sqrt(covariance_ii chi2/dof), how well the pairs agree; 0 where dof is 0.
    chi2, dof : array (...)
        Misfit of the pairs, and number of pairs less epochs plus 1.
    connected : bool array (...)
        Whether pairs tie all epochs together.
    """

    flux: Array
    covariance: Array
    external_error: Array
    internal_error: Array
    chi2: Array
    dof: NDArray[np.int64]
    connected: NDArray[np.bool_]

    @property
    def total_error(self) -> Array:
        """External and internal error in quadrature, the paper's recipe."""
        return np.hypot(self.external_error, self.internal_error)

    def partitioned_error(self, ratio: ArrayLike | None = None) -> Array:
        """Errors ``(1 - c) e_i^2 + c C^-1_ii``, better calibrated than `total_error`.

        Parameters
        ----------
        ratio : float or array (...), optional
            c, the part of the pair variance made by the subtraction and not by the images; by default each
            object's own chi2/dof (noisy: pool it over objects where there are many). Above 1 the pair
            errors were too small: they are scaled by sqrt(c) and c counts as 1.
        """
        own = self.chi2 / np.maximum(self.dof, 1)
        c = np.asarray(own if ratio is None else ratio, float)[..., None]
        diagonal = np.diagonal(self.covariance, axis1=-2, axis2=-1)
        share = np.minimum(c, 1.0)
        return np.sqrt(np.maximum(c, 1.0) * ((1 - share) * self.external_error**2 + share * diagonal))


def solve_nn2(
    difference: ArrayLike, error: ArrayLike, *, gauge: Gauge = "zero-sum", baseline: ArrayLike | None = None
) -> NN2Solution:
    """Fluxes of N epochs from their pairwise differences.

    Parameters
    ----------
    difference : array (..., N, N)
        ``difference[..., i, j] = V_j - V_i`` (i the template), any flux unit; NaN where a pair is missing,
        the diagonal is ignored. Where both A_ij and A_ji were measured, ``(A_ij - A_ji) / 2`` is used with
        the quadratic mean of both errors: the reverse subtraction is not independent data.
    error : array (..., N, N)
        1-sigma errors of the differences; a pair with a non-finite or non-positive error is missing.
    gauge : {"zero-sum", "weighted", "baseline"}
        What fixes the free constant: the sum of V is 0 (the paper), its weighted mean is 0 (weights
        ``sum_k E_ik^-2``, so that one bad epoch does not shift all others), or its mean over ``baseline``.
    baseline : int or bool array (N,), optional
        Epochs without flux, for ``gauge="baseline"``.

    Returns
    -------
    NN2Solution
        If pairs do not tie all epochs together, those outside the largest connected set are NaN (with a
        baseline: the set with most baseline epochs) and ``connected`` is False.

    Raises
    ------
    ValueError
        If shapes do not match, the gauge is unknown, or a baseline is missing or empty.

    References
    ----------
    Barris et al. 2005, eqs. 3-12: C V = y with ``C_ij = -1/E_ij^2 + 1/Ebar^2``; ``M e^2 = z``.

    Examples
    --------
    >>> flux = np.array([1.0, 4.0, -5.0])
    >>> solution = solve_nn2(flux - flux[:, None], np.ones((3, 3)))
    >>> solution.flux.round(12).tolist()
    [1.0, 4.0, -5.0]
    """
    a, e = np.broadcast_arrays(np.asarray(difference, float), np.asarray(error, float))
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 2:
        raise ValueError(f"difference and error must be (..., N, N) with N >= 2, not {a.shape}")
    if gauge not in _GAUGES:
        raise ValueError(f"unknown gauge {gauge!r}; choose one of {', '.join(_GAUGES)}")
    n, batch = a.shape[-1], a.shape[:-2]
    chosen = np.ones(n, bool)
    if gauge == "baseline":
        chosen = np.zeros(n, bool)
        if baseline is not None:
            chosen[np.asarray(baseline)] = True
        if not chosen.any():
            raise ValueError("gauge 'baseline' needs at least one epoch in baseline")
    pairs, weights = _symmetric_pairs(a.reshape(-1, n, n), e.reshape(-1, n, n))
    results = _solve_batch(pairs, weights, _GAUGES[gauge], chosen)
    flux, covariance, variance, chi2, dof, connected = results
    shaped = chi2.reshape(batch), dof.reshape(batch), connected.reshape(batch)
    ratio = np.where(dof > 0, chi2 / np.maximum(dof, 1), 0.0)[:, None]
    diagonal = np.diagonal(covariance, axis1=-2, axis2=-1)
    return NN2Solution(
        flux.reshape(*batch, n),
        covariance.reshape(*batch, n, n),
        np.sqrt(variance).reshape(*batch, n),
        np.sqrt(diagonal * ratio).reshape(*batch, n),
        *shaped,
    )


def _symmetric_pairs(a: Array, e: Array) -> tuple[Array, Array]:
    """Antisymmetric differences and symmetric weights 1/E^2 (0 for a missing pair)."""
    good = np.isfinite(a) & np.isfinite(e) & (e > 0)
    a = np.where(good, a, 0.0)
    variance = np.where(good, e, 0.0) ** 2
    count = good.astype(float) + good.transpose(0, 2, 1)
    safe = np.maximum(count, 1.0)
    pairs = (a - a.transpose(0, 2, 1)) / safe
    mean_variance = (variance + variance.transpose(0, 2, 1)) / safe
    weights = np.divide(1.0, mean_variance, out=np.zeros_like(a), where=count > 0)
    diagonal = np.arange(a.shape[-1])
    pairs[:, diagonal, diagonal] = 0.0
    weights[:, diagonal, diagonal] = 0.0
    return pairs, weights


@njit(cache=True, nogil=True)
def _largest_set(w, chosen):
    """Epochs of the connected set with most chosen epochs, and whether that is all of them."""
    n = w.shape[0]
    label = np.full(n, -1)
    stack = np.empty(n, np.int64)
    best, best_size = -1, -1.0
    for start in range(n):
        if label[start] >= 0:
            continue
        label[start] = start
        stack[0] = start
        top, size = 1, 0.0
        while top > 0:
            top -= 1
            i = stack[top]
            size += (n + 1.0 if chosen[i] else 0.0) + 1.0
            for j in range(n):
                if w[i, j] > 0 and label[j] < 0:
                    label[j] = start
                    stack[top] = j
                    top += 1
        if size > best_size:
            best, best_size = start, size
    members = np.nonzero(label == best)[0]
    return members, len(members) == n


@njit(cache=True, nogil=True)
def _cholesky(matrix):
    """Lower factor of a small symmetric positive definite matrix."""
    n = matrix.shape[0]
    low = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            s = matrix[i, j]
            for k in range(j):
                s -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(s) if i == j else s / low[j, j]
    return low


@njit(cache=True, nogil=True)
def _cholesky_solve(low, z):
    """Solution of (L L^T) x = z."""
    n = low.shape[0]
    x = z.copy()
    for i in range(n):
        for k in range(i):
            x[i] -= low[i, k] * x[k]
        x[i] /= low[i, i]
    for i in range(n - 1, -1, -1):
        x[i] /= low[i, i]
        for k in range(i):
            x[k] -= low[i, k] * x[i]
    return x


@njit(cache=True, nogil=True)
def _cholesky_inverse(matrix):
    """Inverse of a small symmetric positive definite matrix."""
    n = matrix.shape[0]
    low = _cholesky(matrix)
    half = np.zeros((n, n))  # half[j, i] = (L^-1)[i, j], so that the sums below run along rows
    for j in range(n):
        half[j, j] = 1.0 / low[j, j]
        for i in range(j + 1, n):
            s = 0.0
            for k in range(j, i):
                s -= low[i, k] * half[j, k]
            half[j, i] = s / low[i, i]
    inverse = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            s = 0.0
            for k in range(i, n):
                s += half[i, k] * half[j, k]
            inverse[i, j] = s
            inverse[j, i] = s
    return inverse


@njit(cache=True, nogil=True)
def _epoch_variances(w):
    """e_i^2 from E_ij^2 = e_i^2 + e_j^2 (paper: M e^2 = z), for weights scaled to a mean of 1."""
    n = w.shape[0]
    m = np.empty((n, n))
    z = np.empty(n)
    for i in range(n):
        z[i], m[i, i] = 0.0, 0.0
        for k in range(n):
            z[i] += w[i, k]
            m[i, i] += w[i, k] ** 2
            if k != i:
                m[i, k] = w[i, k] ** 2
        z[i] += _EQUAL_SHARE * 0.5 * z[i]
        m[i, i] *= 1.0 + _EQUAL_SHARE
    variance = _cholesky_solve(_cholesky(m), z)
    for i in range(n):
        largest = 0.0
        for k in range(n):
            largest = max(largest, w[i, k])
        variance[i] = max(variance[i], VARIANCE_FLOOR / largest)
    return variance


@njit(cache=True, nogil=True)
def _solve_one(d, w, gauge, chosen):
    """Flux, covariance, e^2, chi2 and dof of one connected object."""
    n = w.shape[0]
    total, count = 0.0, 0
    for i in range(n):
        for j in range(i + 1, n):
            total += w[i, j]
            count += w[i, j] > 0
    scale = total / count  # 1/Ebar^2, the paper's term (sum V)^2 / Ebar^2 that fixes the constant
    w = w / scale
    c = np.empty((n, n))
    y = np.zeros(n)
    degree = np.zeros(n)
    for i in range(n):
        for k in range(n):
            c[i, k] = 1.0 - w[i, k]
            degree[i] += w[i, k]
            y[i] += w[i, k] * d[k, i]
        c[i, i] += degree[i]
    covariance = _cholesky_inverse(c)
    flux = covariance @ y
    chi2 = 0.0
    for i in range(n):
        for j in range(i + 1, n):
            chi2 += w[i, j] * (d[i, j] - flux[j] + flux[i]) ** 2
    if gauge > 0:
        g = degree.copy()
        if gauge == 2:
            for i in range(n):
                g[i] = 1.0 if chosen[i] else 0.0
        g /= g.sum()
        flux -= g @ flux
        shift = covariance @ g
        shift_variance = g @ shift
        for i in range(n):
            for j in range(n):
                covariance[i, j] += shift_variance - shift[i] - shift[j]
    return flux, covariance / scale, _epoch_variances(w) / scale, chi2 * scale, count - n + 1


@njit(cache=True, nogil=True)
def _solve_batch(pairs, weights, gauge, chosen):
    """`_solve_one` for every object on its connected epochs, NaN elsewhere."""
    n_objects, n = pairs.shape[0], pairs.shape[1]
    flux = np.full((n_objects, n), np.nan)
    covariance = np.full((n_objects, n, n), np.nan)
    variance = np.full((n_objects, n), np.nan)
    chi2 = np.full(n_objects, np.nan)
    dof = np.zeros(n_objects, np.int64)
    connected = np.zeros(n_objects, np.bool_)
    for o in range(n_objects):
        members, whole = _largest_set(weights[o], chosen)
        connected[o] = whole
        reachable = False
        for i in members:
            reachable = reachable or chosen[i]
        m = len(members)
        if m < 2 or not reachable:
            continue
        d, w, of_set = np.empty((m, m)), np.empty((m, m)), np.empty(m, np.bool_)
        for i in range(m):
            of_set[i] = chosen[members[i]]
            for j in range(m):
                d[i, j] = pairs[o, members[i], members[j]]
                w[i, j] = weights[o, members[i], members[j]]
        f, cov, e2, chi2[o], dof[o] = _solve_one(d, w, gauge, of_set)
        for i in range(m):
            flux[o, members[i]] = f[i]
            variance[o, members[i]] = e2[i]
            for j in range(m):
                covariance[o, members[i], members[j]] = cov[i, j]
    return flux, covariance, variance, chi2, dof, connected
