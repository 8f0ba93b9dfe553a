"""Sums of the normal equations of a matching kernel; those of tiles may be added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm

Array = NDArray[np.float64]
NORMAL_SQUARED = 0.4549  # median square of a standard normal number


@dataclass
class Sums:
    """What a pass adds up; sums of tiles may be added in a fixed order.

    Attributes
    ----------
    matrix : array (m, m) or None
    gradient : array (m,)
        m = (n_kernel + 1) * n_poly, index (kernel pixel or background, polynomial).
    pixels, clipped : int
        In the fit, and left out as outliers.
    bright : array (n, 3)
        Of the brightest pixel of blocks that hold a bright star: residual, variance, model without sky.
    noise : array (n_kernel, n_poly, n_poly), optional
        What the template's noise adds to the matrix.
    """

    matrix: Array | None
    gradient: Array
    pixels: int
    clipped: int
    bright: Array
    noise: Array | None = None

    def __add__(self, other: Sums) -> Sums:
        matrix, noise = (
            None if mine is None or theirs is None else np.asarray(mine + theirs)
            for mine, theirs in ((self.matrix, other.matrix), (self.noise, other.noise))
        )
        return Sums(
            matrix,
            self.gradient + other.gradient,
            self.pixels + other.pixels,
            self.clipped + other.clipped,
            np.concatenate([self.bright, other.bright]),
            noise,
        )

    def corrected(self, kept: float, coefficients: Array | None) -> tuple[Array | None, Array]:
        """Matrix and gradient without the template's noise, but for a part of it that stays as a ridge."""
        if self.noise is None:
            return self.matrix, self.gradient
        n, nb = self.noise.shape[:2]
        out = (1 - kept) * self.noise
        gradient = self.gradient.copy()
        if coefficients is not None:
            gradient[: n * nb] += np.einsum("abc,ac->ab", out, coefficients[:-1]).ravel()
        if self.matrix is None:
            return None, gradient
        matrix = self.matrix.copy()
        blocks = matrix[: n * nb, : n * nb].reshape(n, nb, n, nb)
        index = np.arange(n)
        blocks[index, :, index, :] -= out
        return matrix, gradient

    def model_error(self) -> float:
        """Fraction of the model that counts as error so that bright stars' median chi2 is a normal's."""
        if len(self.bright) < 5:
            return 0.0
        residual, variance, flux = self.bright.T
        low, high = 0.0, 1.0
        if np.median(residual**2 / variance) <= NORMAL_SQUARED:
            return 0.0
        for _ in range(30):
            middle = (low + high) / 2
            chi2 = np.median(residual**2 / (variance + (middle * flux) ** 2))
            low, high = (middle, high) if chi2 > NORMAL_SQUARED else (low, middle)
        return high


def normal_matrix(grams: Array, edges: Array, order: int) -> Array:
    """The whole symmetric matrix of all coefficients.

    Parameters
    ----------
    grams : array (n_terms(2 * order), n, n)
        Of every monomial that is a product of two polynomials: the Gram matrix of the samples; only its upper
        triangle is read.
    edges : array (n_terms(2 * order), n + 1)
        Sums of the samples, and of the weights: the background's constant.
    """
    n = grams.shape[1]
    whole = np.empty((len(grams), n + 1, n + 1))
    whole[:, :n, :n] = np.triu(grams) + np.triu(grams, 1).transpose(0, 2, 1)
    whole[:, n], whole[:, :, n] = edges, edges
    powers = [(d, j) for d in range(order + 1) for j in range(d + 1)]
    nb = len(powers)
    out = np.empty((n + 1, nb, n + 1, nb))
    for b, (d, j) in enumerate(powers):
        for c, (e, k) in enumerate(powers):
            out[:, b, :, c] = whole[(d + e) * (d + e + 1) // 2 + j + k]
    return out.reshape((n + 1) * nb, (n + 1) * nb)


def add_products(total: Array, products: Array, values: Array) -> None:
    """Add ``products.T @ values`` to ``total`` in its place: it may be the largest array there is.

    Parameters
    ----------
    total : array (products, m)
    products : array (n, products)
    values : array (n, m)
    """
    dgemm(1.0, values.T, products.T, 1.0, total.T, trans_b=1, overwrite_c=1)
