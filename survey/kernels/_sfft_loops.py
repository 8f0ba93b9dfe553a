"""The loops of a pass over blocks: model, noise, clipping, weights and the sums of the normal equations."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from survey.kernels._inner import inner
from survey.kernels._sfft_products import combine, combine_by_u, products, squares, weighted_sums
from survey.kernels._simd import prefetch_row

Floats = NDArray[np.floating]


class Frame(NamedTuple):
    """Pixels, all (y, x)."""

    image: Floats
    variance: Floats
    excluded: NDArray[np.bool_]


class Rows(NamedTuple):
    """Where samples lie (`survey.kernels._sfft_products`); ``moves``: at a block's corner."""

    values: Floats
    offsets: NDArray[np.int64]
    stride: int
    moves: bool


class Rules(NamedTuple):
    """Numbers of a pass; ``by``: of pixels to [-1, 1]; ``origin``: of the image in its frame."""

    order: int
    by_y: float
    by_x: float
    origin_y: int
    origin_x: int
    side: int
    photon: float
    clip: float
    fraction: float
    model_error: float
    bright: float
    known: bool
    noisy: bool
    corrects: bool
    gram: bool
    tiles: bool  # its sums are made here, not by transforms of the weights kept
    filling: bool


class Filled(NamedTuple):
    """Images that a pass fills."""

    convolved: Floats
    variance: Floats
    fit_mask: NDArray[np.bool_]


class Work(NamedTuple):
    """Buffers of one block; lines are ``width`` pixels long, whole vectors."""

    folded: Floats  # (order + 1, coefficients): polynomials of u on a line
    squared: Floats
    lines: Floats  # (6, width): flux, sky, noise of the template, u, residual, variance
    weights: Floats  # (side * width,)
    right: Floats  # (terms padded, side * width), the last of those used is one everywhere
    right_offsets: NDArray[np.int64]
    weighed: Floats  # (4 * side * width,)


class Found(NamedTuple):
    """What blocks add to, and what is kept of each: sums of samples, with the background's constant (the last
    of ``edges``), products of polynomials, weights, brightest pixel."""

    gradient: NDArray[np.float64]
    noise: NDArray[np.float64]
    counts: NDArray[np.int64]
    grams: NDArray[np.float64]
    edges: NDArray[np.float64]
    weighed: NDArray[np.float64]
    weights: Floats
    peaks: NDArray[np.float64]


