"""Stars that a template cannot show: saturated ones, by a catalogue or by the field's own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# A star with less than this share of its light is one whose core is missing.
_CORE_MISSING = 0.85
# Stars that must tell so, and their share of all stars as bright.
_FEWEST = 3
_SHARE = 0.8


def saturation_level(flux: ArrayLike, ratio: ArrayLike) -> float | None:
    """Flux from which on a template's stars are saturated; None where they are not.

    Saturation strikes all stars beyond some brightness: a star alone that is fainter than it should be is a
    variable, and no reason.

    Parameters
    ----------
    flux : array (n,)
        True fluxes.
    ratio : array (n,)
        Measured over true flux, 1 for most stars.

    Examples
    --------
    >>> flux = [1, 2, 3, 10, 20, 30, 40]
    >>> saturation_level(flux, [1, 0.5, 1, 1, 0.8, 0.6, 0.3])
    20.0
    >>> saturation_level(flux, [1, 0.5, 1, 1, 1, 1, 0.3])
    """
    flux, ratio = np.asarray(flux, float), np.asarray(ratio, float)
    order = np.argsort(-flux, kind="stable")
    low = ratio[order] < _CORE_MISSING
    count = np.arange(1, len(low) + 1)
    strikes = low & (np.cumsum(low) >= _SHARE * count) & (count >= _FEWEST)
    if not strikes.any():
        return None
    return float(flux[order][np.flatnonzero(strikes)[-1]])


def unreliable_stars(
    magnitude: ArrayLike, saturation: float | None = None, error: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Stars of a catalogue whose place in a template is not to be trusted.

    Parameters
    ----------
    magnitude : array (n,)
        NaN: the survey could not measure it.
    saturation : float, optional
        Magnitude at which the survey saturates; brighter stars are unreliable.
    error : array (n,), optional
        Error of the magnitude; NaN as for the magnitude itself.
    """
    magnitude = np.asarray(magnitude, float)
    found = ~np.isfinite(magnitude)
    if error is not None:
        found |= ~np.isfinite(np.asarray(error, float))
    if saturation is not None:
        with np.errstate(invalid="ignore"):
            found |= magnitude < saturation
    return found


def mask_stars(mask: NDArray[np.bool_], x: ArrayLike, y: ArrayLike, radius: float) -> NDArray[np.bool_]:
    """A mask (y, x), True = bad, with discs around positions (pixels, centres from 0) added."""
    found = mask.copy()
    reach = int(np.ceil(radius))
    for cx, cy in zip(np.asarray(x, float), np.asarray(y, float), strict=True):
        if not (np.isfinite(cx) and np.isfinite(cy)):
            continue
        y0, y1 = max(round(cy) - reach, 0), min(round(cy) + reach + 1, mask.shape[0])
        x0, x1 = max(round(cx) - reach, 0), min(round(cx) + reach + 1, mask.shape[1])
        if y0 >= y1 or x0 >= x1:
            continue
        rows, columns = np.ogrid[y0:y1, x0:x1]
        # the pixel nearest to the star counts however small the disc
        near = np.hypot(rows - cy, columns - cx) <= max(radius, 0.71)
        found[y0:y1, x0:x1] |= near
    return found
