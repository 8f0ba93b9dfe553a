"""The delta-basis matching kernel as a linear model: its basis, and its solution from normal sums.

Flux constancy is a change of basis, not a penalty: away from the centre of the kernel the basis is "a delta
less the central delta", whose sum is zero, so only the central delta carries flux and no other parameter can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from survey.kernels.pixelmap import n_terms
from survey.kernels.subtraction import MatchingKernel

Array = NDArray[np.float64]


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
    def order(self) -> int:
        """Highest degree of all."""
        return max(self.kernel_order, self.flux_order, self.background_order)

    @property
    def n_poly(self) -> int:
        """Polynomials in the normal equations."""
        return n_terms(self.order)

    @property
    def n_parameters(self) -> int:
        """Free parameters."""
        return (
            (self.n_kernel - 1) * n_terms(self.kernel_order)
            + n_terms(self.flux_order)
            + n_terms(self.background_order)
        )

    @cached_property
    def _layout(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Of every free parameter: its coefficient, the central one it is taken from (-1: none), shape?"""
        nb, centre = self.n_poly, self.n_kernel // 2
        own, less, shape = [], [], []
        for a in range(self.n_kernel):
            order = self.flux_order if a == centre else self.kernel_order
            for b in range(n_terms(order)):
                own.append(a * nb + b)
                less.append(-1 if a == centre else centre * nb + b)
                shape.append(a != centre)
        for b in range(n_terms(self.background_order)):
            own.append(self.n_kernel * nb + b)
            less.append(-1)
            shape.append(False)
        return np.array(own), np.array(less), np.array(shape)

    @property
    def shrinks(self) -> NDArray[np.bool_]:
        """Parameters of the kernel's shape, which the ridge may shrink."""
        return self._layout[2]

    @property
    def flux_index(self) -> int:
        """Which free parameter is the kernel's sum, its constant term."""
        return (self.n_kernel // 2) * n_terms(self.kernel_order)

    def reduce(self, array: Array) -> Array:
        """Rows that belong to all coefficients -> rows that belong to free parameters."""
        own, less, _ = self._layout
        out = array[own].copy()
        tied = less >= 0
        out[tied] -= array[less[tied]]
        return out

    def expand(self, parameters: Array) -> Array:
        """Free parameters -> all coefficients, (n_kernel + 1, n_poly)."""
        own, less, _ = self._layout
        out = np.zeros((self.n_kernel + 1) * self.n_poly)
        out[own] = parameters
        tied = less >= 0
        np.subtract.at(out, less[tied], parameters[tied])
        return out.reshape(self.n_kernel + 1, self.n_poly)

    def kernel(self, coefficients: Array) -> MatchingKernel:
        """All coefficients ((n_kernel + 1) * n_poly) as a `MatchingKernel`."""
        coefficients = coefficients.reshape(self.n_kernel + 1, self.n_poly)
        used = n_terms(max(self.kernel_order, self.flux_order))
        shaped = coefficients[:-1, :used].reshape(*self.kernel_shape, used)
        background = coefficients[-1, : n_terms(self.background_order)]
        return MatchingKernel(shaped.copy(), background.copy(), self.image_shape)


class Normal:
    """Normal matrix of a fit, factorised once; several gradients may use it.

    Parameters
    ----------
    matrix : array (m, m)
        Over all coefficients, m = (n_kernel + 1) * n_poly.
    ridge : float
        Penalty on every parameter but flux scale and background, relative to its own entry of the matrix.

    Raises
    ------
    ValueError
        If the pixels do not determine the parameters.
    """

    def __init__(self, model: KernelModel, matrix: Array, ridge: float) -> None:
        self.model = model
        reduced = model.reduce(model.reduce(matrix).T)
        self._scale = np.sqrt(np.maximum(np.diag(reduced), np.finfo(float).tiny))
        reduced /= self._scale
        reduced /= self._scale[:, None]
        self._penalty = np.where(model.shrinks, ridge, 0.0) + 1e-13
        reduced[np.diag_indices(len(reduced))] += self._penalty
        try:
            self._factor = cho_factor(reduced, lower=True, overwrite_a=True)
        except LinAlgError as problem:
            raise ValueError(
                f"the fit has no unique solution for {len(reduced)} parameters: too few stars or pixels; "
                "lower kernel_shape or the polynomial orders, or raise ridge"
            ) from problem

    def flux(self, parameters: Array) -> tuple[float, float]:
        """The flux scale at the field's middle, and its 1-sigma error by the weights."""
        unit = np.zeros(len(parameters))
        unit[self.model.flux_index] = 1
        inverse = float(cho_solve(self._factor, unit) @ unit)
        return float(unit @ parameters), float(np.sqrt(inverse) / (unit @ self._scale))

    def step(self, gradient: Array, parameters: Array) -> Array:
        """Next parameters; ``gradient`` is of the residual that ``parameters`` leave."""
        g = self.model.reduce(gradient) / self._scale - self._penalty * parameters * self._scale
        return np.asarray(parameters + cho_solve(self._factor, g) / self._scale)
