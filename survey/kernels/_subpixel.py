"""S/N between pixel centres, from the S/N at the nine pixels around.

A filter centred on a pixel keeps 67 % of the S/N of a star on the pixel's corner at FWHM 1.1 px, 82 % on
average. The nine S/N values s around a star at offset d have means a c(d) and correlations R, both known from
the PSF, so c' R^-1 s / sqrt(c' R^-1 c) is again an S/N of unit variance and keeps 94 % and 97 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from survey.kernels._psf_pass import PSFModel

Array = NDArray[np.float64]

_STEP = 0.25
# Keeps the weights bounded where a wide PSF makes the nine values nearly the same number.
_RIDGE = 1e-3


@dataclass(frozen=True)
class SubpixelFilter:
    """Weights of the 3 x 3 S/N values around a peak for places within its pixel.

    Attributes
    ----------
    offsets : array (n, 2)
        (y, x) of the places from the pixel's centre, on a grid of a quarter pixel.
    weights : array (n, 3, 3)
    coarse : float
        Smallest share of that S/N which the best pixel alone keeps.
    curvature : float
        Of the S/N's correlation function at zero distance, per px^2: `lambda` of Rice's formula.
    """

    offsets: Array
    weights: Array
    coarse: float
    curvature: float


def subpixel_filter(psf: PSFModel, size: int) -> SubpixelFilter:
    """Build the weights for a PSF, phases being spread evenly over the pixel.

    Examples
    --------
    >>> from survey.kernels._psf_pass import GaussianPSF
    >>> f = subpixel_filter(GaussianPSF(0.47), 5)
    >>> f.weights.shape, bool(0.6 < f.coarse < 0.8)
    ((25, 3, 3), True)
    """
    centers = (np.arange(8) + 0.5) / 8 - 0.5
    phase_y, phase_x = (a.ravel() for a in np.meshgrid(centers, centers, indexing="ij"))

    def templates(places: Array) -> Array:
        stamps = np.array([psf.evaluate(y - phase_y, x - phase_x, size + 4) for y, x in places])
        flat = stamps.reshape(len(places), -1)
        return flat / np.sqrt((flat**2).sum(axis=1, keepdims=True))

    pixels = templates(_grid(np.array([-1.0, 0.0, 1.0])))
    offsets = _grid(np.arange(-0.5, 0.5 + _STEP / 2, _STEP))
    means = templates(offsets) @ pixels.T
    correlation = pixels @ pixels.T
    weights = np.linalg.solve(correlation + _RIDGE * np.eye(9), means.T).T
    weights /= np.sqrt(np.einsum("ni,ij,nj->n", weights, correlation, weights))[:, None]
    kept = np.einsum("ni,ni->n", weights, means)
    near = templates(np.array([[-0.05, 0.0], [0.05, 0.0], [0.0, -0.05], [0.0, 0.05]]))
    curvature = 2 * (1 - np.sqrt((near[0] @ near[1]) * (near[2] @ near[3]))) / 0.1**2
    coarse = float((means.max(axis=1) / kept).min())
    return SubpixelFilter(offsets, np.asarray(weights, float).reshape(-1, 3, 3), coarse, float(curvature))


def _grid(values: Array) -> Array:
    y, x = np.meshgrid(values, values, indexing="ij")
    return np.column_stack([y.ravel(), x.ravel()])
