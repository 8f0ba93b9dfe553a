"""The oversampled reference of every pixel and the leave-one-out differences against it.

Model of one pixel (Albrow 2025, AJ 169, 297, section 2): the flux a pixel would record at phase (y, x) is
R(y, x) = sum_lm theta[l, m] P_l(2 y / f) P_m(2 x / f), f the extension factor. Rows of its least-squares fit
are its own samples and those of the eight neighbours whose position lies within f / 2 of its centre.
Every pixel judges its own rows, so that its result depends on no sample beyond its neighbours: see `halo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels import _reference_plain as plain
from survey.kernels.legendre import phase_basis, phase_basis_gradient

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

BLOCK = 1024


@dataclass(frozen=True)
class ReferenceFit:
    """Coefficients of the oversampled reference.

    Attributes
    ----------
    coefficients : array (y, x, ky, kx)
        theta[l, m]; zero where not `valid`.
    n_used : int array (y, x)
        Images of the pixel's own samples that entered the fit.
    chi2 : array (y, x)
        Sum over those samples of (difference / error)^2 with leave-one-out differences; expected `n_used`.
    valid : bool array (y, x)
        False where there were too few images.
    extension : float
        Width of the domain in pixels.
    """

    coefficients: Array
    n_used: NDArray[np.integer]
    chi2: Array
    valid: Mask
    extension: float = 1.2

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
        """Reference on a grid `factor` times finer; shape (y * factor, x * factor)."""
        phase = (np.arange(factor) + 0.5) / factor - 0.5
        basis = phase_basis(phase, self.n_basis, self.extension)
        fine = np.einsum("yxlm,la,mb->yaxb", self.coefficients, basis, basis, optimize=True)
        ny, nx = self.valid.shape
        fine = fine.reshape(ny * factor, nx * factor)
        fine[~np.kron(self.valid, np.ones((factor, factor), bool))] = np.nan
        return fine

    def _surface(self, basis_y, basis_x, phase_y: ArrayLike, phase_x: ArrayLike) -> Array:
        phase_y, phase_x = np.asarray(phase_y, float), np.asarray(phase_x, float)
        n, f = self.n_basis, self.extension
        out = np.empty((len(phase_y), *self.valid.shape))
        for k in range(len(phase_y)):
            by, bx = basis_y(phase_y[k], n, f), basis_x(phase_x[k], n, f)
            if by.ndim == 1:
                out[k] = (self.coefficients @ bx) @ by
            else:
                out[k] = np.einsum("yxlm,lyx,myx->yx", self.coefficients, by, bx, optimize=True)
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
        Its 1-sigma error with the reference's own variance; NaN where `mask`.
    mask : bool array
        True = no difference: bad sample, or a pixel without reference.
    fit_mask : bool array
        True = good sample kept out of the fit.
    leverage : array
        The leverage L the sample has, or would have, in its pixel's fit: the in-sample residual is
        ``flux * (1 - leverage)`` and the sample's own variance ``error**2 * (1 - leverage)``.
    reference : ReferenceFit
    """

    flux: Array
    error: Array
    mask: Mask
    fit_mask: Mask
    leverage: Array
    reference: ReferenceFit


@dataclass(frozen=True)
class _Settings:
    n_basis: int
    extension: float
    ridge: float
    iterations: int
    clip: float
    positive_only: bool
    slope: Array | None = field(default=None)


def halo(extension: float = 1.2, *, grow: int = 0) -> int:
    """Pixels a tile needs around its core so that the core equals the whole image's result, bit for bit."""
    return grow + (1 if extension > 1 else 0)


def difference_images(
    flux, error, mask, phase_y, phase_x, *, n_basis=5, extension=1.2, ridge=1e-6, iterations=5, clip=4.0,
    positive_only=False, leave_one_out=True, fit_mask=None, min_images=None, gain=None,
) -> Difference:
    """Fit the reference, clip outliers, and difference every sample against a reference without it."""
    flux, error = np.asarray(flux), np.asarray(error)
    bad = np.zeros(flux.shape, bool) if mask is None else np.asarray(mask, bool)
    bad = bad | ~(np.isfinite(flux) & np.isfinite(error) & (error > 0))
    phase_y, phase_x = np.asarray(phase_y, float), np.asarray(phase_x, float)
    n_time, ny, nx = flux.shape
    state = np.where(bad, plain.BAD, plain.USED).astype(np.uint8)
    if fit_mask is not None:
        state[np.asarray(fit_mask, bool) & ~bad] = plain.HELD
    slope = None if gain is None else np.broadcast_to(1.0 / np.asarray(gain, float), (n_time,))
    settings = _Settings(n_basis, extension, ridge, iterations, clip, positive_only, slope)
    theta = np.empty((ny * nx, n_basis**2))
    out = [np.empty((n_time, ny * nx)) for _ in range(3)]
    final = np.empty((n_time, ny * nx), np.uint8)
    for start in range(0, ny * nx, BLOCK):
        pixels = np.arange(start, min(start + BLOCK, ny * nx))
        rows = plain.gather_rows(flux, error, state, phase_y, phase_x, pixels, extension)
        theta[pixels], *own, s = plain.fit_pixels(rows, n_time, settings)
        for store, values in zip(out, own, strict=True):
            store[:, pixels] = values.T
        final[:, pixels] = s[:, :n_time].T
    difference, variance, leverage = (a.reshape(flux.shape) for a in out)
    final = final.reshape(flux.shape)
    used = final == plain.USED
    n_used = used.sum(0)
    valid = n_used >= (n_basis**2 if min_images is None else min_images)
    out_mask = (final == plain.BAD) | ~valid
    chi2 = np.where(valid, np.sum(difference**2 / variance, axis=0, where=used), 0.0)
    theta[~valid.ravel()] = 0.0
    reference = ReferenceFit(theta.reshape(ny, nx, n_basis, n_basis), n_used, chi2, valid, extension)
    sigma = np.sqrt(variance)
    if not leave_one_out:
        inside = np.where(used, 1.0 - leverage, 1.0)
        difference, sigma = difference * inside, sigma * inside
    return Difference(
        np.where(out_mask, np.nan, difference), np.where(out_mask, np.nan, sigma), out_mask,
        ((final == plain.HELD) | (final == plain.CLIPPED)), leverage, reference,
    )


def fit_reference(
    flux, error, mask, phase_y, phase_x, *, n_basis=5, extension=1.2, ridge=1e-6, fit_mask=None,
    min_images=None, gain=None,
) -> ReferenceFit:
    """Fit the reference once, without clipping."""
    return difference_images(
        flux, error, mask, phase_y, phase_x, n_basis=n_basis, extension=extension, ridge=ridge, iterations=0,
        fit_mask=fit_mask, min_images=min_images, gain=gain,
    ).reference
