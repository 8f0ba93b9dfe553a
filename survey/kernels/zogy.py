"""Proper image subtraction for known PSFs (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27).

The PSFs may vary over the image: it is cut into tiles that overlap by the reach of the filters and are
trimmed. Bad pixels, and what lies beyond the image, are filled with what the other image says of them, and
flagged with the pixels that this may spoil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation

from survey.kernels._sfft_inputs import as_mask, sky_of, working_type
from survey.kernels._zogy_fill import fill_alike, fill_bad
from survey.kernels._zogy_match import Match, match_parts, noise_correlation, scatter, solve_match
from survey.kernels._zogy_tile import Proper, TilePair, matched_pair, proper_subtraction
from survey.kernels.background import Background
from survey.kernels.subtraction import Subtraction

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
# A PSF: (k, k) with odd k, or (y, x) -> (k, k) at a position.
PSF = ArrayLike | Callable[[float, float], ArrayLike]


@dataclass(frozen=True)
class ZogyMatch:
    """What `subtract_zogy` calls its kernel.

    Attributes
    ----------
    ratio : float
        Image flux per template flux.
    shift : (dy, dx)
        Positions in the image less those in the template, pixels.
    shift_error : (dy, dx)
        Registration noise that the significance counts, pixels.
    noise : (float, float)
        Of image and template, 1 sigma of the sky near the middle, that the filters were made for.
    """

    ratio: float
    shift: tuple[float, float]
    shift_error: tuple[float, float]
    noise: tuple[float, float] = (np.nan, np.nan)

    def flux_scale(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Image flux per template flux at pixel positions."""
        return np.full(np.broadcast_shapes(np.shape(x), np.shape(y)), self.ratio)


@dataclass
class _Side:
    """One of the two images, its sky subtracted."""

    values: Floats
    variance: Floats
    bad: Mask
    psf: PSF
    margin: int = 0

    def noise(self, window: tuple[slice, slice]) -> float:
        """Of the sky in a window: the least of its pixels' errors, nearly."""
        good = ~self.bad[window]
        chosen = self.variance[window][good] if good.any() else self.variance[window]
        return float(np.sqrt(np.quantile(chosen, 0.3)))

    def psf_at(self, y: float, x: float) -> Floats:
        """Normalised PSF at a position among the pixels that there are with the margin."""
        at = y - self.margin, x - self.margin
        psf = np.asarray(self.psf(*at) if callable(self.psf) else self.psf, float)
        if psf.ndim != 2 or psf.shape[0] % 2 == 0 or psf.shape[1] % 2 == 0:
            raise ValueError(f"a PSF must be 2-D with odd sides, not {psf.shape}")
        total = float(psf.sum())
        if not total > 0:
            raise ValueError(f"the PSF at y = {y:.0f}, x = {x:.0f} has the sum {total:.3g}")
        return psf / total

    def padded(self, margin: int) -> _Side:
        """With bad pixels around: in a transform, what lies at an edge leaks to the other side."""
        values, variance = (np.pad(plane, margin, mode="edge") for plane in (self.values, self.variance))
        return _Side(values, variance, np.pad(self.bad, margin, constant_values=True), self.psf, margin)


