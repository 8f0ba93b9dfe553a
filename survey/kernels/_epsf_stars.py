"""Stars of an effective-PSF fit: their samples, fluxes, positions and neighbours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter
from scipy.signal import fftconvolve

from survey.kernels._epsf import EffectivePSF
from survey.kernels._spline import PAD, point

Array = NDArray[np.float64]

# A neighbour nearer than this many FWHM to a star or to another neighbour is not told from PSF errors.
SEPARATION = 0.8
# A neighbour must hold this fraction of the star's flux ...
FAINTEST = 0.002
# ... and this S/N over the crowding that is left.
SIGNIFICANCE = 4.0

# Samples in a star's core are trusted to this fraction of their height: beyond it the stars differ by their
# neighbours, not by noise, and weights from photon noise would let the brightest star rule.
CORE_TOLERANCE = 0.01

# Residuals of this many sigma have half of their weight (a Cauchy likelihood).
ROBUSTNESS = 3.0


@njit(cache=True, nogil=True)
def core_variance(psf):
    """Variance that keeps the core of a bright star from ruling, in units of the star's flux squared."""
    return (CORE_TOLERANCE * (np.abs(psf) + 0.01)) ** 2


class Samples(NamedTuple):
    """Good samples of all stamps, ordered by star."""

    star: NDArray[np.int64]  # (stars,) identifiers
    start: NDArray[np.int64]  # (stars + 1,) first sample of each
    owner: NDArray[np.int64]  # (samples,) index of the star
    dy: Array  # pixel minus star as given
    dx: Array
    value: Array
    error: Array
    side: int


class Stars(NamedTuple):
    """State of the stars, arrays over stars; neighbours as one list per star of (y, x, flux) rows."""

    used: NDArray[np.bool_]
    flux: Array
    sky: Array
    shift_y: Array
    shift_x: Array
    crowding: Array  # scatter of the residuals beyond the noise, flux units
    residual: Array
    neighbours: list[Array]  # (k, 3): displacement from the star as given, flux
    neighbour_light: Array  # (samples,)


def gather_samples(
    stamps: ArrayLike, errors: ArrayLike, masks: ArrayLike | None, offset_y: ArrayLike, offset_x: ArrayLike,
    star: ArrayLike | None,
) -> Samples:  # fmt: skip
    """Flat good samples of the stamps, ordered by star.

    Raises
    ------
    ValueError
        If the shapes disagree.
    """
    stamps = np.asarray(stamps, float)
    if stamps.ndim != 3 or stamps.shape[1] != stamps.shape[2]:
        raise ValueError(f"stamps of shape {stamps.shape}: want (n, side, side)")
    n, side, _ = stamps.shape
    errors = np.broadcast_to(np.asarray(errors, float), stamps.shape)
    identity = np.arange(n) if star is None else np.asarray(star)
    if identity.shape != (n,):
        raise ValueError(f"{identity.shape} star identifiers for {n} stamps")
    good = np.isfinite(stamps) & np.isfinite(errors) & (errors > 0)
    if masks is not None:
        good &= ~np.broadcast_to(np.asarray(masks, bool), stamps.shape)
    pixel = np.arange(side) - side // 2
    offsets = [np.asarray(o, float) for o in (offset_y, offset_x)]
    offsets = [o[:, None, None] if o.ndim == 1 else o for o in offsets]
    dy = np.broadcast_to(pixel[:, None] - offsets[0], stamps.shape)
    dx = np.broadcast_to(pixel[None, :] - offsets[1], stamps.shape)
    good &= np.isfinite(dy) & np.isfinite(dx)
    names, which = np.unique(identity, return_inverse=True)
    owner = np.broadcast_to(which[:, None, None], stamps.shape)[good]
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    start = np.searchsorted(owner, np.arange(names.size + 1))
    dy, dx, value, error = (a[good][order] for a in (dy, dx, stamps, errors))
    return Samples(names, start, owner, dy, dx, value, error, side)


def first_stars(samples: Samples) -> Stars:
    """Fluxes from sums over the stamp and skies from its rim, where no PSF is known yet."""
    n = samples.star.size
    flux, sky = np.zeros(n), np.zeros(n)
    shift = np.zeros((2, n))
    radius = np.hypot(samples.dy, samples.dx)
    for i in range(n):
        part = slice(samples.start[i], samples.start[i + 1])
        r, value = radius[part], samples.value[part]
        rim = r > 0.8 * samples.side / 2
        core = r < 0.3 * samples.side
        if rim.sum() < 3 or core.sum() < 5:
            continue
        sky[i] = np.percentile(value[rim], 25)
        flux[i] = np.mean(value[core] - sky[i]) * np.pi * (0.3 * samples.side) ** 2
        at = np.stack([samples.dy[part], samples.dx[part]])
        for _ in range(3):
            near = np.hypot(*(at - shift[:, i, None])) < 1.5
            light = np.maximum(value[near] - sky[i], 0.0)
            if light.sum() > 0:
                shift[:, i] = np.clip(at[:, near] @ light / light.sum(), -0.7, 0.7)
    used = flux > 0
    zero = np.zeros(n)
    empty = [np.zeros((0, 3)) for _ in range(n)]
    return Stars(
        used, flux, sky, shift[0], shift[1], zero.copy(), zero.copy(), empty, np.zeros(len(samples.value))
    )


