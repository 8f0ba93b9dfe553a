"""Sums over rows for many pixels at once, and the normal matrices that they imply.

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

from survey.kernels._inner import inner
from survey.kernels._simd import fma, load, splat, store
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


@inner()
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


@inner()
def expand(moments, width, s, n, products, half, pairs):
    """Pair products (p_y, p_x) of two vectors of pixels from their moments; into `pairs`.

    This and the functions below take two vectors at a time: one alone would wait for its own results.
    """
    lanes = 64 // moments.itemsize
    degrees, n_pairs = 2 * n - 1, n * (n + 1) // 2
    # Innermost over what shares a coefficient: the terms of one pair are too few for a loop.
    for px in range(n_pairs):
        first = products.start[px]
        for t in range(first, products.start[px + 1]):
            value = splat(moments, products.value[t])
            source = products.degree[t] * width + s
            for a in range(degrees):
                i, j = (a * n_pairs + px) * 2 * lanes, source + a * degrees * width
                u, v = value * load(moments, j), value * load(moments, j + lanes)
                if t > first:
                    u, v = load(half, i) + u, load(half, i + lanes) + v
                store(half, i, u)
                store(half, i + lanes, v)
    for py in range(n_pairs):
        first = products.start[py]
        for t in range(first, products.start[py + 1]):
            value = splat(moments, products.value[t])
            source = products.degree[t] * n_pairs
            for px in range(n_pairs):
                i, j = (py * n_pairs + px) * 2 * lanes, (source + px) * 2 * lanes
                u, v = value * load(half, j), value * load(half, j + lanes)
                if t > first:
                    u, v = load(pairs, i) + u, load(pairs, i + lanes) + v
                store(pairs, i, u)
                store(pairs, i + lanes, v)


@inner()
def contract(pairs, width, s, n, products, half, moments):
    """Transpose of `expand`: moments of two vectors of pixels from pair sums."""
    lanes = 64 // moments.itemsize
    degrees, n_pairs = 2 * n - 1, n * (n + 1) // 2
    zero = splat(moments, 0.0)
    for i in range(degrees * n_pairs * 2):
        store(half, i * lanes, zero)
    for py in range(n_pairs):
        for t in range(products.start[py], products.start[py + 1]):
            value = splat(moments, products.value[t])
            row = products.degree[t] * n_pairs
            for px in range(n_pairs):
                i, j = (row + px) * 2 * lanes, (py * n_pairs + px) * 2 * lanes
                store(half, i, fma(value, load(pairs, j), load(half, i)))
                store(half, i + lanes, fma(value, load(pairs, j + lanes), load(half, i + lanes)))
    for i in range(degrees * degrees):
        store(moments, i * width + s, zero)
        store(moments, i * width + s + lanes, zero)
    for px in range(n_pairs):
        for t in range(products.start[px], products.start[px + 1]):
            value = splat(moments, products.value[t])
            target = products.degree[t] * width + s
            for a in range(degrees):
                i, j = target + a * degrees * width, (a * n_pairs + px) * 2 * lanes
                store(moments, i, fma(value, load(half, j), load(moments, i)))
                store(moments, i + lanes, fma(value, load(half, j + lanes), load(moments, i + lanes)))
