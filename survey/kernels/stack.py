"""A weighted mean of placed frames that cosmic rays leave and variable stars do not.

Frames placed by nearest pixel were sampled at phases off the pixel's centre. Their plain mean has a PSF
whose centroid jitters from pixel to pixel by what is left of the phases' mean; here each pixel's samples are
fitted by a plane over the phases, whose value at phase 0 has the noise of a mean and no such jitter. What
remains of the phases is a PSF broader by their variance (0.08 px^2 an axis), which a matching kernel takes
care of.

Weights are one number a frame: the stack's PSF is then the same in faint and in bright pixels, and the mean
is not pulled towards samples whose counts, and with them errors, happen to be low.

A sample is taken for a spike only if it stands out *and* is sharper than the frame's PSF. An outburst, a
moving object or a variable's high state has the PSF's shape: it stays, as part of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter

Array = NDArray[np.float64]

# Fewer good samples than this fix no plane.
MIN_SAMPLES = 3
# Neighbours of a point source's pixel are believed to fall to this part of the Gaussian PSF's share.
_SHARE = 0.5


@dataclass(frozen=True)
class Stack:
    """A stack of frames; all arrays (y, x).

    Attributes
    ----------
    flux, error : float64 array
        Weighted mean at phase 0, its 1-sigma error; NaN where ``mask`` is set.
    mask : bool array
        True = fewer than `MIN_SAMPLES` good samples.
    n_used : int array
        Samples in the mean.
    spikes : bool array (time, y, x)
        Samples left out as sharper than the PSF.
    """

    flux: Array
    error: Array
    mask: NDArray[np.bool_]
    n_used: NDArray[np.int64]
    spikes: NDArray[np.bool_]


def stack_halo(passes: int = 4) -> int:
    """Pixels a tile needs around its core so that the core equals the whole image's."""
    return passes


def stack_frames(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    *,
    weight: ArrayLike,
    psf_fwhm: ArrayLike,
    clip: float = 5.0,
    model_error: float = 0.1,
    ridge: float = 0.2,
    passes: int = 4,
) -> Stack:
    """Stack placed frames at the centres of their pixels.

    Parameters
    ----------
    flux, error : array (time, y, x)
        Samples and 1-sigma errors.
    mask : bool array (time, y, x)
        True = bad.
    phase_y, phase_x : array (time,) or (time, y, x)
        Sample [k, y, x] was taken at (y + phase_y, x + phase_x).
    weight : array (time,)
        Inverse variance of each frame's sky.
    psf_fwhm : array (time,)
        Of each frame, pixels.
    clip : float
        Errors from which on a leave-one-out residual is looked at.
    model_error : float
        Part of the flux that may change from frame to frame (seeing) without being looked at.
    ridge : float
        Weight, as a share of all samples', of saying that the pixel is flat: where all phases are alike,
        noise is not extrapolated.
    passes : int
        In each a pixel may lose one sample.

    Returns
    -------
    Stack

    Raises
    ------
    ValueError
        If there is no frame.
    """
    values, sigma = np.asarray(flux, float), np.asarray(error, float)
    bad = np.asarray(mask, bool) | ~np.isfinite(values) | ~(np.isfinite(sigma) & (sigma > 0))
    if not len(values):
        raise ValueError("no frames to stack")
    values, sigma = np.where(bad, 0.0, values), np.where(bad, 1.0, sigma)
    frame_weight = np.asarray(weight, float)[:, None, None]
    share = _SHARE * np.exp(-4 * np.log(2) / np.asarray(psf_fwhm, float) ** 2)
    terms = _terms(phase_y, phase_x)
    spikes = np.zeros(bad.shape, bool)
    for last in (*[False] * passes, True):
        used = np.where(bad | spikes, 0.0, frame_weight)
        inverse, plane = _fit(values, used, terms, ridge)
        if last:
            break
        found = _find_spikes(values, sigma, used, terms, inverse, plane, share, clip, model_error)
        if not found.any():
            break
        spikes |= found
    # value at phase 0 is sum_k g_k f_k with g_k = w_k (A^-1 x_k)_0
    gain = used * sum(inverse[0, j] * terms[j] for j in range(3))
    n_used = (used > 0).sum(0)
    empty = n_used < MIN_SAMPLES
    variance = (gain**2 * sigma**2).sum(0)
    return Stack(
        np.where(empty, np.nan, plane[0]), np.where(empty, np.nan, np.sqrt(variance)), empty, n_used, spikes
    )


