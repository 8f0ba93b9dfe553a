"""One pair of cutouts subtracted by a pairwise method, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, maximum_filter
from scipy.signal import fftconvolve

from survey.hotpants import HotpantsError, find_hotpants, subtract_hotpants
from survey.kernels.decorrelate import decorrelate
from survey.kernels.pair_flux import Difference
from survey.kernels.psf import EffectivePSF
from survey.kernels.sfft import subtract_sfft
from survey.kernels.zogy import subtract_zogy

Array = NDArray[np.float64]
# FWHM of the broader image around an object that stay out of the fit of the kernel.
OWN_FWHM = 2.0
# Share of the cutout's light (S/N squared) that must be left when all objects are kept out of the fit; below
# it only those known to vary are.
LIGHT_LEFT = 0.3
# S/N of a peak's pixel from which on it helps to fit the kernel, how many help, and FWHM around them that are
# fitted.
PEAK, MOST_STARS, STAR_FWHM = 8.0, 40, 1.5
_SIGMA = 2.3548
_SMALLEST, _LARGEST = 2, 7


@dataclass
class Plane:
    """One of the two images, both on the same pixels, and its PSF."""

    flux: Array
    error: Array
    mask: NDArray[np.bool_]
    psf: EffectivePSF


@dataclass
class Subtracted:
    """The difference, the template's light in it above its sky, and the flux scale that was fitted."""

    difference: Difference
    level: Array
    scale: float


def subtract(
    method: str,
    image: Plane,
    template: Plane,
    variable: NDArray[np.bool_],
    others: NDArray[np.bool_],
    kernel: int | None,
) -> Subtracted:
    """Image less template.

    Parameters
    ----------
    method : {"sfft", "zogy", "hotpants"}
    image, template : Plane
        The template is convolved: let it be the sharper.
    variable, others : bool array (y, x)
        Pixels of objects known to vary, and of further ones that are measured: not to be fitted.
    kernel : int, optional
        Edge of the kernel; by default from the two widths.

    Raises
    ------
    ValueError
        If too few pixels are left to fit, or the program failed on this pair.
    HotpantsError
        If the program is not there.
    """
    if method == "zogy":
        return _zogy(image, template)
    if method == "hotpants":
        return _hotpants(image, template)
    return _sfft(image, template, variable, others, kernel)


def kernel_edge(image: EffectivePSF, template: EffectivePSF) -> int:
    """Edge of a kernel that holds the broadening of one PSF to another at 2.5 sigma."""
    sigma = np.sqrt(max(image.fwhm**2 - template.fwhm**2, 0.0)) / _SIGMA
    return 2 * int(np.clip(np.ceil(2.5 * sigma), _SMALLEST, _LARGEST)) + 1


def _sfft(
    image: Plane, template: Plane, variable: NDArray[np.bool_], others: NDArray[np.bool_], kernel: int | None
) -> Subtracted:
    """Fit one kernel away from the objects, then take the convolved template away everywhere."""
    edge = kernel or kernel_edge(image.psf, template.psf)
    bad = image.mask | template.mask
    if (~bad).sum() < 2 * edge**2:
        raise ValueError(f"only {(~bad).sum()} pixels for a kernel of {edge} x {edge}")
    light = (np.where(bad, 0.0, image.flux - np.median(image.flux[~bad])) / image.error) ** 2
    light = np.where(light > 9, light, 0.0)
    out = variable | others
    if light[~out].sum() < LIGHT_LEFT * light[~variable].sum():
        out = variable
    stars = bright_peaks(template, out | bad)
    if not len(stars):
        raise ValueError("no star in the cutout to fit a kernel to; enlarge it: [nn2] cell or margin")
    fitted = subtract_sfft(
        image.flux,
        template.flux,
        mask=image.mask | out,
        template_mask=template.mask,
        error=image.error,
        template_error=template.error,
        kernel_shape=(edge, edge),
        kernel_poly_order=0,
        flux_poly_order=0,
        bg_poly_order=1,
        max_iter=3,
        direction="template",
        stars=stars,
        star_radius=STAR_FWHM * image.psf.fwhm + edge // 2,
    )
    size = image.flux.shape
    y, x = np.mgrid[: size[0], : size[1]]
    shape = fitted.kernel.evaluate(0.0, 0.0)
    sky = float(np.median(template.flux[~template.mask]))
    filled = np.where(template.mask, sky, template.flux)
    level = fftconvolve(np.pad(filled - sky, edge, mode="edge"), shape, mode="same")[edge:-edge, edge:-edge]
    scale = float(shape.sum())
    difference = image.flux - level - scale * sky - fitted.kernel.background(x, y)
    variance = fftconvolve(np.pad(template.error**2, edge, mode="edge"), shape**2, mode="same")
    error = np.sqrt(image.error**2 + np.maximum(variance[edge:-edge, edge:-edge], 0.0))
    mask = image.mask | binary_dilation(template.mask, np.ones((edge, edge), bool))
    found = Difference(difference, error, mask, image.psf)
    return Subtracted(decorrelate(found, shape, image.error, template.error), level, scale)


