"""Image subtraction with a spatially varying delta-basis kernel, fitted by linear least squares.

The model of SFFT (Hu et al. 2022, ApJ 936, 157): ``image(p) = sum_ab c_ab P_b(p) R(p - a) + background(p)``.
The normal equations are summed over blocks of pixels, so that any mask and any weights may be used; within a
block by products or, for large kernels, by Fourier transforms. On a frame placed by nearest pixel the
template is evaluated at the frame's true positions, ``R(p - a + phase(p))``; the data are never interpolated.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._sfft_assembly import Assembly, check_assembly
from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_inputs import (
    Noisy,
    as_mask,
    autocorrelation_width,
    away_from,
    lacking_noise,
    make_samples,
    prepare_image,
    prepare_template,
    without_signal,
    working_type,
)
from survey.kernels._sfft_noise import decorrelated
from survey.kernels._sfft_pass import Scene, pad_variance
from survey.kernels._sfft_samples import TemplateFunction
from survey.kernels._sfft_solve import CLIP_FRACTION, Limits, fit
from survey.kernels.continuous import fill_holes
from survey.kernels.masks import grow_rectangle
from survey.kernels.reference import ReferenceFit
from survey.kernels.subtraction import MatchingKernel, Subtraction

__all__ = ["CLIP_FRACTION", "subtract_sfft"]

Direction = Literal["auto", "template", "image"]
# The image is convolved where its PSF is narrower than the template's by this much.
_NARROWER = 0.95


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
    direction: Direction = "auto",
    decorrelate: bool = False,
    assembly: Assembly = "auto",
) -> Subtraction:
    """Convolve a template to an image's PSF, scale and background, and subtract it.

    Parameters
    ----------
    image, template : array (y, x)
        On one grid; pedestals are allowed. Pixels that are not finite are bad, and so are those at the level
        at which an image cuts its stars off. Where both are float32 the work is done in float32, else in
        float64.
    mask, template_mask : bool array (y, x), optional
        True = bad. A bad template pixel masks the kernel's reach around it.
    error, template_error : array (y, x), optional
        1-sigma errors. Without ``error`` the noise is measured in the sky and, with ``image_gain``, the
        photons that the model predicts are added. Without ``template_error`` and ``template_gain`` the
        template has no noise, unless the image is convolved: then its sky's is measured.
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
    direction : {'auto', 'template', 'image'}
        Which of the two is convolved. 'auto' takes the one with the narrower PSF, and the template where
        phases or samples are given or the kernel has one pixel. The difference is in the image's units and
        has its sign either way.
    decorrelate : bool
        Whiten the difference's noise, which a convolved noisy template correlates between pixels; the PSF of
        the difference changes (`Subtraction.decorrelation`).
    assembly : {'auto', 'blocks', 'fft'}
        How the normal equations are summed over a block's pixels: by products of template samples, or by
        transforms, which for one pixel shift after another need the template on the image's pixels or at one
        phase. Equal but for rounding, with any mask and any weights; 'auto' takes what is faster for the
        kernel's size.

    Returns
    -------
    Subtraction

    Raises
    ------
    ValueError
        If shapes do not match, too few pixels are left to determine the kernel, or the images have no stars
        in common.

    References
    ----------
    Hu et al. 2022, eqs. 1-6; Alard & Lupton 1998; decorrelation: Reiss & Lupton 2016, DMTN-021, eq. 5.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> template = rng.normal(size=(64, 64)) + 200
    >>> image = 0.9 * np.roll(template, 1, axis=1) + 5
    >>> s = subtract_sfft(image, template, error=np.ones((64, 64)), kernel_shape=(3, 3), kernel_poly_order=0,
    ...                   direction="template")
    >>> bool(np.nanmax(abs(s.difference)) < 1e-4), s.kernel.flux_scale(30, 30).round(4).item()
    (True, 0.9)
    """
    shape = np.shape(image)
    if len(shape) != 2 or np.shape(template) != shape:
        raise ValueError(f"image and template must have one (y, x) shape, not {shape}, {np.shape(template)}")
    if len(kernel_shape) != 2 or any(k < 1 or k % 2 == 0 for k in kernel_shape):
        raise ValueError(f"kernel_shape must be two odd numbers, not {kernel_shape}")
    continuous = phase_y is not None or phase_x is not None or template_samples is not None
    if direction not in ("auto", "template", "image"):
        raise ValueError(f"direction {direction!r} is not auto, template or image")
    if direction == "image" and continuous:
        raise ValueError("the image cannot be convolved where phases or template_samples are given")
    check_assembly(assembly)
    options: dict[str, Any] = {
        "model": (kernel_poly_order, flux_poly_order, bg_poly_order),
        "kernel_shape": tuple(kernel_shape),
        "limits": Limits(ridge, clip, max_iter, assembly),
        "stars": (stars, star_radius),
        "decorrelate": decorrelate,
    }
    given = [(image, mask, error, image_gain), (template, template_mask, template_error, template_gain)]
    if direction == "auto":
        plain = continuous or kernel_shape == (1, 1)
        direction = "template" if plain else _narrower(given)
    dtype = working_type(image, template)
    if direction == "image":
        target = prepare_image(*given[1], dtype)
        matched = prepare_template(*given[0], dtype, noisy=True)
        return _of_image(_subtract(target, matched, (None, None), None, **options))
    target, matched = prepare_image(*given[0], dtype), prepare_template(*given[1], dtype)
    return _subtract(target, matched, (phase_y, phase_x), template_samples, **options)


def _narrower(given: list[tuple[Any, ...]]) -> Direction:
    """Which of image and template has the narrower PSF; the template unless the image clearly has."""
    widths = []
    for values, mask, _, _ in given:
        values = np.asarray(values)
        widths.append(autocorrelation_width(values, as_mask(mask, values.shape)))
    return "image" if widths[0] < _NARROWER * widths[1] else "template"


def _subtract(
    image: Noisy,
    template: Noisy,
    phases: tuple[ArrayLike | None, ArrayLike | None],
    given: Any,
    *,
    model: tuple[int, int, int],
    kernel_shape: tuple[int, int],
    limits: Limits,
    stars: tuple[ArrayLike | None, float | None],
    decorrelate: bool,
) -> Subtraction:
    """Fit the template to the image and take it away."""
    shape = image.values.shape
    plain = phases[0] is None and phases[1] is None and given is None
    sampled = template.values if plain else fill_holes(template.values, template.bad)
    samples, unsampled = make_samples(sampled, template.level, kernel_shape, *phases, given)
    reach = 0 if plain else 2
    half_y, half_x = (k // 2 + reach for k in kernel_shape)
    bad = image.bad | unsampled | _grown(template.bad, (half_y, half_x))
    values = np.where(bad, np.asarray(0, image.values.dtype), image.values)
    assert image.variance is not None
    noise = None if template.variance is None else pad_variance(template.variance, kernel_shape)
    variance = np.where(bad, np.asarray(np.inf, values.dtype), image.variance)
    excluded = bad | away_from(*stars, shape, kernel_shape)
    if given is None and stars[0] is None:
        excluded |= without_signal(template, kernel_shape)
    corrects = noise is not None and plain
    kept = lacking_noise(template) if corrects else 0.0
    scene = Scene(values, variance, excluded, noise, image.photon, corrects=corrects, noise_kept=kept)
    fitted = fit(KernelModel(kernel_shape, *model, shape), samples, scene, limits)
    kernel = KernelModel(kernel_shape, *model, shape).kernel(fitted.coefficients)
    difference, convolved = values - fitted.planes.convolved, fitted.planes.convolved
    convolved += values.dtype.type(image.level)
    sigma = np.sqrt(fitted.planes.variance, out=fitted.planes.variance)
    difference[bad] = sigma[bad] = np.nan
    kernel = _with_pedestals(kernel, image.level, template.level)
    result = Subtraction(
        difference, sigma, difference / sigma, convolved, bad, fitted.planes.fit_mask, kernel,
        model_error=fitted.model_error,
    )  # fmt: skip
    return decorrelated(result, image.variance, template.variance) if decorrelate else result


def _grown(bad: NDArray[np.bool_], radii: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels within reach of a bad one, or of the edge."""
    out = grow_rectangle(bad, radii)
    y, x = radii
    out[:y] = out[out.shape[0] - y :] = True
    out[:, :x] = out[:, out.shape[1] - x :] = True
    return out


def _of_image(result: Subtraction) -> Subtraction:
    """Template less convolved image, turned into image less template in the image's units."""
    y, x = np.ogrid[: result.mask.shape[0], : result.mask.shape[1]]
    scale = result.kernel.flux_scale(*np.broadcast_arrays(x, y)).astype(result.difference.dtype)
    return Subtraction(
        -result.difference / scale, result.error / scale, -result.scaled, result.convolved, result.mask,
        result.fit_mask, result.kernel, model_error=result.model_error, direction="image",
        decorrelation=result.decorrelation,
    )  # fmt: skip


def _with_pedestals(kernel: MatchingKernel, pedestal: float, level: float) -> MatchingKernel:
    """The kernel whose background belongs to the images as they were given."""
    flux = kernel.coefficients.sum((0, 1))
    background: NDArray[np.float64] = np.zeros(max(len(flux), len(kernel.background_coefficients)))
    background[: len(kernel.background_coefficients)] = kernel.background_coefficients
    background[: len(flux)] -= level * flux
    background[0] += pedestal
    return MatchingKernel(kernel.coefficients, background, kernel.image_shape)
