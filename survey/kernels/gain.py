"""Gain of a camera from its own frames: how the variance grows with the brightness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

_MAD_TO_SIGMA = 1.482602218505602


@dataclass(frozen=True)
class GainEstimate:
    """Gain and what else makes the variance: ``variance = floor + level / gain + (fraction level)^2``.

    Parameters
    ----------
    gain, gain_error : float
        Electrons per image unit; infinite where no photon noise was seen.
    floor : float
        Variance without light (sky and read noise of the pixels summed).
    fraction : float
        Scatter proportional to the brightness (flat field, PSF changes, scintillation).
    n : int
        Pairs of level and variance that entered the fit.
    """

    gain: float
    gain_error: float
    floor: float
    fraction: float
    n: int


def photon_transfer(level: ArrayLike, variance: ArrayLike, *, clip: float = 3.0) -> GainEstimate:
    """Fit the photon transfer curve to measured variances.

    The error of a variance is proportional to it, so the fit weights by the model and is repeated; no
    term may be negative; variances more than `clip` times above or below the model are left out.

    Parameters
    ----------
    level, variance : array (n,)
        Brightness above the sky, in image units, and its variance, in squared image units.

    Raises
    ------
    ValueError
        If fewer than 6 finite pairs are given.

    Examples
    --------
    >>> level = np.geomspace(1, 1e4, 40)
    >>> estimate = photon_transfer(level, 9.0 + level / 4.0)
    >>> round(estimate.gain, 3), round(estimate.floor, 3)
    (4.0, 9.0)
    """
    x, v = np.ravel(np.asarray(level, float)), np.ravel(np.asarray(variance, float))
    good = np.isfinite(x) & np.isfinite(v) & (v > 0)
    x, v = x[good], v[good]
    if len(x) < 6:
        raise ValueError(f"{len(x)} brightness levels are too few for a gain (6 needed)")
    unit = float(np.median(np.abs(x))) or 1.0
    design = np.stack([np.ones_like(x), x / unit, (x / unit) ** 2], axis=1)
    model, used = v, np.ones(len(x), bool)
    terms = np.zeros(3)
    for iteration in range(30):
        weight = 1 / model[used]
        terms, _ = nnls(design[used] * weight[:, None], v[used] * weight)
        model = np.maximum(design @ terms, 1e-3 * v)
        # The first fits follow the low variances too closely to judge the high ones.
        if iteration >= 3:
            used = (v < clip * model) & (v > model / clip)
            if used.sum() < 6:
                used = np.ones(len(x), bool)
    scaled = design[used] / model[used, None]
    active = terms > 0
    spread = float(np.mean((v[used] / model[used] - 1) ** 2)) * used.sum() / max(used.sum() - 3, 1)
    covariance = np.zeros((3, 3))
    covariance[np.ix_(active, active)] = spread * np.linalg.pinv(scaled[:, active].T @ scaled[:, active])
    slope, slope_error = terms[1] / unit, np.sqrt(covariance[1, 1]) / unit
    gain = 1 / slope if slope > 0 else np.inf
    return GainEstimate(
        gain=float(gain),
        gain_error=float(slope_error * gain**2) if slope > 0 else np.inf,
        floor=float(terms[0]),
        fraction=float(np.sqrt(terms[2]) / unit),
        n=int(used.sum()),
    )


def gain_from_light_curves(
    flux: ArrayLike, mask: ArrayLike | None = None, *, min_epochs: int = 20, n_reference: int = 40
) -> GainEstimate:
    """Gain from the scatter of many stars' aperture fluxes against their brightness.

    For undersampled frames whose pixels see another part of the stars each time, so that pixel by pixel
    differences are ruled by the PSF and not by the photons. Transparency is taken out by the median of
    the brightest stars; differences of consecutive epochs take out slow trends.

    Parameters
    ----------
    flux : array (time, star)
        Aperture fluxes, sky subtracted, in time order; all stars with one aperture.
    mask : bool array (time, star), optional
        True = bad; NaN count as bad too.
    min_epochs : int
        Good epochs a star needs.
    n_reference : int
        Stars that define the transparency.

    Raises
    ------
    ValueError
        If too few stars are usable.
    """
    f = np.array(flux, float)
    if mask is not None:
        f[np.asarray(mask, bool)] = np.nan
    f = f[:, np.isfinite(f).sum(axis=0) >= max(min_epochs, 3)]
    if f.shape[1] < 6:
        raise ValueError(f"{f.shape[1]} stars with {min_epochs} good epochs are too few for a gain")
    level = np.nanmedian(f, axis=0)
    f, level = f[:, level > 0], level[level > 0]
    brightest = np.argsort(-level)[:n_reference]
    f = f[np.isfinite(f[:, brightest]).any(axis=1)]
    transparency = np.nanmedian(f[:, brightest] / level[brightest], axis=1)
    steps = np.diff(f / transparency[:, None], axis=0)
    variance = np.array(
        [
            (_MAD_TO_SIGMA * np.median(np.abs(s[np.isfinite(s)]))) ** 2 / 2
            if np.isfinite(s).any()
            else np.nan
            for s in steps.T
        ]
    )
    return photon_transfer(level, variance)


def gain_from_pair(
    first: ArrayLike,
    second: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    background: float = 0.0,
    bins: int = 24,
) -> GainEstimate:
    """Gain from the difference of two images of the same scene (flats, or frames at the same phase).

    Parameters
    ----------
    first, second : array (y, x)
        Aligned images of equal exposure and transparency.
    mask : bool array (y, x), optional
        True = bad.
    background : float
        Level without light (bias, or the sky if its noise shall count as floor).
    bins : int
        Bins of equal numbers of pixels along the brightness.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> scene = np.tile(np.linspace(100, 4000, 200), (200, 1))
    >>> frames = [rng.poisson(3 * scene) / 3 for _ in range(2)]
    >>> bool(abs(gain_from_pair(*frames).gain - 3) < 0.1)
    True
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    good = np.isfinite(first) & np.isfinite(second)
    if mask is not None:
        good &= ~np.asarray(mask, bool)
    mean = (first[good] + second[good]) / 2 - background
    difference = first[good] - second[good]
    order = np.argsort(mean, kind="stable")
    level, variance = [], []
    for part in np.array_split(order, bins):
        if len(part) < 20:
            continue
        low, high = np.percentile(difference[part], [15.865, 84.135])
        level.append(float(mean[part].mean()))
        variance.append(((high - low) / 2) ** 2 / 2)
    return photon_transfer(level, variance)
