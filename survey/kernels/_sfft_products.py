"""Sums over kernel pixels and over a block's pixels, straight from where the samples lie.

A sample R(p - a) of the pixel in row i and column j of a block is ``values[start + offsets[a] + i * stride +
j]``: of an image moved by every kernel pixel nothing is copied (the block and the kernel's reach lie in the
first cache), and samples that were written out are read the same way. Offsets are padded to a multiple of
four; whoever calls gives coefficients of zero, or drops the results, for those.
"""

import numpy as np
from numba import njit

from survey.kernels._inner import inner
from survey.kernels._simd import fma, load, splat, store, total

TILE = 4  # kernel pixels at once: sixteen accumulators, which the loops below name one by one


def padded(n: int) -> int:
    """The next multiple of a tile."""
    return -(-n // TILE) * TILE


@njit(cache=True, nogil=True)
def combine(values, start, offsets, coefficients, out, width):
    """Samples of a line of pixels times the kernel pixels' coefficients; lines are whole vectors long."""
    lanes = 64 // values.itemsize
    zero = splat(values, 0.0)
    for j in range(0, width, lanes):
        s0, s1, s2, s3 = zero, zero, zero, zero
        at = start + j
        for a in range(0, len(offsets), 4):  # four sums at a time: one would wait for itself
            s0 = fma(load(values, at + offsets[a]), splat(values, coefficients[a]), s0)
            s1 = fma(load(values, at + offsets[a + 1]), splat(values, coefficients[a + 1]), s1)
            s2 = fma(load(values, at + offsets[a + 2]), splat(values, coefficients[a + 2]), s2)
            s3 = fma(load(values, at + offsets[a + 3]), splat(values, coefficients[a + 3]), s3)
        store(out, j, (s0 + s1) + (s2 + s3))


@inner()
def combine_by_u(values, start, offsets, coefficients, u, out, width):
    """`combine` with a parabola of u for each kernel pixel: coefficients (3, n), u a line."""
    lanes = 64 // values.itemsize
    zero = splat(values, 0.0)
    k0, k1, k2 = coefficients[0], coefficients[1], coefficients[2]
    for j in range(0, width, lanes):
        c0, c1, c2, d0, d1, d2 = zero, zero, zero, zero, zero, zero
        at = start + j
        for a in range(0, len(offsets), 2):
            x = load(values, at + offsets[a])
            c0 = fma(x, splat(values, k0[a]), c0)
            c1 = fma(x, splat(values, k1[a]), c1)
            c2 = fma(x, splat(values, k2[a]), c2)
            x = load(values, at + offsets[a + 1])
            d0 = fma(x, splat(values, k0[a + 1]), d0)
            d1 = fma(x, splat(values, k1[a + 1]), d1)
            d2 = fma(x, splat(values, k2[a + 1]), d2)
        by = load(u, j)
        store(out, j, fma(fma(c2 + d2, by, c1 + d1), by, c0 + d0))


@njit(cache=True, nogil=True)
def squares(values, start, offsets, count, out, width):
    """Sum of the squares of the first ``count`` samples of every pixel of a line."""
    lanes = 64 // values.itemsize
    for j in range(0, width, lanes):
        s = splat(values, 0.0)
        for a in range(count):
            x = load(values, start + j + offsets[a])
            s = fma(x, x, s)
        store(out, j, s)


@inner()
def _weigh(values, start, stride, offsets, weights, width, out):
    """Four samples of all pixels times the weights, in out (4 * height * width)."""
    lanes = 64 // weights.itemsize
    for k in range(4):
        first = k * len(weights)
        for i in range(len(weights) // width):
            at, to = start + offsets[k] + i * stride, i * width
            for j in range(0, width, lanes):
                store(out, first + to + j, load(weights, to + j) * load(values, at + j))


@njit(cache=True, nogil=True)
def _tile(a, b, start, stride, offsets, width, out):
    """``sum_p A_a(p) B_b(p)`` of four a that lie one behind the other with four b."""
    lanes = 64 // a.itemsize
    zero, size = splat(a, 0.0), len(a) // 4
    c00 = c01 = c02 = c03 = c10 = c11 = c12 = c13 = zero
    c20 = c21 = c22 = c23 = c30 = c31 = c32 = c33 = zero
    b0, b1, b2, b3 = offsets[0], offsets[1], offsets[2], offsets[3]
    for i in range(size // width):
        for j in range(0, width, lanes):
            at, bt = i * width + j, start + i * stride + j
            y0, y1, y2, y3 = load(b, bt + b0), load(b, bt + b1), load(b, bt + b2), load(b, bt + b3)
            x = load(a, at)
            c00, c01, c02, c03 = fma(x, y0, c00), fma(x, y1, c01), fma(x, y2, c02), fma(x, y3, c03)
            x = load(a, at + size)
            c10, c11, c12, c13 = fma(x, y0, c10), fma(x, y1, c11), fma(x, y2, c12), fma(x, y3, c13)
            x = load(a, at + 2 * size)
            c20, c21, c22, c23 = fma(x, y0, c20), fma(x, y1, c21), fma(x, y2, c22), fma(x, y3, c23)
            x = load(a, at + 3 * size)
            c30, c31, c32, c33 = fma(x, y0, c30), fma(x, y1, c31), fma(x, y2, c32), fma(x, y3, c33)
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = total(c00), total(c01), total(c02), total(c03)
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = total(c10), total(c11), total(c12), total(c13)
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = total(c20), total(c21), total(c22), total(c23)
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = total(c30), total(c31), total(c32), total(c33)


@inner()
def weighted_sums(values, start, stride, offsets, weights, width, out):
    """``sum_p weights(p) R_a(p)`` for every a."""
    lanes = 64 // weights.itemsize
    zero = splat(weights, 0.0)
    for a in range(0, len(offsets), 4):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(len(weights) // width):
            for j in range(0, width, lanes):
                w, at = load(weights, i * width + j), start + i * stride + j
                s0 = fma(w, load(values, at + offsets[a]), s0)
                s1 = fma(w, load(values, at + offsets[a + 1]), s1)
                s2 = fma(w, load(values, at + offsets[a + 2]), s2)
                s3 = fma(w, load(values, at + offsets[a + 3]), s3)
        out[a], out[a + 1], out[a + 2], out[a + 3] = total(s0), total(s1), total(s2), total(s3)


@njit(cache=True, nogil=True)
def products(
    values, start, stride, offsets, right, right_offsets, weights, width, n, wanted, weighed, sums, gram
):  # fmt: skip
    """Weighted products of all samples with what stands right, and with one another.

    Parameters
    ----------
    right : array
        Lines of ``width`` from ``right_offsets`` on.
    weights : array (height * width,)
        Zero where a pixel does not count.
    n : int
        Samples.
    wanted : bool
        Whether the samples' products with one another are.
    weighed : array (4 * height * width,)
        Scratch.
    sums : array (samples padded, right padded)
    gram : array (n, n)
        Filled where column >= row.
    """
    tile = np.empty((4, 4))
    for s in range(0, len(offsets), 4):
        _weigh(values, start, stride, offsets[s:], weights, width, weighed)
        for t in range(0, len(right_offsets), 4):
            _tile(weighed, right, 0, width, right_offsets[t:], width, tile)
            # by numbers: numba takes five seconds to compile what assigns an array to an array
            for i in range(4):
                for j in range(4):
                    sums[s + i, t + j] = tile[i, j]
        if not wanted:
            continue
        for t in range(s, n, 4):
            _tile(weighed, values, start, stride, offsets[t:], width, tile)
            for i in range(min(4, n - s)):
                for j in range(max(0, s + i - t), min(4, n - t)):
                    gram[s + i, t + j] = tile[i, j]
