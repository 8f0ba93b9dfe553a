"""Where an object is, from many differences of its frames.

Barris et al. 2005, section 2: the position is fitted on the sum of all differences, each with its sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels.pair_flux import Difference, stamps_at

Array = NDArray[np.float64]
# Pixels beyond which the error of a position is too large for it to replace the one that was given.
MOST_POSITION_ERROR = 0.3


def common_position(
    images: list[Difference],
    place: Array,
    turn: Array,
    half: ArrayLike,
    *,
    frames: NDArray[np.int64] | None = None,
    iterations: int = 6,
    reach: float = 1.5,
) -> tuple[Array, float]:
    """Shift of an object's position that fits many differences best.

    Each difference's flux is free, of either sign: the sum of all, each with its sign and weighted by its
    flux, is what fixes the position (the paper adds sign-adjusted differences).

    Parameters
    ----------
    images : list of Difference
        n differences.
    place : array (n, 2)
        (y, x) of the object in each.
    turn : array (n, 2, 2)
        Change of that position for a change of the common (y, x).
    half : int or int array (n,)
        Half width of the stamps. Let them hold the PSF's core only: in the wings its slope is noise.
    frames : int array (n, 2), optional
        The two frames of each difference: those with a frame in common share its noise.
    reach : float
        Pixels beyond which a shift is not believed.

    Returns
    -------
    shift : array (2,)
        In the common frame, pixels; 0 where the differences hold no signal.
    error : float
        1-sigma error of a coordinate; NaN where there was no signal or no convergence.

    Notes
    -----
    A difference without signal has a fitted flux all the same, which follows the noise and counts as
    knowledge of the position. So the frames' fluxes that fit all differences take the place of each one's
    own, and what noise makes of their squares is taken out of the normal matrix. The error is the largest of
    three: of what the noise maps say; of what the differences' own pulls on the position say, which know of a
    host galaxy's remains too; and of what those of all differences of a frame say together (sums over pairs
    that share a frame: Aronow et al. 2015, Political Analysis 23, 564). A frame pulls its ``p`` differences
    alike: the first two are raised by ``(p + 1) / 2``.
    """
    shift, error = np.zeros(2), np.inf
    names = np.arange(2 * len(images)).reshape(-1, 2) if frames is None else np.asarray(frames)
    pairs, halves = _Pairs(names), np.broadcast_to(half, len(images))
    for _ in range(iterations):
        fits = [
            _position_fit(v, p + j @ shift, int(h))
            for v, p, j, h in zip(images, place, turn, halves, strict=True)
        ]
        flux, variance = pairs.smooth(np.array([f.flux for f in fits]), np.array([f.variance for f in fits]))
        slopes = [f.slopes @ j for f, j in zip(fits, turn, strict=True)]
        each = np.array([d.T @ d for d in slopes])
        signal = np.einsum("k,kij->ij", flux**2 - variance, each)
        if np.linalg.eigvalsh(signal)[0] <= 0:
            return np.zeros(2), np.nan
        inverse = np.linalg.inv(signal)
        pulls = np.array([v * (d.T @ f.residual) for v, d, f in zip(flux, slopes, fits, strict=True)])
        step = inverse @ pulls.sum(0)
        middles = pairs.spreads(np.einsum("k,kij->ij", flux**2, each), pulls)
        error = float(np.sqrt(max(np.trace(inverse @ m @ inverse) for m in middles) / 2))
        if np.hypot(*step) < 1e-3:
            break
        shift = shift + np.clip(step, -0.5, 0.5)
    # A position that is not fixed to a part of a PSF's width is none.
    if np.hypot(*shift) > reach or np.hypot(*step) > 0.1 or error > MOST_POSITION_ERROR:
        return np.zeros(2), np.nan
    return shift, error


class _Pairs:
    """Differences as pairs of frames (n, 2), template and image."""

    def __init__(self, names: NDArray[np.int64]) -> None:
        _, number = np.unique(names, return_inverse=True)
        self.template, self.image = number.reshape(-1, 2).T
        n = np.arange(len(names))
        self.design = np.zeros((len(names), number.max() + 1))
        self.design[n, self.image], self.design[n, self.template] = 1, -1

    def smooth(self, flux: Array, variance: Array) -> tuple[Array, Array]:
        """Fluxes of the pairs by the frames' fluxes that fit all of them, and their variances."""
        weight = 1 / np.sqrt(variance)
        scaled = self.design * weight[:, None]
        covariance = np.linalg.pinv(scaled.T @ scaled, rcond=1e-9, hermitian=True)
        fitted = self.design @ (covariance @ (scaled.T @ (flux * weight)))
        return fitted, np.einsum("ki,ij,kj->k", self.design, covariance, self.design)

    def spreads(self, normal: Array, pulls: Array) -> tuple[Array, Array, Array]:
        """Three estimates (2, 2) of how far the sum of the pulls (n, 2) scatters."""
        shared = (2 * len(pulls) / self.design.shape[1] + 1) / 2
        own, of_frames = pulls.T @ pulls, np.abs(self.design).T @ pulls
        return shared * normal, shared * own, of_frames.T @ of_frames - own


class _PositionFit(NamedTuple):
    """One difference: flux and variance; slopes (m, 2) of unit flux and residuals (m,), over errors."""

    flux: float
    variance: float
    slopes: Array
    residual: Array


def _position_fit(image: Difference, at: Array, half: int) -> _PositionFit:
    """Flux and sky at a place, and what is left for a shift to explain."""
    y, x = at[:1], at[1:]
    oy, ox = y - np.rint(y), x - np.rint(x)
    value, error, bad = (
        stamps_at(v, y, x, half, f)[0].ravel()
        for v, f in ((image.flux, np.nan), (image.error, np.inf), (image.mask, True))
    )
    good = ~bad.astype(bool) & np.isfinite(value) & np.isfinite(error)
    model = image.psf.evaluate(oy, ox, 2 * half + 1)[0].ravel()[good]
    if good.sum() < 9 or not np.sum(model**2) > 0:
        return _PositionFit(0.0, np.inf, np.zeros((1, 2)), np.zeros(1))
    weight = 1 / error[good]
    base = np.column_stack([model, np.ones(model.size)]) * weight[:, None]
    data = value[good] * weight
    solution, *_ = np.linalg.lstsq(base, data, rcond=None)
    orthogonal, _ = np.linalg.qr(base)
    slopes = np.column_stack([g[0].ravel()[good] for g in image.psf.gradient(oy, ox, 2 * half + 1)])
    slopes = slopes * weight[:, None]
    slopes = slopes - orthogonal @ (orthogonal.T @ slopes)
    variance = float(np.linalg.inv(base.T @ base)[0, 0])
    return _PositionFit(float(solution[0]), variance, slopes, data - base @ solution)