def bright_peaks(plane: Plane, out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Brightest peaks (n, 2) of an image. Around them the kernel is fitted.

    Elsewhere the template holds noise alone, which a kernel is fitted to as if it were signal: over a whole
    cutout that makes the kernel's sum too small by percents.
    """
    error = np.where(plane.mask, 1.0, plane.error)
    signal = np.where(out, 0.0, (plane.flux - np.median(plane.flux[~plane.mask])) / error)
    peak = (signal == maximum_filter(signal, 5)) & (signal > PEAK)
    y, x = np.nonzero(peak)
    order = np.argsort(-signal[y, x], kind="stable")[:MOST_STARS]
    return np.column_stack([y, x])[order]


def _zogy(image: Plane, template: Plane) -> Subtracted:
    """Proper difference; both are on the same pixels, so the shift is known."""
    stamps = [plane.psf.evaluate(0.0, 0.0, plane.psf.size | 1)[0] for plane in (image, template)]
    found = subtract_zogy(
        image.flux,
        template.flux,
        image_psf=stamps[0],
        template_psf=stamps[1],
        mask=image.mask,
        template_mask=template.mask,
        error=image.error,
        template_error=template.error,
        shift=(0.0, 0.0),
    )
    assert found.psf is not None
    level = template.flux - np.median(template.flux[~template.mask])
    return Subtracted(
        Difference(
            np.asarray(found.difference, float),
            np.asarray(found.error, float),
            found.mask,
            EffectivePSF(np.asarray(found.psf, float), 1),
        ),
        level,
        float(found.kernel.ratio),
    )


def _hotpants(image: Plane, template: Plane) -> Subtracted:
    """The external program with one kernel for the cutout."""
    # Outside of the try: without the program no pair can be subtracted.
    program = find_hotpants()
    try:
        found = subtract_hotpants(
            image.flux,
            template.flux,
            mask=image.mask,
            template_mask=template.mask,
            error=image.error,
            template_error=template.error,
            image_fwhm=image.psf.fwhm,
            template_fwhm=template.psf.fwhm,
            kernel_poly_order=0,
            bg_poly_order=1,
            direction="template",
            executable=program,
        )
    except HotpantsError as problem:
        raise ValueError(str(problem)) from problem
    level = np.asarray(found.convolved, float) - float(np.nanmedian(found.convolved))
    difference, error = (np.asarray(a, float) for a in (found.difference, found.error))
    return Subtracted(Difference(difference, error, found.mask, image.psf), level, 1.0)


def own_pixels(size: int, places: Array, radius: float) -> NDArray[np.bool_]:
    """Pixels (size, size) within a radius of any of the places (n, 2)."""
    near: NDArray[Any] = np.zeros((size, size), bool)
    y, x = np.ogrid[:size, :size]
    for py, px in places:
        near |= (y - py) ** 2 + (x - px) ** 2 <= radius**2
    return near
