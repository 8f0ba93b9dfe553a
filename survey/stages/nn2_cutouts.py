"""Cutouts of frames around a group of objects, and one frame brought to another's pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.io.store import Field
from survey.kernels.continuous import spline_at
from survey.kernels.pixelmap import PixelMap, nearest_pixels
from survey.stages.calibrated import CalibratedTile, Grid, frame_map, outlook, read_calibrated

Array = NDArray[np.float64]


@dataclass
class Cutouts:
    """Squares of frames about one place of the sky, each in its own frame's pixels.

    Parameters
    ----------
    epochs : int array (n,)
    flux, error : array (n, size, size)
    mask : bool array (n, size, size)
        True = bad, or outside the frame.
    corner : int array (n, 2)
        Detector (y, x) of pixel [0, 0].
    maps : list of PixelMap
        Reference pixel -> detector pixel.
    gain : array (n,)
        Electrons per flux unit.
    """

    epochs: NDArray[np.int64]
    flux: Array
    error: Array
    mask: NDArray[np.bool_]
    corner: NDArray[np.int64]
    maps: list[PixelMap]
    gain: Array

    def place(self, k: int, y: float, x: float) -> Array:
        """(y, x) in the k-th cutout of a position of the reference grid."""
        xd, yd = self.maps[k].evaluate(x, y)
        return np.array([float(yd), float(xd)]) - self.corner[k]

    def turn(self, k: int, y: float, x: float) -> Array:
        """Change of `place` for a change of the reference position, both (y, x)."""
        return self.maps[k].jacobian(x, y)[::-1, ::-1]

    def index(self, epoch: int) -> int:
        """Where an epoch's cutout is."""
        return int(np.searchsorted(self.epochs, epoch))

    def on_pixels_of(self, i: int, j: int) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Cutout i evaluated at the pixels of cutout j by its cubic spline: flux, error, mask.

        It is the template's spline that is evaluated; the image stays as it was taken.
        """
        size = self.flux.shape[1]
        y, x = np.mgrid[:size, :size].astype(float)
        sky = self.maps[j].inverse(x + self.corner[j, 1], y + self.corner[j, 0])
        xi, yi = self.maps[i].evaluate(*sky)
        at = np.array([yi - self.corner[i, 0], xi - self.corner[i, 1]])
        bad = self.mask[i]
        flux, variance, off = spline_at(self.flux[i], np.where(bad, 0.0, self.error[i]) ** 2, bad, at)
        return flux, np.sqrt(variance), off


def pair_grid(field: Field) -> Grid:
    """The grid that keeps a frame's own pixels: the sky's where maps are shifts, else the detector's."""
    return "detector" if outlook(field).own_phases else "sky"


def read_cutouts(
    field: Field,
    frames: xr.Dataset,
    epochs: NDArray[np.int64],
    center: tuple[int, int],
    size: int,
    grid: Grid,
    reader: Callable[..., CalibratedTile] = read_calibrated,
) -> Cutouts:
    """Read squares of ``size`` pixels about a reference position, of the given epochs."""
    epochs = np.unique(epochs)
    n, half = len(epochs), size // 2
    maps = [frame_map(frames, int(k)) for k in epochs]
    flux, error = np.zeros((n, size, size)), np.ones((n, size, size))
    mask = np.ones((n, size, size), bool)
    corner, gain = np.zeros((n, 2), np.int64), np.full(n, np.nan)
    runs = (
        np.split(np.arange(n), np.flatnonzero(np.diff(epochs) != 1) + 1)
        if grid == "sky"
        else np.arange(n)[:, None]
    )
    for run in runs:
        first, last = int(epochs[run[0]]), int(epochs[run[-1]])
        offset = np.array([_offset(maps[k], field.shape, grid) for k in run])
        middle = np.array(center)
        if grid == "detector":
            x, y = maps[run[0]].evaluate(float(center[1]), float(center[0]))
            middle = np.array([round(y), round(x)])
        start = middle - half
        corner[run] = start + offset
        window = tuple(
            slice(max(int(s), 0), min(int(s) + size, edge))
            for s, edge in zip(start, field.shape, strict=True)
        )
        if any(w.stop <= w.start for w in window):
            continue
        tile = reader(field, (window[0], window[1]), frames.isel(time=slice(0, last + 1)), grid, start=first)
        inside = tuple(slice(w.start - int(s), w.stop - int(s)) for w, s in zip(window, start, strict=True))
        cut = (run, *inside) if len(run) == 1 else (slice(run[0], run[-1] + 1), *inside)
        flux[cut], error[cut], mask[cut] = tile.flux, tile.error, tile.mask
        gain[run] = tile.gain
    bad = mask | ~np.isfinite(flux) | ~np.isfinite(error)
    return Cutouts(epochs, np.where(bad, 0.0, flux), np.where(bad, 1.0, error), bad, corner, maps, gain)


def _offset(pixel_map: PixelMap, shape: tuple[int, int], grid: Grid) -> tuple[int, int]:
    """Detector pixel less pixel of the grid, for a frame whose map is a shift."""
    if grid == "detector":
        return 0, 0
    y, x, _, _ = nearest_pixels(pixel_map, (0, 1), (0, 1), shape)
    return int(y[0, 0]), int(x[0, 0])
