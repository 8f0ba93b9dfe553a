"""Stars for the effective PSF: which to take, and their stamps cut out of the oversampled reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from survey.kernels._epsf import EffectivePSF
from survey.kernels._epsf_build import build_epsf
from survey.kernels.legendre import phase_basis

Array = NDArray[np.float64]


def select_psf_stars(
    y: ArrayLike,
    x: ArrayLike,
    flux: ArrayLike,
    shape: tuple[int, int],
    *,
    side: int = 15,
    count: int = 60,
    flux_range: tuple[float, float] = (0.0, np.inf),
    separation: float = 5.0,
    contrast: float = 3.0,
) -> NDArray[np.int64]:
    """Indices of the brightest stars that outshine all others near them, the brightest first.

    Parameters
    ----------
    y, x, flux : arrays (n,)
        Catalogue of the field, complete well below the stars wanted.
    shape : tuple of int
        (y, x) of the field: whole stamps must lie on it.
    side : int
        Side of the stamps in pixels.
    count : int
        Most stars returned.
    flux_range : tuple of float
        Least flux, and the flux at which stars saturate.
    separation : float
        Pixels within which no other star may hold more than 1 / `contrast` of the star's flux.

    Examples
    --------
    >>> select_psf_stars([20, 50, 52], [30, 30, 30], [100, 90, 80], (100, 100)).tolist()
    [0]
    """
    y, x, flux = (np.asarray(a, float) for a in (y, x, flux))
    if y.size == 0:
        return np.zeros(0, np.int64)
    half = side // 2 + 0.5
    wanted = (flux > flux_range[0]) & (flux < flux_range[1])
    wanted &= (y >= half) & (x >= half) & (y <= shape[0] - 1 - half) & (x <= shape[1] - 1 - half)
    tree = cKDTree(np.column_stack([y, x]))
    chosen: list[int] = []
    for i in np.flatnonzero(wanted)[np.argsort(-flux[wanted], kind="stable")]:
        near = tree.query_ball_point((y[i], x[i]), separation)
        if all(flux[j] * contrast < flux[i] for j in near if j != i):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return np.array(chosen, np.int64)


def reference_stamps(
    coefficients: ArrayLike, y: ArrayLike, x: ArrayLike, *, side: int = 15, extension: float = 1.2
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Stamps of stars on an even grid of phases, evaluated from the oversampled reference.

    As many phases an axis as there are polynomials: the stamps hold all the reference knows, free of the
    epochs' noise. Small enough to be gathered from all tiles.

    Parameters
    ----------
    coefficients : array (y, x, ky, kx)
        `ReferenceFit.coefficients`; NaN where there is no reference.
    y, x : arrays (stars,)
        Positions on these coefficients' grid, good to half a pixel.
    side : int
        Side of the stamps in pixels.
    extension : float
        `ReferenceFit.extension`.

    Returns
    -------
    stamps : array (n, side, side)
    offset_y, offset_x : arrays (n,)
        As `fit_epsf` takes them.
    star : int array (n,)
        Index of each stamp's star. Stars whose stamps leave the grid are not there.
    """
    coefficients = np.asarray(coefficients, float)
    n = coefficients.shape[-1]
    phase = (np.arange(n) - (n - 1) / 2) / n
    basis = phase_basis(phase, n, extension)
    half = side // 2
    stamps, offsets, star = [], [], []
    for i, (ys, xs) in enumerate(zip(np.atleast_1d(y), np.atleast_1d(x), strict=True)):
        cy, cx = round(float(ys)), round(float(xs))
        box = coefficients[max(cy - half, 0) : cy + half + 1, max(cx - half, 0) : cx + half + 1]
        if cy < half or cx < half or box.shape[:2] != (side, side):
            continue
        stamps.append(np.einsum("yxlm,la,mb->abyx", box, basis, basis, optimize=True).reshape(-1, side, side))
        offsets.append([(ys - py - cy, xs - px - cx) for py in phase for px in phase])
        star.append(np.full(n * n, i))
    if not stamps:
        return np.zeros((0, side, side)), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
    offset = np.concatenate(offsets)
    return np.concatenate(stamps), offset[:, 0], offset[:, 1], np.concatenate(star)


def build_epsf_from_reference(
    coefficients: ArrayLike,
    y: ArrayLike,
    x: ArrayLike,
    *,
    noise: float,
    valid: ArrayLike | None = None,
    side: int = 15,
    extension: float = 1.2,
    **options,
) -> EffectivePSF:
    """Effective PSF of a field from its oversampled reference, which sums all epochs.

    Parameters
    ----------
    coefficients : array (y, x, ky, kx)
        Of the oversampled reference.
    y, x : arrays (stars,)
        Bright stars (`select_psf_stars`).
    noise : float
        Error of the reference on empty sky: an epoch's error times about ``sqrt(25 / epochs)``.
    valid : bool array (y, x), optional
        False where there is no reference (`ReferenceFit.valid`).
    side, extension
        As in `reference_stamps`.
    **options
        As in `fit_epsf`.

    Raises
    ------
    ValueError
        If fewer than 5 stars can be used.
    """
    coefficients = np.asarray(coefficients, float)
    if valid is not None:
        coefficients = np.where(np.asarray(valid, bool)[..., None, None], coefficients, np.nan)
    stamps, offset_y, offset_x, star = reference_stamps(coefficients, y, x, side=side, extension=extension)
    return build_epsf(stamps, np.full(stamps.shape, noise), None, offset_y, offset_x, star=star, **options)
