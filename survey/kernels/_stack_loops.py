"""Loops of the stack: a weighted plane over the phases in every pixel, and its worst sample.

Arrays are (time, y, x); rows are gone through frame by frame, so that memory is read in its order. A plane is
c0 + c1 phase_y + c2 phase_x; the inverse of its normal matrix is kept as the six entries 00 01 02 11 12 22.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def fit_planes(values, bad, weight, phase_y, phase_x, ridge, inverse, plane):
    """Fill `inverse` (6, y, x) and `plane` (3, y, x); zeros where a pixel has no sample."""
    n, ny, nx = values.shape
    for y in range(ny):
        a, b = np.zeros((6, nx)), np.zeros((3, nx))
        for k in range(n):
            w = weight[k]
            for x in range(nx):
                if bad[k, y, x]:
                    continue
                u, v = phase_y[k, y, x], phase_x[k, y, x]
                f = w * values[k, y, x]
                a[0, x] += w
                a[1, x] += w * u
                a[2, x] += w * v
                a[3, x] += w * u * u
                a[4, x] += w * u * v
                a[5, x] += w * v * v
                b[0, x] += f
                b[1, x] += f * u
                b[2, x] += f * v
        for x in range(nx):
            total = a[0, x]
            if total <= 0.0:
                inverse[:, y, x] = 0.0
                plane[:, y, x] = 0.0
                continue
            # phases spread over a pixel have a variance of 1/12
            m01, m02, m12 = a[1, x], a[2, x], a[4, x]
            m11, m22 = a[3, x] + ridge * total / 12.0, a[5, x] + ridge * total / 12.0
            c00, c01, c02 = m11 * m22 - m12 * m12, m02 * m12 - m01 * m22, m01 * m12 - m02 * m11
            determinant = total * c00 + m01 * c01 + m02 * c02
            inverse[0, y, x], inverse[1, y, x], inverse[2, y, x] = (
                c00 / determinant,
                c01 / determinant,
                c02 / determinant,
            )
            inverse[3, y, x] = (total * m22 - m02 * m02) / determinant
            inverse[4, y, x] = (m01 * m02 - total * m12) / determinant
            inverse[5, y, x] = (total * m11 - m01 * m01) / determinant
            i = inverse[:, y, x]
            plane[0, y, x] = i[0] * b[0, x] + i[1] * b[1, x] + i[2] * b[2, x]
            plane[1, y, x] = i[1] * b[0, x] + i[3] * b[1, x] + i[4] * b[2, x]
            plane[2, y, x] = i[2] * b[0, x] + i[4] * b[1, x] + i[5] * b[2, x]


@njit(cache=True, nogil=True)
def worst_samples(values, sigma, bad, weight, phase_y, phase_x, inverse, plane, extra, worst, score):
    """Frame of every pixel's largest leave-one-out residual over its noise, and that ratio.

    `extra` (y, x) is added to a sample's error in quadrature.
    """
    n, ny, nx = values.shape
    worst[:] = 0
    score[:] = 0.0
    for y in range(ny):
        for k in range(n):
            w = weight[k]
            for x in range(nx):
                if bad[k, y, x]:
                    continue
                u, v = phase_y[k, y, x], phase_x[k, y, x]
                i = inverse[:, y, x]
                residual = values[k, y, x] - plane[0, y, x] - plane[1, y, x] * u - plane[2, y, x] * v
                leverage = w * (
                    i[0] + 2.0 * (i[1] * u + i[2] * v + i[4] * u * v) + i[3] * u * u + i[5] * v * v
                )
                noise = math.sqrt(sigma[k, y, x] ** 2 + extra[y, x] ** 2)
                ratio = abs(residual) / max(1.0 - leverage, 0.05) / noise
                if ratio > score[y, x]:
                    score[y, x] = ratio
                    worst[y, x] = k


@njit(cache=True, nogil=True)
def variance_at_centre(sigma, bad, weight, phase_y, phase_x, inverse, variance, count):
    """Variance (y, x) of the planes' value at phase 0, sum_k g_k^2 sigma_k^2, and the samples used."""
    n, ny, nx = sigma.shape
    variance[:] = 0.0
    count[:] = 0
    for y in range(ny):
        for k in range(n):
            for x in range(nx):
                if bad[k, y, x]:
                    continue
                gain = weight[k] * (
                    inverse[0, y, x]
                    + inverse[1, y, x] * phase_y[k, y, x]
                    + inverse[2, y, x] * phase_x[k, y, x]
                )
                variance[y, x] += (gain * sigma[k, y, x]) ** 2
                count[y, x] += 1
