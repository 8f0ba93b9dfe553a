"""PSF-fitted fluxes of stars whose PSF is known but for its shape.

A matched difference of a bright star holds light moved about within the star: the kernel, or the template
between its pixels, misses some percent of each pixel. None of it is flux, yet a PSF fit, which weighs the
core most, takes it for some. Here that error is part of the noise: besides ``flux * P``, the data hold
``amplitude * sum_ab c_ab h_ab``, with coefficients ``c_ab`` of mean 0 and variance 1 and Gauss-Hermite
functions ``h_ab``, all derivatives of a Gaussian and therefore without flux of their own. The flux is the
generalised least-squares one of that covariance: a PSF fit where the noise rules, and nearly a sum over the
star where the PSF's shape does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.hermite_e import hermeval
from numpy.typing import ArrayLike, NDArray

from survey.kernels._psf_flux import inverse_variance

Array = NDArray[np.float64]

# Highest total degree of the shape's terms, and their Gaussian's width in units of the PSF's.
ORDER = 8
WIDTH = 1.25
SIGMA = 1 / 2.3548


def fit_flux_and_shape(
    stamps: ArrayLike,
    errors: ArrayLike,
    mask: ArrayLike,
    psf: ArrayLike,
    offset_y: ArrayLike,
    offset_x: ArrayLike,
    *,
    fwhm: ArrayLike,
    amplitude: float,
    order: int = ORDER,
    min_coverage: float = 0.8,
) -> tuple[Array, Array]:
    """PSF flux of every epoch of one star, and its 1-sigma error.

    Parameters
    ----------
    stamps, errors : arrays (time, y, x)
    mask : bool array (time, y, x)
        True = bad.
    psf : array (time, y, x)
        Of unit flux.
    offset_y, offset_x : arrays (time, y, x)
        Places of the samples, counted from the star, pixels.
    fwhm : array (time,)
        Of the PSF, pixels.
    amplitude : float
        1-sigma size of the shape's error, in flux: a share of the star's own. Zero: a plain PSF fit.
    order : int
        Highest degree of the shape's terms.
    min_coverage : float
        Least share of sum(P^2) in good samples.

    Returns
    -------
    flux, error : arrays (time,)
        NaN and infinite where too little of the PSF is good.

    Examples
    --------
    >>> from survey.kernels.psf import gaussian_epsf
    >>> y, x = np.indices((11, 11)) - 5.0
    >>> true, known = (gaussian_epsf(w).evaluate([0.0], [0.0], 11) for w in (2.1, 2.0))
    >>> data, error, good = 1000 * true, np.ones((1, 11, 11)), np.zeros((1, 11, 11), bool)
    >>> fits = [
    ...     fit_flux_and_shape(data, error, good, known, y[None], x[None], fwhm=[2.0], amplitude=a)[0]
    ...     for a in (0.0, 100.0)
    ... ]
    >>> abs(float(fits[0][0]) - 1000) > 30, abs(float(fits[1][0]) - 1000) < 10
    (True, True)
    """
    stamps, errors, psf = (np.asarray(a, float) for a in (stamps, errors, psf))
    n = len(stamps)
    weight = inverse_variance(stamps, errors, np.asarray(mask, bool))
    terms = shape_terms(offset_y, offset_x, np.asarray(fwhm, float), order)
    design = np.concatenate([psf[..., None], terms], axis=-1).reshape(n, -1, terms.shape[-1] + 1)
    weight = weight.reshape(n, -1)
    data = np.where(weight > 0, stamps.reshape(n, -1), 0.0)
    power = psf.reshape(n, -1) ** 2
    whole = power.sum(axis=1)
    usable = (whole > 0) & ((power * (weight > 0)).sum(axis=1) >= min_coverage * whole)
    usable &= np.isfinite(design).all(axis=(1, 2))
    flux, error = np.full(n, np.nan), np.full(n, np.inf)
    if not usable.any():
        return flux, error
    design, weight, data = design[usable], weight[usable], data[usable]
    weighted = np.swapaxes(design * weight[..., None], 1, 2)
    normal, moment = weighted @ design, weighted @ data[..., None]
    if amplitude > 0:
        index = np.arange(1, normal.shape[-1])
        normal[:, index, index] += 1 / amplitude**2
    else:
        normal, moment = normal[:, :1, :1], moment[:, :1]
    inverse = np.linalg.inv(normal)
    flux[usable] = (inverse @ moment)[:, 0, 0]
    error[usable] = np.sqrt(inverse[:, 0, 0])
    return flux, error


def shape_terms(offset_y: ArrayLike, offset_x: ArrayLike, fwhm: Array, order: int = ORDER) -> Array:
    """Gauss-Hermite functions (time, y, x, term) of degrees 1 to `order`, of a Gaussian of flux 1."""
    sigma = (WIDTH * SIGMA * fwhm)[:, None, None]
    v, u = np.asarray(offset_y, float) / sigma, np.asarray(offset_x, float) / sigma
    gauss = np.exp(-0.5 * (u**2 + v**2)) / (2 * np.pi * sigma**2)
    along = [
        [hermeval(t, np.eye(order + 1)[k]) / math.sqrt(math.factorial(k)) for k in range(order + 1)]
        for t in (v, u)
    ]
    pairs = [(k, degree - k) for degree in range(1, order + 1) for k in range(degree + 1)]
    return np.stack([along[0][a] * along[1][b] * gauss for a, b in pairs], axis=-1)
