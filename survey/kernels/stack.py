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

from survey.kernels import _stack_loops as loops

Array = NDArray[np.float64]
Index = NDArray[np.int64]

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
    shape = values.shape[1:]
    samples = _Samples(
        np.where(bad, 0.0, values), np.where(bad, 1.0, sigma), bad.copy(), np.asarray(weight, float),
        _for_pixels(phase_y, values.shape), _for_pixels(phase_x, values.shape),
        inverse=np.empty((6, *shape)), plane=np.empty((3, *shape)),
    )  # fmt: skip
    share = _SHARE * np.exp(-4 * np.log(2) / np.asarray(psf_fwhm, float) ** 2)
    samples.fit(ridge)
    for _ in range(passes):
        found = _find_spikes(samples, share, clip, model_error)
        if not len(found[0]):
            break
        samples.bad[found] = True
        samples.fit(ridge)
    variance, n_used = np.empty(shape), np.empty(shape, np.int64)
    loops.variance_at_centre(samples.sigma, *samples.design, samples.inverse, variance, n_used)
    empty = n_used < MIN_SAMPLES
    return Stack(
        flux=np.where(empty, np.nan, samples.plane[0]),
        error=np.where(empty, np.nan, np.sqrt(variance)),
        mask=empty,
        n_used=n_used,
        spikes=samples.bad & ~bad,
    )


@dataclass
class _Samples:
    """Samples (time, y, x) and the planes fitted to those that are not bad."""

    values: Array
    sigma: Array
    bad: NDArray[np.bool_]
    weight: Array
    phase_y: Array
    phase_x: Array
    inverse: Array
    plane: Array

    @property
    def design(self) -> tuple[NDArray[np.bool_], Array, Array, Array]:
        """What the loops want of every sample besides its value."""
        return self.bad, self.weight, self.phase_y, self.phase_x

    def fit(self, ridge: float) -> None:
        """Fit the planes again."""
        loops.fit_planes(self.values, *self.design, ridge, self.inverse, self.plane)

    def residuals(self, k: Index, y: Index, x: Index) -> Array:
        """Residuals of some samples; NaN where they are bad or outside."""
        inside = (y >= 0) & (y < self.bad.shape[1]) & (x >= 0) & (x < self.bad.shape[2])
        at = (k, np.where(inside, y, 0), np.where(inside, x, 0))
        level, slope_y, slope_x = self.plane[:, at[1], at[2]]
        model = level + slope_y * self.phase_y[at] + slope_x * self.phase_x[at]
        return np.where(inside & ~self.bad[at], self.values[at] - model, np.nan)


def _for_pixels(phase: ArrayLike, shape: tuple[int, ...]) -> Array:
    """A phase of every sample; of frames shifted as a whole, without a copy for every pixel."""
    phase = np.asarray(phase, float)
    phase = np.where(np.isfinite(phase), phase, 0.0)
    return np.broadcast_to(phase[:, None, None] if phase.ndim == 1 else phase, shape)


def _find_spikes(
    samples: _Samples, share: Array, clip: float, model_error: float
) -> tuple[Index, Index, Index]:
    """The worst sample of every pixel, as indices, where it stands out and is sharper than the PSF.

    Anywhere in a Gaussian source the geometric mean of two opposite neighbours is the pixel's own value times
    exp(-1 / (2 sigma^2)); across a cosmic ray, or along one end of its track, it is nearly zero.
    """
    # seeing moves light between neighbours
    around = maximum_filter(np.maximum(samples.plane[0], 0.0), size=3, mode="nearest")
    worst, score = np.empty(around.shape, np.int64), np.empty(around.shape)
    loops.worst_samples(
        samples.values, samples.sigma, *samples.design, samples.inverse, samples.plane,
        model_error * around, worst, score,
    )  # fmt: skip
    y, x = np.nonzero(score > clip)
    k = worst[y, x]
    residual, doubt = samples.residuals(k, y, x), 2 * samples.sigma[k, y, x]
    height, sign = np.abs(residual), np.sign(residual)
    means = []
    for dy, dx in ((1, 0), (0, 1)):
        pair = [sign * samples.residuals(k, y + s * dy, x + s * dx) + doubt for s in (-1, 1)]
        # a neighbour that is not known is taken to be as bright
        known = [np.where(np.isfinite(part), np.maximum(part, 0.0), height) for part in pair]
        means.append(np.sqrt(known[0] * known[1]))
    sharp = np.minimum(*means) < share[k] * height
    return k[sharp], y[sharp], x[sharp]
