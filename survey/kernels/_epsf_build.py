"""The effective PSF of a field from its own stars, crowded or not.

Anderson & King (2000, PASP 112, 1360) alternate between the PSF and the stars: here the PSF's spline
coefficients are one linear least-squares solution over the samples of all stars at once, and each star with
its neighbours (`_epsf_stars`) is another. A star's flux, sky and position are shared by all of its stamps:
with free fluxes the PSF's height at each phase would be nobody's business.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

from survey.kernels._epsf import EffectivePSF, normalised_samples
from survey.kernels._epsf_stars import (
    CORE_TOLERANCE,
    FAINTEST,
    ROBUSTNESS,
    Samples,
    Stars,
    core_variance,
    first_stars,
    fit_stars,
    gather_samples,
    model_samples,
)
from survey.kernels._spline import spline_samples, spline_weights

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

MIN_STARS = 5

# Level of the PSF near its edge, times its area, that is worth a warning.
WING_TOLERANCE = 0.01


class EPSFFit(NamedTuple):
    """An effective PSF and the stars it was made from (`fit_epsf`)."""

    psf: EffectivePSF
    stars: NDArray[np.int64]  # identifiers of the stars used
    shift_y: Array  # their position minus the one given, pixels
    shift_x: Array
    flux: Array
    residual: Array  # robust scatter of data - model over each star, in units of the star's flux
    iterations: int
    converged: bool


def build_epsf(stamps: ArrayLike, errors: ArrayLike, masks: ArrayLike | None, offset_y: ArrayLike,
               offset_x: ArrayLike, **options) -> EffectivePSF:  # fmt: skip
    """Effective PSF from stamps of stars at known phases: the `psf` of `fit_epsf`."""
    return fit_epsf(stamps, errors, masks, offset_y, offset_x, **options).psf


def fit_epsf(
    stamps: ArrayLike,
    errors: ArrayLike,
    masks: ArrayLike | None,
    offset_y: ArrayLike,
    offset_x: ArrayLike,
    *,
    star: ArrayLike | None = None,
    oversampling: int = 4,
    size: int | None = None,
    iterations: int = 15,
    neighbours: int | None = None,
    smoothness: float = 3e-3,
    tolerance: float = 3e-4,
    threads: int = 1,
) -> EPSFFit:
    """Effective PSF, stars and neighbours fitted in turn to stamps of stars at known phases.

    Parameters
    ----------
    stamps, errors : arrays (n, side, side)
        Images around bright stars, the star near pixel ``side // 2``; any flux unit, sky not removed.
    masks : bool array (n, side, side) or None
        True = bad; what is not finite or has no error is bad too.
    offset_y, offset_x : arrays (n,) or (n, side, side)
        Star minus stamp centre in pixels, as in `EffectivePSF.evaluate`. Phases must be good to 0.02 px or
        so; a star's own position may be off by half a pixel and is fitted.
    star : int array (n,), optional
        Which star each stamp shows; stamps of one star share its flux, sky and position. By default each
        stamp is a star of its own.
    oversampling : int
        Nodes a pixel; the PSF's spline wants 4 to 5 at a FWHM of 1.1 px, 2 from 2.5 px.
    size : int, optional
        Side of the PSF in pixels, by default the stamps' less 4: the rim holds the sky.
    iterations : int
        Most rounds of the alternation.
    neighbours : int
        Most neighbours fitted to one star, by default one in eight pixels; 0 for isolated stars.
    smoothness : float
        Weight of the roughness penalty (squared third differences) in units of the weight of the data in
        the core.
    tolerance : float
        Change of the PSF in units of its peak at which it has converged.
    threads : int
        Stars fitted at a time; the result is the same to the last bit.

    Raises
    ------
    ValueError
        If there are fewer than 5 usable stars, or their phases leave most of the pixel unseen.
    """
    side = np.shape(stamps)[-1]
    neighbours = side**2 // 8 if neighbours is None else neighbours
    samples = gather_samples(stamps, errors, masks, offset_y, offset_x, star)
    size = max(side - 4, 3) if size is None else size
    if size > side:
        raise ValueError(f"a PSF of {size} px cannot be made from stamps of {side} px")
    stars = first_stars(samples)
    _demand_stars(stars, samples, oversampling)
    psf = _solve_psf(samples, stars, None, oversampling, size, smoothness)
    converged = False
    for round_ in range(iterations):
        # bright neighbours first: the PSF must be known before its wings are told from faint ones
        faintest = max(FAINTEST, 0.2 * 0.5**round_)
        near = neighbours if round_ else 0
        stars = fit_stars(samples, stars, psf, neighbours=near, faintest=faintest, threads=threads)
        _demand_stars(stars, samples, oversampling)
        previous, psf = psf, _solve_psf(samples, stars, psf, oversampling, size, smoothness)
        stars, psf = _centred(stars, _grounded(psf))
        change = float(np.abs(psf.samples - previous.samples).max() / psf.samples.max())
        logger.debug("ePSF round %d: change %.2g of the peak, %d stars", round_, change, stars.used.sum())
        if change < tolerance and faintest == FAINTEST:
            converged = True
            break
    if not converged:
        logger.warning("effective PSF still changes by %.1g of its peak after %d rounds", change, iterations)
    _judge_wings(psf)
    final = EffectivePSF(normalised_samples(psf.samples, oversampling), oversampling)
    u = stars.used
    return EPSFFit(final, samples.star[u], stars.shift_y[u], stars.shift_x[u], stars.flux[u],
                   stars.residual[u], round_ + 1, converged)  # fmt: skip


def _demand_stars(stars: Stars, samples: Samples, oversampling: int) -> None:
    """Raise unless the used stars can fix a PSF."""
    n = int(stars.used.sum())
    if n < MIN_STARS:
        raise ValueError(
            f"only {n} of {len(stars.used)} stars can be used for the effective PSF, which takes "
            f"{MIN_STARS}: give more stars, a larger area, or a PSF"
        )
    near = stars.used[samples.owner] & (np.hypot(samples.dy, samples.dx) < 3)
    cells = [np.floor((d[near] % 1) * oversampling).astype(int) for d in (samples.dy, samples.dx)]
    seen = np.unique(cells[0] * oversampling + cells[1]).size
    if seen < 0.6 * oversampling**2:
        raise ValueError(
            f"the stars' phases fall into {seen} of {oversampling**2} cells of the pixel: "
            "give more stars or epochs, or a lower oversampling"
        )


def _solve_psf(
    samples: Samples, stars: Stars, psf: EffectivePSF | None, oversampling: int, size: int, smoothness: float
) -> EffectivePSF:
    """Penalised least-squares spline through all stars' samples, neighbours and sky removed."""
    n = size * oversampling + 1
    target, weight = _targets(samples, stars, psf)
    band, right = np.zeros((3 * n + 4, n * n)), np.zeros(n * n)
    dy = samples.dy - stars.shift_y[samples.owner]
    dx = samples.dx - stars.shift_x[samples.owner]
    _accumulate(dy, dx, target, weight, oversampling, n, band, right)
    level = _core_level(band[0].reshape(n, n), psf)
    _penalise(band, n, smoothness * level)
    band[0] += 1e-6 * level
    coefficients = cho_solve_banded((cholesky_banded(band, lower=True), True), right).reshape(n, n)
    samples_ = spline_samples(coefficients)
    return EffectivePSF(samples_ / samples_.sum() * oversampling**2, oversampling)


