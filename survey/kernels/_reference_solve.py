"""Normal matrices of many pixels at once, from moments to coefficients and leverage.

A pixel's normal matrix N = sum_rows w b b^T, b[l n + m] = P_l(y) P_m(x), is linear in the (2n - 1)^2
moments S[a, b] = sum w P_a(y) P_b(x), since P_l P_l' = sum_a c[l, l', a] P_a. The same coefficients,
applied the other way, turn N^-1 into moments C with b^T N^-1 b = sum C[a, b] P_a(y) P_b(x): a row's
leverage costs as many operations as its share of N.

Workspaces are flat, index ``i * width + pixel`` for a block's arrays, ``i * lanes`` for one vector's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from survey.kernels._simd import fma, fnma, load, splat, sqrt, store
from survey.kernels.legendre import product_table

PANEL = 5  # rows of a packed matrix that share the loads of one product


class Products(NamedTuple):
    """Sparse product table of one axis and where the entries of N lie in it.

    `start`, `degree`, `value`: the terms of pair p of polynomials are start[p] ... start[p + 1];
    `pair_y`, `pair_x`: pairs of entry (i, j), i >= j, of N at i (i + 1) / 2 + j.
    """

    start: NDArray[np.int64]
    degree: NDArray[np.int64]
    value: NDArray[np.float64]
    pair_y: NDArray[np.int64]
    pair_x: NDArray[np.int64]


def make_products(n: int) -> Products:
    """Tables for `n` polynomials per axis."""
    table = product_table(n)
    pair = np.zeros((n, n), np.int64)
    start: list[int] = [0]
    degree: list[int] = []
    value: list[float] = []
    for i in range(n):
        for j in range(i + 1):
            pair[i, j] = pair[j, i] = len(start) - 1
            terms = np.flatnonzero(np.abs(table[i, j]) > 1e-14)
            degree.extend(terms)
            value.extend(table[i, j, terms])
            start.append(len(degree))
    low = np.tril_indices(n * n)
    return Products(
        np.array(start),
        np.array(degree),
        np.array(value),
        pair[low[0] // n, low[1] // n],
        pair[low[0] % n, low[1] % n],
    )


def pack(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows in panels of `PANEL`, zero padded, the panel's rows innermost; flat."""
    rows, columns = matrix.shape
    padded = np.zeros((-(-rows // PANEL) * PANEL, columns), matrix.dtype)
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(-1, PANEL, columns).transpose(0, 2, 1)).ravel()


@njit(cache=True, nogil=True)
def multiply(packed, n_panels, columns, x, out, width, used):
    """out (n_panels * PANEL, width) = packed matrix @ x (columns, width), for the first `used` pixels."""
    lanes = 64 // x.itemsize
    zero = splat(x, 0.0)
    for s in range(0, used, 4 * lanes):
        for panel in range(n_panels):
            a0 = a1 = a2 = a3 = zero
            b0 = b1 = b2 = b3 = zero
            c0 = c1 = c2 = c3 = zero
            d0 = d1 = d2 = d3 = zero
            e0 = e1 = e2 = e3 = zero
            p = panel * columns * PANEL
            for m in range(columns):
                i = m * width + s
                x0, x1 = load(x, i), load(x, i + lanes)
                x2, x3 = load(x, i + 2 * lanes), load(x, i + 3 * lanes)
                q = splat(x, packed[p])
                a0, a1, a2, a3 = fma(q, x0, a0), fma(q, x1, a1), fma(q, x2, a2), fma(q, x3, a3)
                q = splat(x, packed[p + 1])
                b0, b1, b2, b3 = fma(q, x0, b0), fma(q, x1, b1), fma(q, x2, b2), fma(q, x3, b3)
                q = splat(x, packed[p + 2])
                c0, c1, c2, c3 = fma(q, x0, c0), fma(q, x1, c1), fma(q, x2, c2), fma(q, x3, c3)
                q = splat(x, packed[p + 3])
                d0, d1, d2, d3 = fma(q, x0, d0), fma(q, x1, d1), fma(q, x2, d2), fma(q, x3, d3)
                q = splat(x, packed[p + 4])
                e0, e1, e2, e3 = fma(q, x0, e0), fma(q, x1, e1), fma(q, x2, e2), fma(q, x3, e3)
                p += PANEL
            i = panel * PANEL * width + s
            _store4(out, i, lanes, a0, a1, a2, a3)
            _store4(out, i + width, lanes, b0, b1, b2, b3)
            _store4(out, i + 2 * width, lanes, c0, c1, c2, c3)
            _store4(out, i + 3 * width, lanes, d0, d1, d2, d3)
            _store4(out, i + 4 * width, lanes, e0, e1, e2, e3)


@njit(cache=True, nogil=True, inline="always")
def _store4(out, i, lanes, v0, v1, v2, v3):
    store(out, i, v0)
    store(out, i + lanes, v1)
    store(out, i + 2 * lanes, v2)
    store(out, i + 3 * lanes, v3)


@njit(cache=True, nogil=True)
def expand(moments, width, s, n, products, half, pairs):
    """Pair products (p_y, p_x) of one vector of pixels from its moments; into `pairs`."""
    lanes = 64 // moments.itemsize
    degrees, n_pairs = 2 * n - 1, n * (n + 1) // 2
    for a in range(degrees):
        for px in range(n_pairs):
            total = splat(moments, 0.0)
            for t in range(products.start[px], products.start[px + 1]):
                value = splat(moments, products.value[t])
                total = fma(value, load(moments, (a * degrees + products.degree[t]) * width + s), total)
            store(half, (a * n_pairs + px) * lanes, total)
    for py in range(n_pairs):
        for px in range(n_pairs):
            total = splat(moments, 0.0)
            for t in range(products.start[py], products.start[py + 1]):
                value = splat(moments, products.value[t])
                total = fma(value, load(half, (products.degree[t] * n_pairs + px) * lanes), total)
            store(pairs, (py * n_pairs + px) * lanes, total)


@njit(cache=True, nogil=True)
def contract(pairs, width, s, n, products, half, moments):
    """Transpose of `expand`: moments of one vector of pixels from pair sums."""
    lanes = 64 // moments.itemsize
    degrees, n_pairs = 2 * n - 1, n * (n + 1) // 2
    zero = splat(moments, 0.0)
    for i in range(degrees * n_pairs):
        store(half, i * lanes, zero)
    for py in range(n_pairs):
        for t in range(products.start[py], products.start[py + 1]):
            value = splat(moments, products.value[t])
            row = products.degree[t] * n_pairs
            for px in range(n_pairs):
                i = (row + px) * lanes
                store(half, i, fma(value, load(pairs, (py * n_pairs + px) * lanes), load(half, i)))
    for a in range(degrees):
        for b in range(degrees):
            store(moments, (a * degrees + b) * width + s, zero)
        for px in range(n_pairs):
            term = load(half, (a * n_pairs + px) * lanes)
            for t in range(products.start[px], products.start[px + 1]):
                i = (a * degrees + products.degree[t]) * width + s
                store(moments, i, fma(splat(moments, products.value[t]), term, load(moments, i)))


@njit(cache=True, nogil=True)
def factor(pairs, n, products, penalty, matrix):
    """Cholesky factor of N, packed lower triangle, with 1 / L_ii on the diagonal.

    `penalty`, one vector in a flat array, is added to every diagonal entry but the constant's.
    """
    lanes = 64 // matrix.itemsize
    size, n_pairs = n * n, n * (n + 1) // 2
    for e in range(size * (size + 1) // 2):
        store(matrix, e * lanes, load(pairs, (products.pair_y[e] * n_pairs + products.pair_x[e]) * lanes))
    for i in range(1, size):
        e = (i * (i + 1) // 2 + i) * lanes
        store(matrix, e, load(matrix, e) + load(penalty, 0))
    one = splat(matrix, 1.0)
    for j in range(size):
        row_j = j * (j + 1) // 2
        pivot = load(matrix, (row_j + j) * lanes)
        for k in range(j):
            v = load(matrix, (row_j + k) * lanes)
            pivot = fnma(v, v, pivot)
        inverse = one / sqrt(pivot)
        store(matrix, (row_j + j) * lanes, inverse)
        i = j + 1
        while i + 3 < size:
            r0 = i * (i + 1) // 2
            r1 = r0 + i + 1
            r2 = r1 + i + 2
            r3 = r2 + i + 3
            a0, a1 = load(matrix, (r0 + j) * lanes), load(matrix, (r1 + j) * lanes)
            a2, a3 = load(matrix, (r2 + j) * lanes), load(matrix, (r3 + j) * lanes)
            for k in range(j):
                v = load(matrix, (row_j + k) * lanes)
                a0 = fnma(load(matrix, (r0 + k) * lanes), v, a0)
                a1 = fnma(load(matrix, (r1 + k) * lanes), v, a1)
                a2 = fnma(load(matrix, (r2 + k) * lanes), v, a2)
                a3 = fnma(load(matrix, (r3 + k) * lanes), v, a3)
            store(matrix, (r0 + j) * lanes, a0 * inverse)
            store(matrix, (r1 + j) * lanes, a1 * inverse)
            store(matrix, (r2 + j) * lanes, a2 * inverse)
            store(matrix, (r3 + j) * lanes, a3 * inverse)
            i += 4
        while i < size:
            r0 = i * (i + 1) // 2
            a0 = load(matrix, (r0 + j) * lanes)
            for k in range(j):
                a0 = fnma(load(matrix, (r0 + k) * lanes), load(matrix, (row_j + k) * lanes), a0)
            store(matrix, (r0 + j) * lanes, a0 * inverse)
            i += 1


@njit(cache=True, nogil=True)
def invert_factor(size, matrix):
    """Inverse of the factor in place: row i, column j of L^-1 at i (i + 1) / 2 + j."""
    lanes = 64 // matrix.itemsize
    zero = splat(matrix, 0.0)
    for j in range(0, size, 4):
        for c in range(j, min(j + 4, size)):
            for i in range(c + 1, min(j + 4, size)):
                total = zero
                for k in range(c, i):
                    x = load(matrix, (k * (k + 1) // 2 + c) * lanes)
                    total = fnma(load(matrix, (i * (i + 1) // 2 + k) * lanes), x, total)
                pivot = load(matrix, (i * (i + 1) // 2 + i) * lanes)
                # The entries of L that later columns of this 4 x 4 corner read lie to its right.
                store(matrix, (i * (i + 1) // 2 + c) * lanes, total * pivot)
        for i in range(j + 4, size):
            row = i * (i + 1) // 2
            a0 = a1 = a2 = a3 = zero
            for k in range(j, i):
                v = load(matrix, (row + k) * lanes)
                r = k * (k + 1) // 2 + j
                a0 = fnma(v, load(matrix, r * lanes), a0)
                if k > j:
                    a1 = fnma(v, load(matrix, (r + 1) * lanes), a1)
                if k > j + 1:
                    a2 = fnma(v, load(matrix, (r + 2) * lanes), a2)
                if k > j + 2:
                    a3 = fnma(v, load(matrix, (r + 3) * lanes), a3)
            pivot = load(matrix, (row + i) * lanes)
            store(matrix, (row + j) * lanes, a0 * pivot)
            store(matrix, (row + j + 1) * lanes, a1 * pivot)
            store(matrix, (row + j + 2) * lanes, a2 * pivot)
            store(matrix, (row + j + 3) * lanes, a3 * pivot)


@njit(cache=True, nogil=True)
def apply_inverse(size, inverse, rhs, width, s, work, theta):
    """theta = L^-T L^-1 rhs for one vector of pixels."""
    lanes = 64 // inverse.itemsize
    for i in range(size):
        total = splat(inverse, 0.0)
        for k in range(i + 1):
            total = fma(load(inverse, (i * (i + 1) // 2 + k) * lanes), load(rhs, k * width + s), total)
        store(work, i * lanes, total)
    for i in range(size):
        total = splat(inverse, 0.0)
        for k in range(i, size):
            total = fma(load(inverse, (k * (k + 1) // 2 + i) * lanes), load(work, k * lanes), total)
        store(theta, i * width + s, total)


@njit(cache=True, nogil=True)
def inverse_pairs(n, products, inverse, pairs):
    """Entries of N^-1 = L^-T L^-1 summed over those that share a pair of polynomials in y and in x."""
    lanes = 64 // inverse.itemsize
    size, n_pairs = n * n, n * (n + 1) // 2
    zero, two = splat(inverse, 0.0), splat(inverse, 2.0)
    for e in range(n_pairs * n_pairs):
        store(pairs, e * lanes, zero)
    for i in range(size):
        row_i = i * (i + 1) // 2
        j = 0
        while j + 3 < i:
            a0 = a1 = a2 = a3 = zero
            for k in range(i, size):
                r = k * (k + 1) // 2
                v = load(inverse, (r + i) * lanes)
                a0 = fma(v, load(inverse, (r + j) * lanes), a0)
                a1 = fma(v, load(inverse, (r + j + 1) * lanes), a1)
                a2 = fma(v, load(inverse, (r + j + 2) * lanes), a2)
                a3 = fma(v, load(inverse, (r + j + 3) * lanes), a3)
            _add_pair(pairs, products, n_pairs, row_i + j, two, a0, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 1, two, a1, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 2, two, a2, lanes)
            _add_pair(pairs, products, n_pairs, row_i + j + 3, two, a3, lanes)
            j += 4
        while j <= i:
            total = zero
            for k in range(i, size):
                r = k * (k + 1) // 2
                total = fma(load(inverse, (r + i) * lanes), load(inverse, (r + j) * lanes), total)
            weight = splat(inverse, 1.0) if j == i else two
            _add_pair(pairs, products, n_pairs, row_i + j, weight, total, lanes)
            j += 1


@njit(cache=True, nogil=True, inline="always")
def _add_pair(pairs, products, n_pairs, entry, weight, value, lanes):
    i = (products.pair_y[entry] * n_pairs + products.pair_x[entry]) * lanes
    store(pairs, i, fma(weight, value, load(pairs, i)))
