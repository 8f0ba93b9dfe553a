"""Cubic B-spline tables of an effective PSF: fast values and gradients on pixel stamps.

A table holds B-spline coefficients at a spacing of 1/oversampling pixel, padded with `PAD` zeros on each
side. For one star all pixels of a stamp share the same fraction between nodes, so that a stamp needs the
four weights of each axis only once.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from survey.kernels._inner import inner

Array = NDArray[np.float64]

PAD = 3  # nodes on either side that a cubic spline's four taps may reach beyond the table


def spline_coefficients(samples: Array) -> Array:
    """B-spline coefficients (..., n, n) whose spline takes the values `samples` (..., n, n) at its nodes.

    The spline's coefficients are zero outside the table: a PSF ends there.
    """
    n = samples.shape[-1]
    band = np.empty((2, n))
    band[0], band[1] = 1 / 6, 4 / 6
    result = np.array(samples, float)
    for axis in (-2, -1):
        moved = np.moveaxis(result, axis, 0)
        solved = solveh_banded(band, moved.reshape(n, -1))
        result = np.moveaxis(solved.reshape(moved.shape), 0, axis)
    return np.ascontiguousarray(result)


def spline_samples(coefficients: Array) -> Array:
    """Values of the spline at its nodes, the inverse of `spline_coefficients`."""
    result = np.array(coefficients, float)
    for axis in (-2, -1):
        moved = np.moveaxis(result, axis, 0)
        values = moved * (4 / 6)
        values[1:] += moved[:-1] / 6
        values[:-1] += moved[1:] / 6
        result = np.moveaxis(values, 0, axis)
    return np.ascontiguousarray(result)


def pad_table(coefficients: Array) -> Array:
    """Coefficients with `PAD` zeros around the last two axes."""
    width = [(0, 0)] * (coefficients.ndim - 2) + [(PAD, PAD)] * 2
    return np.ascontiguousarray(np.pad(coefficients, width))


@inner()
def spline_weights(t, w, d):
    """Cubic B-spline weights `w` and their derivatives `d` (per node spacing) at fraction t."""
    s = 1.0 - t
    w[0] = s * s * s / 6.0
    w[1] = (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0
    w[2] = (-3.0 * t * t * t + 3.0 * t * t + 3.0 * t + 1.0) / 6.0
    w[3] = t * t * t / 6.0
    d[0] = -s * s / 2.0
    d[1] = 1.5 * t * t - 2.0 * t
    d[2] = -1.5 * t * t + t + 0.5
    d[3] = t * t / 2.0


@njit(cache=True, nogil=True)
def value_stamps(tables, index, weight, oversampling, offset_y, offset_x, out):
    """Add the PSF stamps of n stars at pixel size//2 + offset to `out` (n, sy, sx).

    `tables` (m, N, N) padded; star s is the sum over b of weight[s, b] * tables[index[s, b]].
    """
    n, sy, sx = out.shape
    nodes = tables.shape[1] - 2 * PAD
    centre = (nodes - 1) / 2.0
    wy, wx, d = np.empty(4), np.empty(4), np.empty(4)
    for s in range(n):
        uy = (-(sy // 2) - offset_y[s]) * oversampling + centre
        ux = (-(sx // 2) - offset_x[s]) * oversampling + centre
        if not (math.isfinite(uy) and math.isfinite(ux)):
            out[s] = np.nan
            continue
        iy, ix = math.floor(uy), math.floor(ux)
        spline_weights(uy - iy, wy, d)
        spline_weights(ux - ix, wx, d)
        for b in range(index.shape[1]):
            table, factor = tables[index[s, b]], weight[s, b]
            if factor == 0.0:
                continue
            for i in range(sy):
                ky = iy + i * oversampling
                if ky < -2 or ky > nodes:
                    continue
                for j in range(sx):
                    kx = ix + j * oversampling
                    if kx < -2 or kx > nodes:
                        continue
                    total = 0.0
                    for a in range(4):
                        row = table[ky + a + PAD - 1]
                        at = kx + PAD - 1
                        part = (
                            wx[0] * row[at] + wx[1] * row[at + 1] + wx[2] * row[at + 2] + wx[3] * row[at + 3]
                        )
                        total += wy[a] * part
                    out[s, i, j] += factor * total


@njit(cache=True, nogil=True)
def point(table, nodes, oversampling, dy, dx, wy, gy, wx, gx):
    """Value and derivatives with respect to (dy, dx) of one table at one displacement from the star."""
    centre = (nodes - 1) / 2.0
    uy, ux = dy * oversampling + centre, dx * oversampling + centre
    if not (math.isfinite(uy) and math.isfinite(ux)):
        return np.nan, np.nan, np.nan
    if uy < -2.0 or ux < -2.0 or uy >= nodes + 1.0 or ux >= nodes + 1.0:
        return 0.0, 0.0, 0.0
    iy, ix = math.floor(uy), math.floor(ux)
    spline_weights(uy - iy, wy, gy)
    spline_weights(ux - ix, wx, gx)
    value, slope_y, slope_x = taps(table, iy, ix, wy, gy, wx, gx)
    return value, slope_y * oversampling, slope_x * oversampling


@njit(cache=True, nogil=True, inline="always")
def taps(table, iy, ix, wy, gy, wx, gx):
    """Sum of the sixteen taps around node (iy, ix): value and derivatives per node spacing."""
    value, slope_y, slope_x = 0.0, 0.0, 0.0
    at = ix + PAD - 1
    for a in range(4):
        row = table[iy + a + PAD - 1]
        c0, c1, c2, c3 = row[at], row[at + 1], row[at + 2], row[at + 3]
        part = wx[0] * c0 + wx[1] * c1 + wx[2] * c2 + wx[3] * c3
        value += wy[a] * part
        slope_y += gy[a] * part
        slope_x += wy[a] * (gx[0] * c0 + gx[1] * c1 + gx[2] * c2 + gx[3] * c3)
    return value, slope_y, slope_x


@njit(cache=True, nogil=True)
def points(tables, index, weight, oversampling, dy, dx, out):
    """Value and (dy, dx) derivatives, `out` (3, n), at n displacements (pixel minus star)."""
    nodes = tables.shape[1] - 2 * PAD
    wy, gy, wx, gx = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    for s in range(dy.size):
        for b in range(index.shape[1]):
            factor = weight[s, b]
            if factor == 0.0:
                continue
            v, sy, sx = point(tables[index[s, b]], nodes, oversampling, dy[s], dx[s], wy, gy, wx, gx)
            out[0, s] += factor * v
            out[1, s] += factor * sy
            out[2, s] += factor * sx
