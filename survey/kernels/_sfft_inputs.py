"""From images as given to what the matching kernel is fitted to: masks, pedestals, noise, samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.ndimage import maximum_filter

from survey.kernels._sfft_loops import signal_seen
from survey.kernels._sfft_samples import (
    ReferenceSamples,
    Samples,
    ShiftedSamples,
    SplineSamples,
    StoredSamples,
    TemplateFunction,
    sample_function,
)
from survey.kernels._sfft_sums import NORMAL_SQUARED
from survey.kernels.background import Background, measure_background
from survey.kernels.masks import grow_rectangle
from survey.kernels.reference import ReferenceFit

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
# Pixels of an image from which its sky is measured; more add nothing.
_SKY_PIXELS = 512
_NOISE_PIXELS = 1024  # and of which the noise's correlation is
# S/N of a mean over 3 x 3 pixels that is signal; the share of the field up to which signal is sparse; and
# the step between sky pixels that stay in the fit of a sparse field.
_SIGNAL = 5.0
_SPARSE = 0.5
_SKY_STEP = 4

# Saturated: so near a height, by its share; so many of nine neighbours at least, which a star of FWHM up to
# 11 px never has; and not a large part of the image.
_FLAT = 0.02
_LEAST_PLATEAU = 5
_MOST_SATURATED = 0.01


@dataclass
class Noisy:
    """One image: its pixels less a pedestal, what is bad, and its variance.

    Attributes
    ----------
    photon : float
        1 / gain where ``variance`` holds the sky's noise alone.
    """

    values: Floats
    bad: Mask
    level: float
    variance: Floats | None
    photon: float = 0.0


def working_type(*images: ArrayLike) -> np.dtype:
    """float32 if that is what all images are, else float64."""
    single = all(np.asarray(image).dtype == np.float32 for image in images)
    return np.dtype(np.float32 if single else np.float64)


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Mask:
    """A bool array of a shape; none is all good."""
    if mask is None:
        return np.zeros(shape, bool)
    mask = np.asarray(mask, bool)
    if mask.shape != shape:
        raise ValueError(f"a mask of shape {mask.shape} does not fit the image's {shape}")
    return mask


def sky_of(image: Floats, bad: Mask, order: int = 1) -> Background:
    """Sky of an image, from a part of its pixels where it has very many."""
    step = max(min(image.shape) // _SKY_PIXELS, 1)
    part = (slice(None, None, step), slice(None, None, step))
    return measure_background(image[part], bad[part], order=order)


def variance_of(image: Floats, bad: Mask, error: ArrayLike | None, gain: float | None) -> Floats:
    """Square of the errors given, or of the noise measured: sky, and with a gain the photons above it."""
    if error is not None:
        sigma = np.broadcast_to(np.asarray(error, image.dtype), image.shape)
        return np.where(sigma < 0, np.nan, sigma) ** 2  # a negative error is a sentinel
    sky = sky_of(image, bad)
    if gain is None:
        return np.broadcast_to(np.asarray(sky.rms**2, image.dtype), image.shape)
    level = replace(sky, shape=image.shape[:2]).surface().astype(image.dtype)
    # as `noise_model`, in the image's type and without a root that would be squared
    above = np.subtract(image, level, out=level)
    np.maximum(above, 0, out=above)
    above *= image.dtype.type(1 / gain)
    above += image.dtype.type(sky.rms**2)
    return above


def prepare_image(
    image: ArrayLike, mask: ArrayLike | None, error: ArrayLike | None, gain: float | None, dtype: DTypeLike
) -> Noisy:
    """The image to be fitted. With a gain and no errors its photons are counted from the model."""
    values = np.asarray(image, dtype)
    bad = ~np.isfinite(values) | as_mask(mask, values.shape)
    if bad.all():
        raise ValueError("no good pixel in the image")
    bad |= plateaus(values, bad)
    photon = 0.0 if error is not None or gain is None else 1 / gain
    variance = variance_of(values, bad, error, None)
    bad |= ~np.isfinite(variance) | (variance <= 0)
    if bad.all():
        raise ValueError("no good pixel in the image: its errors are not finite or not positive")
    level = _level(values, bad)
    filled = values - np.asarray(level, dtype)
    filled[bad] = 0
    return Noisy(filled, bad, level, variance, photon)


def prepare_template(
    template: ArrayLike,
    mask: ArrayLike | None,
    error: ArrayLike | None,
    gain: float | None,
    dtype: DTypeLike,
    *,
    noisy: bool = False,
) -> Noisy:
    """The template; without errors and gain it has no noise, unless ``noisy``: then its sky's is measured."""
    values = np.asarray(template, dtype)
    bad = ~np.isfinite(values) | as_mask(mask, values.shape)
    if bad.all():
        raise ValueError("no good pixel in the template")
    bad |= plateaus(values, bad)
    variance = None
    if error is not None or gain is not None or noisy:
        variance = variance_of(values, bad, error, gain)
        bad |= ~np.isfinite(variance)
        variance = np.where(bad, np.asarray(0, dtype), variance)
    level = _level(values, bad)
    filled = values - np.asarray(level, dtype)
    filled[bad] = 0
    return Noisy(filled, bad, level, variance)


