"""The flux of a point source in a difference of two images, and what its error really is.

Barris et al. 2005, section 2: a PSF of fixed shape and a local background are fitted at the object's place;
copies of the object dropped into empty places of the same difference say how far such fluxes scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter

from survey.kernels._epsf import EffectivePSF
from survey.kernels._psf_flux import fit_psf_flux

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
# Fewer copies than this do not measure a scatter.
MIN_COPIES = 12


@dataclass(frozen=True)
class Difference:
    """A difference image (y, x), 1-sigma error, bad pixels, and the PSF of a source in it."""

    flux: Array
    error: Array
    mask: Mask
    psf: EffectivePSF


def stamps_at(values: ArrayLike, y: Array, x: Array, half: int, fill: float) -> Array:
    """Stamps (n, 2 half + 1, 2 half + 1) about the pixels nearest to positions; ``fill`` outside."""
    padded = np.pad(np.asarray(values), half, constant_values=fill)
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    step = np.arange(2 * half + 1)
    rows = np.clip(rows[:, None] + step, 0, padded.shape[0] - 1)
    columns = np.clip(columns[:, None] + step, 0, padded.shape[1] - 1)
    return padded[rows[:, :, None], columns[:, None, :]]


def point_fluxes(image: Difference, y: ArrayLike, x: ArrayLike, half: int) -> tuple[Array, Array]:
    """PSF fluxes on a local background at positions (n,), and their errors by the noise map.

    NaN and infinite where more than half of the PSF is bad or outside.
    """
    y, x = np.atleast_1d(np.asarray(y, float)), np.atleast_1d(np.asarray(x, float))
    flux, error = np.full(y.shape, np.nan), np.full(y.shape, np.inf)
    inside = (np.abs(y - (image.flux.shape[0] - 1) / 2) <= image.flux.shape[0] / 2) & (
        np.abs(x - (image.flux.shape[1] - 1) / 2) <= image.flux.shape[1] / 2
    )
    if not inside.any():
        return flux, error
    yi, xi = y[inside], x[inside]
    model = image.psf.evaluate(yi - np.rint(yi), xi - np.rint(xi), 2 * half + 1)
    stamps, errors, bad = (
        stamps_at(values, yi, xi, half, fill)
        for values, fill in ((image.flux, np.nan), (image.error, np.inf), (image.mask, True))
    )
    flux[inside], error[inside] = fit_psf_flux(stamps, errors, bad, model, background=True)
    return flux, error


def empty_places(
    level: ArrayLike, noise: ArrayLike, mask: ArrayLike, spacing: int, *, clear: float = 3.0, most: int = 200
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (y, x) of a grid around which there is neither a source nor a bad pixel.

    Parameters
    ----------
    level, noise : array (y, x)
        The matched template above its sky, and the difference's error.
    mask : bool array (y, x)
        True = bad, or an object that is measured.
    spacing : int
        Pixels between two places, so that they share no noise.
    clear : float
        Sources brighter than this many errors in a pixel are kept away from.
    most : int
        At most so many, evenly taken.
    """
    level, noise = np.asarray(level, float), np.asarray(noise, float)
    source = np.asarray(mask, bool) | ~np.isfinite(level) | (np.abs(level) > clear * noise)
    blocked = maximum_filter(source, size=2 * (spacing // 2) + 1, mode="constant", cval=True)
    rows = np.arange(spacing // 2, level.shape[0] - spacing // 2, spacing)
    columns = np.arange(spacing // 2, level.shape[1] - spacing // 2, spacing)
    y, x = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
    free = ~blocked[y, x]
    y, x = y[free], x[free]
    if len(y) > most:
        chosen = np.linspace(0, len(y) - 1, most).round().astype(int)
        y, x = y[chosen], x[chosen]
    return y, x


def copies_scale(image: Difference, y: ArrayLike, x: ArrayLike, half: int) -> tuple[float, float, int]:
    """How much wider than the noise map says fluxes scatter at empty places.

    The fit is linear, so a copy of flux f dropped there gives f plus what is measured without it.

    Returns
    -------
    scale : float
        Robust scatter of flux / error; NaN with fewer than `MIN_COPIES` places.
    bias : float
        Mean of flux / error.
    count : int
        Places used.
    """
    flux, error = point_fluxes(image, y, x, half)
    good = np.isfinite(flux) & np.isfinite(error)
    count = int(good.sum())
    if count < MIN_COPIES:
        return np.nan, np.nan, count
    pull = flux[good] / error[good]
    middle = np.median(pull)
    scale = 1.4826 * np.median(np.abs(pull - middle))
    kept = np.abs(pull - middle) <= 4 * scale
    return float(scale), float(pull[kept].mean()), count
