"""A star's position from all of its epochs: variable projection with Newton steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from survey.kernels._epsf import EffectivePSF
from survey.kernels._inner import inner
from survey.kernels._psf_flux import as_phases, epoch_psf, fit_psf_flux, inverse_variance, stamp_psf

Array = NDArray[np.float64]


class PositionFit(NamedTuple):
    """Position of a star from all epochs (`refine_position`)."""

    y: float
    x: float
    covariance: Array  # (2, 2), order (y, x), pixels^2
    converged: bool


class Motion(NamedTuple):
    """Positions of one object in two halves of its epochs (`measure_motion`)."""

    first: PositionFit
    second: PositionFit
    shift_y: float
    shift_x: float
    significance: float  # sigma of the shift, from its chi2 with 2 degrees of freedom; NaN if unmeasured


def refine_position(
    stamps: ArrayLike,
    errors: ArrayLike,
    mask: ArrayLike | None,
    psf_model: EffectivePSF,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    start: tuple[float, float],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    light_curve: ArrayLike | None = None,
    background: bool = False,
    min_coverage: float = 0.5,
    max_shift: float = 1.5,
    max_iterations: int = 25,
) -> PositionFit:
    """Position that minimises the chi2 summed over all epochs, each epoch with a flux of its own.

    Variable projection: with the fluxes solved in closed form, ``chi2 = const - sum_k b_k^2 / a_k``
    (a = sum P^2/s^2, b = sum P D/s^2), maximised by guarded Newton steps with the analytic gradient. The
    curvature uses the unbiased ``F_k^2 - 1/a_k``, and the covariance is the sandwich of that curvature with
    the gradient's variance, so that it also holds where single epochs have no signal.

    Parameters
    ----------
    stamps, errors, mask : arrays (time, y, x)
        As in `fit_psf_flux`.
    psf_model : EffectivePSF
    phase_y, phase_x : arrays (time,) or (time, y, x)
        Sample [k, i, j] was taken at ``origin + (i, j) + phase``.
    start : tuple of float
        First guess (y, x), in reference pixels.
    origin : tuple of float
        Reference (y, x) of the stamps' pixel [0, 0]; by default positions count from it.
    light_curve : array (time,), optional
        Relative flux of the epochs, where it is known (an event's shape): only its amplitude is fitted, and
        a position comes from a total S/N of 7 even where no epoch reaches 1. Free fluxes of 192 epochs need
        a total S/N of 15.
    max_shift : float
        Largest distance from `start` in pixels; beyond, the fit has failed.

    Returns
    -------
    PositionFit
        y, x, covariance (2, 2) and whether the fit converged; where not, `start` and infinite covariance.

    Raises
    ------
    ValueError
        If shapes disagree.

    Notes
    -----
    Golub & Pereyra (2003, Inverse Problems 19, R1) review variable projection.
    """
    stamps = np.ascontiguousarray(stamps, float)
    errors = np.broadcast_to(np.asarray(errors, float), stamps.shape)
    weight = inverse_variance(stamps, errors, None if mask is None else np.broadcast_to(mask, stamps.shape))
    py, px = as_phases(phase_y, phase_x)
    table = psf_model.at(*start).tables[0]
    shape = np.zeros(0) if light_curve is None else np.ascontiguousarray(light_curve, float)
    if shape.size not in (0, len(stamps)) or not np.isfinite(shape).all():
        raise ValueError(f"light_curve of {shape.size} values for {len(stamps)} epochs, all must be finite")
    y, x, covariance, converged = _refine(
        (np.where(weight > 0, stamps, 0.0), weight, py, px),
        (table, psf_model.oversampling),
        start[0] - origin[0],
        start[1] - origin[1],
        background,
        min_coverage,
        shape,
        max_shift,
        max_iterations,
    )
    if not converged:
        return PositionFit(float(start[0]), float(start[1]), np.diag([np.inf, np.inf]), False)
    return PositionFit(y + origin[0], x + origin[1], covariance, True)


def measure_motion(
    stamps: ArrayLike,
    errors: ArrayLike,
    mask: ArrayLike | None,
    psf_model: EffectivePSF,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    start: tuple[float, float],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    **options,
) -> Motion:
    """Whether an object moves: its positions in the two halves of its signal, and their difference.

    The epochs (in the order given: time) are split where half of the summed squared S/N at the mean position
    is reached, so that both halves are measured equally well. Arguments as in `refine_position`.
    """
    stamps = np.asarray(stamps, float)
    errors = np.broadcast_to(np.asarray(errors, float), stamps.shape)
    bad = np.zeros(stamps.shape, bool) if mask is None else np.broadcast_to(mask, stamps.shape)
    py, px = as_phases(phase_y, phase_x)
    whole = refine_position(stamps, errors, bad, psf_model, py, px, start, origin=origin, **options)
    at = (whole.y, whole.x)
    psf = stamp_psf(psf_model, py, px, *at, stamps.shape[1:], origin)
    flux, error = fit_psf_flux(stamps, errors, bad, psf)
    signal = np.cumsum(np.where(np.isfinite(flux), np.maximum((flux / error) ** 2 - 1, 0), 0))
    cut = int(np.clip(np.searchsorted(signal, signal[-1] / 2) + 1, 1, max(len(signal) - 1, 1)))
    halves = [
        refine_position(
            stamps[part], errors[part], bad[part], psf_model, py[part], px[part], at, origin=origin, **options
        )
        for part in (slice(None, cut), slice(cut, None))
    ]
    first, second = halves
    if not (first.converged and second.converged):
        return Motion(first, second, math.nan, math.nan, math.nan)
    shift = np.array([second.y - first.y, second.x - first.x])
    chi2 = float(shift @ np.linalg.solve(first.covariance + second.covariance, shift))
    # the one-dimensional sigma with the same chance: P(chi2 of 2 dof) = exp(-chi2 / 2)
    significance = float(norm.isf(math.exp(-min(chi2, 1400.0) / 2) / 2))
    return Motion(first, second, float(shift[0]), float(shift[1]), significance)


@inner()
def _moments(data, weight, p, py, px, background, m):
    """Weighted second moments of one epoch, about the weighted mean where a background is fitted.

    m = sums of w times (PP, PD, P Py, P Px, Py D, Px D, Py Py, Py Px, Px Px).
    """
    m[:] = 0.0
    w0, s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(data.shape[0]):
        for j in range(data.shape[1]):
            w = weight[i, j]
            if w == 0.0:
                continue
            d, v, gy, gx = data[i, j], p[i, j], py[i, j], px[i, j]
            wv, wy, wx = w * v, w * gy, w * gx
            m[0] += wv * v
            m[1] += wv * d
            m[2] += wv * gy
            m[3] += wv * gx
            m[4] += wy * d
            m[5] += wx * d
            m[6] += wy * gy
            m[7] += wy * gx
            m[8] += wx * gx
            if background:
                w0 += w
                s0 += wv
                s1 += wy
                s2 += wx
                s3 += w * d
    if background and w0 > 0.0:
        m[0] -= s0 * s0 / w0
        m[1] -= s0 * s3 / w0
        m[2] -= s0 * s1 / w0
        m[3] -= s0 * s2 / w0
        m[4] -= s1 * s3 / w0
        m[5] -= s2 * s3 / w0
        m[6] -= s1 * s1 / w0
        m[7] -= s1 * s2 / w0
        m[8] -= s2 * s2 / w0


@inner()
def _add_flux(m, sums):
    """Add one free flux's share, from its moments, to the sums of `_objective`."""
    a = m[0]
    if not a > 0.0:
        return
    flux = m[1] / a
    sums[0] += m[1] * flux
    sums[1] += flux * (m[4] - flux * m[2])
    sums[2] += flux * (m[5] - flux * m[3])
    iyy, iyx, ixx = m[6] - m[2] * m[2] / a, m[7] - m[2] * m[3] / a, m[8] - m[3] * m[3] / a
    squared = flux * flux
    signal = squared - 1.0 / a
    sums[3] += signal * iyy
    sums[4] += signal * iyx
    sums[5] += signal * ixx
    sums[6] += squared * iyy
    sums[7] += squared * iyx
    sums[8] += squared * ixx


@inner()
def _objective(stars, psf, y, x, background, use, light_curve, work, sums):
    """sums = (Q, gradient y, x, curvature yy, yx, xx, gradient's variance yy, yx, xx) at (y, x).

    With a light curve all epochs share one amplitude, without one each has its own flux.
    """
    data, weight, py, px = stars
    table, oversampling = psf
    sums[:] = 0.0
    m, total = np.empty(9), np.zeros(9)
    for k in range(data.shape[0]):
        if not use[k]:
            continue
        epoch_psf(table, oversampling, py[k], px[k], y, x, work[0], work[1], work[2])
        _moments(data[k], weight[k], work[0], work[1], work[2], background, m)
        if light_curve.size == 0:
            _add_flux(m, sums)
            continue
        shape = light_curve[k]
        for i in range(9):
            total[i] += m[i] * (shape if i in (1, 4, 5) else shape * shape)
    if light_curve.size:
        _add_flux(total, sums)


@njit(cache=True, nogil=True)
def _usable(stars, psf, y, x, min_coverage, work):
    """Epochs with enough of the PSF in good samples at (y, x)."""
    data, weight, py, px = stars
    table, oversampling = psf
    use = np.zeros(data.shape[0], np.bool_)
    for k in range(data.shape[0]):
        epoch_psf(table, oversampling, py[k], px[k], y, x, work[0], work[1], work[2])
        whole, good = 0.0, 0.0
        for i in range(data.shape[1]):
            for j in range(data.shape[2]):
                p2 = work[0, i, j] ** 2
                whole += p2
                if weight[k, i, j] > 0.0:
                    good += p2
        use[k] = whole > 0.0 and good >= min_coverage * whole
    return use


@njit(cache=True, nogil=True)
def _refine(stars, psf, y, x, background, min_coverage, light_curve, max_shift, max_iterations):
    """Guarded Newton ascent of Q = sum b^2 / a; (y, x) count from the stamps' pixel [0, 0]."""
    work = np.empty((3, stars[0].shape[1], stars[0].shape[2]))
    covariance = np.full((2, 2), np.inf)
    use = _usable(stars, psf, y, x, min_coverage, work)
    y0, x0 = y, x
    now, trial = np.empty(9), np.empty(9)
    _objective(stars, psf, y, x, background, use, light_curve, work, now)
    converged = False
    for _ in range(max_iterations):
        at = 3 if now[3] > 0.0 and now[3] * now[5] > now[4] * now[4] else 6
        det = now[at] * now[at + 2] - now[at + 1] * now[at + 1]
        if not det > 0.0:
            break
        step_y = (now[at + 2] * now[1] - now[at + 1] * now[2]) / det
        step_x = (now[at] * now[2] - now[at + 1] * now[1]) / det
        length = math.sqrt(step_y * step_y + step_x * step_x)
        if length < 1e-5:
            converged = at == 3
            break
        if length > 0.4:  # the PSF's curvature holds no further
            step_y, step_x = step_y * 0.4 / length, step_x * 0.4 / length
        accepted = False
        for _halving in range(12):
            ty, tx = y + step_y, x + step_x
            _objective(stars, psf, ty, tx, background, use, light_curve, work, trial)
            if trial[0] >= now[0]:
                accepted = True
                break
            step_y, step_x = step_y * 0.5, step_x * 0.5
        if not accepted:  # at the maximum to rounding
            converged = at == 3 and length < 1e-3
            break
        y, x = ty, tx
        now[:] = trial
        if (y - y0) ** 2 + (x - x0) ** 2 > max_shift * max_shift:
            break
    det = now[3] * now[5] - now[4] * now[4]
    if not (converged and now[3] > 0.0 and det > 0.0):
        return y, x, covariance, False
    hyy, hyx, hxx = now[5] / det, -now[4] / det, now[3] / det
    ayy, ayx = hyy * now[6] + hyx * now[7], hyy * now[7] + hyx * now[8]
    bxy, bxx = hyx * now[6] + hxx * now[7], hyx * now[7] + hxx * now[8]
    covariance[0, 0] = ayy * hyy + ayx * hyx
    covariance[0, 1] = ayy * hyx + ayx * hxx
    covariance[1, 0] = covariance[0, 1]
    covariance[1, 1] = bxy * hyx + bxx * hxx
    return y, x, covariance, True
