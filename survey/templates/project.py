"""Images of the sky on the grid of a field, their flux conserved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from astropy.wcs import WCS, NoConvergence
from astropy.wcs.utils import pixel_to_pixel, proj_plane_pixel_area
from numpy.typing import NDArray

from survey.io.sky_images import SkyImage

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

# Template pixels at least this share of the field's are interpolated; smaller ones are averaged.
_COARSE = 0.8
# A pixel is bad where bad pixels have more than this share in it.
_BAD_SHARE = 1e-3
# Pixels of the template beyond the field that may reach into it.
_MARGIN = 8
# Good pixels of a seam that tell how two skies differ.
_SEAM = 100
# ... and in units of their median deviation over the root of their number: resampled noise is correlated.
_STANDS_OUT = 15.0


class TemplateError(ValueError):
    """A template that cannot be made; the message says what to do."""


@dataclass
class Mosaic:
    """A template on the field's grid, as far as it is covered; all arrays (y, x).

    Attributes
    ----------
    flux, error : float32 array
        NaN where nothing covers the grid.
    mask : bool array
        True = bad or not covered.
    origin : int16 array
        Number of the image that a pixel was taken from; -1: none.
    """

    flux: Floats
    error: Floats
    mask: NDArray[np.bool_]
    origin: NDArray[np.int16]
    images: list[SkyImage] = field(default_factory=list)

    @property
    def coverage(self) -> float:
        """Share of the grid with good pixels."""
        return float((~self.mask).mean())


def project(images: Iterable[SkyImage], wcs: WCS, shape: tuple[int, int]) -> Mosaic:
    """Put images on a grid; where several cover a pixel, the first good one is taken.

    Skies are brought to that of the first image by the median difference where two overlap.

    Surface brightness times the grid's pixel area is conserved. Errors are those of an average of the
    pixels that a grid pixel covers; neighbours' correlation is not followed. A pixel with a bad one in
    reach of its resampling kernel is bad.

    Raises
    ------
    TemplateError
        If no image covers the grid.
    """
    result = Mosaic(
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.nan, np.float32),
        np.ones(shape, bool),
        np.full(shape, -1, np.int16),
    )
    names = []
    for image in images:
        names.append(image.name)
        placed = _place(image, wcs, shape)
        if placed is None:
            continue
        window, flux, error, bad, covered = placed
        old_bad, origin = result.mask[window], result.origin[window]
        both = covered & ~bad & (origin >= 0) & ~old_bad
        if both.sum() >= _SEAM:
            flux = flux - _step(flux[both] - result.flux[window][both])
        take = covered & ((origin < 0) | (old_bad & ~bad))
        for target, values in ((result.flux, flux), (result.error, error), (result.mask, bad)):
            target[window][take] = values[take]
        origin[take] = len(result.images)
        result.images.append(_without_pixels(image))
    if not (result.origin >= 0).any():
        raise TemplateError(f"nothing of {', '.join(names) or 'the template'} lies on the field")
    result.mask |= ~np.isfinite(result.flux) | ~(result.error > 0)
    return result


def _step(apart: Floats) -> np.float32:
    """How much higher one sky is than another, by the differences of good pixels; 0 where that is noise."""
    step = np.median(apart)
    noise = np.median(np.abs(apart - step)) / np.sqrt(apart.size)
    return np.float32(step if abs(step) > _STANDS_OUT * noise else 0.0)


def _without_pixels(image: SkyImage) -> SkyImage:
    """What is kept of an image whose pixels have been used."""
    none = np.zeros((0, 0), np.float32)
    return SkyImage(
        none, none, none.astype(bool), image.wcs, image.units, image.zero_point, image.name, image.notes
    )


def _place(
    image: SkyImage, wcs: WCS, shape: tuple[int, int]
) -> tuple[tuple[slice, slice], Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Window of the grid, and there flux, error, bad pixels and what is covered; None where nothing is."""
    target = _overlap(image.wcs, image.flux.shape, wcs, shape)
    source = _overlap(wcs, shape, image.wcs, image.flux.shape)
    if target is None or source is None:
        return None
    cut, grid = image.wcs[source], wcs[target]
    size = tuple(s.stop - s.start for s in target)
    bad = image.mask[source] | ~np.isfinite(image.flux[source]) | ~np.isfinite(image.error[source])
    ratio = proj_plane_pixel_area(grid) / proj_plane_pixel_area(cut)
    planes = np.stack([
        np.where(bad, 0.0, image.flux[source]),
        np.where(bad, 0.0, image.error[source].astype(float) ** 2),
        bad.astype(float),
    ])  # fmt: skip
    resampled, covered = _resample(planes, cut, grid, size, coarse=ratio <= 1 / _COARSE)
    flux, variance, share = resampled
    spoilt = ~(np.abs(share) < _BAD_SHARE)
    # a sum of `ratio` pixels of this variance; where pixels are coarser, a part of one
    error = np.sqrt(np.maximum(variance, 0.0) * ratio * min(ratio, 1.0))
    return target, (flux * ratio).astype(np.float32), error.astype(np.float32), spoilt, covered


def _resample(
    planes: Array, source: WCS, grid: WCS, size: tuple[int, ...], *, coarse: bool
) -> tuple[Array, NDArray[np.bool_]]:
    """Planes (n, y, x) on a grid, as mean values, and what of it is covered."""
    try:
        from reproject import reproject_adaptive, reproject_interp
    except ImportError:
        raise TemplateError(
            "projecting a template needs the package reproject: pip install 'survey[templates]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of astropy, about headers of others
        if coarse:
            values, footprint = reproject_interp((planes, source), grid, shape_out=size, order="bicubic")
        else:
            values, footprint = reproject_adaptive(
                (planes, source), grid, shape_out=size, kernel="hann", boundary_mode="strict",
                bad_value_mode="strict",
            )  # fmt: skip
    covered = (footprint[0] > 0) & np.isfinite(values).all(0)
    return np.where(covered, values, 0.0), covered


def _overlap(
    source: WCS, size: tuple[int, ...], grid: WCS, shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    """Window of a grid that an image may reach, by its edge; None if it is elsewhere."""
    ys, xs = (np.linspace(-0.5, n - 0.5, 33) for n in size)
    edge_x = np.concatenate([xs, xs, np.full_like(ys, xs[0]), np.full_like(ys, xs[-1])])
    edge_y = np.concatenate([np.full_like(xs, ys[0]), np.full_like(xs, ys[-1]), ys, ys])
    try:
        with np.errstate(all="ignore"):
            x, y = pixel_to_pixel(source, grid, edge_x, edge_y)
    except NoConvergence:  # distortions far from the grid: the resampling will find what there is
        return slice(0, shape[0]), slice(0, shape[1])
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return None
    window = []
    for values, n in ((y[known], shape[0]), (x[known], shape[1])):
        low = max(int(np.floor(values.min())) - _MARGIN, 0)
        high = min(int(np.ceil(values.max())) + _MARGIN + 1, n)
        if low >= high:
            return None
        window.append(slice(low, high))
    return window[0], window[1]
