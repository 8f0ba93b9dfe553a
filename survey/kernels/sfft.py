"""Image subtraction with a spatially varying delta-basis kernel, fitted by linear least squares.

The model of SFFT (Hu et al. 2022, ApJ 936, 157) without its Fourier transforms:
``image(p) = sum_ab c_ab P_b(p) R(p - a) + background(p)``. The normal equations are summed over blocks of
pixels, so that any mask and any weights may be used. On a frame placed by nearest pixel the template is
evaluated at the frame's true positions, ``R(p - a + phase(p))``; the data are never interpolated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter

from survey.kernels._sfft_fit import KernelModel, evaluate_model, normal_sums, solve_step
from survey.kernels._sfft_samples import (
    ReferenceSamples,
    Samples,
    ShiftedSamples,
    SplineSamples,
    StoredSamples,
    TemplateFunction,
    sample_function,
)
from survey.kernels.background import measure_background, noise_model
from survey.kernels.reference import ReferenceFit
from survey.kernels.subtraction import MatchingKernel, Subtraction

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Kernel errors leave residuals proportional to the star: this part of the model counts as noise in clipping.
CLIP_FRACTION = 0.05
_MIN_PASSES = 3  # the weights need the kernel of the pass before: two more passes


def subtract_sfft(
    image: ArrayLike,
    template: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    template_mask: ArrayLike | None = None,
    error: ArrayLike | None = None,
    template_error: ArrayLike | None = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    kernel_shape: tuple[int, int] = (7, 7),
    kernel_poly_order: int = 2,
    bg_poly_order: int = 2,
    flux_poly_order: int = 1,
    ridge: float = 1e-6,
    clip: float = 5.0,
    max_iter: int = 5,
    stars: ArrayLike | None = None,
    star_radius: float | None = None,
    phase_y: ArrayLike | None = None,
    phase_x: ArrayLike | None = None,
    template_samples: ArrayLike | TemplateFunction | ReferenceFit | None = None,
) -> Subtraction:
    """Convolve a template to an image's PSF, scale and background, and subtract it.

    Parameters
    ----------
    image, template : array (y, x)
        On one grid; pedestals are allowed. Pixels that are not finite are bad.
    mask, template_mask : bool array (y, x), optional
        True = bad. A bad template pixel masks the kernel's reach around it.
    error, template_error : array (y, x), optional
        1-sigma errors. Without ``error`` it is measured from the sky and, with ``image_gain``, from the
        photons above it. Without ``template_error`` and ``template_gain`` the template has no noise.
    image_gain, template_gain : float, optional
        Electrons per unit.
    kernel_shape : tuple of odd int
        (y, x) size of the kernel in pixels.
    kernel_poly_order, bg_poly_order, flux_poly_order : int
        Degree in x and y of the kernel, of the background, and of the kernel's sum (the flux scale).
    ridge : float
        Penalty on the kernel's shape, relative to the normal matrix.
    clip : float
        Pixels whose residual exceeds this many sigma leave the fit; sigma includes `CLIP_FRACTION` of the
        model.
    max_iter : int
        Most passes of fit, clipping and weighting with the convolved template's noise.
    stars : array (n, 2), optional
        (y, x) positions; only pixels within ``star_radius`` (by default the kernel's size) enter the fit.
    phase_y, phase_x : float or array (y, x), optional
        Pixel p of the image was taken at p + phase(p) of the template's grid.
    template_samples : ReferenceFit, function or array (n_kernel, y, x), optional
        A continuous template: an oversampled reference; or ``f(phase_y, phase_x) -> (y, x)``, its value at
        each pixel plus phase; or R(p - a + phase(p)) itself for kernel offsets a in [y, x] order. By default
        the template's cubic spline, good only if it is well sampled.

    Returns
    -------
    Subtraction

    Raises
    ------
    ValueError
        If shapes do not match or too few pixels are left to determine the kernel.

    References
    ----------
    Hu et al. 2022, eqs. 1-6; Alard & Lupton 1998.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> template = rng.normal(size=(64, 64)) + 200
    >>> image = 0.9 * np.roll(template, 1, axis=1) + 5
    >>> s = subtract_sfft(image, template, error=np.ones((64, 64)), kernel_shape=(3, 3), kernel_poly_order=0)
    >>> bool(np.nanmax(abs(s.difference)) < 1e-4), s.kernel.flux_scale(30, 30).round(4).item()
    (True, 0.9)
    """
    image, template = np.asarray(image, float), np.asarray(template, float)
    if image.ndim != 2 or template.shape != image.shape:
        raise ValueError(
            f"image and template must have one (y, x) shape, not {image.shape}, {template.shape}"
        )
    if len(kernel_shape) != 2 or any(k < 1 or k % 2 == 0 for k in kernel_shape):
        raise ValueError(f"kernel_shape must be two odd numbers, not {kernel_shape}")
    bad = ~np.isfinite(image) | _mask(mask, image)
    template_bad = ~np.isfinite(template) | _mask(template_mask, image)
    if bad.all() or template_bad.all():
        raise ValueError("no good pixel in the image or in the template")
    variance = _variance(image, bad, error, image_gain)
    template_variance = None
    if template_error is not None or template_gain is not None:
        template_variance = _variance(template, template_bad, template_error, template_gain)
        template_bad |= ~np.isfinite(template_variance)
        template_variance = np.where(template_bad, 0.0, template_variance)
    bad |= ~np.isfinite(variance) | (variance <= 0)
    # a pedestal left in would be most of every sample, and the ridge would then fight the flux scale
    pedestal, level = float(np.median(image[~bad])), float(np.median(template[~template_bad]))
    filled = np.where(template_bad, 0.0, template - level)
    samples, unsampled = _samples(filled, level, kernel_shape, phase_y, phase_x, template_samples)
    reach = 0 if phase_y is None and template_samples is None else 2
    size = tuple(k + 2 * reach for k in kernel_shape)
    bad |= unsampled | maximum_filter(template_bad, size=size, mode="constant", cval=True)
    model = KernelModel(kernel_shape, kernel_poly_order, flux_poly_order, bg_poly_order, image.shape)
    excluded = bad | _away_from(stars, star_radius, image.shape, kernel_shape)
    reduced, weighted = np.where(bad, 0.0, image - pedestal), np.where(bad, np.inf, variance)
    kernel, convolved, total, fit_mask = _fit(
        model, samples, reduced, weighted, template_variance, excluded, ridge, clip, max_iter
    )
    kernel = _with_pedestals(kernel, pedestal, level)
    convolved = convolved + pedestal
    difference = np.where(bad, np.nan, image - convolved)
    sigma = np.where(bad, np.nan, np.sqrt(total))
    return Subtraction(difference, sigma, difference / sigma, convolved, bad, fit_mask, kernel)


def _with_pedestals(kernel: MatchingKernel, pedestal: float, level: float) -> MatchingKernel:
    """The kernel whose background belongs to the images as they were given."""
    flux = kernel.coefficients.sum((0, 1))
    background = np.zeros(max(len(flux), len(kernel.background_coefficients)))
    background[: len(kernel.background_coefficients)] = kernel.background_coefficients
    background[: len(flux)] -= level * flux
    background[0] += pedestal
    return MatchingKernel(kernel.coefficients, background, kernel.image_shape)


def _mask(mask: ArrayLike | None, image: Array) -> Mask:
    if mask is None:
        return np.zeros(image.shape, bool)
    mask = np.asarray(mask, bool)
    if mask.shape != image.shape:
        raise ValueError(f"a mask of shape {mask.shape} does not fit the image's {image.shape}")
    return mask


def _variance(image: Array, bad: Mask, error: ArrayLike | None, gain: float | None) -> Array:
    """Square of the errors given, or of the noise measured."""
    if error is not None:
        return np.broadcast_to(np.asarray(error, float), image.shape) ** 2
    background = measure_background(image, bad, order=1)
    return noise_model(image, background, np.inf if gain is None else gain) ** 2


def _samples(
    template: Array,
    level: float,
    kernel_shape: tuple[int, int],
    phase_y: ArrayLike | None,
    phase_x: ArrayLike | None,
    given: ArrayLike | TemplateFunction | ReferenceFit | None,
) -> tuple[Samples, Mask]:
    """Template samples less its pedestal, and the pixels that have none."""
    py, px = (np.asarray(0.0 if p is None else p, float) for p in (phase_y, phase_x))
    nowhere = np.broadcast_to(~np.isfinite(py) | ~np.isfinite(px), template.shape)
    if given is None:
        if not py.any() and not px.any():
            return ShiftedSamples(template, kernel_shape), nowhere
        return SplineSamples(template, kernel_shape, py, px), nowhere
    if isinstance(given, ReferenceFit):
        reference = ReferenceSamples(given, kernel_shape, py, px)
        reference.subtract(level)
        reach = maximum_filter(reference.invalid, size=kernel_shape, mode="constant", cval=True)
        return reference, nowhere | reach
    if not callable(given):
        values = np.asarray(given, float)
    elif py.ndim == 0 and px.ndim == 0:
        value = np.asarray(given(py, px), float) - level
        hole = maximum_filter(~np.isfinite(value), size=kernel_shape, mode="constant", cval=True)
        return ShiftedSamples(np.nan_to_num(value), kernel_shape), hole
    else:
        py, px = np.broadcast_to(py, template.shape), np.broadcast_to(px, template.shape)
        values = sample_function(given, kernel_shape, py, px)
    if values.shape != (kernel_shape[0] * kernel_shape[1], *template.shape):
        raise ValueError(f"template_samples must be (n_kernel, y, x), not {values.shape}")
    return StoredSamples(np.nan_to_num(values - level)), ~np.isfinite(values).all(0)


def _away_from(
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


def _fit(
    model: KernelModel,
    samples: Samples,
    image: Array,
    variance: Array,
    template_variance: Array | None,
    excluded: Mask,
    ridge: float,
    clip: float,
    max_iter: int,
) -> tuple[MatchingKernel, Array, Array, Mask]:
    """Passes of fit, noise and clipping until the clipped pixels stay the same."""
    noise = None if template_variance is None else ShiftedSamples(template_variance, model.kernel_shape)
    total = variance if template_variance is None else variance + template_variance
    basis = model.basis()[0]
    parameters = np.zeros(basis.shape[1])
    residual, fit_mask = image, excluded
    for iteration in range(max(max_iter, 1)):
        n_pixels = int((~fit_mask).sum())
        if n_pixels < 2 * len(parameters):
            raise ValueError(
                f"{n_pixels} good pixels are too few for {len(parameters)} parameters; "
                "lower kernel_shape or the polynomial orders"
            )
        matrix, gradient = normal_sums(model, samples, residual, np.where(fit_mask, 0.0, 1 / total))
        parameters = solve_step(model, matrix, gradient, ridge, parameters)
        kernel = model.kernel(basis @ parameters)
        convolved, added = evaluate_model(kernel, samples, noise, image.shape)
        total, residual = variance + added, image - convolved
        limit = clip * np.sqrt(total + (CLIP_FRACTION * (convolved - kernel.background_coefficients[0])) ** 2)
        clipped = excluded | (np.abs(residual) > limit)
        if iteration + 1 >= _MIN_PASSES and np.array_equal(clipped, fit_mask):
            break
        fit_mask = clipped
    return kernel, convolved, total, fit_mask
