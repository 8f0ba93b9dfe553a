"""One pass over one block of pixels: weights, sums, solution, leave-one-out differences."""

from __future__ import annotations

import numpy as np
from numba import njit

from survey.kernels import _reference_rows as _rows
from survey.kernels._inner import inner
from survey.kernels._reference_gather import MEAN, PENALTY, WIDTH, gather_own_phases, gather_shared
from survey.kernels._reference_moments import PANEL, contract, expand, multiply
from survey.kernels._reference_solve import apply_inverse, factor, inverse_pairs, invert_factor
from survey.kernels._simd import fma, load, splat, store


@inner()
def gather(cube, pixels, plan, rows):
    if plan.shared:
        return gather_shared(cube, pixels, plan.own_ok, plan.extra, plan.gain_slope, rows)
    return gather_own_phases(cube, pixels, plan.extension, plan.gain_slope, rows)


@inner()
def _panels(n):
    return (n + PANEL - 1) // PANEL


@njit(cache=True, nogil=True, inline="always")
def _legendre(rows, plan, i, work):
    """Legendre polynomials of one row, y then x, for one vector of pixels; into work.basis."""
    lanes = 64 // rows.flux.itemsize
    degrees = 2 * plan.n - 1
    for axis in range(2):
        u = load(rows.y, i) if axis == 0 else load(rows.x, i)
        old, now = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
        store(work.basis, axis * degrees * lanes, now)
        for a in range(1, degrees):
            new = splat(rows.flux, plan.recurrence[0, a]) * u * now
            new = new - splat(rows.flux, plan.recurrence[1, a]) * old
            store(work.basis, (axis * degrees + a) * lanes, new)
            old, now = now, new


@inner()
def _sum_rows(rows, plan, n_rows, n_used, work):
    """Moments of the weights and right-hand sides of a block."""
    n, degrees = plan.n, 2 * plan.n - 1
    if plan.shared:
        multiply(plan.moments, _panels(degrees**2), n_rows, rows.weight, work.moments, WIDTH, n_used)
        multiply(plan.right, _panels(n * n), n_rows, rows.weighted, work.right, WIDTH, n_used)
        return
    lanes = 64 // rows.flux.itemsize
    work.moments[:] = 0.0
    work.right[:] = 0.0
    for s in range(0, n_used, lanes):
        for r in range(n_rows):
            i = r * WIDTH + s
            _legendre(rows, plan, i, work)
            w, z = load(rows.weight, i), load(rows.weighted, i)
            for a in range(degrees):
                y = load(work.basis, a * lanes)
                wy = w * y
                for b in range(degrees):
                    j = (a * degrees + b) * WIDTH + s
                    x = load(work.basis, (degrees + b) * lanes)
                    store(work.moments, j, fma(wy, x, load(work.moments, j)))
                if a < n:
                    zy = z * y
                    for b in range(n):
                        j = (a * n + b) * WIDTH + s
                        x = load(work.basis, (degrees + b) * lanes)
                        store(work.right, j, fma(zy, x, load(work.right, j)))


@inner()
def evaluate(rows, plan, n_rows, n_used, work, n, coefficients, out, packed):
    """Sum of coefficients times P_a(y) P_b(x), a, b < n, at every row of a block."""
    if plan.shared:
        multiply(packed, _panels(n_rows), n * n, coefficients, out, WIDTH, n_used)
        return
    lanes = 64 // rows.flux.itemsize
    degrees = 2 * plan.n - 1
    for s in range(0, n_used, lanes):
        for r in range(n_rows):
            i = r * WIDTH + s
            _legendre(rows, plan, i, work)
            total = splat(rows.flux, 0.0)
            for a in range(n):
                line = splat(rows.flux, 0.0)
                for b in range(n):
                    x = load(work.basis, (degrees + b) * lanes)
                    line = fma(x, load(coefficients, (a * n + b) * WIDTH + s), line)
                total = fma(line, load(work.basis, a * lanes), total)
            store(out, i, total)


