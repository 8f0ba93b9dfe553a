"""All passes of reference, clipping and leave-one-out difference over one tile, block by block.

Every pixel is fitted from its own and its eight neighbours' samples and judges these rows itself; no
result of one pixel enters another's. So a block goes through all its work while it lies in the cache,
and after the first pass only pixels whose rows changed are solved again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from survey.kernels import _reference_rows as _rows
from survey.kernels._reference_rows import (
    BAD,
    CHI2,
    CLIPPED,
    HELD,
    LANE_ARRAYS,
    MEAN,
    N_ROWS,
    PENALTY,
    USED,
    WIDTH,
    WORST,
    Cube,
    Rows,
)
from survey.kernels._reference_solve import (
    PANEL,
    Products,
    apply_inverse,
    contract,
    expand,
    factor,
    inverse_pairs,
    invert_factor,
    make_products,
    multiply,
    pack,
)
from survey.kernels._simd import (
    aligned_zeros,
    fma,
    load,
    load_row,
    splat,
    store,
    store_row,
    where_equal,
    where_greater,
)
from survey.kernels.legendre import design_matrix, phase_basis

CHUNK = 2048  # pixels that go through all passes together
LATE = 255


class Plan(NamedTuple):
    """What all blocks share: settings, tables, and the packed design where one phase serves a frame."""

    n: int
    extension: float
    ridge: float
    iterations: int
    clip: float
    positive_only: bool
    shared: bool
    tiny: float
    products: Products
    own_ok: NDArray[np.bool_]
    extra: NDArray[np.int64]
    gain_slope: NDArray[np.floating]
    moments: NDArray[np.floating]  # (degrees**2, rows) @ weight -> moments
    right: NDArray[np.floating]  # (size, rows) @ weighted -> right-hand side
    start: NDArray[np.floating]  # (size, rows) @ centred flux -> coefficients at equal weights
    surface: NDArray[np.floating]  # (rows, size) @ coefficients -> model
    form: NDArray[np.floating]  # (rows, degrees**2) @ inverse moments -> b^T N^-1 b
    recurrence: NDArray[np.floating]  # (2, degrees): P_i = a u P_{i-1} - b P_{i-2}


class Work(NamedTuple):
    """One block's workspaces beside its rows."""

    moments: NDArray[np.floating]
    right: NDArray[np.floating]
    theta: NDArray[np.floating]
    inverse: NDArray[np.floating]
    half: NDArray[np.floating]
    pairs: NDArray[np.floating]
    matrix: NDArray[np.floating]
    vector: NDArray[np.floating]
    basis: NDArray[np.floating]  # (2, degrees) vectors


class Result(NamedTuple):
    """Products of a tile, pixels flat."""

    flux: NDArray[np.floating]
    error: NDArray[np.floating]
    leverage: NDArray[np.floating]
    mask: NDArray[np.bool_]
    fit_mask: NDArray[np.bool_]
    theta: NDArray[np.floating]
    n_used: NDArray[np.int32]
    chi2: NDArray[np.floating]
    valid: NDArray[np.bool_]  # (1, pixels)
    moments: NDArray[np.floating]  # (pixels, degrees**2), or (0, 0)
    right: NDArray[np.floating]


def make_plan(
    phase_y, phase_x, slope, *, n_time, n, extension, ridge, iterations, clip, positive_only, dtype
):  # fmt: skip
    """Tables for a tile; phases (time,) or (time, y, x)."""
    shared = phase_y.ndim == 1
    degrees, size = 2 * n - 1, n * n
    limit = extension / 2 + _rows.EDGE
    extra, own_ok = np.empty((0, 3), np.int64), np.ones(n_time, bool)
    matrices = [np.zeros(0, dtype)] * 5
    if shared:
        own_ok = (np.abs(phase_y) <= limit) & (np.abs(phase_x) <= limit)
        listed = [
            (k, oy, ox)
            for oy in (-1, 0, 1)
            for ox in (-1, 0, 1)
            for k in range(n_time)
            if (oy or ox) and abs(phase_y[k] + oy) <= limit and abs(phase_x[k] + ox) <= limit
        ]
        extra = np.array(listed, np.int64).reshape(-1, 3)
        y = np.concatenate([np.where(own_ok, phase_y, 0.0), phase_y[extra[:, 0]] + extra[:, 1]])
        x = np.concatenate([np.where(own_ok, phase_x, 0.0), phase_x[extra[:, 0]] + extra[:, 2]])
        design = design_matrix(y, x, n, extension)
        products = phase_basis(y, degrees, extension)[:, None] * phase_basis(x, degrees, extension)[None]
        products = products.reshape(degrees**2, -1)
        penalty = ridge * np.eye(size)
        penalty[0, 0] = 0.0
        used = np.concatenate([own_ok, np.ones(len(extra), bool)])
        normal = (design * used[:, None]).T @ design + penalty
        start = np.linalg.lstsq(normal, (design * used[:, None]).T, rcond=None)[0]
        matrices = [pack(m.astype(dtype)) for m in (products, design.T, start, design, products.T)]
    order = np.arange(degrees)
    recurrence = np.zeros((2, degrees))
    recurrence[0, 1:] = (2 * order[1:] - 1) / order[1:]
    recurrence[1, 1:] = (order[1:] - 1) / order[1:]
    tiny = 0.1 * float(np.sqrt(np.finfo(dtype).eps))
    gain_slope = np.zeros(0, dtype) if slope is None else np.ascontiguousarray(slope, dtype)
    return Plan(
        n, extension, ridge, iterations, clip, positive_only, shared, tiny, make_products(n),
        own_ok, extra, gain_slope, *matrices, recurrence.astype(dtype),
    )  # fmt: skip


