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
from survey.kernels._inner import inner
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


@inner()
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


@inner()
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


@inner()
def _keep(rows, n_rows, s, pixel, queue, kept, slot, changed):
    """Put a pixel and its rows' states into a slot of the queue; kept[:, 0] says whether they changed."""
    queue[slot] = pixel
    kept[slot, 0] = changed
    for r in range(n_rows):
        kept[slot, 1 + r] = int(rows.state[r * WIDTH + s])


@inner()
def _restore(rows, n_rows, s, kept, slot):
    """A pixel's rows' states out of a slot of the queue."""
    for r in range(n_rows):
        # Beyond a pixel's own rows `kept` may hold what was there before.
        if rows.state[r * WIDTH + s] != BAD:
            rows.state[r * WIDTH + s] = kept[slot, 1 + r]


@njit(cache=True, nogil=True, inline="always")
def _pass(cube, plan, rows, work, out, step, queue, n_queue, kept):
    """One pass over `queue`; pixels to see again go to its front, their rows' states to `kept`.

    Step 0 starts from the matrix that all pixels share, those that miss a row are left for later:
    kept[:, 0] = LATE. Step 1 starts from a pixel's own rows. In later ones a pixel leaves the queue when its
    rows and its weights have seen.
    """
    n_time, n_pending = cube.flux.shape[0], 0
    lanes = 64 // rows.flux.itemsize
    prior, again = plan.prior.n_used.size > 0, plan.iterations > 0 and step <= plan.iterations
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
            if step < 2:
                _rows.centre(rows, n_rows, s)
        missing = 0
        for s in range(n):
            skip[s] = step == 0 and rows.lane[N_ROWS * WIDTH + s] < n_rows
            missing += skip[s]
            if step > 1:
                changed_before[s] = kept[first + s, 0] == 1
                _restore(rows, n_rows, s, kept, first + s)
        suspect = False
        if missing < n:
            if prior or step > 1:
                theta = out.theta if step > 1 else plan.prior.theta
                load_surface(rows, plan, n_rows, pixels, theta, work)
            else:
                start(rows, plan, n_rows, n, work, step > 0)
            suspect = one_pass(rows, plan, n_rows, n_time, pixels, work)
            _write(rows, plan, pixels, skip, n_time, work, out)
        for s in range(n):
            if skip[s]:
                queue[n_pending] = pixels[s]
                kept[n_pending, 0] = LATE
                n_pending += 1
            elif again and (step > 1 or (suspect and rows.lane[WORST * WIDTH + s] > plan.clip**2)):
                changed = _rows.clip_rows(rows, n_rows, s, plan.clip) or step < 2
                if changed or changed_before[s]:
                    _keep(rows, n_rows, s, pixels[s], queue, kept, n_pending, changed)
                    n_pending += 1
    return n_pending


@inner()
def _move(source, source_kept, i, target, target_kept, slot):
    """A pixel and its rows' states from slot `i` of one queue to a slot of another."""
    target[slot] = source[i]
    for r in range(source_kept.shape[1]):
        target_kept[slot, r] = source_kept[i, r]


# One function for all passes, called in one place: numba optimises all that a function calls anew for each
# function that calls it, and this one calls all the others.
@njit(cache=True, nogil=True)
def fit_tile(cube, plan, rows, work, out, chosen):
    """All passes over the chosen pixels of a tile."""
    n_pixels = len(chosen)
    n_rows = rows.flux.size // WIDTH
    size = min(CHUNK, n_pixels)
    queue, kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    seen, seen_kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    first_step = 0 if plan.shared and not plan.prior.n_used.size else 1
    for first in range(0, n_pixels, CHUNK):
        n = min(CHUNK, n_pixels - first)
        for i in range(n):
            queue[i] = chosen[first + i]
        n_seen = n - n
        for step in range(first_step, plan.iterations + 2):
            n = _pass(cube, plan, rows, work, out, step, queue, n, kept)
            if step > 1:
                continue
            n_found, n = n, n - n
            for i in range(n_found):
                if kept[i, 0] == LATE:
                    _move(queue, kept, i, queue, kept, n)
                    n += 1
                else:
                    _move(queue, kept, i, seen, seen_kept, n_seen)
                    n_seen += 1
            if step == 1:
                queue, seen, kept, seen_kept = seen, queue, seen_kept, kept
                n = n_seen


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