@inner()
def _solve(rows, plan, n_used, work, with_inverse):
    """Coefficients, and where asked for the moments of N^-1, from a block's sums."""
    lanes = 64 // rows.flux.itemsize
    n, size = plan.n, plan.n**2
    penalty = rows.lane[PENALTY * WIDTH : (PENALTY + 1) * WIDTH]
    for s in range(0, n_used, 2 * lanes):
        expand(work.moments, WIDTH, s, n, plan.products, work.half, work.pairs)
        factor(work.pairs, n, plan.products, penalty, s, work.matrix)
        invert_factor(size, work.matrix)
        apply_inverse(size, work.matrix, work.right, WIDTH, s, work.vector, work.theta)
        for t in (s, s + lanes):
            store(work.theta, t, load(work.theta, t) + load(rows.lane, MEAN * WIDTH + t))
        if with_inverse:
            inverse_pairs(n, plan.products, work.matrix, work.pairs)
            contract(work.pairs, WIDTH, s, n, plan.products, work.half, work.inverse)


@inner()
def _add_prior(rows, plan, pixels, work):
    """Sums of the images seen before; right-hand sides are about the block's mean fluxes."""
    n, degrees = plan.n, 2 * plan.n - 1
    moments, right = plan.prior.moments, plan.prior.right
    out_moments, out_right, lane = work.moments, work.right, rows.lane
    for s in range(len(pixels)):
        p = pixels[s]
        mean = lane[MEAN * WIDTH + s]
        for i in range(degrees * degrees):
            out_moments[i * WIDTH + s] += moments[p, i]
        for i in range(n * n):
            moment = moments[p, i // n * degrees + i % n]
            out_right[i * WIDTH + s] += right[p, i] - mean * moment


@inner()
def load_surface(rows, plan, n_rows, pixels, theta, work):
    """Model from coefficients kept for each pixel; the mean flux where there are none."""
    for s in range(len(pixels)):
        for i in range(plan.n**2):
            work.theta[i * WIDTH + s] = theta[pixels[s], i]
        if plan.prior.n_used.size and not plan.prior.n_used[pixels[s]]:
            work.theta[s] = rows.lane[MEAN * WIDTH + s]
    evaluate(rows, plan, n_rows, len(pixels), work, plan.n, work.theta, rows.model, plan.surface)


@inner()
def start(rows, plan, n_rows, n_used, work, own):
    """Model at equal weights: one shared matrix where every row is in use, else (`own`) each its solve."""
    lanes = 64 // rows.flux.itemsize
    n = plan.n
    if own:
        _sum_rows(rows, plan, n_rows, n_used, work)
        for s in range(n_used):
            rows.lane[PENALTY * WIDTH + s] = plan.ridge
        # Numba compiles a function anew for a literal True or False: a test gives a plain boolean.
        _solve(rows, plan, n_used, work, n_used < 0)
        for s in range(n_used):
            total = 0.0
            for i in range(n * n):
                total += work.theta[i * WIDTH + s]
            if not np.isfinite(total):
                # Too few rows and no ridge: a flat model gives weights that a later night can use.
                for i in range(n * n):
                    work.theta[i * WIDTH + s] = rows.lane[MEAN * WIDTH + s] if i == 0 else 0.0
    else:
        multiply(plan.start, _panels(n * n), n_rows, rows.weighted, work.theta, WIDTH, n_used)
        for s in range(0, n_used, lanes):
            store(work.theta, s, load(work.theta, s) + load(rows.lane, MEAN * WIDTH + s))
    evaluate(rows, plan, n_rows, n_used, work, n, work.theta, rows.model, plan.surface)


@inner()
def one_pass(rows, plan, n_rows, n_time, pixels, work):
    """Weights, solve, leave-one-out differences of a block; True where rows may change state."""
    lanes, n_used = 64 // rows.flux.itemsize, len(pixels)
    for s in range(0, n_used, lanes):
        if plan.gain_slope.size == 0:
            _rows.measure_slopes(rows, n_rows, s, plan.tiny)
        _rows.weigh(rows, n_rows, s, plan.ridge)
    _sum_rows(rows, plan, n_rows, n_used, work)
    if plan.prior.n_used.size:
        _add_prior(rows, plan, pixels, work)
    _solve(rows, plan, n_used, work, n_used > 0)
    evaluate(rows, plan, n_rows, n_used, work, plan.n, work.theta, rows.model, plan.surface)
    evaluate(rows, plan, n_rows, n_used, work, 2 * plan.n - 1, work.inverse, rows.form, plan.form)
    suspect = False
    for s in range(0, n_used, lanes):
        suspect |= _rows.judge(rows, n_rows, n_time, s, plan.positive_only, plan.clip)
    return suspect
