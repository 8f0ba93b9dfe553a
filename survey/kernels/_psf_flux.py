"""PSF-fitted fluxes of stars over many epochs, and their magnitudes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from survey.kernels._epsf import EffectivePSF
from survey.kernels._spline import PAD, spline_weights, taps

Array = NDArray[np.float64]


class Magnitudes(NamedTuple):
    """Magnitudes and upper limits of a light curve (`psf_magnitudes`)."""

    magnitude: Array
    error: Array
    limit: Array


def fit_psf_flux(
    stamps: ArrayLike,
    errors: ArrayLike,
    mask: ArrayLike | None,
    psf: ArrayLike,
    *,
    background: bool = False,
    min_coverage: float = 0.5,
) -> tuple[Array, Array]:
    """Inverse-variance weighted PSF flux of every epoch, with its 1-sigma error.

    ``flux = sum(P D / s^2) / sum(P^2 / s^2)``, ``error^2 = 1 / sum(P^2 / s^2)`` (Albrow 2025, AJ 169, 297,
    section 5, without its extra factor in the variance).

    Parameters
    ----------
    stamps, errors : arrays (..., time, y, x)
        Difference images around the star and their 1-sigma errors; leading dimensions batch stars.
    mask : bool array (..., time, y, x) or None
        True = bad. Samples that are not finite or have no positive error are bad too.
    psf : array (..., time, y, x)
        Effective PSF at each epoch's phase (`stamp_psf`, `EffectivePSF.evaluate`).
    background : bool
        Fit a constant under the star with it.
    min_coverage : float
        Least share of sum(P^2) in good samples.

    Returns
    -------
    flux, error : arrays (..., time)
        Flux NaN and error infinite where less than `min_coverage` of the PSF is good.

    Examples
    --------
    >>> from survey.kernels.psf import gaussian_epsf
    >>> psf = gaussian_epsf(1.1).evaluate([0.1, -0.4], [0.2, 0.0], 7)
    >>> flux, error = fit_psf_flux(50 * psf, np.ones((2, 7, 7)), None, psf)
    >>> [round(float(f), 3) for f in flux]
    [50.0, 50.0]
    """
    stamps, errors = np.asarray(stamps, float), np.asarray(errors, float)
    psf = np.broadcast_to(np.asarray(psf, float), stamps.shape)
    ny, nx = stamps.shape[-2:]
    bad = None if mask is None else np.broadcast_to(np.asarray(mask, bool), stamps.shape)
    weight = inverse_variance(stamps, np.broadcast_to(errors, stamps.shape), bad)
    data, weight, model = (np.ascontiguousarray(a.reshape(-1, ny * nx)) for a in (stamps, weight, psf))
    flux, error = _fluxes(data, weight, model, background, min_coverage)
    return flux.reshape(stamps.shape[:-2]), error.reshape(stamps.shape[:-2])


def stamp_psf(
    psf: EffectivePSF,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    y: float,
    x: float,
    shape: tuple[int, int],
    origin: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """Effective PSF (time, y, x) of a star at (y, x) on the samples of its stamps.

    Parameters
    ----------
    phase_y, phase_x : arrays (time,) or (time, y, x)
        Sample [k, i, j] was taken at ``origin + (i, j) + phase``.
    y, x : float
        The star's reference position.
    shape : tuple of int
        (y, x) shape of the stamps.
    origin : tuple of float
        Reference (y, x) of the stamps' pixel [0, 0].
    """
    table, oversampling = psf.at(y, x).tables[0], psf.oversampling
    py, px = as_phases(phase_y, phase_x)
    out = np.empty((py.shape[0], *shape))
    slopes = np.empty((2, *shape))
    for k in range(py.shape[0]):
        epoch_psf(
            table, oversampling, py[k], px[k], y - origin[0], x - origin[1], out[k], slopes[0], slopes[1]
        )
    return out


def psf_magnitudes(
    flux: ArrayLike, error: ArrayLike, zero_point: float, *, limit_sigma: float = 3.0
) -> Magnitudes:
    """Magnitudes of fluxes, or upper limits where the flux is below `limit_sigma` errors.

    Parameters
    ----------
    flux, error : arrays of one shape
        Total flux (reference plus difference) and 1-sigma error in the field's unit.
    zero_point : float
        Magnitude of flux 1.
    limit_sigma : float
        S/N of a detection, and of the limits.

    Returns
    -------
    Magnitudes
        `magnitude` and `error` (NaN where not detected), and `limit`: the magnitude of
        ``max(flux, 0) + limit_sigma * error`` (NaN where detected or unmeasured).

    Examples
    --------
    >>> psf_magnitudes([100.0, 0.0], [1.0, 10.0], 25.0).magnitude.tolist()
    [20.0, nan]
    """
    flux, error = np.broadcast_arrays(np.asarray(flux, float), np.asarray(error, float))
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    detected = good & (flux >= limit_sigma * np.where(good, error, np.inf))
    magnitude, magnitude_error, limit = (np.full(flux.shape, np.nan) for _ in range(3))
    magnitude[detected] = zero_point - 2.5 * np.log10(flux[detected])
    magnitude_error[detected] = 2.5 / math.log(10) * error[detected] / flux[detected]
    faint = good & ~detected
    limit[faint] = zero_point - 2.5 * np.log10(np.maximum(flux[faint], 0) + limit_sigma * error[faint])
    return Magnitudes(magnitude, magnitude_error, limit)


def inverse_variance(stamps: Array, errors: Array, mask: NDArray[np.bool_] | None) -> Array:
    """1/error^2, zero where the sample is bad."""
    good = np.isfinite(stamps) & np.isfinite(errors) & (errors > 0)
    if mask is not None:
        good &= ~mask
    return np.where(good, 1 / np.where(good, errors, 1.0) ** 2, 0.0)


def as_phases(phase_y: ArrayLike, phase_x: ArrayLike) -> tuple[Array, Array]:
    """Phases as (time, y, x) or (time, 1, 1)."""
    both = []
    for phase in (phase_y, phase_x):
        phase = np.atleast_1d(np.asarray(phase, float))
        both.append(np.ascontiguousarray(phase[:, None, None] if phase.ndim == 1 else phase))
    if both[0].shape != both[1].shape:
        raise ValueError(f"phase_y {both[0].shape} and phase_x {both[1].shape} differ in shape")
    return both[0], both[1]


@njit(cache=True, nogil=True)
def _fluxes(stamps, weight, psf, background, min_coverage):
    """Flux and error of each row of flattened stamps (n, pixels)."""
    n, pixels = stamps.shape
    flux, error = np.full(n, np.nan), np.full(n, np.inf)
    for k in range(n):
        whole, good = 0.0, 0.0
        w0, wp, wd, a, b = 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(pixels):
            p, w = psf[k, i], weight[k, i]
            whole += p * p
            if w > 0.0:
                d = stamps[k, i]
                good += p * p
                w0 += w
                wp += w * p
                wd += w * d
                a += w * p * p
                b += w * p * d
        if not (whole > 0.0 and good >= min_coverage * whole):
            continue
        if background:
            full = a
            a -= wp * wp / w0
            b -= wp * wd / w0
            if a <= 1e-9 * full:
                continue
        flux[k] = b / a
        error[k] = 1.0 / math.sqrt(a)
    return flux, error


@njit(cache=True, nogil=True)
def epoch_psf(table, oversampling, py, px, y, x, value, slope_y, slope_x):
    """PSF of one epoch's stamp and its derivatives with respect to the star's (y, x).

    `py`, `px` (1, 1) or the stamp's shape; (y, x) counted from the stamp's pixel [0, 0].
    """
    ny, nx = value.shape
    nodes = table.shape[0] - 2 * PAD
    centre = (nodes - 1) / 2.0
    wy, gy, wx, gx = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    shared = py.size == 1
    by, bx = 0, 0
    for i in range(ny):
        for j in range(nx):
            if not shared or (i == 0 and j == 0):
                uy = (i + (py[0, 0] if shared else py[i, j]) - y) * oversampling + centre
                ux = (j + (px[0, 0] if shared else px[i, j]) - x) * oversampling + centre
                if not (math.isfinite(uy) and math.isfinite(ux)):
                    value[i, j], slope_y[i, j], slope_x[i, j] = np.nan, np.nan, np.nan
                    if shared:
                        value[:], slope_y[:], slope_x[:] = np.nan, np.nan, np.nan
                        return
                    continue
                by, bx = math.floor(uy), math.floor(ux)
                spline_weights(uy - by, wy, gy)
                spline_weights(ux - bx, wx, gx)
            ky, kx = by, bx
            if shared:
                ky, kx = by + i * oversampling, bx + j * oversampling
            if ky < -2 or kx < -2 or ky > nodes or kx > nodes:
                value[i, j], slope_y[i, j], slope_x[i, j] = 0.0, 0.0, 0.0
                continue
            v, sy, sx = taps(table, ky, kx, wy, gy, wx, gx)
            value[i, j] = v
            slope_y[i, j] = -sy * oversampling
            slope_x[i, j] = -sx * oversampling
