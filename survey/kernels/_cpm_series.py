"""Normalised series of all pixels of a tile, gaps filled from their neighbours where that can be done."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._cpm_fill import fill
from survey.kernels._held_out import as_slice

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A pixel whose noise follows the epochs' errors to this is one of many whose noise is one number.
_EVEN_NOISE = 0.01
# Pixels in which an epoch's error is measured, and that are looked at together.
_SAMPLED = 1024


@dataclass
class Series:
    """Series of all pixels, (pixels, time).

    Attributes
    ----------
    shape : tuple of int
        (y, x) of the tile.
    values : float64 array
        Flux over scale, less its median; 0 where there is none.
    noise : float32 array
        Error over scale, of filled samples that of the filling; 0 where there is none.
    bad : bool array
        Samples that are no data.
    available : bool array or None
        Samples that are data or were filled; None where no sample is bad.
    scale, brightness, typical : arrays (pixels,)
        Unit, median flux, and median error over scale.
    epoch_error : array (time,)
        Relative error of an epoch, median 1.
    may, usable : bool arrays (y, x)
        Pixels with data that nobody excludes, and those of them with samples enough to predict.
    """

    shape: tuple[int, int]
    values: Array
    noise: NDArray[np.float32]
    bad: Mask
    available: Mask | None
    scale: Array
    brightness: Array
    typical: Array
    epoch_error: Array
    usable: Mask
    may: Mask

    @cached_property
    def even(self) -> Mask:
        """Pixels whose noise is their typical one times the epochs' errors, (pixels,)."""
        found = np.empty(len(self.noise), bool)
        for some in _pieces(len(self.noise)):
            model = self.typical[some, None].astype(np.float32) * self.epoch_error.astype(np.float32)
            found[some] = (np.abs(self.noise[some] - model) <= _EVEN_NOISE * model).all(1)
        return found


def make_series(
    cube: tuple[ArrayLike, ArrayLike, ArrayLike],
    train: NDArray[np.int64],
    exclude: Mask | None,
    epoch_error: Array | None,
) -> Series:
    """Check, normalise and fill flux, error and mask (time, y, x); ``train`` are the epochs to train on."""
    flux, error, mask = (np.asarray(a) for a in cube)
    ny, nx = flux.shape[1:]
    # errors need no more than single precision, and fresh memory takes longer than the sums
    f, e = _by_pixel(flux, np.float64), _by_pixel(error, np.float32)
    bad = _by_pixel(mask, bool)
    bad |= ~np.isfinite(f) | ~np.isfinite(e) | (e <= 0)
    whole = not bad.any()
    if not whole:
        f[bad] = e[bad] = np.nan
    with_data: Mask = np.ones(len(f), bool) if whole else np.asarray(~bad[:, train].all(1))
    brightness, typical = (_medians(a, with_data, train) for a in (f, e))
    typical[~with_data] = 1.0
    # the median normalises a star; a background-subtracted sky pixel has none and keeps its noise as unit
    scale = np.hypot(brightness, typical)
    epoch_error = _epoch_errors(e, typical, with_data) if epoch_error is None else epoch_error
    f -= brightness[:, None]
    f /= scale[:, None]
    e /= scale[:, None]
    typical /= scale
    usable = with_data.copy()
    if exclude is not None:
        usable &= ~np.asarray(exclude, bool).reshape(-1)
    available, may = None, usable.copy().reshape(ny, nx)
    if not whole:
        f[bad], e[bad] = 0.0, 0.0
        usable, available = fill(f, e, bad, (ny, nx), usable, train, epoch_error)
    return Series(
        (ny, nx), f, e, bad, available, scale, brightness, typical, epoch_error,
        usable.reshape(ny, nx), may,
    )  # fmt: skip


def _by_pixel(cube: NDArray, kind: type) -> NDArray:
    """A copy (pixels, time): a pixel's epochs are neighbours in memory."""
    return np.array(cube.reshape(len(cube), -1).T, kind, order="C")


def _pieces(count: int) -> list[slice]:
    """A few pixels at a time, so that no temporary is as large as the tile."""
    return [slice(start, start + _SAMPLED) for start in range(0, count, _SAMPLED)]


def _medians(values: NDArray[np.floating], with_data: Mask, train: NDArray[np.int64]) -> Array:
    """Median of every pixel over the training epochs; 0 where it has no data."""
    found, epochs = np.zeros(len(values)), as_slice(train)
    for some in _pieces(len(values)):
        known = with_data[some]
        at = np.nonzero(known)[0] + some.start
        found[at] = _row_medians(values[some][:, epochs] if known.all() else values[at][:, epochs])
    return found


def _row_medians(values: NDArray[np.floating]) -> Array:
    """Medians along rows without the NaN, which sorting leaves at the end; it is faster than selecting."""
    values = np.sort(values, axis=1)
    seen = values.shape[1] - np.isnan(values).sum(1)
    every = np.arange(len(values))
    below, above = values[every, (seen - 1) // 2], values[every, seen // 2]
    return np.asarray((below.astype(np.float64) + above) / 2)


def middle(values: Array) -> float:
    """Median of a few values."""
    values = np.sort(values)
    return float(values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _epoch_errors(noise: NDArray[np.float32], typical: Array, with_data: Mask) -> Array:
    """Median over a thousand pixels of each epoch's error over the pixel's own (pixels,), in one unit."""
    some = np.nonzero(with_data)[0]
    some = some[:: -(-len(some) // _SAMPLED) or 1]
    relative = (noise[some] / typical[some, None]).T
    found = np.ones(len(relative))
    seen = np.isfinite(relative).any(1)
    found[seen] = _row_medians(np.ascontiguousarray(relative[seen]))
    return found
