"""Pixels that scatter more than their errors say, for a search that must not take them for events."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import erf

_CUT = 3.0
# Below this a pixel's scatter is taken for what it should be: with 100 epochs it is known to 7 %.
_LEAST = 1.1
_WIDEST = 50.0


def excess_scatter(
    flux: NDArray[np.floating], error: NDArray[np.floating], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Factor (y, x) >= 1 by which a pixel's differences scatter beyond their errors over time.

    Near the cores of very bright stars a polynomial reference, a flat field or a PSF that changes leaves
    more than noise. Errors multiplied by this factor keep such pixels' S/N at unit variance; the identities
    of leave-one-out differences (`survey.kernels.reference.Difference`) hold as before, because the factor
    is constant in time.

    Parameters
    ----------
    flux, error : array (time, y, x)
        Differences and 1-sigma errors.
    mask : bool array (time, y, x)
        True = bad.

    Notes
    -----
    The width s of a Gaussian whose mean of min(z**2, 9), z = flux / error, is the pixel's: epochs of an
    event count at most as 3 sigma. Excesses below 10 % are left at 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=(400, 1, 2)) * [1.0, 2.0]
    >>> excess_scatter(noise, np.ones_like(noise), noise > 99).round(1).tolist()
    [[1.0, 2.0]]
    """
    if flux.ndim != 3 or error.shape != flux.shape or mask.shape != flux.shape:
        raise ValueError(
            f"flux {flux.shape}, error {error.shape}, mask {mask.shape}: one (time, y, x) is meant"
        )
    mean = _clipped_square(flux, error, mask)
    widths = np.geomspace(0.3, _WIDEST, 400)
    c = _CUT / widths
    density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
    inside = erf(c / np.sqrt(2))
    expected = widths**2 * (inside - 2 * c * density) + _CUT**2 * (1 - inside)
    width = np.interp(mean, expected, widths)
    return np.where(width > _LEAST, width, 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _clipped_square(flux, error, mask):
    """Mean over good epochs of min((flux / error)**2, 9); 1 where there is none; shape (y, x)."""
    n_time, ny, nx = flux.shape
    total = np.zeros((ny, nx))
    count = np.zeros((ny, nx))
    top = _CUT * _CUT
    for k in range(n_time):
        for y in range(ny):
            f, e, m = flux[k, y], error[k, y], mask[k, y]
            t, c = total[y], count[y]
            for x in range(nx):
                z = f[x] / e[x]
                square = z * z
                good = (not m[x]) & (square < np.inf) & (e[x] > 0)
                t[x] += min(square, top) if good else 0.0
                c[x] += 1.0 if good else 0.0
    for y in range(ny):
        for x in range(nx):
            total[y, x] = total[y, x] / count[y, x] if count[y, x] > 0 else 1.0
    return total
