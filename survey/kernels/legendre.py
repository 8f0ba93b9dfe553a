"""Legendre polynomials over a pixel's phase: bases, gradients and the products that make normal matrices.

A pixel's surface is R(y, x) = sum_lm theta[l, m] P_l(2 y / f) P_m(2 x / f) with phases y, x in pixels from
the pixel's centre and f the extension factor (Albrow 2025, AJ 169, 297, section 2). A product of two
polynomials of degree < n has degree < 2n - 1, so (2n - 1)^2 moments of the weights hold everything that
the n^4 entries of a pixel's normal matrix say.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre as _legendre
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def legendre_values(u: ArrayLike, n: int) -> Array:
    """Legendre polynomials P_0 ... P_{n-1} at `u`; shape (n, ...).

    Examples
    --------
    >>> legendre_values(0.5, 3).round(3).tolist()
    [1.0, 0.5, -0.125]
    """
    u = np.asarray(u, float)
    values = np.empty((n, *u.shape))
    values[0] = 1.0
    if n > 1:
        values[1] = u
    for i in range(2, n):
        values[i] = ((2 * i - 1) * u * values[i - 1] - (i - 1) * values[i - 2]) / i
    return values


def legendre_derivatives(u: ArrayLike, n: int) -> Array:
    """Derivatives dP_i/du of the first `n` Legendre polynomials at `u`; shape (n, ...).

    Examples
    --------
    >>> legendre_derivatives(0.5, 3).tolist()
    [0.0, 1.0, 1.5]
    """
    u = np.asarray(u, float)
    values = legendre_values(u, n)
    derivatives = np.zeros_like(values)
    for i in range(1, n):
        derivatives[i] = i * values[i - 1] + u * derivatives[i - 1]
    return derivatives


def phase_basis(phase: ArrayLike, n: int, extension: float) -> Array:
    """Basis of one axis at phases in pixels, P_i(2 phase / extension); shape (n, ...)."""
    return legendre_values(2.0 * np.asarray(phase, float) / extension, n)


def phase_basis_gradient(phase: ArrayLike, n: int, extension: float) -> Array:
    """Derivative of `phase_basis` by the phase, per pixel; shape (n, ...)."""
    return legendre_derivatives(2.0 * np.asarray(phase, float) / extension, n) * (2.0 / extension)


def design_matrix(phase_y: ArrayLike, phase_x: ArrayLike, n_basis: int, extension: float) -> Array:
    """Design rows of a two-dimensional fit, column ``l * n_basis + m`` for P_l(y) P_m(x).

    Parameters
    ----------
    phase_y, phase_x : array (...)
        Phases in pixels.
    n_basis : int
        Polynomials per axis.
    extension : float
        Width of the domain in pixels.

    Returns
    -------
    array (..., n_basis**2)
    """
    by = np.moveaxis(phase_basis(phase_y, n_basis, extension), 0, -1)
    bx = np.moveaxis(phase_basis(phase_x, n_basis, extension), 0, -1)
    product = by[..., :, None] * bx[..., None, :]
    return product.reshape(*product.shape[:-2], n_basis**2)


def product_table(n: int) -> Array:
    """Coefficients c of P_i P_j = sum_a c[i, j, a] P_a; shape (n, n, 2n - 1).

    Examples
    --------
    >>> product_table(2)[1, 1].round(3).tolist()
    [0.333, 0.0, 0.667]
    """
    table = np.zeros((n, n, 2 * n - 1))
    unit = np.eye(n)
    for i in range(n):
        for j in range(n):
            product = _legendre.legmul(unit[i], unit[j])
            table[i, j, : len(product)] = product
    return table