@inner()
def terms_at(order, u, v, out):
    """Monomials u^i v^j by total degree."""
    out[0] = 1.0
    t = 1
    for d in range(1, order + 1):
        for k in range(d):
            out[t + k] = u * out[t - d + k]
        out[t + d] = v * out[t - 1]
        t += d + 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def _fold(theta, order, v, out):
    """Coefficients of polynomials in u and v (columns of theta) -> in u, on the line at v."""
    for k in range(order + 1):
        power = 1.0
        for j in range(order + 1 - k):
            d = k + j
            row = theta[d * (d + 1) // 2 + j]
            if j == 0:
                for a in range(len(row)):
                    out[k, a] = row[a]
            else:
                for a in range(len(row)):
                    out[k, a] += row[a] * power
            power *= v


@inner(fastmath={"contract"})
def _model_line(rows, start, work, order, u, width):
    """Flux and sky of a line: lines 0 and 1; line 2 is scratch, 3 u."""
    flux, sky, part, n = work.lines[0], work.lines[1], work.lines[2], len(rows.offsets)
    sky[:] = work.folded[order, n]
    if order == 2:
        combine_by_u(rows.values, start, rows.offsets, work.folded, u, flux, width)
        for j in range(width):
            sky[j] = (sky[j] * u[j] + work.folded[1, n]) * u[j] + work.folded[0, n]
        return
    combine(rows.values, start, rows.offsets, work.folded[order], flux, width)
    for k in range(order - 1, -1, -1):
        combine(rows.values, start, rows.offsets, work.folded[k], part, width)
        constant = work.folded[k, n]
        for j in range(width):
            flux[j] = flux[j] * u[j] + part[j]
            sky[j] = sky[j] * u[j] + constant


@inner(fastmath={"contract"})
def _weigh_line(frame, y, x0, length, rules, lines, weights, counts, peak):
    """Residual, noise and weight of a line; counts, and the brightest star pixel so far."""
    flux, sky, extra, residual, noise = lines[0], lines[1], lines[2], lines[4], lines[5]
    zero, one = flux.dtype.type(0), flux.dtype.type(1)
    photon, own = flux.dtype.type(rules.photon), flux.dtype.type(rules.model_error**2)
    share = flux.dtype.type(max(rules.fraction, rules.model_error) ** 2)
    limit, bright = flux.dtype.type(rules.clip**2), flux.dtype.type(rules.bright**2)
    used, clipped, most = 0, 0, zero
    for j in range(length):
        f, good = flux[j], not frame.excluded[y, x0 + j]
        noise[j] = frame.variance[y, x0 + j] + extra[j] + photon * max(f, zero)
        residual[j] = frame.image[y, x0 + j] - f - sky[j]
        far = residual[j] * residual[j] > limit * (noise[j] + share * f * f)
        weight = one / (noise[j] + own * f * f)
        weights[j] = weight if good and not far else zero
        used += good and not far
        clipped += good and far
        # outliers too: where the model misses all stars' cores, these are what must be counted
        most = max(most, f if good and f * f > bright * noise[j] else zero)
    counts[0] += used
    counts[1] += clipped
    if most > peak[2]:
        for j in range(length):
            if flux[j] == most and not frame.excluded[y, x0 + j]:
                peak[0], peak[1], peak[2] = residual[j], noise[j], most
                break


@inner(fastmath={"contract"})
def _right_line(order, u, v, residual, weights, right, first):
    """Polynomials times residual, from flat pixel ``first`` on; zero where nothing weighs."""
    length = len(weights)
    for j in range(length):
        right[0, first + j] = residual[j] if weights[j] > 0 else residual.dtype.type(0)
    t = 1
    for d in range(1, order + 1):
        # u times all of the degree before, then v times its last
        for k in range(d):
            for j in range(length):
                right[t + k, first + j] = u[j] * right[t - d + k, first + j]
        for j in range(length):
            right[t + d, first + j] = v * right[t - 1, first + j]
        t += d + 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def _square(theta, central, known, out):
    """Square of the kernel at a block's centre. Before the first fit: of a kernel that moves nothing."""
    n = theta.shape[1] - 1
    out[:] = 0
    if not known:
        return
    for a in range(n):
        value = 0.0
        for b in range(len(central)):
            value += theta[b, a] * central[b]
        out[a] = value * value


@inner(fastmath={"contract"})
def _add_gradient(sums, work, width, height, n, nb, found):
    """Gradient of samples and of the background's constant."""
    for a in range(n):
        for b in range(nb):
            found.gradient[a, b] += sums[a, b]
    for b in range(nb):
        total = 0.0
        for p in range(height * width):
            total += work.weights[p] * work.right[b, p]
        found.gradient[n, b] += total


@inner(fastmath={"contract"})
def _centre_of_light(rows, start, work, height, width, n):
    """Centroid of what a block weighs: where its brightest star is, if it has one.

    Held at the block's middle, the normal matrix of a few bright stars is so far from the true one that
    steps with exact gradients diverge.
    """
    light = work.lines[2]
    whole, along_y, along_x = 0.0, 0.0, 0.0
    for i in range(height):
        squares(rows.values, start + i * rows.stride, rows.offsets, n, light, width)
        line = 0.0
        for j in range(width):
            value = work.weights[i * width + j] * (light[j] + 1)
            line += value
            along_x += value * j
        whole += line
        along_y += line * i
    return (along_y / whole, along_x / whole) if whole > 0 else (0.0, 0.0)


@inner()
def _fetch_line(frame, planes, filling, y, x0, side):
    """Ask for a line of the next block: its lines lie on many pages, where no processor looks ahead."""
    step = 64 // frame.image.itemsize
    for x in range(x0, x0 + side + step, step):
        prefetch_row(frame.image, y, x)
        prefetch_row(frame.variance, y, x)
        if filling:
            prefetch_row(planes.convolved, y, x)
            prefetch_row(planes.variance, y, x)
    prefetch_row(frame.excluded, y, x0)
    if filling:
        prefetch_row(planes.fit_mask, y, x0)


@njit(cache=True, nogil=True, fastmath={"contract"})
def sweep_blocks(corners, frame, rows, noise, theta, rules, planes, work, found):
    """Evaluate and sum blocks (`survey.kernels._sfft_pass.sweep`); what is kept of each has its place."""
    side, order, width = rules.side, rules.order, work.lines.shape[1]
    ny, nx = frame.image.shape
    nb, n = len(theta), found.gradient.shape[0] - 1
    central, u = np.empty(nb), work.lines[3]
    sums = np.empty((len(rows.offsets), work.right.shape[0]))
    lost = np.empty(len(rows.offsets))
    for block in range(len(corners)):
        y0, x0 = corners[block]
        height, length = min(side, ny - y0), min(side, nx - x0)
        start = y0 * rows.stride + x0 if rows.moves else 0
        top, left = y0 + rules.origin_y, x0 + rules.origin_x
        half = (side - 1) / 2
        terms_at(order, rules.by_x * (left + half) - 1, rules.by_y * (top + half) - 1, central)
        if rules.noisy:
            _square(theta, central, rules.known, work.squared)
            if not rules.known:
                work.squared[n // 2] = 1
        for j in range(width):
            u[j] = rules.by_x * (left + j) - 1
        work.weights[:] = 0
        work.lines[:3] = 0
        peak = found.peaks[block]
        peak[:] = 0
        next_y, next_x = corners[min(block + 1, len(corners) - 1)]
        for i in range(height):
            _fetch_line(frame, planes, rules.filling, next_y + i, next_x, side)
            y, v = y0 + i, rules.by_y * (top + i) - 1
            if rules.known:
                _fold(theta, order, v, work.folded)
                _model_line(rows, start + i * rows.stride, work, order, u, width)
            if rules.noisy:
                at = y * noise.stride + x0
                combine(noise.values, at, noise.offsets, work.squared, work.lines[2], width)
            elif rules.known:
                work.lines[2] = 0
            weights = work.weights[i * width : i * width + length]
            _weigh_line(frame, y, x0, length, rules, work.lines, weights, found.counts, peak)
            if rules.filling:
                for j in range(length):
                    planes.convolved[y, x0 + j] = work.lines[0, j] + work.lines[1, j]
                    planes.variance[y, x0 + j] = work.lines[5, j]
                    planes.fit_mask[y, x0 + j] = weights[j] == 0
            else:
                _right_line(order, u, u.dtype.type(v), work.lines[4], weights, work.right, i * width)
        if rules.filling:
            continue
        right, weights = work.right.ravel(), work.weights[: height * width]
        tiles = rules.gram and rules.tiles
        products(
            rows.values, start, rows.stride, rows.offsets, right, work.right_offsets, weights, width, n,
            tiles, work.weighed[: 4 * len(weights)], sums, found.grams[block if tiles else 0],
        )  # fmt: skip
        _add_gradient(sums, work, width, height, n, nb, found)
        if rules.corrects:
            at = y0 * noise.stride + x0
            weighted_sums(noise.values, at, noise.stride, noise.offsets, weights, width, lost)
            for a in range(n):
                for b in range(nb):
                    for c in range(nb):
                        found.noise[a, b, c] += lost[a] * central[b] * central[c]
        if rules.gram:
            y, x = _centre_of_light(rows, start, work, height, width, n)
            terms_at(2 * order, rules.by_x * (left + x) - 1, rules.by_y * (top + y) - 1, found.weighed[block])
            edge = found.edges[block]
            edge[n] = 0
            for p in range(len(weights)):
                edge[n] += weights[p]
            for a in range(n):
                edge[a] = sums[a, nb]
            if not rules.tiles:
                for p in range(len(work.weights)):
                    found.weights[block, p] = work.weights[p]


@njit(cache=True, nogil=True)
def occupied(excluded, corners, side):
    """Which blocks hold a pixel that is not excluded."""
    out = np.zeros(len(corners), np.bool_)
    for k in range(len(corners)):
        y, x = corners[k]
        out[k] = not excluded[y : y + side, x : x + side].all()
    return out


@njit(cache=True, nogil=True, fastmath={"contract"})
def signal_seen(image, variance, bad, limit):
    """Where the mean of the good among 3 x 3 pixels, the edge repeated, exceeds so many times its noise."""
    ny, nx = image.shape
    out = np.empty((ny, nx), np.bool_)
    zero = image.dtype.type(0)
    square = image.dtype.type(limit**2)
    flux, noise = np.empty(nx + 2, image.dtype), np.empty(nx + 2, image.dtype)
    for y in range(ny):
        flux[:] = 0
        noise[:] = 0
        for row in (max(y - 1, 0), y, min(y + 1, ny - 1)):
            for x in range(nx):
                good = not bad[row, x]
                flux[x + 1] += image[row, x] if good else zero
                noise[x + 1] += variance[row, x] if good else zero
        flux[0], flux[nx + 1] = flux[1], flux[nx]
        noise[0], noise[nx + 1] = noise[1], noise[nx]
        for x in range(nx):
            f = flux[x] + flux[x + 1] + flux[x + 2]
            out[y, x] = f * abs(f) > square * (noise[x] + noise[x + 1] + noise[x + 2])
    return out
