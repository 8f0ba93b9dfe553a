"""What a linear reference leaves of an event, and the noise of the filter that looks for it.

The reference of a pixel p is theta_p = M_p^-1 sum w B z over its own samples and, by the extension,
neighbours' samples whose phase falls into its domain. A filter ``sum n r`` of the in-sample residuals r is
then ``sum u z`` of the data z, with

    u = n - f w sum_o B_o . M_{q-o}^-1 c_{q-o},        c_p = sum_k n_pk B(phase_pk),

f = 1 for samples in the fit, o the offsets by which a sample serves as a neighbour's row. Its variance is
``sum u**2 / w`` and its response to an event ``sum u s``. Without extension rows and with n = w s both are
s' W (I - H) s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from survey.kernels._psf_pass import PSFModel, phase_stamps, stamp_size
from survey.kernels.legendre import design_matrix

Array = NDArray[np.float64]

NEIGHBOURS = [(0, 0)] + [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def temporal_profile(time: Array, t0: Array, sigma: float) -> Array:
    """Gaussian of unit height; shape (*t0.shape, *time.shape)."""
    return np.exp(-0.5 * ((time - np.asarray(t0, float)[..., None]) / sigma) ** 2)


def shifted_designs(
    phase_y: Array, phase_x: Array, n_basis: int, extension: float
) -> list[tuple[tuple[int, int], Array]]:
    """Design rows (..., n_basis**2) of a sample for its own pixel and, by offset, for its neighbours'.

    With offset o the sample of pixel q is a row of pixel q - o, at phase + o; rows outside the domain
    are zero, offsets without any row are left out.
    """
    designs = []
    for oy, ox in NEIGHBOURS:
        v, u = phase_y + oy, phase_x + ox
        limit = extension / 2 + 1e-9
        inside = (np.abs(v) <= limit) & (np.abs(u) <= limit)
        if (oy, ox) == (0, 0):
            inside = np.ones_like(inside)
        if inside.any():
            designs.append(((oy, ox), design_matrix(v, u, n_basis, extension) * inside[..., None]))
    return designs


def retained_variance(
    psf: PSFModel,
    phase_y: Array,
    phase_x: Array,
    profiles: Array,
    frame_weight: Array,
    *,
    n_basis: int = 5,
    extension: float = 1.2,
    size: int | None = None,
) -> Array:
    """Variance of the matched filter relative to that of independent leave-one-out residuals.

    The filter's variance is ``ratio * sum s**2 / error**2`` with `error` that of the leave-one-out
    difference: 1/error**2 is the exact diagonal of W (I - H) with each pixel's own mask and weights, and
    the ratio carries what the off-diagonal part takes. It hardly depends on the weights (under 1 % in a
    star's Poisson noise), so one ratio for weights of the frames alone serves all pixels.

    Parameters
    ----------
    psf : object with ``evaluate``
    phase_y, phase_x : array (time,)
        Phases of one place, in pixels.
    profiles : array (n, time)
        The events' temporal profiles.
    frame_weight : array (time,)
        Relative inverse variance of the frames; 0 for a frame without data.
    n_basis, extension
        Of the reference fit; ``n_basis=0`` for differences without one.
    size : int, optional
        Side of the filter's stamp.

    Returns
    -------
    array (n,)
        NaN where the reference absorbs all but 2 % of the event, or too few frames hold a reference.
    """
    if n_basis == 0:
        return np.ones(len(profiles))
    full = stamp_size(psf, size)
    radius = min(full // 2, max(1, int(np.ceil(getattr(psf, "fwhm", 1.0)))))
    v = frame_weight / max(float(np.mean(frame_weight)), np.finfo(float).tiny)
    if np.count_nonzero(v) <= n_basis**2:
        return np.full(len(profiles), np.nan)
    stamps = phase_stamps(psf, phase_y, phase_x, 2 * radius + 1)
    designs = shifted_designs(phase_y, phase_x, n_basis, extension)
    own = designs[0][1]
    normal = sum((b * v[:, None]).T @ b for _, b in designs)
    inverse = np.linalg.pinv(normal, hermitian=True)
    leverage = v * np.einsum("ka,ab,kb->k", own, inverse, own)
    fits = {}
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            fits[dy, dx] = ((profiles * (v * stamps[:, dy, dx])) @ own) @ inverse
    variance = np.zeros(len(profiles))
    independent = np.zeros(len(profiles))
    free = np.zeros(len(profiles))
    for dy, dx in fits:
        s = profiles * stamps[:, dy, dx]
        u = s.copy()
        for (oy, ox), b in designs:
            fit = fits.get((dy - oy, dx - ox))
            if fit is not None:
                u -= fit @ b.T
        variance += u**2 @ v
        independent += s**2 @ (v * (1 - leverage))
        free += s**2 @ v
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 0.02 * free, variance / independent, np.nan)