def subtract_zogy(
    image: ArrayLike,
    template: ArrayLike,
    *,
    image_psf: PSF,
    template_psf: PSF,
    mask: ArrayLike | None = None,
    template_mask: ArrayLike | None = None,
    error: ArrayLike | None = None,
    template_error: ArrayLike | None = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    flux_ratio: float | None = None,
    shift: tuple[float, float] | None = None,
    shift_error: float | tuple[float, float] | None = None,
    sky: Literal["measured", "given"] = "measured",
    tile: int | None = None,
    overlap: int | None = None,
    grow: int = 2,
    fill: Literal["matched", "alike"] = "matched",
) -> Subtraction:
    """Subtract two images whose PSFs are known.

    Parameters
    ----------
    image, template : array (y, x)
        On one grid. Pixels that are not finite are bad. Where both are
        float32 the work is done in float32, else in float64.
    image_psf, template_psf : array (k, k) or callable (y, x) -> array (k, k)
        PSF centred on the middle pixel, odd k; a callable gives it at a position.
    mask, template_mask : bool array (y, x), optional
        True = bad.
    error, template_error : array (y, x), optional
        1-sigma errors. Without them the sky's noise is measured and, with a gain, photons are added.
    image_gain, template_gain : float, optional
        Electrons per unit.
    flux_ratio : float, optional
        Image flux per template flux; fitted to stars by default.
    shift : (dy, dx), optional
        Positions in the image less those in the template, pixels; fitted by default.
    shift_error : float or (dy, dx), optional
        Registration noise, pixels; by default what shifts of parts of 96 pixels scatter by; 0 with
        fewer than five parts of 200 star pixels.
    sky : {'measured', 'given'}
        Whether skies are measured and taken away, or both images come without.
    tile : int, optional
        Edge of a tile's core, over which a PSF is constant: 96 where a PSF varies, else 512.
    overlap : int, optional
        Pixels around a core; a PSF's side by default. As many are imagined around the image:
        with 0, what lies at an edge leaks to the other side.
    grow : int
        Pixels by which bad areas are grown in the result at least.
    fill : {'matched', 'alike'}
        What stands in bad pixels while filters look at them: the other image matched to this one's PSF, and
        what that may be wrong by is masked; or its pixels as they are, in the ratio of the PSFs' peaks, and
        nothing more is masked: for PSFs that are narrower than two pixels, and cannot be matched.

    Returns
    -------
    Subtraction
        ``difference``, ``error`` and ``psf`` are those of the proper difference D in the image's units;
        ``significance`` is S_corr, ``psf_flux`` and ``psf_flux_error`` those of a point source at every
        pixel; ``convolved`` is the image less the difference; ``kernel`` a `ZogyMatch`. ``mask`` holds the
        pixels of the difference that bad ones, or those beyond the edge, may spoil; a significance looks
        further, and is NaN where it is.

    Raises
    ------
    ValueError
        If shapes or PSFs are wrong, or too few stars are there to fit ratio and shift.

    Examples
    --------
    >>> y, x = np.mgrid[-7:8, -7:8]
    >>> wide, narrow = (np.exp(-(y**2 + x**2) / 2 / s**2) for s in (1.8, 1.3))
    >>> sky = np.random.default_rng(0).normal(size=(2, 90, 120))
    >>> sky[0, 33:48, 53:68] += 900 * wide / wide.sum()
    >>> s = subtract_zogy(sky[0], sky[1], image_psf=wide, template_psf=narrow, flux_ratio=1, shift=(0, 0))
    >>> round(float(s.psf_flux[40, 60]) / 100)
    9
    """
    shape = np.shape(image)
    if len(shape) != 2 or np.shape(template) != shape:
        raise ValueError(f"image and template must have one (y, x) shape, not {shape}, {np.shape(template)}")
    dtype = working_type(image, template)
    if sky not in ("measured", "given"):
        raise ValueError(f"sky {sky!r} is not measured or given")
    new = _prepare(image, mask, error, image_gain, image_psf, dtype, "image", sky)
    reference = _prepare(
        template, template_mask, template_error, template_gain, template_psf, dtype, "template", sky
    )
    varies = callable(image_psf) or callable(template_psf)
    reach = max(max(side.psf_at(shape[0] / 2, shape[1] / 2).shape) for side in (new, reference))
    margin = overlap if overlap is not None else reach
    new, reference = new.padded(margin), reference.padded(margin)
    cells = _cells(shape, tile or (96 if varies else 512), margin)
    # bad pixels stay out of the match, which then says how to fill them
    tiles = [_tile(new, reference, cell) for cell in cells]
    match = _match(tiles, cells, new, reference, flux_ratio, shift, shift_error, fit_sky=sky == "measured")
    inside = slice(margin, shape[0] + margin), slice(margin, shape[1] + margin)
    bad = (new.bad | reference.bad)[inside]
    bad = binary_dilation(bad, iterations=grow) if grow else bad
    planes = [np.full(shape, np.nan, dtype) for _ in range(4)]
    psf = None
    middle = len(cells) // 2
    match = replace(match, noise=(tiles[middle].new_noise, tiles[middle].reference_noise))
    for index, cell in enumerate(cells):
        holes = new.bad[cell.window], reference.bad[cell.window]
        if fill == "matched":
            pair = fill_bad(tiles[index], *holes, match.ratio, match.shift)
        else:
            pair = fill_alike(tiles[index], *holes, match.ratio)
        proper = proper_subtraction(pair, match.ratio, match.shift, match.shift_error)
        _store(proper, cell, planes, bad)
        psf = proper.psf if index == middle else psf
    return _result(np.asarray(image, dtype), planes, bad, match, psf)


def _result(
    image: Floats, planes: list[Floats], bad: Mask, match: ZogyMatch, psf: Floats | None
) -> Subtraction:
    for plane in planes:
        plane[bad] = np.nan
    difference, variance, flux, flux_variance = planes
    error, flux_error = np.sqrt(variance), np.sqrt(flux_variance)
    return Subtraction(
        difference, error, difference / error, image - difference, bad, bad, match, psf_flux=flux,
        psf_flux_error=flux_error, significance=flux / flux_error, psf=psf,
    )  # fmt: skip


@dataclass(frozen=True)
class _Cell:
    """A core in the image, the window around it in the image with its margin, the core in the window."""

    core: tuple[slice, slice]
    window: tuple[slice, slice]
    inner: tuple[slice, slice]

    @property
    def centre(self) -> tuple[float, float]:
        y, x = ((s.start + s.stop - 1) / 2 for s in self.window)
        return y, x


