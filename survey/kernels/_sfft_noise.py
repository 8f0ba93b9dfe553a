"""Decorrelation of a difference's noise: a convolved noisy template correlates it between pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.signal import fftconvolve

from survey.kernels.subtraction import Subtraction

Floats = NDArray[np.floating]
_CELL = 256  # the whitening kernel is held over cells of about this side
_SIZE = 64  # of the transform from which it is made


def whitening_kernel(
    kernel: NDArray[np.float64], image_variance: float, template_variance: float
) -> NDArray[np.float64]:
    """Kernel that makes the noise of a difference white and leaves fluxes as they are.

    Parameters
    ----------
    kernel : array (ky, kx)
        The matching kernel.
    image_variance, template_variance : float
        Per pixel, white.

    Notes
    -----
    ``psi^2 = (v_i + v_t |K(0)|^2) / (v_i + v_t |K|^2)``, Reiss & Lupton 2016 (DMTN-021), eq. 5, but with
    psi = 1 at frequency zero.
    """
    ky, kx = kernel.shape
    size = max(_SIZE, 1 << int(np.ceil(np.log2(4 * max(ky, kx)))))
    power = np.abs(np.fft.fft2(kernel, (size, size))) ** 2
    flat = image_variance + template_variance * power[0, 0]
    psi = np.sqrt(flat / (image_variance + template_variance * power))
    full = np.fft.fftshift(np.fft.ifft2(psi).real)
    half, centre = 2 * max(ky, kx) // 2, size // 2
    cut = full[centre - half : centre + half + 1, centre - half : centre + half + 1]
    return np.asarray(cut / cut.sum())


def decorrelated(
    result: Subtraction, image_variance: Floats, template_variance: Floats | None
) -> Subtraction:
    """A subtraction whose difference is whitened, cell by cell, with the errors that are left.

    Pixels whose whitening draws on a masked pixel close by are masked.
    """
    if template_variance is None:
        return result
    ny, nx = result.difference.shape
    difference, error = np.full_like(result.difference, np.nan), np.full_like(result.error, np.nan)
    filled = np.nan_to_num(result.difference)
    cells = max(round(ny / _CELL), 1), max(round(nx / _CELL), 1)
    edges = [np.linspace(0, n, count + 1).astype(int) for n, count in zip((ny, nx), cells, strict=True)]
    middle = None
    for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True):
        for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True):
            good = ~result.mask[y0:y1, x0:x1]
            if not good.any():
                continue
            v_image = float(np.median(image_variance[y0:y1, x0:x1][good]))
            v_template = float(np.median(template_variance[y0:y1, x0:x1][good]))
            local = result.kernel.evaluate((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2)
            white = whitening_kernel(local, v_image, v_template)
            if middle is None or (y0 <= ny // 2 < y1 and x0 <= nx // 2 < x1):
                middle = white
            h = len(white) // 2
            window = (slice(max(y0 - h, 0), y1 + h), slice(max(x0 - h, 0), x1 + h))
            inner = (slice(y0 - window[0].start, y1 - window[0].start),
                     slice(x0 - window[1].start, x1 - window[1].start))  # fmt: skip
            difference[y0:y1, x0:x1] = fftconvolve(filled[window], white, mode="same")[inner]
            # white noise of the same zero frequency as the difference had
            grown = v_image + v_template * local.sum() ** 2
            had = v_image + v_template * (local**2).sum()
            error[y0:y1, x0:x1] = result.error[y0:y1, x0:x1] * np.sqrt(grown / had)
    mask = result.mask | binary_dilation(result.mask, np.ones((3, 3), bool))
    difference[mask] = error[mask] = np.nan
    return replace(
        result, difference=difference, error=error, scaled=difference / error, mask=mask, decorrelation=middle
    )