def model_samples(psf: EffectivePSF, samples: Samples, stars: Stars) -> Array:
    """PSF and its derivatives (3, samples) at every sample's distance from its star."""
    dy = samples.dy - stars.shift_y[samples.owner]
    dx = samples.dx - stars.shift_x[samples.owner]
    return np.stack(psf.response(dy, dx))


def fit_stars(
    samples: Samples,
    stars: Stars,
    psf: EffectivePSF,
    *,
    neighbours: int,
    faintest: float = FAINTEST,
    threads: int = 1,
) -> Stars:
    """Every star's flux, sky, position and neighbours for a given PSF; bad stars drop out."""
    state = stars._replace(neighbours=list(stars.neighbours))
    for name in ("flux", "sky", "shift_y", "shift_x", "crowding", "residual", "neighbour_light"):
        state = state._replace(**{name: getattr(stars, name).copy()})
    psf.tables, psf.fwhm  # noqa: B018  (made once, not by every thread)
    with ThreadPoolExecutor(threads) as pool:
        # Each star writes its own places only: the result does not depend on who comes first.
        fits = [
            pool.submit(_fit_star, samples, state, psf, int(i), neighbours, faintest)
            for i in np.flatnonzero(stars.used)
        ]
        for fit in fits:
            fit.result()
    used = state.used & np.isfinite(state.flux) & (state.flux > 0)
    if used.sum() > 5:
        # one star of many that its neighbours, saturation or a change of brightness have spoilt
        level = np.median(state.residual[used])
        used &= state.residual <= 4 * max(level, 1e-4)
    return state._replace(used=used)


def _fit_star(samples: Samples, state: Stars, psf: EffectivePSF, i: int, limit: int, faintest: float) -> None:
    """Update star i of `state` in place."""
    part = slice(samples.start[i], samples.start[i + 1])
    data = (samples.dy[part], samples.dx[part], samples.value[part], samples.error[part])
    rows = np.vstack([[state.shift_y[i], state.shift_x[i], state.flux[i]], state.neighbours[i]])
    sky, crowding = float(state.sky[i]), float(state.crowding[i])
    spread = _reach(psf)
    known = len(rows)
    if limit > known - 1:
        light, _ = _scene(psf, data, rows, spread)
        rest = data[2] - light - sky
        found = _find_neighbours(psf, data, rest, crowding, rows, samples.side, faintest)
        rows = np.vstack([rows, found[: limit - known + 1]])
    for _ in range(1 if len(rows) == known else 2):
        rows, sky = _gauss_newton(psf, data, crowding, rows, sky, samples.side, spread)
    light, own = _scene(psf, data, rows, spread)
    rest = data[2] - light - sky
    state.shift_y[i], state.shift_x[i], state.flux[i] = rows[0]
    state.sky[i] = sky
    state.neighbours[i] = rows[1:]
    state.neighbour_light[part] = light - own
    scatter = 1.4826 * np.median(np.abs(rest))
    state.crowding[i] = np.sqrt(max(scatter**2 - np.median(data[3]) ** 2, 0.0))
    core = np.hypot(data[0] - rows[0, 0], data[1] - rows[0, 1]) < psf.fwhm
    state.residual[i] = (
        np.sqrt(np.mean(rest[core] ** 2)) / rows[0, 2] if core.any() and rows[0, 2] > 0 else np.inf
    )


def _reach(psf: EffectivePSF) -> float:
    """Pixels to where the PSF is 3e-3 of its peak: beyond, a neighbour is part of the sky."""
    samples = psf.samples[0, 0]
    at = (np.arange(len(samples)) - (len(samples) - 1) / 2) / psf.oversampling
    seen = np.abs(samples) > 3e-3 * samples.max()
    return float(np.hypot(at[:, None], at[None, :])[seen].max()) + 2 / psf.oversampling


def _scene(psf: EffectivePSF, data: tuple[Array, ...], rows: Array, reach: float) -> tuple[Array, Array]:
    """Light of all rows (y, x, flux), and that of the first."""
    light, own = np.zeros(data[0].size), np.zeros(data[0].size)
    _scene_light(psf.tables[0], psf.oversampling, data[0], data[1], rows, reach, light, own)
    return light, own


def _gauss_newton(
    psf: EffectivePSF,
    data: tuple[Array, ...],
    crowding: float,
    rows: Array,
    sky: float,
    side: int,
    reach: float,
) -> tuple[Array, float]:
    """One robust step of all positions and fluxes together with the sky."""
    k = len(rows)
    matrix, right = np.zeros((3 * k + 1, 3 * k + 1)), np.zeros(3 * k + 1)
    table, o = psf.tables[0], psf.oversampling
    dy, dx, value, error = data
    _normal_equations(table, o, dy, dx, value, error, crowding, rows, sky, reach, matrix, right)
    matrix = matrix + np.tril(matrix, -1).T
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    damped = matrix / np.outer(scale, scale)
    damped[np.diag_indices_from(damped)] += np.append(np.tile([1e-6, 1e-3, 1e-3], k), 1e-6)
    step = np.linalg.solve(damped, right / scale) / scale
    moves = step[: 3 * k].reshape(k, 3)
    new = np.column_stack([rows[:, :2] + np.clip(moves[:, 1:], -0.3, 0.3), rows[:, 2] + moves[:, 0]])
    keep = (new[:, 2] > 0) & (np.abs(new[:, :2]).max(axis=1) < side / 2 + 1)
    keep &= np.hypot(*(new[:, :2] - new[0, :2]).T) > 0.6 * SEPARATION * psf.fwhm
    keep[0] = True
    return new[keep], sky + float(step[-1])