def _core_level(diagonal: Array, psf: EffectivePSF | None) -> float:
    """Typical weight of a coefficient in the PSF's core, where smoothing would hurt."""
    n = len(diagonal)
    if psf is None:
        core = diagonal[n // 4 : -(n // 4), n // 4 : -(n // 4)]
    else:
        core = diagonal[psf.samples[0, 0] > 0.3 * psf.samples.max()]
    return float(np.median(core)) or float(diagonal.max())


def _targets(samples: Samples, stars: Stars, psf: EffectivePSF | None) -> tuple[Array, Array]:
    """Samples in units of their star's flux, and robust weights."""
    owner = samples.owner
    flux = np.where(stars.used, stars.flux, np.inf)[owner]
    target = (samples.value - stars.sky[owner] - stars.neighbour_light) / flux
    variance = (samples.error**2 + stars.crowding[owner] ** 2) / flux**2
    if psf is None:
        weight = 1 / (variance + (CORE_TOLERANCE * np.maximum(target, 0.1)) ** 2)
    else:
        model = model_samples(psf, samples, stars)[0]
        variance += core_variance(model)
        # the weights of the stars' own fits: another law would leave a pedestal between PSF and sky
        weight = 1 / (variance + (target - model) ** 2 / ROBUSTNESS**2)
    weight[~stars.used[owner]] = 0.0
    return np.where(weight > 0, target, 0.0), weight


@njit(cache=True, nogil=True)
def _accumulate(dy, dx, target, weight, oversampling, n, band, right):
    """Add all samples to the banded normal matrix (lower form) and right side of the n x n coefficients."""
    centre = (n - 1) / 2.0
    wy, wx, d = np.empty(4), np.empty(4), np.empty(4)
    basis, index = np.empty(16), np.empty(16, np.int64)
    for s in range(dy.size):
        w = weight[s]
        uy, ux = dy[s] * oversampling + centre, dx[s] * oversampling + centre
        if not (w > 0.0 and uy > -2.0 and ux > -2.0 and uy < n + 1.0 and ux < n + 1.0):
            continue
        iy, ix = int(np.floor(uy)), int(np.floor(ux))
        spline_weights(uy - iy, wy, d)
        spline_weights(ux - ix, wx, d)
        m = 0
        for a in range(4):
            ky = iy + a - 1
            if ky < 0 or ky >= n:
                continue
            for b in range(4):
                kx = ix + b - 1
                if kx < 0 or kx >= n:
                    continue
                basis[m] = wy[a] * wx[b]
                index[m] = ky * n + kx
                m += 1
        for i in range(m):
            wi = w * basis[i]
            right[index[i]] += wi * target[s]
            for j in range(i + 1):
                band[index[i] - index[j], index[j]] += wi * basis[j]


@njit(cache=True, nogil=True)
def _penalise(band, n, strength):
    """Add squared third differences along both axes, with zeros beyond the table."""
    stencil = (-1.0, 3.0, -3.0, 1.0)
    for line in range(n):
        for first in range(-3, n):
            for a in range(4):
                i = first + a
                if i < 0 or i >= n:
                    continue
                for b in range(a + 1):
                    j = first + b
                    if j < 0:
                        continue
                    value = strength * stencil[a] * stencil[b]
                    band[i - j, line * n + j] += value
                    band[(i - j) * n, j * n + line] += value


def _grounded(psf: EffectivePSF) -> EffectivePSF:
    """PSF less its mean level along the table's edge.

    A pedestal of the PSF and the stars' skies trade light with each other: where the PSF ends is our choice.
    """
    samples = psf.samples[0, 0]
    rim = np.ones(samples.shape, bool)
    rim[psf.oversampling : -psf.oversampling, psf.oversampling : -psf.oversampling] = False
    samples = samples - samples[rim].mean()
    return EffectivePSF(samples / samples.sum() * psf.oversampling**2, psf.oversampling)


def _judge_wings(psf: EffectivePSF) -> None:
    """Warn where the PSF has not come to nothing before its table's edge."""
    samples, o = psf.samples[0, 0], psf.oversampling
    ring = np.zeros(samples.shape, bool)
    ring[o:-o, o:-o] = True
    ring[2 * o : -2 * o, 2 * o : -2 * o] = False
    wing = float(samples[ring].mean()) * samples.size / o**2
    if abs(wing) > WING_TOLERANCE:
        logger.warning(
            "the effective PSF does not fall to zero within its %d px: fluxes may be off by about %.0f %%; "
            "give larger stamps or brighter stars",
            round(len(samples) / o),
            100 * abs(wing),
        )


def _centred(stars: Stars, psf: EffectivePSF) -> tuple[Stars, EffectivePSF]:
    """PSF moved to where its core is centred, and the stars with it.

    A common shift of all stars and of the PSF changes no model; the centroid of the squared PSF within its
    FWHM says what the position of a star means.
    """
    n = psf.samples.shape[-1]
    at = (np.arange(n) - (n - 1) / 2) / psf.oversampling
    fine = np.linspace(-psf.fwhm, psf.fwhm, 81)
    value, _, _ = psf.response(fine[:, None], fine[None, :])
    value = np.where(np.hypot(fine[:, None], fine[None, :]) <= psf.fwhm, np.maximum(value, 0), 0) ** 2
    cy, cx = (float((value.sum(axis) * fine).sum() / value.sum()) for axis in (1, 0))
    moved, _, _ = psf.response(at[:, None] + cy, at[None, :] + cx)
    stars = stars._replace(shift_y=stars.shift_y + cy, shift_x=stars.shift_x + cx)
    return stars, EffectivePSF(moved, psf.oversampling)
