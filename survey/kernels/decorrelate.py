"""White noise again in a difference whose template was convolved.

A kernel correlates the template's noise, so that a PSF fit which takes pixels for independent measures the
template through a filter far too broad wherever the image is much the broader, and no pair's flux of it is
another's. One more convolution makes the noise white; a PSF fit there is the best there is, the one of proper
image subtraction (Zackay et al. 2016, ApJ 830, 27; for a fitted kernel: Reiss & Lupton, LSST DMTN-021).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from survey.kernels._epsf import EffectivePSF
from survey.kernels.pair_flux import Difference

Array = NDArray[np.float64]
# Edge of the filter's Fourier grid in kernels' edges, and what of the filter's power may be cut off.
_GRID, _CUT = 4, 1e-5
# A pixel is bad where bad pixels make more of its noise than this.
_BAD_SHARE = 0.02


def whitening_filter(kernel: Array, image_variance: float, template_variance: float) -> Array:
    """Filter (n, n), n odd, whose Fourier transform is ``sqrt((a + b) / (a + b |K|^2))``.

    Parameters
    ----------
    kernel : array (k, k)
        What the template was convolved with.
    image_variance, template_variance : float
        a and b, the noise of a pixel of each; the filtered difference has their sum.

    Examples
    --------
    >>> whitening_filter(np.ones((1, 1)), 1.0, 1.0).round(12).tolist()
    [[1.0]]
    """
    edge = kernel.shape[0]
    n = _GRID * edge + 16
    power = np.abs(np.fft.rfft2(kernel, (n, n))) ** 2
    total = image_variance + template_variance
    found = np.fft.irfft2(np.sqrt(total / (image_variance + template_variance * power)), (n, n))
    found = np.fft.fftshift(found)
    middle = n // 2
    # The smallest square that holds the filter but for a negligible part of its power.
    reach = np.maximum.outer(*(np.abs(np.arange(n) - middle),) * 2)
    outside = np.bincount(reach.ravel(), found.ravel() ** 2)[::-1].cumsum()[::-1]
    radius = min(int(np.argmax(np.append(outside, 0.0) <= _CUT * outside[0])), n // 2)
    cut = slice(middle - radius + 1, middle + radius)
    return found[cut, cut]


def decorrelate(
    difference: Difference, kernel: Array, image_error: Array, template_error: Array
) -> Difference:
    """A difference of white noise, with the PSF that sources have in it.

    Parameters
    ----------
    difference : Difference
        Image less convolved template.
    kernel : array (k, k)
        What the template was convolved with.
    image_error, template_error : array (y, x)
        1-sigma errors of the two images, the template's before its convolution.
    """
    good = ~difference.mask
    if not good.any():
        return difference
    a, b = (float(np.median(e[good]) ** 2) for e in (image_error, template_error))
    white = whitening_filter(kernel, a, b)
    both = fftconvolve(kernel, white)
    flux = _convolved(np.where(good, difference.flux, 0.0), white)
    # The error of a bad pixel means nothing, and the filter reaches its neighbours.
    of_image = _convolved(np.where(good, image_error**2, a), white**2)
    of_template = _convolved(np.where(good, template_error**2, b), both**2)
    spoilt = _convolved(difference.mask.astype(float), white**2) > _BAD_SHARE * np.sum(white**2)
    error = np.sqrt(np.maximum(of_image, 0.0) + np.maximum(of_template, 0.0))
    return Difference(flux, error, difference.mask | spoilt, filtered_psf(difference.psf, white))


def filtered_psf(psf: EffectivePSF, kernel: Array) -> EffectivePSF:
    """A source's image after a convolution in pixels; its flux changes by the kernel's sum."""
    step, samples = psf.oversampling, psf.samples[0, 0]
    spread = np.zeros([(edge - 1) * step + 1 for edge in kernel.shape])
    spread[::step, ::step] = kernel
    return EffectivePSF(fftconvolve(samples, spread), step)


def _convolved(values: Array, kernel: Array) -> Array:
    """Convolution with the edge pixels repeated outside."""
    pad = kernel.shape[0] // 2
    return fftconvolve(np.pad(values, pad, mode="edge"), kernel, mode="valid")