def _cells(shape: tuple[int, ...], size: int, overlap: int) -> list[_Cell]:
    """Cores of nearly equal size that cover the image; windows are in the image with its margin."""
    edges = [np.linspace(0, n, max(round(n / size), 1) + 1).astype(int) for n in shape]
    cells = []
    for y0, y1 in zip(edges[0][:-1], edges[0][1:], strict=True):
        for x0, x1 in zip(edges[1][:-1], edges[1][1:], strict=True):
            window = slice(y0, y1 + 2 * overlap), slice(x0, x1 + 2 * overlap)
            inner = slice(overlap, overlap + y1 - y0), slice(overlap, overlap + x1 - x0)
            cells.append(_Cell((slice(y0, y1), slice(x0, x1)), window, inner))
    return cells


def _prepare(
    image: ArrayLike,
    mask: ArrayLike | None,
    error: ArrayLike | None,
    gain: float | None,
    psf: PSF,
    dtype: np.dtype,
    name: str,
    sky: str,
) -> _Side:
    values = np.array(image, dtype)
    bad = ~np.isfinite(values) | as_mask(mask, values.shape)
    if bad.all():
        raise ValueError(f"no good pixel in the {name}")
    found = sky_of(values, bad, order=2) if sky == "measured" or error is None else None
    if found is not None and sky == "measured":
        whole = Background(
            found.level, found.rms, found.level_error, found.coefficients, values.shape[:2], found.n_meshes
        )
        values -= (whole.surface() if whole.order else np.asarray(whole.level)).astype(dtype)
    if error is None:
        assert found is not None
        photons = 0 if gain is None else np.maximum(values, 0) / dtype.type(gain)
        variance = np.asarray(dtype.type(found.rms**2) + photons * np.ones_like(values))
    else:
        sigma = np.broadcast_to(np.asarray(error, dtype), values.shape)
        variance = sigma**2
        bad |= ~np.isfinite(variance) | (sigma <= 0)
        if bad.all():
            raise ValueError(f"no good pixel in the {name}: its errors are not finite or not positive")
    level = float(np.median(variance[~bad]))
    return _Side(np.where(bad, 0, values), np.where(bad, level, variance).astype(dtype), bad, psf)


def _tile(new: _Side, reference: _Side, cell: _Cell) -> TilePair:
    """Both images in a window."""
    w = cell.window
    return TilePair(
        new.values[w], reference.values[w], new.variance[w], reference.variance[w], new.noise(w),
        reference.noise(w), new.psf_at(*cell.centre), reference.psf_at(*cell.centre),
    )  # fmt: skip


def _match(
    tiles: list[TilePair],
    cells: list[_Cell],
    new: _Side,
    reference: _Side,
    ratio: float | None,
    shift: tuple[float, float] | None,
    shift_error: float | tuple[float, float] | None,
    *,
    fit_sky: bool,
) -> ZogyMatch:
    """Flux ratio, shift and registration noise: given, or fitted to all tiles together."""
    if isinstance(shift_error, float | int):
        shift_error = (float(shift_error), float(shift_error))
    if ratio is not None and shift is not None:
        return ZogyMatch(ratio, shift, shift_error or (0.0, 0.0))
    convolved = [matched_pair(tile) for tile in tiles]
    guess: Array | None = None
    sums: list[Match] = []
    middle = tiles[len(tiles) // 2]
    correlation = noise_correlation(middle.new_psf, middle.reference_psf)
    for _ in range(3):
        sums = []
        for pair, cell in zip(convolved, cells, strict=True):
            reach = max(new.psf_at(*cell.centre).shape) // 2
            near = binary_dilation(new.bad[cell.window] | reference.bad[cell.window], iterations=reach)
            inside = np.zeros(near.shape, bool)
            inside[cell.inner] = True
            sums += match_parts(*pair, inside & ~near, guess, correlation)
        total = sum(sums, Match(np.zeros((4, 4)), np.zeros(4), 0))
        found, moved, guess = solve_match(total, sky=fit_sky)
    if shift_error is None:
        shift_error = scatter(sums)
    return ZogyMatch(found if ratio is None else ratio, moved if shift is None else shift, shift_error)


def _store(proper: Proper, cell: _Cell, planes: list[Floats], bad: Mask) -> None:
    """Trim a tile's overlap and put its core in place."""
    for plane, part in zip(
        planes, (proper.difference, proper.variance, proper.flux, proper.flux_variance), strict=True
    ):
        plane[cell.core] = part[cell.inner]
    if proper.spoilt is not None and proper.flux_spoilt is not None:
        bad[cell.core] |= proper.spoilt[cell.inner]
        for plane in planes[2:]:
            plane[cell.core][proper.flux_spoilt[cell.inner]] = np.nan
