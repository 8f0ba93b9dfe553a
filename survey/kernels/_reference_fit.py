"""All passes of reference, clipping and leave-one-out difference over one tile, block by block.

Every pixel is fitted from its own and its eight neighbours' samples and judges these rows itself; no
result of one pixel enters another's. So a block goes through all its work while it lies in the cache,
and after the first pass only pixels whose rows changed are solved again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from survey.kernels import _reference_rows as _rows
from survey.kernels._reference_block import gather, load_surface, one_pass, start
from survey.kernels._reference_gather import (
    BAD,
    CHI2,
    CLIPPED,
    HELD,
    MEAN,
    N_ROWS,
    SPAN,
    USED,
    WIDTH,
    WORST,
    Cube,
)
from survey.kernels._reference_plan import Plan, Result, make_buffers
from survey.kernels._simd import load, load_row, splat, store_row, where_equal, where_greater

CHUNK = 2048  # pixels that go through all passes together
LATE = 255
STEEPER = 5.0  # by which one polynomial more per axis lets a surface be steeper at the same misfit
IMAGES_PER_COEFFICIENT = 1.5


@njit(cache=True, nogil=True)
def _write(rows, plan, pixels, skip, n_time, work, out):
    """Results of a block into the tile's arrays."""
    n, degrees = len(pixels), 2 * plan.n - 1
    for s in range(n):
        if skip[s]:
            continue
        p = pixels[s]
        count, finite = 0, True
        if plan.prior.n_used.size:
            count = plan.prior.n_used[p]
        for k in range(n_time):
            count += rows.state[k * WIDTH + s] == USED
        for i in range(plan.n**2):
            finite &= bool(np.isfinite(work.theta[i * WIDTH + s]))
        out.n_used[p] = count
        out.valid[0, p] = finite and count >= plan.min_images
        out.chi2[p] = rows.lane[CHI2 * WIDTH + s] if out.valid[0, p] else 0.0
        out.span[p] = rows.lane[SPAN * WIDTH + s]
        for i in range(plan.n**2):
            out.theta[p, i] = work.theta[i * WIDTH + s]
        if out.moments.size:
            mean = rows.lane[MEAN * WIDTH + s]
            for i in range(degrees**2):
                out.moments[p, i] = work.moments[i * WIDTH + s]
            for i in range(plan.n**2):
                moment = work.moments[(i // plan.n * degrees + i % plan.n) * WIDTH + s]
                out.right[p, i] = work.right[i * WIDTH + s] + mean * moment
    if n == WIDTH and pixels[n - 1] - pixels[0] == n - 1:
        # Pixels to skip are written over when their turn comes.
        _write_run(rows, pixels[0], n_time, out, plan.leave_one_out)
        return
    for k in range(n_time):
        for s in range(n):
            if skip[s]:
                continue
            p, i = pixels[s], k * WIDTH + s
            state = rows.state[i]
            bad = state == BAD or not out.valid[0, p]
            keep = 1.0
            if not plan.leave_one_out and state == USED:
                keep = 1.0 - rows.variance[i]
            out.flux[k, p] = np.nan if bad else rows.weighted[i] * keep
            out.error[k, p] = np.nan if bad else rows.weight[i] * keep
            out.leverage[k, p] = 0.0 if bad else rows.variance[i]
            out.mask[k, p] = bad
            out.fit_mask[k, p] = state in (HELD, CLIPPED)


@njit(cache=True, nogil=True)
def _write_run(rows, first, n_time, out, leave_one_out):
    """Differences of a whole block of neighbouring pixels."""
    lanes = 64 // rows.flux.itemsize
    zero, one, nothing = splat(rows.flux, 0.0), splat(rows.flux, 1.0), splat(rows.flux, np.nan)
    for k in range(n_time):
        for s in range(0, WIDTH, lanes):
            i, p = k * WIDTH + s, first + s
            state = load(rows.state, i)
            good = where_greater(state, zero, load_row(rows.flux, out.valid, 0, p), zero)
            difference, error, leverage = load(rows.weighted, i), load(rows.weight, i), load(rows.variance, i)
            if not leave_one_out:
                keep = where_equal(state, one, one - leverage, one)
                difference, error = difference * keep, error * keep
            store_row(out.flux, k, p, where_greater(good, zero, difference, nothing))
            store_row(out.error, k, p, where_greater(good, zero, error, nothing))
            store_row(out.leverage, k, p, where_greater(good, zero, leverage, zero))
            store_row(out.mask, k, p, one - good)
            store_row(out.fit_mask, k, p, where_greater(state, one, one, zero))


@njit(cache=True, nogil=True)
def _first_pass(cube, plan, rows, work, out, queue, n_queue, own, kept):
    """First pass over `queue`; pixels with changed rows go to its front, their states to `kept`.

    Without `own`, pixels that miss a row are left for later: they go to the front with kept[:, 0] = LATE.
    """
    n_time, n_pending = cube.flux.shape[0], 0
    lanes = 64 // rows.flux.itemsize
    skip, block = np.zeros(WIDTH, np.bool_), np.empty(WIDTH, np.int64)
    for first in range(0, n_queue, WIDTH):
        n = min(WIDTH, n_queue - first)
        for s in range(n):
            block[s] = queue[first + s]
        pixels = block[:n]
        n_rows = gather(cube, pixels, plan, rows)
        for s in range(0, n, lanes):
            _rows.summarise(rows, n_rows, s)
            _rows.centre(rows, n_rows, s)
        missing = 0
        for s in range(n):
            skip[s] = not own and rows.lane[N_ROWS * WIDTH + s] < n_rows
            missing += skip[s]
        suspect = False
        if missing < n:
            if plan.prior.n_used.size:
                load_surface(rows, plan, n_rows, pixels, plan.prior.theta, work)
            else:
                start(rows, plan, n_rows, n, work, own)
            suspect = one_pass(rows, plan, n_rows, n_time, pixels, work) and plan.iterations > 0
            _write(rows, plan, pixels, skip, n_time, work, out)
        for s in range(n):
            if skip[s]:
                queue[n_pending] = pixels[s]
                kept[n_pending, 0] = LATE
                n_pending += 1
            elif suspect and rows.lane[WORST * WIDTH + s] > plan.clip**2:
                _rows.clip_rows(rows, n_rows, s, plan.clip)
                _keep(rows, n_rows, s, pixels[s], queue, kept, n_pending, n > 0)
                n_pending += 1
    return n_pending


@njit(cache=True, nogil=True)
def _keep(rows, n_rows, s, pixel, queue, kept, slot, changed):
    """Put a pixel and its rows' states into a slot of the queue; kept[:, 0] says whether they changed."""
    queue[slot] = pixel
    kept[slot, 0] = changed
    for r in range(n_rows):
        kept[slot, 1 + r] = int(rows.state[r * WIDTH + s])


@njit(cache=True, nogil=True)
def _next_pass(cube, plan, rows, work, out, queue, n_queue, kept, last):
    """One more pass over the queue; a pixel leaves it when its rows and its weights have settled."""
    n_time, n_pending = cube.flux.shape[0], 0
    lanes = 64 // rows.flux.itemsize
    skip, block = np.zeros(WIDTH, np.bool_), np.empty(WIDTH, np.int64)
    changed_before = np.zeros(WIDTH, np.bool_)
    for first in range(0, n_queue, WIDTH):
        n = min(WIDTH, n_queue - first)
        for s in range(n):
            block[s] = queue[first + s]
        pixels = block[:n]
        n_rows = gather(cube, pixels, plan, rows)
        for s in range(0, n, lanes):
            _rows.summarise(rows, n_rows, s)
        for s in range(n):
            changed_before[s] = kept[first + s, 0] == 1
            for r in range(n_rows):
                # Beyond a pixel's own rows `kept` may hold what was there before.
                if rows.state[r * WIDTH + s] != BAD:
                    rows.state[r * WIDTH + s] = kept[first + s, 1 + r]
        load_surface(rows, plan, n_rows, pixels, out.theta, work)
        one_pass(rows, plan, n_rows, n_time, pixels, work)
        _write(rows, plan, pixels, skip, n_time, work, out)
        if last:
            continue
        for s in range(n):
            changed = _rows.clip_rows(rows, n_rows, s, plan.clip)
            if changed or changed_before[s]:
                _keep(rows, n_rows, s, pixels[s], queue, kept, n_pending, changed)
                n_pending += 1
    return n_pending


@njit(cache=True, nogil=True)
def fit_tile(cube, plan, rows, work, out, chosen):
    """All passes over the chosen pixels of a tile."""
    n_pixels = len(chosen)
    n_rows = rows.flux.size // WIDTH
    size = min(CHUNK, n_pixels)
    queue, kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    late, late_kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    for first in range(0, n_pixels, CHUNK):
        n = min(CHUNK, n_pixels - first)
        for i in range(n):
            queue[i] = chosen[first + i]
        n_late, n_pending = n, 0
        if plan.shared and not plan.prior.n_used.size:
            n = _first_pass(cube, plan, rows, work, out, queue, n, n < 0, kept)
            n_late = n_pending = 0
            for i in range(n):
                if kept[i, 0] == LATE:
                    late[n_late] = queue[i]
                    n_late += 1
                else:
                    queue[n_pending] = queue[i]
                    for r in range(n_rows + 1):
                        kept[n_pending, r] = kept[i, r]
                    n_pending += 1
        else:
            for i in range(n):
                late[i] = queue[i]
        n = _first_pass(cube, plan, rows, work, out, late, n_late, n >= 0, late_kept)
        for i in range(n):
            queue[n_pending] = late[i]
            for r in range(n_rows + 1):
                kept[n_pending, r] = late_kept[i, r]
            n_pending += 1
        for iteration in range(1, plan.iterations + 1):
            last = iteration == plan.iterations
            n_pending = _next_pass(cube, plan, rows, work, out, queue, n_pending, kept, last)


def fit(cube: Cube, plan: Plan, dtype, keep_normal: bool) -> Result:
    """Allocate the products of a tile and fill them."""
    n_time, n_pixels = cube.flux.shape
    kind = cube.flux.dtype
    degrees, size = 2 * plan.n - 1, plan.n**2
    kept = n_pixels if keep_normal else 0
    out = Result(
        flux=np.empty((n_time, n_pixels), kind),
        error=np.empty((n_time, n_pixels), kind),
        leverage=np.empty((n_time, n_pixels), kind),
        mask=np.empty((n_time, n_pixels), bool),
        fit_mask=np.empty((n_time, n_pixels), bool),
        theta=np.empty((n_pixels, size), dtype),
        n_used=np.empty(n_pixels, np.int32),
        chi2=np.empty(n_pixels, dtype),
        valid=np.empty((1, n_pixels), bool),
        span=np.empty(n_pixels, dtype),
        moments=np.empty((kept, degrees**2 if kept else 0), dtype),
        right=np.empty((kept, size if kept else 0), dtype),
    )
    rows, work = make_buffers(plan, n_time, dtype)
    fit_tile(cube, plan, rows, work, out, np.arange(n_pixels))
    _fit_starved(cube, plan, rows, work, out, np.arange(n_pixels))
    return out


def _fit_starved(cube: Cube, plan: Plan, rows, work, out: Result, chosen: np.ndarray) -> None:
    """Fit whole those of the chosen pixels that clipping starved."""
    starved = np.intersect1d(starved_pixels(cube, plan, out), chosen)
    if len(starved):
        fit_tile(cube, plan._replace(iterations=0), rows, work, out, starved)


def starved_pixels(cube: Cube, plan: Plan, out: Result) -> np.ndarray:
    """Pixels that clipping alone left with too few images: most of a strong variable's samples are outliers
    of any constant surface, and a star must not vanish because it varies."""
    few = np.flatnonzero(~out.valid[0] & (out.n_used < plan.min_images))
    clipped = out.fit_mask[:, few]
    if cube.hold.size:
        clipped &= ~cube.hold[:, few]
    count = clipped.sum(axis=0)
    return few[(count > 0) & (out.n_used[few] + count >= plan.min_images)]


def refit_steep(cube: Cube, plans: Sequence[Plan], out: Result, steep: float, n: int, dtype) -> Result:
    """Fit again, with larger bases, the pixels whose surface spans more than `steep` errors.

    ``plans[i]`` serves spans beyond ``steep * STEEPER**i`` where a pixel has the images for it. Surfaces of
    all pixels come out in the largest basis, padded with zeros.
    """
    largest = plans[-1].n
    theta = np.zeros((len(out.span), largest, largest), dtype)
    theta[:, :n, :n] = out.theta.reshape(-1, n, n)
    level = np.zeros(len(out.span), int)
    for i, plan in enumerate(plans):
        enough = out.n_used >= IMAGES_PER_COEFFICIENT * plan.n**2
        level[out.valid[0] & enough & (out.span > steep * STEEPER**i)] = i + 1
    for i, plan in enumerate(plans):
        chosen = np.flatnonzero(level == i + 1)
        if len(chosen):
            rows, work = make_buffers(plan, cube.flux.shape[0], dtype)
            part = out._replace(theta=np.zeros((len(level), plan.n**2), dtype))
            fit_tile(cube, plan, rows, work, part, chosen)
            _fit_starved(cube, plan, rows, work, part, chosen)
            theta[chosen] = 0.0
            theta[chosen, : plan.n, : plan.n] = part.theta[chosen].reshape(-1, plan.n, plan.n)
    return out._replace(theta=theta.reshape(len(level), -1))
