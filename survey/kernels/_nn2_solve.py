"""The compiled part of NN2: one small symmetric system an object, objects in turn."""

from __future__ import annotations

import numpy as np
from numba import njit

from survey.kernels._inner import inner

# An epoch's variance from E_ij^2 = e_i^2 + e_j^2 can come out negative; it is not let below this part of
# the smallest pair variance the epoch takes part in (an error of one per cent of that pair's).
VARIANCE_FLOOR = 1e-4
# Where pairs form no odd cycle (two epochs, a star of one template) the e_i^2 are not unique; this relative
# weight on "each epoch carries half of its pairs' variance" then decides, and is invisible otherwise.
_EQUAL_SHARE = 1e-9


@inner()
def _symmetric(a, e, s, pairs, variance, within):
    """Fill one object's differences, pair variances and their internal part; 0 where a pair is missing."""
    n = a.shape[0]
    for i in range(n):
        pairs[i, i], variance[i, i], within[i, i] = 0.0, 0.0, 0.0
        for j in range(i):
            value, total, inside, count = 0.0, 0.0, 0.0, 0
            for p, q, sign in ((j, i, 1.0), (i, j, -1.0)):
                if np.isfinite(a[p, q]) and 0 < e[p, q] < np.inf and 0 < s[p, q] < np.inf:
                    value += sign * a[p, q]
                    total += e[p, q] ** 2
                    inside += s[p, q] ** 2
                    count += 1
            count = max(count, 1)
            pairs[j, i] = value / count
            pairs[i, j] = -value / count
            variance[i, j] = variance[j, i] = total / count
            within[i, j] = within[j, i] = inside / count


@inner()
def _largest_set(variance, chosen):
    """Epochs of the connected set with most chosen epochs, and whether that is all of them."""
    n = variance.shape[0]
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
                if variance[i, j] > 0 and label[j] < 0:
                    label[j] = start
                    stack[top] = j
                    top += 1
        if size > best_size:
            best, best_size = start, size
    members = np.nonzero(label == best)[0]
    return members, len(members) == n


@njit(cache=True, nogil=True)
def _cholesky(matrix, low):
    """Lower factor of a small symmetric positive definite matrix."""
    n = matrix.shape[0]
    for i in range(n):
        for j in range(i + 1):
            s = matrix[i, j]
            for k in range(j):
                s -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(s) if i == j else s / low[j, j]


@inner()
def _cholesky_solve(low, x):
    """Replace x by the solution of (L L^T) x = x."""
    n = low.shape[0]
    for i in range(n):
        for k in range(i):
            x[i] -= low[i, k] * x[k]
        x[i] /= low[i, i]
    for i in range(n - 1, -1, -1):
        x[i] /= low[i, i]
        for k in range(i):
            x[k] -= low[i, k] * x[i]


@inner()
def _cholesky_inverse(matrix, low, half, inverse):
    """Inverse of a small symmetric positive definite matrix."""
    n = matrix.shape[0]
    _cholesky(matrix, low)
    for j in range(n):  # half[j, i] = (L^-1)[i, j], so that the sums below run along rows
        half[j, j] = 1.0 / low[j, j]
        for i in range(j + 1, n):
            s = 0.0
            for k in range(j, i):
                s -= low[i, k] * half[j, k]
            half[j, i] = s / low[i, i]
    for i in range(n):
        for j in range(i + 1):
            s = 0.0
            for k in range(i, n):
                s += half[i, k] * half[j, k]
            inverse[i, j] = s
            inverse[j, i] = s


@inner()
def _epoch_variances(variance, within, typical, m, low, out):
    """e_i^2 from the part of E_ij^2 that is not internal, ``e_i^2 + e_j^2`` (paper: M e^2 = z)."""
    n = variance.shape[0]
    for i in range(n):
        out[i], m[i, i] = 0.0, 0.0
        for k in range(n):
            weight = (typical / variance[i, k]) ** 2 if variance[i, k] > 0 else 0.0
            out[i] += weight * (variance[i, k] - within[i, k]) / typical
            m[i, i] += weight
            if k != i:
                m[i, k] = weight
        out[i] *= 1.0 + 0.5 * _EQUAL_SHARE
        m[i, i] *= 1.0 + _EQUAL_SHARE
    _cholesky(m, low)
    _cholesky_solve(low, out)
    for i in range(n):
        smallest = np.inf
        for k in range(n):
            if variance[i, k] > 0:
                smallest = min(smallest, variance[i, k])
        out[i] = max(out[i] * typical, VARIANCE_FLOOR * smallest)


