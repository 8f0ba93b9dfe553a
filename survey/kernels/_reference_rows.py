"""Rows of the pixels' fits, weighted and judged: one vector of pixels at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

from survey.kernels._inner import inner
from survey.kernels._reference_gather import (
    ABOVE,
    BELOW,
    CHI2,
    CLIPPED,
    FLOOR,
    MEAN,
    MEAN_VARIANCE,
    N_ROWS,
    PENALTY,
    SPAN,
    USED,
    WIDTH,
    WORST,
)
from survey.kernels._simd import any_greater, fma, fnma, load, splat, sqrt, store, where_equal, where_greater


@inner()
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


@inner()
def centre(rows, n_rows, s):
    """Equal weights on the rows in use: `weight` and `weighted` of one vector of pixels."""
    zero, one = splat(rows.flux, 0.0), splat(rows.flux, 1.0)
    mean = load(rows.lane, MEAN * WIDTH + s)
    for r in range(n_rows):
        i = r * WIDTH + s
        used = where_equal(load(rows.state, i), one, one, zero)
        store(rows.weight, i, used)
        store(rows.weighted, i, used * (load(rows.flux, i) - mean))


@inner()
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


@inner()
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


@inner()
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
    count = noise = zero
    high = splat(rows.flux, -np.inf)
    low = zero - high
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
            count = count + where_equal(state, one, one, zero)
            noise = noise + where_equal(state, one, s2, zero)
            high = where_equal(state, one, where_greater(m, high, m, high), high)
            low = where_equal(state, one, where_greater(low, m, m, low), low)
        if positive_only:
            t2 = where_greater(difference, zero, t2, zero)
        store(rows.form, i, t2)
        size = where_equal(state, one, t2, zero)
        worst = where_greater(size, worst, size, worst)
        returned = where_equal(state, clipped, one, returned)
    store(rows.lane, CHI2 * WIDTH + s, chi2)
    store(rows.lane, WORST * WIDTH + s, worst)
    # Steepness: what the surface spans over the pixel's own phases, in errors.
    store(rows.lane, SPAN * WIDTH + s, (high - low) / sqrt(noise / count))
    return any_greater(worst, splat(rows.flux, clip * clip)) or any_greater(returned, zero)


@inner()
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
