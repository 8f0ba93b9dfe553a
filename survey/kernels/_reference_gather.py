"""Rows of the pixels' fits, gathered from the cube.

A block holds `WIDTH` pixels side by side, its arrays are flat with index ``row * WIDTH + pixel``. The
first rows are the pixel's own samples, one an epoch; the samples of its neighbours that fall into its
domain follow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from survey.kernels._inner import inner
from survey.kernels._simd import load_row, splat, store, where_greater

WIDTH = 64
BAD, USED, HELD, CLIPPED = 0, 1, 2, 3
EDGE = 1e-9  # pixels by which a phase may lie outside the domain, for rounding
MEAN, MEAN_VARIANCE, FLOOR, N_ROWS, ABOVE, BELOW, PENALTY, CHI2, WORST, SPAN = range(10)
LANE_ARRAYS = 10


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


@inner()
def sample_state(flux, error, bad, held):
    """State of one sample as given."""
    if bad or not (error > 0 and error < np.inf and abs(flux) < np.inf):
        return BAD
    return HELD if held else USED


@inner()
def _inside(shape, p, oy, ox):
    y, x = p // shape[1] + oy, p % shape[1] + ox
    return 0 <= y < shape[0] and 0 <= x < shape[1]


@inner()
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


@inner()
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


@inner()
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


@inner()
def _clear(rows, first, n):
    for i in range(first, first + n):
        rows.flux[i] = 0.0
        rows.variance[i] = 0.0
        rows.state[i] = BAD


@inner()
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
