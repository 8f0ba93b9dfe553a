"""How good a subtraction of a simulated pair is: chi2 in stars, transients found and not, flux bias."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, maximum_filter
from scipy.signal import fftconvolve

from survey.simulate.pairs import moffat

STAR = 5.0  # pixels this many sigma of the sky above it are star pixels


@dataclass
class Quality:
    chi2_star: float
    chi2_sky: float
    found: int
    bright: int  # transients whose S/N in this difference is above 6
    false: int
    ratio: np.ndarray  # measured / true flux
    ratio_error: np.ndarray


def significance_map(difference, error, fwhm):
    """Matched filter with one PSF."""
    dy, dx = np.mgrid[-8:9, -8:9]
    psf = moffat(dy, dx, fwhm)
    good = np.isfinite(difference) & np.isfinite(error)
    weight = np.where(good, 1 / np.where(good, error, 1) ** 2, 0.0)
    signal = fftconvolve(np.where(good, difference, 0) * weight, psf[::-1, ::-1], mode="same")
    return signal / np.sqrt(np.maximum(fftconvolve(weight, psf[::-1, ::-1] ** 2, mode="same"), 1e-30))


def point_flux(pair, s, y, x, psf=None, half=8):
    """PSF flux at a known position, and its error."""
    psf = pair.image_psf(y, x, half) if psf is None else psf
    cy, cx = round(y), round(x)
    window = (slice(cy - half, cy + half + 1), slice(cx - half, cx + half + 1))
    weight = np.where(s.mask[window], 0.0, 1 / s.error[window] ** 2)
    norm = (psf**2 * weight).sum()
    covered = (psf * ~s.mask[window]).sum() > 0.95 * psf.sum()
    flux = (psf * np.nan_to_num(s.difference[window]) * weight).sum()
    return (flux / norm, norm**-0.5) if covered else (np.nan, np.nan)


def measure(pair, s, threshold=5.0, significance=None):
    """Quality of one subtraction."""
    ny, nx = pair.image.shape
    y, x = np.indices(pair.image.shape)
    sky = pair.noiseless - 300 * (1 + 0.1 * (x / nx - y / ny))
    near = np.zeros(pair.image.shape, bool)
    for ty, tx, *_ in pair.transients:
        near[max(int(ty) - 10, 0) : int(ty) + 11, max(int(tx) - 10, 0) : int(tx) + 11] = True
    good = ~s.mask & ~near
    star = good & (sky > STAR * np.median(pair.error))
    middle = float(pair.image_fwhm(ny / 2, nx / 2))
    snr = significance_map(s.difference, s.error, middle) if significance is None else significance
    away = binary_erosion(~s.mask, np.ones((7, 7)), border_value=0)
    size = np.nan_to_num(np.abs(snr)) * away
    peaks = np.argwhere((size == maximum_filter(size, 9)) & (size > threshold))
    distance = np.hypot(
        peaks[:, None, 0] - pair.transients[None, :, 0], peaks[:, None, 1] - pair.transients[None, :, 1]
    )
    matched = distance < 3
    fluxes = np.array([point_flux(pair, s, ty, tx) for ty, tx, *_ in pair.transients])
    true = pair.transients[:, 2]
    usable = np.isfinite(fluxes[:, 0])
    bright = usable & (np.abs(true) > 6 * fluxes[:, 1])
    # a bright transient's own ringing is not a false alarm
    false = int((distance.min(axis=1) > 12).sum())
    return Quality(
        float(np.mean(s.scaled[star] ** 2)), float(np.mean(s.scaled[good & ~star] ** 2)),
        int((matched.any(axis=0) & bright).sum()), int(bright.sum()), false,
        fluxes[usable, 0] / true[usable], fluxes[usable, 1] / np.abs(true[usable]),
    )  # fmt: skip


def bias(ratios, errors):
    """Weighted mean of measured / true - 1, and its error."""
    weight = 1 / errors**2
    return float((weight * (ratios - 1)).sum() / weight.sum()), float(weight.sum() ** -0.5)
