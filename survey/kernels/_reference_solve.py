"""Cholesky factor, inverse and solution of many pixels' normal matrices, two vectors of pixels at a time.

Workspaces are flat, index ``i * width + pixel`` for a block's arrays, ``i * 2 * lanes`` for two vectors'.
Entry (i, j), i >= j, of a symmetric or triangular matrix lies at i (i + 1) / 2 + j.
"""

from __future__ import annotations

from numba import njit

from survey.kernels._inner import inner
from survey.kernels._simd import fma, fnma, load, splat, sqrt, store


@inner()
def factor(pairs, n, products, penalty, s, matrix):
    """Cholesky factor of N, packed lower triangle, with 1 / L_ii on the diagonal.

    `penalty[s ...]` is added to every diagonal entry but the constant's.
    """
    lanes = 64 // matrix.itemsize
    step, size, n_pairs = 2 * lanes, n * n, n * (n + 1) // 2
    for e in range(size * (size + 1) // 2):
        i = (products.pair_y[e] * n_pairs + products.pair_x[e]) * step
        store(matrix, e * step, load(pairs, i))
        store(matrix, e * step + lanes, load(pairs, i + lanes))
    for i in range(1, size):
        e = (i * (i + 1) // 2 + i) * step
        store(matrix, e, load(matrix, e) + load(penalty, s))
        store(matrix, e + lanes, load(matrix, e + lanes) + load(penalty, s + lanes))
    one = splat(matrix, 1.0)
    for j in range(size):
        row_j = j * (j + 1) // 2 * step
        at = row_j + j * step
        pivot, pivot_b = load(matrix, at), load(matrix, at + lanes)
        for k in range(row_j, at, step):
            v, w = load(matrix, k), load(matrix, k + lanes)
            pivot, pivot_b = fnma(v, v, pivot), fnma(w, w, pivot_b)
        inverse, inverse_b = one / sqrt(pivot), one / sqrt(pivot_b)
        store(matrix, at, inverse)
        store(matrix, at + lanes, inverse_b)
        i = j + 1
        while i + 3 < size:
            r0 = i * (i + 1) // 2 * step
            r1 = r0 + (i + 1) * step
            r2 = r1 + (i + 2) * step
            r3 = r2 + (i + 3) * step
            a = j * step
            a0, b0 = load(matrix, r0 + a), load(matrix, r0 + a + lanes)
            a1, b1 = load(matrix, r1 + a), load(matrix, r1 + a + lanes)
            a2, b2 = load(matrix, r2 + a), load(matrix, r2 + a + lanes)
            a3, b3 = load(matrix, r3 + a), load(matrix, r3 + a + lanes)
            for k in range(0, a, step):
                v, w = load(matrix, row_j + k), load(matrix, row_j + k + lanes)
                a0, b0 = fnma(load(matrix, r0 + k), v, a0), fnma(load(matrix, r0 + k + lanes), w, b0)
                a1, b1 = fnma(load(matrix, r1 + k), v, a1), fnma(load(matrix, r1 + k + lanes), w, b1)
                a2, b2 = fnma(load(matrix, r2 + k), v, a2), fnma(load(matrix, r2 + k + lanes), w, b2)
                a3, b3 = fnma(load(matrix, r3 + k), v, a3), fnma(load(matrix, r3 + k + lanes), w, b3)
            _store2(matrix, r0 + a, lanes, a0 * inverse, b0 * inverse_b)
            _store2(matrix, r1 + a, lanes, a1 * inverse, b1 * inverse_b)
            _store2(matrix, r2 + a, lanes, a2 * inverse, b2 * inverse_b)
            _store2(matrix, r3 + a, lanes, a3 * inverse, b3 * inverse_b)
            i += 4
        while i < size:
            r0 = i * (i + 1) // 2 * step
            a = j * step
            a0, b0 = load(matrix, r0 + a), load(matrix, r0 + a + lanes)
            for k in range(0, a, step):
                a0 = fnma(load(matrix, r0 + k), load(matrix, row_j + k), a0)
                b0 = fnma(load(matrix, r0 + k + lanes), load(matrix, row_j + k + lanes), b0)
            _store2(matrix, r0 + a, lanes, a0 * inverse, b0 * inverse_b)
            i += 1


@njit(cache=True, nogil=True, inline="always")
def _store2(out, i, lanes, u, v):
    store(out, i, u)
    store(out, i + lanes, v)


@inner()
def invert_factor(size, matrix):
    """Inverse of the factor in place: row i, column j of L^-1 at i (i + 1) / 2 + j."""
    lanes = 64 // matrix.itemsize
    step = 2 * lanes
    zero = splat(matrix, 0.0)
    for j in range(0, size, 4):
        for c in range(j, min(j + 4, size)):
            for i in range(c + 1, min(j + 4, size)):
                a0 = b0 = zero
                row = i * (i + 1) // 2
                for k in range(c, i):
                    x, v = (k * (k + 1) // 2 + c) * step, (row + k) * step
                    a0 = fnma(load(matrix, v), load(matrix, x), a0)
                    b0 = fnma(load(matrix, v + lanes), load(matrix, x + lanes), b0)
                p = (row + i) * step
                # The entries of L that later columns of this 4 x 4 corner read lie to its right.
                _store2(matrix, (row + c) * step, lanes, a0 * load(matrix, p), b0 * load(matrix, p + lanes))
        for i in range(j + 4, size):
            row = i * (i + 1) // 2 * step
            a0 = a1 = a2 = a3 = zero
            b0 = b1 = b2 = b3 = zero
            for k in range(j, i):
                v, w = load(matrix, row + k * step), load(matrix, row + k * step + lanes)
                r = (k * (k + 1) // 2 + j) * step
                a0, b0 = fnma(v, load(matrix, r), a0), fnma(w, load(matrix, r + lanes), b0)
                if k > j:
                    r += step
                    a1, b1 = fnma(v, load(matrix, r), a1), fnma(w, load(matrix, r + lanes), b1)
                if k > j + 1:
                    r += step
                    a2, b2 = fnma(v, load(matrix, r), a2), fnma(w, load(matrix, r + lanes), b2)
                if k > j + 2:
                    r += step
                    a3, b3 = fnma(v, load(matrix, r), a3), fnma(w, load(matrix, r + lanes), b3)
            p, q = load(matrix, row + i * step), load(matrix, row + i * step + lanes)
            r = row + j * step
            _store2(matrix, r, lanes, a0 * p, b0 * q)
            _store2(matrix, r + step, lanes, a1 * p, b1 * q)
            _store2(matrix, r + 2 * step, lanes, a2 * p, b2 * q)
            _store2(matrix, r + 3 * step, lanes, a3 * p, b3 * q)


@inner()
def apply_inverse(size, inverse, rhs, width, s, work, theta):
    """theta = L^-T L^-1 rhs for two vectors of pixels."""
    lanes = 64 // inverse.itemsize
    step = 2 * lanes
    zero = splat(inverse, 0.0)
    for i in range(size):
        a0 = b0 = zero
        row = i * (i + 1) // 2 * step
        for k in range(i + 1):
            e, r = row + k * step, k * width + s
            a0 = fma(load(inverse, e), load(rhs, r), a0)
            b0 = fma(load(inverse, e + lanes), load(rhs, r + lanes), b0)
        _store2(work, i * step, lanes, a0, b0)
    for i in range(size):
        a0 = b0 = zero
        for k in range(i, size):
            e = (k * (k + 1) // 2 + i) * step
            a0 = fma(load(inverse, e), load(work, k * step), a0)
            b0 = fma(load(inverse, e + lanes), load(work, k * step + lanes), b0)
        _store2(theta, i * width + s, lanes, a0, b0)


@inner()
def inverse_pairs(n, products, inverse, pairs):
    """Entries of N^-1 = L^-T L^-1 summed over those that share a pair of polynomials in y and in x."""
    lanes = 64 // inverse.itemsize
    step, size, n_pairs = 2 * lanes, n * n, n * (n + 1) // 2
    zero, one, two = splat(inverse, 0.0), splat(inverse, 1.0), splat(inverse, 2.0)
    for e in range(n_pairs * n_pairs * 2):
        store(pairs, e * lanes, zero)
    for i in range(size):
        row_i = i * (i + 1) // 2
        j = 0
        while j + 3 < i:
            a0 = a1 = a2 = a3 = zero
            b0 = b1 = b2 = b3 = zero
            for k in range(i, size):
                row = k * (k + 1) // 2 * step
                v, w = load(inverse, row + i * step), load(inverse, row + i * step + lanes)
                r = row + j * step
                a0, b0 = fma(v, load(inverse, r), a0), fma(w, load(inverse, r + lanes), b0)
                r += step
                a1, b1 = fma(v, load(inverse, r), a1), fma(w, load(inverse, r + lanes), b1)
                r += step
                a2, b2 = fma(v, load(inverse, r), a2), fma(w, load(inverse, r + lanes), b2)
                r += step
                a3, b3 = fma(v, load(inverse, r), a3), fma(w, load(inverse, r + lanes), b3)
            _add_pair(pairs, products, n_pairs, row_i + j, two, a0, b0, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 1, two, a1, b1, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 2, two, a2, b2, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 3, two, a3, b3, lanes)
            j += 4
        while j <= i:
            a0 = b0 = zero
            for k in range(i, size):
                row = k * (k + 1) // 2 * step
                r, q = row + i * step, row + j * step
                a0 = fma(load(inverse, r), load(inverse, q), a0)
                b0 = fma(load(inverse, r + lanes), load(inverse, q + lanes), b0)
            weight = one if j == i else two
            _add_pair(pairs, products, n_pairs, row_i + j, weight, a0, b0, lanes)
            j += 1


@njit(cache=True, nogil=True, inline="always")
def _add_pair(pairs, products, n_pairs, entry, weight, u, v, lanes):
    i = (products.pair_y[entry] * n_pairs + products.pair_x[entry]) * 2 * lanes
    store(pairs, i, fma(weight, u, load(pairs, i)))
    store(pairs, i + lanes, fma(weight, v, load(pairs, i + lanes)))
