"""The effective (pixel-integrated) PSF: representation, evaluation, analytic and instrument constructors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from survey.kernels._spline import pad_table, points, spline_coefficients, spline_samples, value_stamps

Array = NDArray[np.float64]
# Points of the grid, by which a width is measured, in a first look's step.
COARSER = 10


@dataclass(frozen=True)
class EffectivePSF:
    """Response of a pixel to a star of unit flux: a cubic spline of their distance, on a grid of positions.

    The effective PSF of Anderson & King (2000, PASP 112, 1360): already integrated over the pixel, so that a
    star's image is only sampled from it, never integrated.

    Parameters
    ----------
    samples : array (n, n) or (grid_y, grid_x, n, n)
        Values at displacements ``(i - (n - 1) / 2) / oversampling`` pixels of the pixel's centre from the
        star; n may be even. The spline is zero outside.
    oversampling : int
        Samples a pixel.
    grid_y, grid_x : arrays (grid_y,), (grid_x,), optional
        Reference positions of a gridded PSF, increasing; bilinear between them, constant beyond.

    Raises
    ------
    ValueError
        If shapes disagree or samples are not finite.

    Examples
    --------
    >>> psf = gaussian_epsf(1.1)
    >>> stamp = psf.evaluate(0.3, -0.2, 11)[0]
    >>> round(float(stamp.sum()), 6)
    1.0
    """

    samples: Array
    oversampling: int
    grid_y: Array = field(default_factory=lambda: np.zeros(1))
    grid_x: Array = field(default_factory=lambda: np.zeros(1))

    def __post_init__(self) -> None:
        samples = np.array(self.samples, float)
        if samples.ndim == 2:
            samples = samples[None, None]
        grid_y, grid_x = np.atleast_1d(np.asarray(self.grid_y, float), np.asarray(self.grid_x, float))
        if samples.ndim != 4 or samples.shape[-1] != samples.shape[-2] or samples.shape[-1] < 4:
            raise ValueError(f"PSF samples of shape {samples.shape}: want (n, n) or (grid_y, grid_x, n, n)")
        if samples.shape[:2] != (grid_y.size, grid_x.size):
            raise ValueError(
                f"PSF grid of {samples.shape[:2]} with {grid_y.size} y and {grid_x.size} x positions"
            )
        if np.any(np.diff(grid_y) <= 0) or np.any(np.diff(grid_x) <= 0):
            raise ValueError("positions of a PSF grid must increase")
        if not np.isfinite(samples).all():
            raise ValueError("PSF samples must be finite")
        if int(self.oversampling) != self.oversampling or self.oversampling < 1:
            raise ValueError(f"oversampling must be a positive integer, not {self.oversampling!r}")
        for name, value in (("samples", samples), ("grid_y", grid_y), ("grid_x", grid_x)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "oversampling", int(self.oversampling))

    @cached_property
    def tables(self) -> Array:
        """Padded spline coefficients (grid_y * grid_x, N, N) for the compiled loops."""
        n = self.samples.shape[-1]
        return pad_table(spline_coefficients(self.samples).reshape(-1, n, n))

    @property
    def size(self) -> int:
        """Smallest odd stamp side in pixels that holds all of the PSF at every |offset| <= 0.5."""
        return 2 * math.ceil((self.samples.shape[-1] + 3) / (2 * self.oversampling)) + 1

    def at(self, y: float, x: float) -> EffectivePSF:
        """The PSF at one position, without a grid."""
        if self.samples.shape[:2] == (1, 1):
            return self
        index, weight = self._blend(np.array([y], float), np.array([x], float), 1)
        n = self.samples.shape[-1]
        blended = np.tensordot(weight[0], self.samples.reshape(-1, n, n)[index[0]], axes=1)
        return EffectivePSF(blended, self.oversampling)

    def evaluate(
        self,
        offset_y: ArrayLike,
        offset_x: ArrayLike,
        size: int,
        y: ArrayLike | None = None,
        x: ArrayLike | None = None,
    ) -> Array:
        """Stamps (n, size, size) of stars at pixel ``size // 2`` + offset, unit total flux.

        Parameters
        ----------
        offset_y, offset_x : float or array (n,)
            Offsets of the stars from the stamps' centre pixels. For sample [k, y, x] of a cube and a star at
            (ys, xs) the offset is ``ys - phase_y[k] - y_centre``.
        size : int
            Side of the stamps in pixels.
        y, x : float or array (n,), optional
            Reference positions, for a gridded PSF; its middle by default.
        """
        offset_y, offset_x = np.broadcast_arrays(np.atleast_1d(offset_y), np.atleast_1d(offset_x))
        offset_y, offset_x = (np.ascontiguousarray(a, float) for a in (offset_y, offset_x))
        index, weight = self._blend(y, x, offset_y.size)
        out = np.zeros((offset_y.size, size, size))
        value_stamps(self.tables, index, weight, self.oversampling, offset_y, offset_x, out)
        return out

    def gradient(
        self,
        offset_y: ArrayLike,
        offset_x: ArrayLike,
        size: int,
        y: ArrayLike | None = None,
        x: ArrayLike | None = None,
    ) -> tuple[Array, Array]:
        """Derivatives of `evaluate` with respect to offset_y and offset_x, each (n, size, size)."""
        offset_y, offset_x = np.broadcast_arrays(np.atleast_1d(offset_y), np.atleast_1d(offset_x))
        pixels = np.arange(size) - size // 2
        dy = pixels[None, :, None] - offset_y[:, None, None].astype(float)
        dx = pixels[None, None, :] - offset_x[:, None, None].astype(float)
        if y is not None and x is not None:
            y, x = (np.broadcast_to(a, offset_y.shape)[:, None, None] for a in (y, x))
        _, slope_y, slope_x = self.response(dy, dx, y, x)
        return -slope_y, -slope_x

    def response(
        self, dy: ArrayLike, dx: ArrayLike, y: ArrayLike | None = None, x: ArrayLike | None = None
    ) -> tuple[Array, Array, Array]:
        """PSF and its derivatives with respect to dy and dx at any displacements (pixel minus star).

        For phases that vary over the stamp; all arguments broadcast, and so does each result.
        """
        dy, dx = np.broadcast_arrays(np.asarray(dy, float), np.asarray(dx, float))
        if y is not None and x is not None:
            y, x = (np.broadcast_to(a, dy.shape).ravel() for a in (y, x))
        index, weight = self._blend(y, x, dy.size)
        out = np.zeros((3, dy.size))
        points(self.tables, index, weight, self.oversampling, dy.ravel(), dx.ravel(), out)
        value, slope_y, slope_x = out.reshape(3, *dy.shape)
        return value, slope_y, slope_x

    @cached_property
    def fwhm(self) -> float:
        """Full width at half maximum in pixels of the effective PSF (wider than the optics'), by its area."""
        step = 0.02
        half = (self.samples.shape[-1] - 1) / 2 / self.oversampling
        at = np.arange(-half, half + step / 2, step)
        middle = self.at(float(np.mean(self.grid_y)), float(np.mean(self.grid_x)))
        # a coarse look first: the core is a small part of the table
        coarse = at[::COARSER]
        value, _, _ = middle.response(coarse[:, None], coarse[None, :])
        high = value > value.max() / 4
        row, column = (
            at[np.abs(at - coarse[seen].mean()) <= np.ptp(coarse[seen]) / 2 + COARSER * step]
            for seen in (high.any(axis=1), high.any(axis=0))
        )
        value, _, _ = middle.response(row[:, None], column[None, :])
        return 2 * math.sqrt(float(np.sum(value > value.max() / 2)) * step**2 / math.pi)

    @cached_property
    def noise_equivalent_area(self) -> float:
        """Pixels of background noise in a PSF-fitted flux: 1 / sum(P^2), averaged over the pixel phases."""
        phase = (np.arange(8) - 3.5) / 8
        oy, ox = (a.ravel() for a in np.meshgrid(phase, phase, indexing="ij"))
        y, x = float(np.mean(self.grid_y)), float(np.mean(self.grid_x))
        stamps = self.evaluate(oy, ox, self.size, y, x)
        return float(1 / np.mean(np.sum(stamps**2, axis=(1, 2))))

    def to_arrays(self) -> dict[str, Array]:
        """Arrays of the store's group `psf`."""
        return {
            "samples": self.samples,
            "grid_y": self.grid_y,
            "grid_x": self.grid_x,
            "oversampling": np.asarray(self.oversampling, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays) -> EffectivePSF:
        """Inverse of `to_arrays`; takes any mapping of array-likes."""
        a = {name: np.asarray(arrays[name]) for name in ("samples", "grid_y", "grid_x", "oversampling")}
        return cls(a["samples"], int(a["oversampling"]), a["grid_y"], a["grid_x"])

    def _blend(self, y, x, n: int) -> tuple[NDArray[np.int64], Array]:
        """Grid PSFs (n, b) and their weights for stars at (y, x)."""
        if self.samples.shape[:2] == (1, 1):
            return np.zeros((n, 1), np.int64), np.ones((n, 1))
        y = np.mean(self.grid_y) if y is None else y
        x = np.mean(self.grid_x) if x is None else x
        y, x = (np.broadcast_to(np.asarray(a, float), (n,)) for a in (y, x))
        iy, ty = _bracket(self.grid_y, y)
        ix, tx = _bracket(self.grid_x, x)
        last_y, last_x = self.grid_y.size - 1, self.grid_x.size - 1
        rows, columns = (iy, np.minimum(iy + 1, last_y)), (ix, np.minimum(ix + 1, last_x))
        index = np.stack([r * (last_x + 1) + c for r in rows for c in columns], axis=1)
        weight = np.stack([a * b for a in (1 - ty, ty) for b in (1 - tx, tx)], axis=1)
        return np.ascontiguousarray(index), np.ascontiguousarray(weight)


def _bracket(grid: Array, at: Array) -> tuple[NDArray[np.int64], Array]:
    """Lower grid index and fraction towards the next, clamped to the grid."""
    if grid.size == 1:
        return np.zeros(at.shape, np.int64), np.zeros(at.shape)
    index = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, grid.size - 2)
    return index, np.clip((at - grid[index]) / (grid[index + 1] - grid[index]), 0, 1)


def normalised_samples(samples: Array, oversampling: int) -> Array:
    """Samples (..., n, n) scaled so that the PSF sums to 1 over the pixels at every phase.

    The sum over pixels is the same at every phase exactly where the spline coefficients of each of the
    oversampling**2 interleaved grids have the same sum; any PSF integrated over pixels that tile the plane
    has that property, and sampling errors break it a little.

    Raises
    ------
    ValueError
        If the table has no positive total.
    """
    coefficients = spline_coefficients(samples)
    total = coefficients.sum(axis=(-2, -1), keepdims=True)
    if not np.all(total > 0):
        raise ValueError("PSF has no positive total flux")
    coefficients = coefficients / total * oversampling**2
    for a in range(oversampling):
        for b in range(oversampling):
            part = coefficients[..., a::oversampling, b::oversampling]
            # proportional to |coefficient|: the correction goes where the light is
            size = np.abs(part)
            lack = 1 - part.sum(axis=(-2, -1), keepdims=True)
            part += lack * size / np.maximum(size.sum(axis=(-2, -1), keepdims=True), 1e-300)
    return spline_samples(coefficients)


def gaussian_epsf(fwhm: float, oversampling: int = 8, size: int | None = None) -> EffectivePSF:
    """Circular Gaussian of the given FWHM (pixels), integrated over the pixel analytically.

    Parameters
    ----------
    size : int, optional
        Side of the table in pixels; by default all but 1e-7 of the light.

    Raises
    ------
    ValueError
        If `fwhm` is not positive.
    """
    if not fwhm > 0:
        raise ValueError(f"fwhm must be positive, not {fwhm!r}")
    sigma = fwhm / math.sqrt(8 * math.log(2))
    size = 2 * math.ceil(5.4 * sigma + 0.5) + 1 if size is None else size
    at = (np.arange(size * oversampling) - (size * oversampling - 1) / 2) / oversampling
    profile = ndtr((at + 0.5) / sigma) - ndtr((at - 0.5) / sigma)
    samples = profile[:, None] * profile[None, :]
    return EffectivePSF(normalised_samples(samples, oversampling), oversampling)


def from_oversampled(
    array: ArrayLike,
    oversampling: int,
    pixel_integrated: bool,
    grid_y: ArrayLike | None = None,
    grid_x: ArrayLike | None = None,
) -> EffectivePSF:
    """Instrument PSF given on a grid finer than the pixel, centred on the array's middle.

    Parameters
    ----------
    array : array (n, n) or (grid_y, grid_x, n, n)
        Any normalisation. Where not yet integrated over the pixel, each value is the light that falls on one
        cell of 1/oversampling pixel (WebbPSF/STPSF's ``OVERSAMP`` planes), and the sum over a pixel's cells
        is exact.
    oversampling : int
        Cells a pixel and axis.
    pixel_integrated : bool
        Whether the values already are a whole pixel's response (ePSF; STPSF's ``OVERDIST`` planes are not).
    grid_y, grid_x : arrays, optional
        Reference positions of a gridded PSF.

    Raises
    ------
    ValueError
        If the shapes disagree, or values are not finite or have no positive total.
    """
    samples = np.array(array, float)
    if samples.ndim not in (2, 4) or samples.shape[-1] != samples.shape[-2]:
        raise ValueError(f"oversampled PSF of shape {samples.shape}: want (n, n) or (grid_y, grid_x, n, n)")
    if not np.isfinite(samples).all():
        raise ValueError("PSF samples must be finite")
    if not pixel_integrated:
        pad = [(0, 0)] * (samples.ndim - 2) + [(oversampling, oversampling - 1)] * 2
        for axis in (-2, -1):
            widths = [(0, 0)] * samples.ndim
            widths[axis] = pad[axis]
            cumulative = np.cumsum(np.pad(samples, widths), axis=axis)
            n = cumulative.shape[axis]
            upper = np.take(cumulative, np.arange(oversampling, n), axis=axis)
            samples = upper - np.take(cumulative, np.arange(n - oversampling), axis=axis)
    gy, gx = (np.zeros(1) if g is None else np.asarray(g, float) for g in (grid_y, grid_x))
    return EffectivePSF(normalised_samples(samples, oversampling), oversampling, gy, gx)