def make_buffers(plan: Plan, n_time: int, dtype) -> tuple[Rows, Work]:
    """Workspaces of one thread; the rows of a block take most: 8 to 10 numbers a row and pixel."""
    n_rows = n_time + len(plan.extra) if plan.shared else 9 * n_time
    lanes = 64 // np.dtype(dtype).itemsize
    degrees, size, n_pairs = 2 * plan.n - 1, plan.n**2, plan.n * (plan.n + 1) // 2

    def block(n: int) -> NDArray[np.floating]:
        return aligned_zeros((-(-n // PANEL) * PANEL) * WIDTH, dtype)

    empty = np.zeros(0, dtype)
    rows = Rows(
        *(block(n_rows) for _ in range(7)),
        block(n_rows) if plan.gain_slope.size else empty,
        *((empty, empty) if plan.shared else (block(n_rows), block(n_rows))),
        block(LANE_ARRAYS),
    )
    work = Work(
        block(degrees**2), block(size), block(size), block(degrees**2),
        aligned_zeros(2 * degrees * n_pairs * lanes, dtype), aligned_zeros(2 * n_pairs**2 * lanes, dtype),
        aligned_zeros(2 * size * (size + 1) // 2 * lanes, dtype), aligned_zeros(2 * size * lanes, dtype),
        aligned_zeros(2 * degrees * lanes, dtype),
    )  # fmt: skip
    return rows, work


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _evaluate(rows, plan, n_rows, n_used, work, n, coefficients, out, packed):
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _start(rows, plan, n_rows, n_used, work, own):
    """Model at equal weights: one shared matrix where every row is in use, else (`own`) each its solve."""
    lanes = 64 // rows.flux.itemsize
    n = plan.n
    if own:
        _sum_rows(rows, plan, n_rows, n_used, work)
        for s in range(n_used):
            rows.lane[PENALTY * WIDTH + s] = plan.ridge
        # Numba compiles a function anew for a literal True or False: a test gives a plain boolean.
        _solve(rows, plan, n_used, work, n_used < 0)
    else:
        multiply(plan.start, _panels(n * n), n_rows, rows.weighted, work.theta, WIDTH, n_used)
        for s in range(0, n_used, lanes):
            store(work.theta, s, load(work.theta, s) + load(rows.lane, MEAN * WIDTH + s))
    _evaluate(rows, plan, n_rows, n_used, work, n, work.theta, rows.model, plan.surface)


@njit(cache=True, nogil=True)
def _one_pass(rows, plan, n_rows, n_time, n_used, work):
    """Weights, solve, leave-one-out differences of a block; True where rows may change state."""
    lanes = 64 // rows.flux.itemsize
    for s in range(0, n_used, lanes):
        if plan.gain_slope.size == 0:
            _rows.measure_slopes(rows, n_rows, s, plan.tiny)
        _rows.weigh(rows, n_rows, s, plan.ridge)
    _sum_rows(rows, plan, n_rows, n_used, work)
    _solve(rows, plan, n_used, work, n_used > 0)
    _evaluate(rows, plan, n_rows, n_used, work, plan.n, work.theta, rows.model, plan.surface)
    _evaluate(rows, plan, n_rows, n_used, work, 2 * plan.n - 1, work.inverse, rows.form, plan.form)
    suspect = False
    for s in range(0, n_used, lanes):
        suspect |= _rows.judge(rows, n_rows, n_time, s, plan.positive_only, plan.clip)
    return suspect


@njit(cache=True, nogil=True)
def _gather(cube, pixels, plan, rows):
    if plan.shared:
        return _rows.gather_shared(cube, pixels, plan.own_ok, plan.extra, plan.gain_slope, rows)
    return _rows.gather_own_phases(cube, pixels, plan.extension, plan.gain_slope, rows)


@njit(cache=True, nogil=True)
def _write(rows, plan, pixels, skip, n_time, work, out, min_images, leave_one_out):
    """Results of a block into the tile's arrays."""
    n, degrees = len(pixels), 2 * plan.n - 1
    for s in range(n):
        if skip[s]:
            continue
        p = pixels[s]
        count, finite = 0, True
        for k in range(n_time):
            count += rows.state[k * WIDTH + s] == USED
        for i in range(plan.n**2):
            finite &= bool(np.isfinite(work.theta[i * WIDTH + s]))
        out.n_used[p] = count
        out.valid[0, p] = finite and count >= min_images
        out.chi2[p] = rows.lane[CHI2 * WIDTH + s] if out.valid[0, p] else 0.0
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
        _write_run(rows, pixels[0], n_time, out, leave_one_out)
        return
    for k in range(n_time):
        for s in range(n):
            if skip[s]:
                continue
            p, i = pixels[s], k * WIDTH + s
            state = rows.state[i]
            bad = state == BAD or not out.valid[0, p]
            keep = 1.0
            if not leave_one_out and state == USED:
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
def _first_pass(cube, plan, rows, work, out, queue, n_queue, own, kept, min_images, leave_one_out):
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
        n_rows = _gather(cube, pixels, plan, rows)
        for s in range(0, n, lanes):
            _rows.summarise(rows, n_rows, s)
            _rows.centre(rows, n_rows, s)
        missing = 0
        for s in range(n):
            skip[s] = not own and rows.lane[N_ROWS * WIDTH + s] < n_rows
            missing += skip[s]
        suspect = False
        if missing < n:
            _start(rows, plan, n_rows, n, work, own)
            suspect = _one_pass(rows, plan, n_rows, n_time, n, work) and plan.iterations > 0
            _write(rows, plan, pixels, skip, n_time, work, out, min_images, leave_one_out)
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
def _next_pass(cube, plan, rows, work, out, queue, n_queue, kept, last, min_images, leave_one_out):
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
        n_rows = _gather(cube, pixels, plan, rows)
        for s in range(0, n, lanes):
            _rows.summarise(rows, n_rows, s)
        for s in range(n):
            changed_before[s] = kept[first + s, 0] == 1
            for r in range(n_rows):
                # Beyond a pixel's own rows `kept` may hold what was there before.
                if rows.state[r * WIDTH + s] != BAD:
                    rows.state[r * WIDTH + s] = kept[first + s, 1 + r]
            for i in range(plan.n**2):
                work.theta[i * WIDTH + s] = out.theta[pixels[s], i]
        _evaluate(rows, plan, n_rows, n, work, plan.n, work.theta, rows.model, plan.surface)
        _one_pass(rows, plan, n_rows, n_time, n, work)
        _write(rows, plan, pixels, skip, n_time, work, out, min_images, leave_one_out)
        if last:
            continue
        for s in range(n):
            changed = _rows.clip_rows(rows, n_rows, s, plan.clip)
            if changed or changed_before[s]:
                _keep(rows, n_rows, s, pixels[s], queue, kept, n_pending, changed)
                n_pending += 1
    return n_pending


@njit(cache=True, nogil=True)
def fit_tile(cube, plan, rows, work, out, min_images, leave_one_out):
    """All passes over all pixels of a tile."""
    n_pixels = cube.flux.shape[1]
    n_rows = rows.flux.size // WIDTH
    size = min(CHUNK, n_pixels)
    queue, kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    late, late_kept = np.empty(size, np.int64), np.empty((size, n_rows + 1), np.uint8)
    for first in range(0, n_pixels, CHUNK):
        n = min(CHUNK, n_pixels - first)
        for i in range(n):
            queue[i] = first + i
        n_late, n_pending = n, 0
        if plan.shared:
            n = _first_pass(cube, plan, rows, work, out, queue, n, n < 0, kept, min_images, leave_one_out)
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
        n = _first_pass(
            cube, plan, rows, work, out, late, n_late, n >= 0, late_kept, min_images, leave_one_out
        )
        for i in range(n):
            queue[n_pending] = late[i]
            for r in range(n_rows + 1):
                kept[n_pending, r] = late_kept[i, r]
            n_pending += 1
        for iteration in range(1, plan.iterations + 1):
            last = iteration == plan.iterations
            n_pending = _next_pass(
                cube, plan, rows, work, out, queue, n_pending, kept, last, min_images, leave_one_out
            )


def fit(cube: Cube, plan: Plan, dtype, min_images: int, leave_one_out: bool, keep_normal: bool) -> Result:
    """Allocate the products of a tile and fill them."""
    n_time, n_pixels = cube.flux.shape
    kind = cube.flux.dtype
    degrees, size = 2 * plan.n - 1, plan.n**2
    n_kept = n_pixels if keep_normal else 0
    out = Result(
        *(np.empty((n_time, n_pixels), kind) for _ in range(3)),
        *(np.empty((n_time, n_pixels), bool) for _ in range(2)),
        np.empty((n_pixels, size), dtype),
        np.empty(n_pixels, np.int32),
        np.empty(n_pixels, dtype),
        np.empty((1, n_pixels), bool),
        np.empty((n_kept, degrees**2 if n_kept else 0), dtype),
        np.empty((n_kept, size if n_kept else 0), dtype),
    )
    rows, work = make_buffers(plan, n_time, dtype)
    fit_tile(cube, plan, rows, work, out, min_images, leave_one_out)
    return out
