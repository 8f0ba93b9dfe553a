"""Photometric scale and quality flags of frames."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_MAD_TO_SIGMA = 1.482602218505602


class RegistrationError(ValueError):
    """A frame cannot be placed on the reference."""


class FrameFlag(IntFlag):
    """What is wrong with a frame, measured against the other frames of its field."""

    TRAILED = 1
    HAZY = 2
    BRIGHT_SKY = 4
    FEW_STARS = 8
    BROAD_PSF = 16
    POOR_REGISTRATION = 32
    UNREGISTERED = 64


def flag_frames(
    *,
    elongation: ArrayLike,
    psf_fwhm: ArrayLike,
    scale: ArrayLike,
    background: ArrayLike,
    n_stars: ArrayLike,
    residual: ArrayLike | None = None,
    n_matched: ArrayLike | None = None,
    clip: float = 2.5,
    haze: float = 0.01,
) -> NDArray[np.int32]:
    """Quality flags of all frames of a field.

    A frame is flagged where it stands out of the ensemble by `clip` robust sigma *and* by an amount that
    matters, so that a steady night has no flags. Scale and sky are compared with the neighbouring frames
    as well: airmass changes both slowly and is no haze.

    Parameters
    ----------
    elongation, psf_fwhm : array (time,)
        Frames in order of time. As from `survey.kernels.stars.psf_width`.
    scale : array (time,)
        Photometric scale; NaN for a frame that is not registered.
    background : array (time,)
        Sky level, any unit.
    n_stars : array (time,)
        Stars found (or matched).
    residual : array (time,), optional
        Held-out registration residual in pixels; a frame without one (NaN) is flagged where most have one.
    n_matched : array (time,), optional
        Stars matched to the reference: far fewer than in other frames make a poor registration.
    clip : float
        Robust sigma.
    haze : float
        Loss of transparency, against the neighbouring frames, that counts as haze; half of the
        ensemble's median does in any case.

    Returns
    -------
    flags : int32 array (time,)
        Bits of `FrameFlag`.

    Examples
    --------
    >>> one = np.ones(9)
    >>> flags = flag_frames(elongation=[1.1] * 8 + [2.4], psf_fwhm=2 * one, scale=one,
    ...                     background=350 * one, n_stars=400 * one)
    >>> FrameFlag(int(flags[8]))
    <FrameFlag.TRAILED: 1>
    """
    flags = np.zeros(np.shape(scale), np.int32)
    scale = np.asarray(scale, float)
    flags[~np.isfinite(scale)] |= FrameFlag.UNREGISTERED
    flags[_stands_out(elongation, clip, 1.25)] |= FrameFlag.TRAILED
    flags[_stands_out(psf_fwhm, clip, 1.25)] |= FrameFlag.BROAD_PSF
    flags[_stands_out(-np.asarray(n_stars, float), clip, 0.6)] |= FrameFlag.FEW_STARS
    with np.errstate(invalid="ignore"):
        loss = 1 - scale / _trend(scale)
    flags[_stands_out(loss, clip, None, least=haze)] |= FrameFlag.HAZY
    with np.errstate(invalid="ignore"):
        flags[scale < 0.5 * np.nanmedian(scale)] |= FrameFlag.HAZY
    background = np.asarray(background, float)
    flags[_stands_out(background - _trend(background), 2 * clip, None)] |= FrameFlag.BRIGHT_SKY
    if residual is not None:
        flags[_stands_out(residual, clip, 2.0)] |= FrameFlag.POOR_REGISTRATION
        known = np.isfinite(np.asarray(residual, float))
        if 2 * known.sum() > known.size:
            flags[~known] |= FrameFlag.POOR_REGISTRATION
    if n_matched is not None:
        flags[_stands_out(-np.asarray(n_matched, float), clip, 0.3)] |= FrameFlag.POOR_REGISTRATION
    return flags


def _stands_out(
    values: ArrayLike, clip: float, factor: float | None, least: float = -np.inf
) -> NDArray[np.bool_]:
    """Values above the median by `clip` robust sigma, by a factor (unless None) and above `least`."""
    values = np.asarray(values, float)
    if not np.isfinite(values).any():
        return np.zeros(values.shape, bool)
    median = float(np.nanmedian(values))
    sigma = _MAD_TO_SIGMA * float(np.nanmedian(np.abs(values - median)))
    with np.errstate(invalid="ignore"):
        high = (values > median + clip * sigma + 1e-9 * abs(median)) & (values > least)
        if factor is not None:
            high &= values > factor * median
    return np.asarray(high)


def _trend(values: Array, half_width: int = 7) -> Array:
    """What the frames around each let expect of it: their Theil-Sen line; NaN with fewer than 3."""
    out = np.full(len(values), np.nan)
    for k in range(len(values)):
        near = np.arange(max(k - half_width, 0), min(k + half_width + 1, len(values)))
        near = near[(near != k) & np.isfinite(values[near])]
        if len(near) < 3:
            continue
        i, j = np.triu_indices(len(near), 1)
        slope = np.median((values[near[j]] - values[near[i]]) / (near[j] - near[i]))
        out[k] = np.median(values[near] - slope * (near - k))
    return out


def photometric_scale(
    flux: ArrayLike,
    reference_flux: ArrayLike,
    flux_error: ArrayLike,
    reference_error: ArrayLike,
    *,
    clip: float = 4.0,
    min_stars: int = 3,
) -> tuple[float, float]:
    """Ratio of a frame's fluxes to the reference's, robust to variable stars and blends.

    Minimises ``sum (f - s r)^2 / (ef^2 + s^2 er^2 + (q s r)^2)`` over s, where the scatter q beyond the
    errors (flat field, PSF changes) is found from the residuals; outliers are clipped.

    Parameters
    ----------
    flux, reference_flux, flux_error, reference_error : arrays (n,)
        Fluxes of the same stars in the frame and in the reference and their 1-sigma errors; pairs that
        are not finite or not positive in the reference are left out.

    Returns
    -------
    scale, scale_error : float
        ``flux(frame) / flux(reference)``.

    Raises
    ------
    RegistrationError
        If fewer than `min_stars` pairs are usable.

    Examples
    --------
    >>> r = np.linspace(100.0, 1000.0, 20)
    >>> scale, scale_error = photometric_scale(0.8 * r, r, 0.01 * r, 0.01 * r)
    >>> round(scale, 6)
    0.8
    """
    f, r, ef, er = (np.asarray(a, float) for a in (flux, reference_flux, flux_error, reference_error))
    good = np.isfinite(f) & np.isfinite(r) & (r > 0) & (ef > 0) & (er > 0) & np.isfinite(ef + er)
    if good.sum() < min_stars:
        raise RegistrationError(
            f"fewer than {min_stars} stars with good fluxes for a photometric scale (found {good.sum()})"
        )
    f, r, ef, er = f[good], r[good], ef[good], er[good]
    scale, extra = float(np.median(f / r)), 0.0
    keep = np.ones(len(f), bool)
    for _ in range(20):
        relative_variance = (ef / (scale * r)) ** 2 + (er / r) ** 2 + extra**2
        deviation = f / (scale * r) - 1
        limit = clip * np.sqrt(relative_variance)
        spread = 1.4826 * float(np.median(np.abs(deviation[keep])))
        new_keep = np.abs(deviation) <= np.maximum(limit, clip * min(spread, 0.3))
        keep = new_keep if new_keep.sum() >= min_stars else keep
        weight = 1 / relative_variance[keep]
        step = float(np.sum(weight * deviation[keep]) / weight.sum())
        scale *= 1 + step
        chi2 = float(np.sum(weight * (deviation[keep] - step) ** 2)) / max(keep.sum() - 1, 1)
        excess = (chi2 - 1) * keep.sum() / weight.sum()
        extra = float(np.sqrt(max(extra**2 + excess, 0.0)))
        if abs(step) < 1e-9 and abs(excess) < 1e-3 * (keep.sum() / weight.sum()):
            break
    error = scale * np.sqrt(max(chi2, 1.0) / weight.sum())
    return scale, float(error)
