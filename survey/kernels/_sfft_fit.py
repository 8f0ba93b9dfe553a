"""Normal equations of the delta-basis matching kernel from one small Gram matrix a block of pixels.

Within a block the polynomials are held at its centre, so that ``H = sum_blocks (P P^T) (x) G_block``; any
mask and any weights enter the G_block. The gradient is exact, which the passes of the fit turn into an exact
solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from survey.kernels._sfft_samples import Samples, block_side
from survey.kernels.pixelmap import n_terms
from survey.kernels.subtraction import MatchingKernel

Array = NDArray[np.float64]
_CHUNK = 64  # blocks summed in one product


@dataclass(frozen=True)
class KernelModel:
    """Which polynomials the kernel, its sum and the background may use."""

    kernel_shape: tuple[int, int]
    kernel_order: int
    flux_order: int
    background_order: int
    image_shape: tuple[int, int]

    @property
    def n_kernel(self) -> int:
        """Pixels of the kernel."""
        return self.kernel_shape[0] * self.kernel_shape[1]

    @property
    def n_poly(self) -> int:
        """Polynomials in the normal equations."""
        return n_terms(max(self.kernel_order, self.flux_order, self.background_order))

    def basis(self) -> tuple[Array, NDArray[np.bool_]]:
        """Map of free parameters to all coefficients, and which parameters the ridge may shrink.

        Away from the centre the basis is "a delta less the central delta", whose sum is zero: only the
        central delta carries flux, with the polynomials of `flux_order`. No penalty is needed.
        """
        n, nb = self.n_kernel, self.n_poly
        centre = n // 2
        columns, shrink = [], []
        for a in range(n):
            order = self.flux_order if a == centre else self.kernel_order
            for b in range(n_terms(order)):
                column = np.zeros((n + 1, nb))
                column[a, b] = 1
                if a != centre:
                    column[centre, b] = -1
                columns.append(column.ravel())
                shrink.append(a != centre)
        for b in range(n_terms(self.background_order)):
            column = np.zeros((n + 1, nb))
            column[n, b] = 1
            columns.append(column.ravel())
            shrink.append(False)
        return np.array(columns).T, np.array(shrink)

    def kernel(self, coefficients: Array) -> MatchingKernel:
        """All coefficients ((n_kernel + 1) * n_poly) as a `MatchingKernel`."""
        coefficients = coefficients.reshape(self.n_kernel + 1, self.n_poly)
        used = n_terms(max(self.kernel_order, self.flux_order))
        shaped = coefficients[:-1, :used].reshape(*self.kernel_shape, used)
        background = coefficients[-1, : n_terms(self.background_order)]
        return MatchingKernel(shaped.copy(), background.copy(), self.image_shape)


def blocks_of(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners of the blocks that cover an image, in fixed order."""
    side = block_side(shape)
    return [(y, x) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


def normal_sums(model: KernelModel, samples: Samples, residual: Array, weight: Array) -> tuple[Array, Array]:
    """Normal matrix and gradient over all polynomials: sums over blocks, so those of tiles may be added.

    Parameters
    ----------
    residual : array (y, x)
        Image less the model of the pass before.
    weight : array (y, x)
        Inverse variance, 0 for pixels left out.

    Returns
    -------
    matrix : array (m, m)
        Polynomials held at the centres of blocks.
    gradient : array (m,)
        Exact, so that a few passes of `solve_step` end at the exact solution.
        m = (n_kernel + 1) * n_poly, index (kernel pixel or background, polynomial).
    """
    n, nb, side = model.n_kernel + 1, model.n_poly, block_side(residual.shape)
    total, gradient = np.zeros((nb * nb, n * n)), np.zeros((n, nb))
    frame = model.kernel(np.zeros((n, nb)))
    dy, dx = (a.ravel() for a in np.indices((side, side)))
    corners = [c for c in blocks_of(residual.shape) if weight[c[0] : c[0] + side, c[1] : c[1] + side].any()]
    for start in range(0, len(corners), _CHUNK):
        grams, products = np.zeros((_CHUNK, n, n)), np.zeros((_CHUNK, nb, nb))
        for k, (y0, x0) in enumerate(corners[start : start + _CHUNK]):
            w = _padded(weight, y0, x0, side)
            root = np.sqrt(w)
            rows = np.empty((n, side * side))
            rows[:-1] = samples.block(y0, x0, side)
            rows[-1] = 1
            rows = np.where(w > 0, rows, 0.0) * root
            grams[k] = rows @ rows.T
            gradient += (
                rows @ (frame.terms(x0 + dx, y0 + dy, nb) * (root * _padded(residual, y0, x0, side))).T
            )
            terms = frame.terms(x0 + (side - 1) / 2, y0 + (side - 1) / 2, nb)
            products[k] = np.outer(terms, terms)
        total += products.reshape(_CHUNK, -1).T @ grams.reshape(_CHUNK, -1)
    matrix = total.reshape(nb, nb, n, n).transpose(2, 0, 3, 1).reshape(n * nb, n * nb)
    return matrix, gradient.ravel()


def solve_step(model: KernelModel, matrix: Array, gradient: Array, ridge: float, parameters: Array) -> Array:
    """Next parameters of the kernel and background from the normal sums.

    Parameters
    ----------
    ridge : float
        Penalty on every parameter but the flux scale and background, relative to its own entry of the
        normal matrix.
    parameters : array
        Those whose residual made the gradient; zeros at first.

    Raises
    ------
    ValueError
        If the pixels do not determine the parameters.
    """
    basis, shrink = model.basis()
    h = basis.T @ matrix @ basis
    diagonal = np.sqrt(np.maximum(np.diag(h), np.finfo(float).tiny))
    penalty = np.where(shrink, ridge, 0.0) + 1e-13
    g = basis.T @ gradient / diagonal - penalty * parameters * diagonal
    h = h / diagonal / diagonal[:, None]
    h[np.diag_indices(len(h))] += penalty
    try:
        factor = cho_factor(h, lower=True)
    except LinAlgError as problem:
        raise ValueError(
            f"the fit has no unique solution for {len(g)} parameters: too few stars or pixels; "
            "lower kernel_shape or the polynomial orders, or raise ridge"
        ) from problem
    return parameters + cho_solve(factor, g) / diagonal


def evaluate_model(
    kernel: MatchingKernel, samples: Samples, variance: Samples | None, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Convolved template with background, and the variance the template's noise adds; arrays (y, x)."""
    model, noise = np.empty(shape), np.zeros(shape)
    coefficients = kernel.coefficients.reshape(-1, kernel.coefficients.shape[-1])
    side = block_side(shape)
    dy, dx = (a.ravel() for a in np.indices((side, side)))
    half = (side - 1) / 2
    for y0, x0 in blocks_of(shape):
        ny, nx = min(side, shape[0] - y0), min(side, shape[1] - x0)
        where = (slice(y0, y0 + ny), slice(x0, x0 + nx))
        count = max(coefficients.shape[1], len(kernel.background_coefficients))
        terms = kernel.terms(x0 + dx, y0 + dy, count)
        local = coefficients @ terms[: coefficients.shape[1]]
        value = np.einsum("ap,ap->p", local, samples.block(y0, x0, side))
        value += kernel.background_coefficients @ terms[: len(kernel.background_coefficients)]
        model[where] = value.reshape(side, side)[:ny, :nx]
        if variance is not None:
            central = kernel.evaluate(x0 + half, y0 + half).ravel() ** 2
            noise[where] = (central @ variance.block(y0, x0, side)).reshape(side, side)[:ny, :nx]
    return model, noise


def _padded(image: Array, y0: int, x0: int, side: int) -> Array:
    part = image[y0 : y0 + side, x0 : x0 + side]
    if part.shape == (side, side):
        return part.ravel()
    out = np.zeros((side, side))
    out[: part.shape[0], : part.shape[1]] = part
    return out.ravel()
