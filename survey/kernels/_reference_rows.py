"""Rows of the pixels' fits: gathered from the cube, weighted, judged.

A block holds `WIDTH` pixels side by side, its arrays are flat with index ``row * WIDTH + pixel``. The
first rows are the pixel's own samples, one an epoch; the samples of its neighbours that fall into its
domain follow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from survey.kernels._simd import (
    any_greater,
    fma,
    fnma,
    load,
    load_row,
    splat,
    sqrt,
    store,
    where_equal,
    where_greater,
)

WIDTH = 64
BAD, USED, HELD, CLIPPED = 0, 1, 2, 3
EDGE = 1e-9  # pixels by which a phase may lie outside the domain, for rounding


class Cube(NamedTuple):
    """Samples (time, pixel) of one tile and where they were taken."""

    flux: NDArray[np.floating]
    error: NDArray[np.floating]
    mask: NDArray[np.bool_]
    hold: NDArray[np.bool_]  # (0, 0) where nothing is held out
    phase_y: NDArray[np.float64]  # (time, pixel), or (time, 1) where one phase serves a frame
    phase_x: NDArray[np.float64]
    shape: tuple[int, int]


class Rows(NamedTuple):
    """One block's rows; `y`, `x` (scaled to the domain) only where phases differ between pixels."""

    flux: NDArray[np.floating]
    variance: NDArray[np.floating]  # given; later the leverage of own rows
    state: NDArray[np.floating]
    model: NDArray[np.floating]
    weight: NDArray[np.floating]  # later the error of own rows
    weighted: NDArray[np.floating]  # weight * (flux - mean); later the difference
    form: NDArray[np.floating]  # b^T N^-1 b; later (difference / error)^2
    slope: NDArray[np.floating]  # d error^2 / d flux where the gain is given, else empty
    y: NDArray[np.floating]
    x: NDArray[np.floating]
    lane: NDArray[np.floating]  # (LANE_ARRAYS, WIDTH): see the constants below


MEAN, MEAN_VARIANCE, FLOOR, N_ROWS, ABOVE, BELOW, PENALTY, CHI2, WORST = range(9)
LANE_ARRAYS = 9


@njit(cache=True, nogil=True)
def sample_state(flux, error, bad, held):
    """State of one sample as given."""
    if bad or not (error > 0 and error < np.inf and abs(flux) < np.inf):
        return BAD
    return HELD if held else USED


@njit(cache=True, nogil=True)
def _inside(shape, p, oy, ox):
    y, x = p // shape[1] + oy, p % shape[1] + ox
    return 0 <= y < shape[0] and 0 <= x < shape[1]