def plateaus(image: Floats, bad: Mask) -> Mask:
    """Pixels at a level at which stars are cut off, and above.

    A star's peak is one pixel, or a few that share it: where more lie together at one height, and hardly any
    pixel is higher (hot ones, cosmic rays), the detector was full. One such star tells the level for all.
    """
    level = _level(image, bad)
    full = _full_level(image, bad, level)
    flat = (image >= level + (1 - _FLAT) * (full - level)) & ~bad
    return flat if np.count_nonzero(flat) <= _MOST_SATURATED * flat.size else np.zeros_like(flat)


def _full_level(image: Floats, bad: Mask, level: float) -> float:
    """Highest level of a plateau that has more pixels than what is above it; infinite if there is none."""
    step = max(min(image.shape) // _SKY_PIXELS, 1)
    some = image[::step, ::step][~bad[::step, ::step]]
    if not some.size:
        return np.inf
    y, x = np.nonzero((image > np.quantile(some, 1 - _MOST_SATURATED, method="lower")) & ~bad)
    height = image[y, x] - level
    near = np.zeros(len(y), int)
    for dy, dx in np.ndindex(3, 3):
        at_y, at_x = y + dy - 1, x + dx - 1
        inside = (at_y >= 0) & (at_y < image.shape[0]) & (at_x >= 0) & (at_x < image.shape[1])
        at_y, at_x = at_y[inside], at_x[inside]
        other = image[at_y, at_x] - level
        # none that is higher: on a slope half the neighbours are
        equal = (other >= (1 - _FLAT) * height[inside]) & (other <= height[inside])
        near[inside] += equal & ~bad[at_y, at_x]
    top = float(np.max(height[near >= _LEAST_PLATEAU], initial=-np.inf))
    above = np.count_nonzero(height * (1 - _FLAT) > top)
    return level + top if np.count_nonzero(height >= (1 - _FLAT) * top) > 2 * above else np.inf


def _level(image: Floats, bad: Mask) -> float:
    """Pedestal: left in, it would be most of every sample, and the ridge would fight the flux scale."""
    step = max(min(image.shape) // _SKY_PIXELS, 1)
    return float(np.median(image[::step, ::step][~bad[::step, ::step]])) if not bad.all() else 0.0


def make_samples(
    template: Floats,
    level: float,
    kernel_shape: tuple[int, int],
    phase_y: ArrayLike | None,
    phase_x: ArrayLike | None,
    given: ArrayLike | TemplateFunction | ReferenceFit | None,
    spline: NDArray[np.float64] | None = None,
) -> tuple[Samples, Mask]:
    """Template samples less its pedestal, and the pixels that have none.

    Parameters
    ----------
    template : array (y, x)
        Its pedestal ``level`` subtracted, 0 where bad.
    given : ReferenceFit, function or array (n_kernel, y, x), optional
        A continuous template, its pedestal in it.
    spline : array (y, x), optional
        The template's spline coefficients, where more of it is known than its pixels here.
    """
    py, px = (np.asarray(0.0 if p is None else p, float) for p in (phase_y, phase_x))
    # a phase of more than two pixels is no phase
    nowhere = np.broadcast_to(~((np.abs(py) <= 2) & (np.abs(px) <= 2)), template.shape)
    one_phase = py.ndim == 0 and px.ndim == 0
    if given is None:
        if not py.any() and not px.any():
            return ShiftedSamples(template, kernel_shape), nowhere
        return SplineSamples(template, kernel_shape, py, px, spline), nowhere
    if isinstance(given, ReferenceFit):
        if one_phase:
            value = given.evaluate(py[None], px[None])[0] - level
            return _shifted(np.where(given.valid, value, np.nan), template.dtype, kernel_shape, nowhere)
        reference = ReferenceSamples(given, kernel_shape, py, px)
        reference.subtract(level)
        reach = maximum_filter(reference.invalid, size=kernel_shape, mode="constant", cval=True)
        return reference, nowhere | reach
    if not callable(given):
        values = np.asarray(given, float)
    elif one_phase:
        return _shifted(np.asarray(given(py, px), float) - level, template.dtype, kernel_shape, nowhere)
    else:
        py, px = np.broadcast_to(py, template.shape), np.broadcast_to(px, template.shape)
        values = sample_function(given, kernel_shape, py, px)
    if values.shape != (kernel_shape[0] * kernel_shape[1], *template.shape):
        raise ValueError(f"template_samples must be (n_kernel, y, x), not {values.shape}")
    return StoredSamples(np.nan_to_num(values - level)), ~np.isfinite(values).all(0)


def _shifted(
    value: Floats, dtype: np.dtype, kernel_shape: tuple[int, int], nowhere: Mask
) -> tuple[Samples, Mask]:
    """One phase for all pixels: the template at that phase is an image like any other."""
    hole = maximum_filter(~np.isfinite(value), size=kernel_shape, mode="constant", cval=True)
    return ShiftedSamples(np.nan_to_num(value).astype(dtype), kernel_shape), nowhere | hole


def away_from(
    stars: ArrayLike | None, radius: float | None, shape: tuple[int, int], kernel_shape: tuple[int, int]
) -> Mask:
    """Pixels not near any star; none if no stars are given."""
    away = np.full(shape, stars is not None)
    reach = float(max(kernel_shape)) if radius is None else radius
    for y, x in np.asarray(stars if stars is not None else np.empty((0, 2)), float):
        rows = slice(max(int(y - reach), 0), int(y + reach) + 2)
        columns = slice(max(int(x - reach), 0), int(x + reach) + 2)
        dy, dx = np.ogrid[: away[rows, columns].shape[0], : away[rows, columns].shape[1]]
        away[rows, columns] &= np.hypot(dy + rows.start - y, dx + columns.start - x) > reach
    return away


def without_signal(template: Noisy, kernel_shape: tuple[int, int]) -> Mask:
    """Pixels of a sparse field at which the template shows the kernel nothing but noise.

    Such pixels say nothing of the kernel, but noise in the regressor draws it towards zero, and where that
    noise is correlated it cannot be taken out of the normal equations. One in sixteen stays in the fit, for
    the background; all where a large part of the field holds signal.
    """
    shape = template.values.shape
    if template.variance is None:
        return np.zeros(shape, bool)
    signal = shows_signal(template.values, template.bad, template.variance, kernel_shape)
    return np.zeros(shape, bool) if signal.mean() > _SPARSE else ~(signal | sky_lattice(shape))


def shows_signal(values: Floats, bad: Mask, variance: Floats, kernel_shape: tuple[int, int]) -> Mask:
    """Pixels at which a template, its sky subtracted, shows the kernel more than noise."""
    seen = signal_seen(values, variance, bad, _SIGNAL)
    return grow_rectangle(seen, (kernel_shape[0] // 2, kernel_shape[1] // 2))


def sky_lattice(shape: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Mask:
    """Pixels of bare sky that stay in a fit, of an image whose first pixel is (y, x) of the field."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(((y + origin[0]) % _SKY_STEP == 0) & ((x + origin[1]) % _SKY_STEP == 0))


def lacking_noise(template: Noisy) -> float:
    """Share of a template's noise that its highest frequencies lack; 0 for white noise.

    Resampling correlates noise: there is less of it between neighbours than their variance says.
    """
    if template.variance is None:
        return 0.0
    # a part of a large image is enough
    step = max(min(template.values.shape) // _NOISE_PIXELS, 1)
    v, bad = template.values, template.bad
    first, second = slice(None, -1, step), slice(1, None, step)
    corners = [(first, first), (second, second), (second, first), (first, second)]
    checker = v[corners[0]] + v[corners[1]] - v[corners[2]] - v[corners[3]]
    variance = np.sum([template.variance[c] for c in corners], axis=0)
    good = ~(bad[corners[0]] | bad[corners[1]] | bad[corners[2]] | bad[corners[3]]) & (variance > 0)
    if not good.any():
        return 0.0
    ratio = np.median(checker[good] ** 2 / variance[good]) / NORMAL_SQUARED
    return float(np.clip(1 - ratio, 0, 1))


def _smooth_sky(values: NDArray[np.float64], good: Mask) -> NDArray[np.float64]:
    """A sky of degree 2: a gradient left in would be alike at all lags, as of a very broad PSF."""
    try:
        return measure_background(values, ~good, order=2).surface()
    except ValueError:  # hardly a pixel is good
        return np.full(values.shape, np.median(values[good]))


def autocorrelation_width(image: Floats, mask: Mask) -> float:
    """Gaussian sigma of an image's stars from its autocorrelation at lags of one and two pixels.

    Lag 0 would hold the noise. Only the comparison of two images of one field is meant.
    """
    # a central part of a large image is enough
    step = max(min(image.shape) // _SKY_PIXELS, 1)
    cut = tuple(slice(n // 2 - n // (2 * step), n // 2 + max(n // (2 * step), 1)) for n in image.shape)
    values, good = image[cut].astype(float), np.isfinite(image[cut]) & ~mask[cut]
    if not good.any():
        return np.nan
    values = np.where(good, values - _smooth_sky(values, good), 0.0)
    found = []
    for lag in (1, 2):
        along = [(values[lag:] * values[:-lag]).mean(), (values[:, lag:] * values[:, :-lag]).mean()]
        found.append(float(np.mean(along)))
    if not 0 < found[1] < found[0]:
        return np.nan
    return float(np.sqrt(0.75 / np.log(found[0] / found[1])))
