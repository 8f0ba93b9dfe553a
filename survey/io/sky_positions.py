"""Between pixels and the sky, by a WCS with its distortion polynomials."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS, NoConvergence
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Pixels to which the inverse of a distortion is iterated.
_TOLERANCE = 1e-6


def sky_to_pixels(wcs: WCS, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
    """Pixel x and y (centres from 0) of positions in degrees.

    NaN where a position does not project, or lies so far outside that the distortion cannot be inverted.
    """
    sky = np.column_stack([np.ravel(ra), np.ravel(dec)]).astype(float)
    pixels = np.full(sky.shape, np.nan)
    finite = np.isfinite(sky).all(axis=1)
    if finite.any():
        pixels[finite] = wcs.wcs_world2pix(sky[finite], 0)
    projected = np.flatnonzero(np.isfinite(pixels).all(axis=1))
    if wcs.has_distortion and len(projected):
        try:
            pixels[projected] = wcs.all_world2pix(sky[projected], 0, tolerance=_TOLERANCE)
        except NoConvergence as problem:
            found = np.array(problem.best_solution, float)
            for failed in (problem.divergent, problem.slow_conv):
                if failed is not None:
                    found[failed] = np.nan
            pixels[projected] = found
    return pixels[:, 0], pixels[:, 1]


def pixels_to_sky(wcs: WCS, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """RA and Dec in degrees of pixels (centres from 0)."""
    pixels = np.column_stack([np.ravel(x), np.ravel(y)]).astype(float)
    if not len(pixels):
        return np.empty(0), np.empty(0)
    sky = wcs.all_pix2world(pixels, 0)
    return sky[:, 0], sky[:, 1]
