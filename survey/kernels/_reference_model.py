"""What a reference fit leaves behind: coefficients, counts, sums for a later night."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels.legendre import phase_basis, phase_basis_gradient, product_table

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ReferenceFit:
    """Coefficients of the oversampled reference.

    Attributes
    ----------
    coefficients : array (y, x, ky, kx)
        theta[l, m] of R(y, x) = sum theta[l, m] P_l(2 y / extension) P_m(2 x / extension), in units of flux;
        zero where not `valid`.
    n_used : int array (y, x)
        Images whose sample of this pixel entered the fit.
    chi2 : array (y, x)
        Sum over those samples of (difference / error)^2, leave-one-out; `n_used` is expected.
    valid : bool array (y, x)
        False where there were too few images.
    extension : float
        Width of the domain in pixels.
    normal : array (y, x, 2 n - 1, 2 n - 1) or None
        Moments sum w P_a P_b of the weights: the whole normal matrix (see `normal_matrix`).
    moment : array (y, x, n, n) or None
        Right-hand sides sum w flux P_l P_m.
    """

    coefficients: Array
    n_used: NDArray[np.integer]
    chi2: Array
    valid: Mask
    extension: float = 1.2
    normal: Array | None = None
    moment: Array | None = None

    @property
    def n_basis(self) -> int:
        """Polynomials per axis."""
        return self.coefficients.shape[-1]

    def evaluate(self, phase_y: ArrayLike, phase_x: ArrayLike) -> Array:
        """Reference flux at phases (time,) or (time, y, x); shape (time, y, x), NaN where not valid."""
        return self._surface(phase_basis, phase_basis, phase_y, phase_x)

    def gradient(self, phase_y: ArrayLike, phase_x: ArrayLike) -> tuple[Array, Array]:
        """Derivatives of the reference by y and by x, flux per pixel; two arrays (time, y, x)."""
        return (
            self._surface(phase_basis_gradient, phase_basis, phase_y, phase_x),
            self._surface(phase_basis, phase_basis_gradient, phase_y, phase_x),
        )

    def oversample(self, factor: int) -> Array:
        """Reference on a grid `factor` times finer; shape (y * factor, x * factor), NaN where not valid.

        Fine pixel (i, j) holds what a pixel centred on it would record: fluxes per detector pixel.
        """
        phase = (np.arange(factor) + 0.5) / factor - 0.5
        basis = phase_basis(phase, self.n_basis, self.extension)
        fine = np.einsum("yxlm,la,mb->yaxb", self.coefficients, basis, basis, optimize=True)
        fine = np.where(self.valid[:, None, :, None], fine, np.nan)
        return fine.reshape(self.valid.shape[0] * factor, self.valid.shape[1] * factor)

    def normal_matrix(self) -> Array:
        """Normal matrices (y, x, n**2, n**2), without ridge, from the moments kept.

        Raises
        ------
        ValueError
            If the fit was made without ``keep_normal=True``.
        """
        if self.normal is None:
            raise ValueError("this reference kept no normal matrices; fit with keep_normal=True")
        n, table = self.n_basis, product_table(self.n_basis)
        full = np.einsum("yxab,ika,jlb->yxijkl", self.normal, table, table, optimize=True)
        return full.reshape(*self.valid.shape, n * n, n * n)

    def _surface(self, basis_y, basis_x, phase_y: ArrayLike, phase_x: ArrayLike) -> Array:
        phase_y, phase_x = np.asarray(phase_y, float), np.asarray(phase_x, float)
        n, f = self.n_basis, self.extension
        out = np.empty((len(phase_y), *self.valid.shape))
        for k in range(len(phase_y)):
            by, bx = basis_y(phase_y[k], n, f), basis_x(phase_x[k], n, f)
            if by.ndim == 1:
                out[k] = (self.coefficients @ bx) @ by
            else:
                line = np.einsum("yxlm,myx->lyx", self.coefficients, bx)
                out[k] = np.einsum("lyx,lyx->yx", line, by)
        out[:, ~self.valid] = np.nan
        return out


@dataclass(frozen=True)
class Difference:
    """Differences against the reference; all arrays (time, y, x).

    Attributes
    ----------
    flux : array
        Leave-one-out difference; NaN where `mask`.
    error : array
        Its 1-sigma error, the reference's own variance included; NaN where `mask`.
    mask : bool array
        True = no difference: bad sample, or a pixel without reference.
    fit_mask : bool array
        True = good sample kept out of the fit: clipped, or held out by the caller.
    leverage : array
        Leverage L that the sample has in its pixel's fit, or would have if it were in it: in-sample residual
        ``flux * (1 - leverage)``, the sample's own variance ``error**2 * (1 - leverage)``; 0 where `mask`.
    reference : ReferenceFit
    """

    flux: Array
    error: Array
    mask: Mask
    fit_mask: Mask
    leverage: Array
    reference: ReferenceFit
