"""The one result type of all classical subtractions, and the kernel that matched two images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels.pixelmap import n_terms, polynomial_terms

Array = NDArray[np.float64]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class MatchingKernel:
    """Spatially varying delta-basis kernel and background.

    Attributes
    ----------
    coefficients : array (ky, kx, n_terms)
        ``K(a; x, y) = sum_b coefficients[a + half, b] P_b(x, y)``; terms as in
        `survey.kernels.pixelmap.polynomial_terms` of x and y on [-1, 1]. The convolved template at p is
        ``sum_a K(a; p) template(p - a)``.
    background_coefficients : array (n_terms,)
        Difference of the two backgrounds, image minus convolved template, in image units.
    image_shape : tuple of int
        (y, x) shape that [-1, 1] spans.
    """

    coefficients: Array
    background_coefficients: Array
    image_shape: tuple[int, int]

    def terms(self, x: ArrayLike, y: ArrayLike, count: int) -> Array:
        """The first ``count`` polynomials at pixel positions, shape (count, ...)."""
        order = next(k for k in range(count) if n_terms(k) >= count)
        ny, nx = self.image_shape
        u = 2 * np.asarray(x, float) / max(nx - 1, 1) - 1
        v = 2 * np.asarray(y, float) / max(ny - 1, 1) - 1
        return polynomial_terms(u, v, order)[:count]

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Kernel at pixel positions, shape (..., ky, kx)."""
        terms = self.terms(x, y, self.coefficients.shape[-1])
        return np.moveaxis(np.tensordot(self.coefficients, terms, axes=1), (0, 1), (-2, -1))

    def flux_scale(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Sum of the kernel at pixel positions: image flux per template flux."""
        return np.asarray(self.evaluate(x, y).sum((-2, -1)))

    def background(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Background difference at pixel positions."""
        terms = self.terms(x, y, len(self.background_coefficients))
        return np.asarray(np.tensordot(self.background_coefficients, terms, axes=1))


@dataclass(frozen=True)
class Subtraction:
    """An image less its matched template; all arrays (y, x).

    Attributes
    ----------
    difference : array
        Image minus convolved template, in image units; NaN where ``mask`` is set.
    error : array
        1-sigma error of the difference.
    scaled : array
        difference / error.
    convolved : array
        The template as it should look in the image, background included.
    mask : bool array
        Pixels without a difference: bad in the image, or within the kernel's reach of a bad template pixel.
    fit_mask : bool array
        Pixels kept out of the fit: ``mask``, outliers, pixels away from the stars where stars were given, and
        in a sparse field most of those that hold sky alone.
    kernel : MatchingKernel, or what the method calls its kernel
    direction : {'template', 'image'}
        Which of the two was convolved; where it is the image, ``convolved`` is the image in the template's
        units, ``kernel`` makes it of the image (its flux scale is template flux per image flux), and the
        difference has the template's PSF.
    model_error : float
        Fraction of a bright star's flux by which the model misses it; not part of ``error``.
    decorrelation : array (k, k), optional
        Kernel that the difference was whitened with, near the middle of the image.
    psf_flux, psf_flux_error, significance : array, optional
        PSF flux of a point source at every pixel, its error, and the matched filter's S/N with all sources
        of noise, where the method gives them (zogy).
    psf : array (k, k), optional
        PSF of the difference near the middle of the image, where the method knows it.
    """

    difference: Floats
    error: Floats
    scaled: Floats
    convolved: Floats
    mask: NDArray[np.bool_]
    fit_mask: NDArray[np.bool_]
    kernel: Any
    direction: str = "template"
    model_error: float = 0.0
    decorrelation: Floats | None = None
    psf_flux: Floats | None = None
    psf_flux_error: Floats | None = None
    significance: Floats | None = None
    psf: Floats | None = None