def _terms(phase_y: ArrayLike, phase_x: ArrayLike) -> list[Array]:
    """1, phase_y and phase_x, each broadcasting with (time, y, x)."""
    shaped = []
    for phase in (phase_y, phase_x):
        phase = np.asarray(phase, float)
        phase = phase[:, None, None] if phase.ndim == 1 else phase
        shaped.append(np.where(np.isfinite(phase), phase, 0.0))
    return [np.ones((1, 1, 1)), *shaped]


def _fit(values: Array, used: Array, terms: list[Array], ridge: float) -> tuple[Array, Array]:
    """Inverse normal matrix (3, 3, y, x) and plane (3, y, x) of every pixel."""
    shape = values.shape[1:]
    matrix, vector = np.empty((3, 3, *shape)), np.empty((3, *shape))
    for i in range(3):
        vector[i] = (used * terms[i] * values).sum(0)
        for j in range(i + 1):
            matrix[i, j] = matrix[j, i] = (used * terms[i] * terms[j]).sum(0)
    total = matrix[0, 0].copy()
    matrix[0, 0] += total == 0
    # phases spread over a pixel have a variance of 1/12
    for axis in (1, 2):
        matrix[axis, axis] += np.where(total > 0, ridge * total / 12, 1.0)
    inverse = np.moveaxis(np.linalg.inv(np.moveaxis(matrix, (0, 1), (-2, -1))), (-2, -1), (0, 1))
    return inverse, np.einsum("ij...,j...->i...", inverse, vector)


def _find_spikes(
    values: Array,
    sigma: Array,
    used: Array,
    terms: list[Array],
    inverse: Array,
    plane: Array,
    share: Array,
    clip: float,
    model_error: float,
) -> NDArray[np.bool_]:
    """The worst sample of every pixel, where it stands out and is sharper than the PSF.

    Anywhere in a Gaussian source the geometric mean of two opposite neighbours is the pixel's own value times
    exp(-1 / (2 sigma^2)); across a cosmic ray, or along one end of its track, it is nearly zero.
    """
    model = sum(plane[i] * terms[i] for i in range(3))
    residual = np.where(used > 0, values - model, np.nan)
    leverage = used * sum(inverse[i, j] * terms[i] * terms[j] for i in range(3) for j in range(3))
    # seeing moves light between neighbours
    around = maximum_filter(np.maximum(plane[0], 0.0), size=3, mode="nearest")
    noise = np.sqrt(sigma**2 + (model_error * around) ** 2)
    scaled = np.abs(residual) / np.maximum(1 - leverage, 0.05) / noise
    scaled = np.where(np.isfinite(scaled), scaled, 0.0)
    worst = scaled.argmax(0)
    y, x = np.nonzero(np.take_along_axis(scaled, worst[None], 0)[0] > clip)
    k = worst[y, x]
    height, sign = np.abs(residual[k, y, x]), np.sign(residual[k, y, x])
    padded = np.pad(residual, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    means = []
    for dy, dx in ((1, 0), (0, 1)):
        pair = [sign * padded[k, y + 1 + s * dy, x + 1 + s * dx] + 2 * sigma[k, y, x] for s in (-1, 1)]
        # a neighbour that is not known is taken to be as bright
        known = np.where(np.isfinite(pair), np.maximum(pair, 0.0), height)
        means.append(np.sqrt(known[0] * known[1]))
    sharp = np.minimum(*means) < share[k] * height
    found = np.zeros(values.shape, bool)
    found[k[sharp], y[sharp], x[sharp]] = True
    return found