@njit(cache=True, nogil=True)
def _scene_light(table, oversampling, dy, dx, rows, reach, light, own):
    """Light of all rows and of the first at every sample."""
    nodes = table.shape[0] - 2 * PAD
    wy, gy, wx, gx = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    for s in range(dy.size):
        for q in range(rows.shape[0]):
            ry, rx = dy[s] - rows[q, 0], dx[s] - rows[q, 1]
            if q > 0 and ry * ry + rx * rx > reach * reach:
                continue
            p, _, _ = point(table, nodes, oversampling, ry, rx, wy, gy, wx, gx)
            light[s] += rows[q, 2] * p
            if q == 0:
                own[s] = rows[q, 2] * p


@njit(cache=True, nogil=True)
def _normal_equations(table, oversampling, dy, dx, value, error, crowding, rows, sky, reach, matrix, right):
    """Lower normal matrix and right side for changes of (flux, y, x) of each row and of the sky."""
    nodes = table.shape[0] - 2 * PAD
    k = rows.shape[0]
    wy, gy, wx, gx = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    slope, index = np.empty(3 * k + 1), np.empty(3 * k + 1, np.int64)
    for s in range(dy.size):
        m, light, own = 0, 0.0, 0.0
        for q in range(k):
            ry, rx = dy[s] - rows[q, 0], dx[s] - rows[q, 1]
            if q > 0 and ry * ry + rx * rx > reach * reach:
                continue
            p, py, px = point(table, nodes, oversampling, ry, rx, wy, gy, wx, gx)
            light += rows[q, 2] * p
            if q == 0:
                own = light
            slope[m], slope[m + 1], slope[m + 2] = p, -rows[q, 2] * py, -rows[q, 2] * px
            index[m], index[m + 1], index[m + 2] = 3 * q, 3 * q + 1, 3 * q + 2
            m += 3
        slope[m], index[m] = 1.0, 3 * k
        rest = value[s] - light - sky
        # a sample in the star's core cannot be trusted beyond the PSF's own errors
        variance = error[s] ** 2 + crowding**2 + rows[0, 2] ** 2 * core_variance(own / rows[0, 2])
        weight = 1.0 / (variance + rest * rest / ROBUSTNESS**2)
        for i in range(m + 1):
            part = weight * slope[i]
            right[index[i]] += part * rest
            for j in range(i + 1):
                matrix[index[i], index[j]] += part * slope[j]


def _find_neighbours(
    psf: EffectivePSF,
    data: tuple[Array, ...],
    rest: Array,
    crowding: float,
    rows: Array,
    side: int,
    faintest: float,
) -> Array:
    """Rows (y, x, flux) of new neighbours in a star's residuals, the brightest first."""
    dy, dx, _, error = data
    bins, reach = 3, int(np.ceil(2 * psf.fwhm))
    n = (side + 2) * bins
    iy = np.rint(dy * bins).astype(int) + n // 2
    ix = np.rint(dx * bins).astype(int) + n // 2
    inside = (iy >= 0) & (ix >= 0) & (iy < n) & (ix < n)
    weight = 1 / (error**2 + crowding**2)
    cell = iy[inside] * n + ix[inside]
    signal = np.bincount(cell, (weight * rest)[inside], n * n).reshape(n, n)
    total = np.bincount(cell, weight[inside], n * n).reshape(n, n)
    at = np.arange(-reach * bins, reach * bins + 1) / bins
    kernel, _, _ = psf.response(at[:, None], at[None, :])
    b = fftconvolve(signal, kernel[::-1, ::-1], mode="same")
    a = np.maximum(fftconvolve(total, kernel[::-1, ::-1] ** 2, mode="same"), 1e-12 * total.max())
    flux, quality = b / a, b / np.sqrt(a)
    separation = SEPARATION * psf.fwhm
    peak = quality == maximum_filter(quality, size=2 * int(np.ceil(separation * bins)) + 1)
    peak &= (flux > faintest * rows[0, 2]) & (quality > SIGNIFICANCE) & (a > 0.1 * np.median(a))
    py, px = np.nonzero(peak)
    y, x = (py - n // 2) / bins, (px - n // 2) / bins
    apart = np.hypot(y[:, None] - rows[:, 0], x[:, None] - rows[:, 1]).min(axis=1) > separation
    order = np.argsort(-quality[py, px][apart])
    return np.column_stack([y[apart], x[apart], flux[py, px][apart]])[order]