@inner()
def _change_gauge(flux, covariance, g):
    """Let g @ flux be 0, for weights g that sum to 1."""
    n = len(g)
    flux -= g @ flux
    shift = covariance @ g
    shift_variance = g @ shift
    for i in range(n):
        for j in range(n):
            covariance[i, j] += shift_variance - shift[i] - shift[j]


@inner()
def _solve_one(d, variance, weighted, separate, gauge, chosen, work):
    """Flux, covariance, e^2, chi2 and dof of one connected object; ``weighted`` is 1/weight of each pair."""
    n = d.shape[0]
    c, low, half = work[0, :n, :n], work[1, :n, :n], work[2, :n, :n]
    covariance, flux, e2 = np.empty((n, n)), np.empty(n), np.empty(n)
    total, typical, count = 0.0, 0.0, 0
    for i in range(n):
        for j in range(i):
            if variance[i, j] > 0:
                total += 1.0 / weighted[i, j]
                typical += 1.0 / variance[i, j]
                count += 1
    # Weights in units of 1/Ebar^2, the paper's term (sum V)^2 / Ebar^2 that fixes the constant.
    scale, typical = total / count, count / typical
    y, degree = np.zeros(n), np.zeros(n)
    for i in range(n):
        for k in range(n):
            w = 1.0 / (weighted[i, k] * scale) if variance[i, k] > 0 else 0.0
            c[i, k] = 1.0 - w
            degree[i] += w
            y[i] += w * d[k, i]
        c[i, i] += degree[i]
    _cholesky_inverse(c, low, half, covariance)
    for i in range(n):
        flux[i] = 0.0
        for k in range(n):
            flux[i] += covariance[i, k] * y[k]
    chi2 = 0.0
    for i in range(n):
        for j in range(i):
            chi2 += (1.0 - c[i, j]) * (d[j, i] - flux[i] + flux[j]) ** 2
    if gauge > 0:
        g = chosen.astype(np.float64) if gauge == 2 else degree
        _change_gauge(flux, covariance, g / g.sum())
    within = weighted if separate else work[3, :n, :n]
    _epoch_variances(variance, within, typical, c, low, e2)
    return flux, covariance / scale, e2, chi2 * scale, count - n + 1


@njit(cache=True, nogil=True)
def solve_batch(a, e, s, separate, gauge, chosen):
    """Solve every object on its connected epochs; NaN elsewhere.

    Parameters
    ----------
    a, e, s : array (objects, N, N)
        Differences, their errors, and the part of the errors that the weights go by.
    separate : bool
        Whether that part is not the epochs' own.
    gauge : int
        0 zero-sum, 1 weighted, 2 baseline.
    chosen : bool array (N,)
        Epochs of the baseline; all for another gauge.
    """
    n_objects, n = a.shape[0], a.shape[1]
    flux = np.full((n_objects, n), np.nan)
    covariance = np.full((n_objects, n, n), np.nan)
    e2 = np.full((n_objects, n), np.nan)
    chi2 = np.full(n_objects, np.nan)
    dof = np.zeros(n_objects, np.int64)
    connected = np.zeros(n_objects, np.bool_)
    pairs, variance, within = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    work = np.zeros((4, n, n))
    for o in range(n_objects):
        _symmetric(a[o], e[o], s[o], pairs, variance, within)
        members, whole = _largest_set(variance, chosen)
        connected[o] = whole
        reachable = False
        for i in members:
            reachable = reachable or chosen[i]
        m = len(members)
        if m < 2 or not reachable:
            continue
        if whole:
            flux[o], covariance[o], e2[o], chi2[o], dof[o] = _solve_one(
                pairs, variance, within, separate, gauge, chosen, work
            )
            continue
        d, v, w, of_set = np.empty((m, m)), np.empty((m, m)), np.empty((m, m)), np.empty(m, np.bool_)
        for i in range(m):
            of_set[i] = chosen[members[i]]
            for j in range(m):
                d[i, j] = pairs[members[i], members[j]]
                v[i, j] = variance[members[i], members[j]]
                w[i, j] = within[members[i], members[j]]
        f, cov, of_epoch, chi2[o], dof[o] = _solve_one(d, v, w, separate, gauge, of_set, work)
        for i in range(m):
            flux[o, members[i]] = f[i]
            e2[o, members[i]] = of_epoch[i]
            for j in range(m):
                covariance[o, members[i], members[j]] = cov[i, j]
    return flux, covariance, e2, chi2, dof, connected