@njit(cache=True, nogil=True)
def gather_shared(cube, pixels, own_ok, extra, gain_slope, rows):
    """Rows where one phase serves a frame: own samples, then the list `extra` (epoch, oy, ox)."""
    n_time, n = cube.flux.shape[0], len(pixels)
    n_rows = n_time + len(extra)
    nx, n_pixels = cube.shape[1], cube.flux.shape[1]
    margin = nx + 1
    run = n == WIDTH and pixels[n - 1] - pixels[0] == n - 1
    run = run and pixels[0] >= margin and pixels[n - 1] + margin < n_pixels
    inside = np.zeros((9, WIDTH), rows.flux.dtype)
    for o in range(9):
        for s in range(n):
            inside[o, s] = 1.0 if _inside(cube.shape, pixels[s], o // 3 - 1, o % 3 - 1) else 0.0
    for r in range(n_rows):
        if gain_slope.size:
            k = r if r < n_time else extra[r - n_time, 0]
            for s in range(WIDTH):
                rows.slope[r * WIDTH + s] = gain_slope[k]
        if r < n_time and not own_ok[r]:
            _clear(rows, r * WIDTH, WIDTH)
    if run:
        _gather_run(cube, pixels[0], own_ok, extra, inside, rows)
        return n_rows
    _gather_scattered(cube, pixels, own_ok, extra, inside, rows)
    return n_rows


@njit(cache=True, nogil=True)
def _gather_run(cube, start, own_ok, extra, inside, rows):
    """A whole block of neighbouring pixels."""
    lanes = 64 // rows.flux.itemsize
    n_time = cube.flux.shape[0]
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    most, half = splat(rows.flux, np.inf), splat(rows.flux, 0.5)
    for r in range(n_time + len(extra)):
        k, o, first = r, 4, start
        if r >= n_time:
            oy, ox = extra[r - n_time, 1], extra[r - n_time, 2]
            k, o = extra[r - n_time, 0], (oy + 1) * 3 + ox + 1
            first = start + oy * cube.shape[1] + ox
        elif not own_ok[r]:
            continue
        for s in range(0, WIDTH, lanes):
            i, p = r * WIDTH + s, first + s
            f, e = load_row(rows.flux, cube.flux, k, p), load_row(rows.flux, cube.error, k, p)
            good = load_row(rows.flux, inside, o, s)
            good = where_greater(half, load_row(rows.flux, cube.mask, k, p), good, zero)
            good = where_greater(e, zero, where_greater(most, e, good, zero), zero)
            good = where_greater(most, f, where_greater(f, zero - most, good, zero), zero)
            store(rows.flux, i, where_greater(good, zero, f, zero))
            store(rows.variance, i, where_greater(good, zero, e * e, zero))
            if cube.hold.size:
                held = load_row(rows.flux, cube.hold, k, p)
                good = where_greater(good * held, zero, one + one, good)
            store(rows.state, i, good)


@njit(cache=True, nogil=True)
def _gather_scattered(cube, pixels, own_ok, extra, inside, rows):
    """Any pixels, one by one."""
    # An attribute in an inner loop counts a reference each time: all arrays get a name first.
    n_time, n, nx = cube.flux.shape[0], len(pixels), cube.shape[1]
    flux, error, mask, hold = cube.flux, cube.error, cube.mask, cube.hold
    out_flux, out_variance, out_state = rows.flux, rows.variance, rows.state
    for r in range(n_time + len(extra)):
        k, o, step = r, 4, 0
        if r >= n_time:
            k = extra[r - n_time, 0]
            o = (extra[r - n_time, 1] + 1) * 3 + extra[r - n_time, 2] + 1
            step = extra[r - n_time, 1] * nx + extra[r - n_time, 2]
        for s in range(WIDTH):
            f, e, state = 0.0, 0.0, BAD
            if s < n and inside[o, s] > 0 and (r >= n_time or own_ok[r]):
                p = pixels[s] + step
                f, e = flux[k, p], error[k, p]
                state = sample_state(f, e, mask[k, p], hold.size > 0 and hold[k, p])
            good = state != BAD
            i = r * WIDTH + s
            out_flux[i] = f if good else 0.0
            out_variance[i] = e * e if good else 0.0
            out_state[i] = state


@njit(cache=True, nogil=True)
def _clear(rows, first, n):
    for i in range(first, first + n):
        rows.flux[i] = 0.0
        rows.variance[i] = 0.0
        rows.state[i] = BAD


@njit(cache=True, nogil=True)
def gather_own_phases(cube, pixels, extension, gain_slope, rows):
    """Rows where every sample has its own phase; each pixel lists the neighbours' samples it can use."""
    n_time, n = cube.flux.shape[0], len(pixels)
    flux, error, mask, hold = cube.flux, cube.error, cube.mask, cube.hold
    phase_y, phase_x = cube.phase_y, cube.phase_x
    out_flux, out_variance, out_state, out_slope = rows.flux, rows.variance, rows.state, rows.slope
    out_y, out_x = rows.y, rows.x
    scale, limit = 2.0 / extension, extension / 2 + EDGE
    count = np.full(WIDTH, n_time)
    there = np.ones(WIDTH, np.bool_)
    for o in range(9):
        # The pixel's own samples come first, in place of the grid's centre.
        cell = 4 if o == 0 else (0 if o == 4 else o)
        oy, ox = cell // 3 - 1, cell % 3 - 1
        step = oy * cube.shape[1] + ox
        for s in range(n):
            there[s] = _inside(cube.shape, pixels[s], oy, ox)
        for k in range(n_time):
            for s in range(n):
                if not there[s]:
                    continue
                p = pixels[s] + step
                y, x = phase_y[k, p] + oy, phase_x[k, p] + ox
                inside = abs(y) <= limit and abs(x) <= limit
                if o > 0 and not inside:
                    continue
                r = k
                if o > 0:
                    r = count[s]
                    count[s] += 1
                i = r * WIDTH + s
                f, e = flux[k, p], 1.0 * error[k, p]
                state = BAD
                if inside:
                    state = sample_state(f, e, mask[k, p], hold.size > 0 and hold[k, p])
                good = state != BAD
                out_flux[i] = f if good else 0.0
                out_variance[i] = e * e if good else 0.0
                out_state[i] = state
                out_y[i] = y * scale if inside else 0.0
                out_x[i] = x * scale if inside else 0.0
                if gain_slope.size:
                    out_slope[i] = gain_slope[k]
    n_rows = n_time
    for s in range(n):
        n_rows = max(n_rows, count[s])
    for s in range(WIDTH):
        for r in range(count[s] if s < n else 0, n_rows):
            i = r * WIDTH + s
            out_flux[i] = out_variance[i] = out_y[i] = out_x[i] = 0.0
            out_state[i] = BAD
            if gain_slope.size:
                out_slope[i] = 0.0
    return n_rows


@njit(cache=True, nogil=True)
def summarise(rows, n_rows, s):
    """Mean flux and variance, least variance and number of the rows in use, one vector of pixels."""
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    count = flux = variance = zero
    least = splat(rows.flux, np.inf)
    for r in range(n_rows):
        i = r * WIDTH + s
        used = where_equal(load(rows.state, i), one, one, zero)
        v = load(rows.variance, i)
        count = count + used
        flux = fma(used, load(rows.flux, i), flux)
        variance = fma(used, v, variance)
        candidate = where_greater(least, v, v, least)
        least = where_greater(used, zero, candidate, least)
    total = where_greater(count, zero, count, one)
    store(rows.lane, MEAN * WIDTH + s, flux / total)
    store(rows.lane, MEAN_VARIANCE * WIDTH + s, variance / total)
    quarter = splat(rows.flux, 0.25)
    store(rows.lane, FLOOR * WIDTH + s, where_greater(count, zero, least * quarter, one))
    store(rows.lane, N_ROWS * WIDTH + s, count)


@njit(cache=True, nogil=True)
def centre(rows, n_rows, s):
    """Equal weights on the rows in use: `weight` and `weighted` of one vector of pixels."""
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    mean = load(rows.lane, MEAN * WIDTH + s)
    for r in range(n_rows):
        i = r * WIDTH + s
        used = where_equal(load(rows.state, i), one, one, zero)
        store(rows.weight, i, used)
        store(rows.weighted, i, used * (load(rows.flux, i) - mean))


@njit(cache=True, nogil=True)
def measure_slopes(rows, n_rows, s, tiny):
    """How far the given variance follows the noise in the flux, above and below zero flux.

    Regression of the variance on (model, u+, u-), u+- the parts of flux - model above and below zero flux:
    errors made from the observed counts give the inverse gain in u+ (and in u- unless they were cut at
    zero), errors that know the true flux give zero.
    """
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    n = sm = su = sd = sv = smm = smu = smd = suu = sud = sdd = smv = suv = sdv = zero
    mean, mean_v = load(rows.lane, MEAN * WIDTH + s), load(rows.lane, MEAN_VARIANCE * WIDTH + s)
    for r in range(n_rows):
        i = r * WIDTH + s
        used = where_equal(load(rows.state, i), one, one, zero)
        f, m = load(rows.flux, i), load(rows.model, i)
        high, low = where_greater(m, zero, m, zero), where_greater(m, zero, zero, m)
        u = used * (where_greater(f, zero, f, zero) - high)
        d = used * (where_greater(f, zero, zero, f) - low)
        m = used * (m - mean)
        v = used * (load(rows.variance, i) - mean_v)
        n, sm, su, sd, sv = n + used, sm + m, su + u, sd + d, sv + v
        smm, smu, smd, smv = fma(m, m, smm), fma(m, u, smu), fma(m, d, smd), fma(m, v, smv)
        suu, sud, suv = fma(u, u, suu), fma(u, d, sud), fma(u, v, suv)
        sdd, sdv = fma(d, d, sdd), fma(d, v, sdv)
    n = where_greater(n, zero, n, one)
    bm, bu, bd = sm / n, su / n, sd / n
    smm, smu, smd, smv = fnma(bm, sm, smm), fnma(bm, su, smu), fnma(bm, sd, smd), fnma(bm, sv, smv)
    suu, sud, suv = fnma(bu, su, suu), fnma(bu, sd, sud), fnma(bu, sv, suv)
    sdd, sdv = fnma(bd, sd, sdd), fnma(bd, sv, sdv)
    grow, least = splat(rows.flux, 1.0 + tiny), splat(rows.flux, 1e-30)
    # An arm shorter than a third of a sigma measures no slope.
    arm = splat(rows.flux, 0.1) * (mean_v + sv / n)
    smm, suu, sdd = fma(smm, grow, least), fma(suu, grow, least) + arm, fma(sdd, grow, least) + arm
    lu, ld = smu / smm, smd / smm
    suu, sud, suv = fnma(lu, smu, suu), fnma(lu, smd, sud), fnma(lu, smv, suv)
    sdd, sdv = fnma(ld, smd, sdd), fnma(ld, smv, sdv)
    suu = where_greater(suu, least, suu, least)
    lu = sud / suu
    sdd, sdv = fnma(lu, sud, sdd), fnma(lu, suv, sdv)
    sdd = where_greater(sdd, least, sdd, least)
    below = sdv / sdd
    store(rows.lane, BELOW * WIDTH + s, below)
    store(rows.lane, ABOVE * WIDTH + s, fnma(sud, below, suv) / suu)


@njit(cache=True, nogil=True, inline="always")
def _model_variance(rows, i, f, m, v, above, below, floor, zero, given):
    """Variance of a sample at the model's flux instead of the observed one.

    Linear in the model below zero flux too: a faint pixel's model scatters about zero, and cutting it there
    would add half its scatter to the variance.
    """
    if given:
        s2 = fnma(load(rows.slope, i), f - m, v)
    else:
        s2 = fnma(above, where_greater(f, zero, f, zero) - m, v)
        s2 = fnma(below, where_greater(f, zero, zero, f), s2)
    return where_greater(s2, floor, s2, floor)


@njit(cache=True, nogil=True)
def weigh(rows, n_rows, s, ridge):
    """Weights from the model's variance; `weight`, `weighted` and the penalty of one vector of pixels."""
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    given = rows.slope.size > 0
    mean, floor = load(rows.lane, MEAN * WIDTH + s), load(rows.lane, FLOOR * WIDTH + s)
    above, below = load(rows.lane, ABOVE * WIDTH + s), load(rows.lane, BELOW * WIDTH + s)
    total = count = zero
    for r in range(n_rows):
        i = r * WIDTH + s
        used = where_equal(load(rows.state, i), one, one, zero)
        f = load(rows.flux, i)
        v = load(rows.variance, i)
        s2 = _model_variance(rows, i, f, load(rows.model, i), v, above, below, floor, zero, given)
        w = used / s2
        store(rows.weight, i, w)
        store(rows.weighted, i, w * (f - mean))
        total, count = total + w, count + used
    count = where_greater(count, zero, count, one)
    store(rows.lane, PENALTY * WIDTH + s, splat(rows.flux, ridge) * total / count)


@njit(cache=True, nogil=True)
def judge(rows, n_rows, n_time, s, positive_only, clip):
    """Leave-one-out differences of one vector of pixels; True where a row's state may change.

    `weighted`, `weight`, `variance` of the own rows become difference, error and leverage, `form` of all
    rows (difference / error)^2.
    """
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    given = rows.slope.size > 0
    floor, most = load(rows.lane, FLOOR * WIDTH + s), splat(rows.flux, 1.0 - 1e-6)
    above, below = load(rows.lane, ABOVE * WIDTH + s), load(rows.lane, BELOW * WIDTH + s)
    clipped, chi2, worst, returned = splat(rows.flux, CLIPPED), zero, zero, zero
    for r in range(n_rows):
        i = r * WIDTH + s
        state = load(rows.state, i)
        f, m, q, w = load(rows.flux, i), load(rows.model, i), load(rows.form, i), load(rows.weight, i)
        s2 = _model_variance(rows, i, f, m, load(rows.variance, i), above, below, floor, zero, given)
        h = w * q
        rest = one - where_greater(h, most, most, h)
        residual = f - m
        outside = s2 + q
        difference = where_equal(state, one, residual / rest, residual)
        variance = where_equal(state, one, s2 / rest, outside)
        t2 = difference * difference / variance
        if r < n_time:
            store(rows.weighted, i, difference)
            store(rows.weight, i, sqrt(variance))
            store(rows.variance, i, where_equal(state, one, one - rest, q / outside))
            chi2 = chi2 + where_equal(state, one, t2, zero)
        if positive_only:
            t2 = where_greater(difference, zero, t2, zero)
        store(rows.form, i, t2)
        size = where_equal(state, one, t2, zero)
        worst = where_greater(size, worst, size, worst)
        returned = where_equal(state, clipped, one, returned)
    store(rows.lane, CHI2 * WIDTH + s, chi2)
    store(rows.lane, WORST * WIDTH + s, worst)
    return any_greater(worst, splat(rows.flux, clip * clip)) or any_greater(returned, zero)


@njit(cache=True, nogil=True)
def clip_rows(rows, n_rows, pixel, clip):
    """New states of one pixel's rows, the worst half of its outliers first; True where one changed.

    One bad sample drags the surface and makes neighbours in phase look bad: only rows beyond half the
    worst leave at a time, and a row comes back as soon as it agrees.
    """
    limit = max(clip * clip, 0.25 * rows.lane[WORST * WIDTH + pixel])
    changed = False
    for r in range(n_rows):
        i = r * WIDTH + pixel
        if rows.state[i] == USED and rows.form[i] > limit:
            rows.state[i] = CLIPPED
            changed = True
        elif rows.state[i] == CLIPPED and rows.form[i] <= clip * clip:
            rows.state[i] = USED
            changed = True
    return changed
