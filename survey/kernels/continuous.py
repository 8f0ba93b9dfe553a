"""Images evaluated between their pixels: by a cubic spline, or by an oversampled reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates, maximum_filter, spline_filter

from survey.kernels.legendre import design_matrix
from survey.kernels.reference import ReferenceFit

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def fill_holes(values: NDArray[np.floating], bad: Mask) -> NDArray[np.floating]:
    """Bad pixels set to the value of the nearest good one: a spline rings about a step."""
    if not bad.any() or bad.all():
        return values
    return values[tuple(distance_transform_edt(bad, return_distances=False, return_indices=True))]


def spline_at(flux: Array, variance: Array, bad: Mask, at: ArrayLike) -> tuple[Array, Array, Mask]:
    """A well-sampled image at any positions by its cubic spline.

    Parameters
    ----------
    flux, variance : array (y, x)
    bad : bool array (y, x)
    at : array (2, ...)
        Positions (y, x) in pixels.

    Returns
    -------
    flux, variance : arrays (...)
        The variance is that of the pixels around, as if the spline made it no smaller.
    bad : bool array (...)
        Off the image, or a bad pixel in the spline's reach of two pixels.
    """
    at = np.asarray(at, float)
    coefficients = spline_filter(fill_holes(flux, bad), 3, mode="mirror")
    value = map_coordinates(coefficients, at, order=3, mode="mirror", prefilter=False)
    noise = map_coordinates(np.where(bad, 0.0, variance), at, order=1, mode="nearest")
    spoilt = maximum_filter(bad, size=5, mode="constant", cval=True)
    off = map_coordinates(spoilt.astype(np.uint8), at, order=0, mode="constant", cval=1).astype(bool)
    return value, np.maximum(noise, 0.0), off


def reference_at(reference: ReferenceFit, at: ArrayLike) -> tuple[Array, Mask]:
    """An oversampled reference at any positions (2, ...): each by the pixel nearest to it.

    Returns
    -------
    flux : array (...)
    bad : bool array (...)
        Off the image, or a pixel without reference.
    """
    y, x = np.asarray(at, float)
    iy, ix = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    height, width = reference.valid.shape
    off = (iy < 0) | (iy >= height) | (ix < 0) | (ix >= width)
    cy, cx = np.clip(iy, 0, height - 1), np.clip(ix, 0, width - 1)
    n = reference.n_basis
    basis = design_matrix(
        np.clip(y - iy, -0.5, 0.5).ravel(), np.clip(x - ix, -0.5, 0.5).ravel(), n, reference.extension
    )
    coefficients = reference.coefficients[cy.ravel(), cx.ravel()].reshape(-1, n * n)
    value = np.einsum("pt,pt->p", coefficients, basis).reshape(y.shape)
    bad = off | ~reference.valid[cy, cx]
    return np.where(bad, 0.0, value), bad
