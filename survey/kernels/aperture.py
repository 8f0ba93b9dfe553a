"""Aperture photometry; light curves relative to an ensemble come from `survey.kernels.ensemble`."""

from __future__ import annotations

import numpy as np
import sep
from numba import njit
from numpy.typing import ArrayLike, NDArray

from survey.kernels.ensemble import EnsembleLightCurve, ensemble_light_curve

__all__ = ["EnsembleLightCurve", "aperture_flux", "ensemble_light_curve"]

Array = NDArray[np.float64]


def aperture_flux(
    image: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike | None,
    x: ArrayLike,
    y: ArrayLike,
    radius: float,
    annulus: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Sums of pixels in circles, less the sky of a ring.

    Parameters
    ----------
    image, error : array (y, x)
    mask : bool array (y, x), optional
        True = bad.
    x, y : array (n,)
        Centres in pixels.
    radius : float
        Of the circle, pixels; pixels on its rim count by their exact overlap.
    annulus : tuple of float, optional
        Inner and outer radius of the sky's ring; its clipped mean is taken away. None: the image's sky
        is zero already.

    Returns
    -------
    flux, flux_error : array (n,)
        NaN where the circle leaves the image or holds a bad pixel.

    Raises
    ------
    ValueError
        If the radii do not grow.

    Examples
    --------
    >>> flux, error = aperture_flux(np.full((20, 20), 3.0), np.ones((20, 20)), None, [9.0], [9.0], 2.0)
    >>> flux.round(3), error.round(3)
    (array([37.699]), array([3.545]))
    """
    if annulus is not None and not radius <= annulus[0] < annulus[1]:
        raise ValueError(f"radii must grow outwards: circle {radius}, ring {annulus[0]} to {annulus[1]} px")
    image = np.ascontiguousarray(image, float)
    error = np.ascontiguousarray(error, float)
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    bad = ~np.isfinite(image) | ~np.isfinite(error)
    if mask is not None:
        bad |= np.asarray(mask, bool)
    inside = np.isfinite(x) & np.isfinite(y)
    inside &= (x > radius - 0.5) & (x < image.shape[1] - 0.5 - radius)
    inside &= (y > radius - 0.5) & (y < image.shape[0] - 0.5 - radius)
    flux, flux_error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    if not inside.any():
        return flux, flux_error
    # Bad pixels may hold NaN, which sep would add; circles with bad pixels come out NaN all the same.
    clean = np.where(bad, 0.0, image)
    clean_error = np.where(bad, 0.0, error)
    total, total_error, _ = sep.sum_circle(clean, x[inside], y[inside], radius, err=clean_error, subpix=0)
    touched, _, _ = sep.sum_circle(bad.astype(float), x[inside], y[inside], radius, subpix=0)
    if annulus is not None:
        sky, sky_error = _ring_sky(image, bad, x[inside], y[inside], float(annulus[0]), float(annulus[1]))
        area = np.pi * radius**2
        total = total - area * sky
        total_error = np.hypot(total_error, area * sky_error)
    flux[inside] = np.where(touched > 1e-9, np.nan, total)
    flux_error[inside] = np.where(touched > 1e-9, np.nan, total_error)
    return flux, flux_error


@njit(cache=True, nogil=True)
def _ring_sky(image, bad, x, y, inner, outer):
    """Clipped mean of the ring around each position and its error; NaN without good pixels."""
    sky, sky_error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    reach = int(np.ceil(outer)) + 1
    values = np.empty((2 * reach + 2) ** 2)
    for k in range(len(x)):
        n = 0
        for j in range(max(int(y[k]) - reach, 0), min(int(y[k]) + reach + 2, image.shape[0])):
            for i in range(max(int(x[k]) - reach, 0), min(int(x[k]) + reach + 2, image.shape[1])):
                square = (i - x[k]) ** 2 + (j - y[k]) ** 2
                if inner**2 <= square <= outer**2 and not bad[j, i]:
                    values[n] = image[j, i]
                    n += 1
        ring = np.sort(values[:n])
        # Sums up to every value about the middle one, so that no pass has to add anything up again.
        middle = ring[n // 2] if n else 0.0
        total, square = np.zeros(n + 1), np.zeros(n + 1)
        for i in range(n):
            total[i + 1] = total[i] + (ring[i] - middle)
            square[i + 1] = square[i] + (ring[i] - middle) ** 2
        low, high = 0, n
        for _ in range(6):
            n = high - low
            if n < 5:
                break
            # A digitised sky can have a middle half of one value: the standard deviation has not.
            spread = _spread(total, square, low, high)
            sigma = max((ring[low + (3 * n) // 4] - ring[low + n // 4]) / 1.349, 0.3 * spread, 1e-12)
            half = low + n // 2
            centre = ring[half] if n % 2 else 0.5 * (ring[half - 1] + ring[half])
            first = low + np.searchsorted(ring[low:high], centre - 3 * sigma)
            last = low + np.searchsorted(ring[low:high], centre + 3 * sigma, side="right")
            if last - first == n:
                break
            low, high = first, last
        n = high - low
        if n >= 5:
            sky[k] = middle + (total[high] - total[low]) / n
            sky_error[k] = _spread(total, square, low, high) / np.sqrt(n)
    return sky, sky_error


@njit(cache=True, nogil=True)
def _spread(total, square, low, high):
    """Standard deviation of values ``low`` to ``high`` from running sums."""
    n = high - low
    mean = (total[high] - total[low]) / n
    return np.sqrt(max((square[high] - square[low]) / n - mean**2, 0.0))
