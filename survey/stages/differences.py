"""The one way to read differences: on the sky grid, wherever they were made.

Differences made on the detector grid are placed as images are, by nearest pixel, so that a star stays in
its pixel however the frames drift and whoever reads needs only the phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import INNER, Field
from survey.kernels.pixelmap import nearest_pixels
from survey.stages.calibrated import Grid, frame_map, frame_maps
from survey.stages.methods import method_of
from survey.tiles import Window

Arrays = dict[str, NDArray[Any]]
# What a sample that no frame covers reads as.
OUTSIDE = {"flux": np.nan, "error": np.nan, "mask": True, "fit_mask": False, "leverage": 0.0}


def read_difference(
    field: Field,
    window: Window,
    frames: xr.Dataset,
    config: Config,
    names: Sequence[str],
    *,
    start: int = 0,
) -> Arrays:
    """Arrays (time, y, x) of ``difference/<method>`` in a window of the sky grid.

    Parameters
    ----------
    window : tuple of slice
        (y, x) slices of the sky grid.
    frames : Dataset
        The table of frames, calibrated.
    names : sequence of str
        Of flux, error, mask, fit_mask, leverage.
    start : int
        First epoch to read.
    """
    group = f"difference/{config.method}"
    epochs = slice(start, frames.sizes["time"])
    frames = frames.isel(time=slice(start, None))
    if made_on(field, config) == "sky":
        return {name: np.asarray(field.array(group, name)[(epochs, *window)]) for name in names}
    rows, columns = detector_pixels(field, window, frames)
    inside = (rows >= 0) & (rows < field.shape[0]) & (columns >= 0) & (columns < field.shape[1])
    size = rows.shape
    if not inside.any():
        return {name: np.full(size, OUTSIDE[name], field.array(group, name).dtype) for name in names}
    low = [int(index[inside].min()) for index in (rows, columns)]
    high = [int(index[inside].max()) + 1 for index in (rows, columns)]
    at = (np.nonzero(inside)[0], rows[inside] - low[0], columns[inside] - low[1])
    arrays = {}
    for name in names:
        source = np.asarray(
            field.array(group, name)[(epochs, slice(low[0], high[0]), slice(low[1], high[1]))]
        )
        arrays[name] = np.full(size, OUTSIDE[name], source.dtype)
        arrays[name][inside] = source[at]
    return arrays


def made_on(field: Field, config: Config) -> Grid:
    """The grid of a method's differences: as the settings say, else as noted when they were made."""
    if config.method == "cpm" and config.cpm.grid == "auto":
        noted = field.group_attrs("difference/cpm").get("grid")
        return "sky" if noted == "sky" else "detector"
    return method_of(config).grid(config)


Windows = list[tuple[Window, list[int]]]


def object_windows(tile_window: Window, places: Sequence[tuple[float, float]], half: int) -> Windows:
    """Windows to read for objects, each with the indices of those it serves.

    A small one for each, one for those of every inner chunk, or all of it at once: what reads least.

    Parameters
    ----------
    tile_window : tuple of slice
        What may be read.
    places : sequence of (y, x)
        Positions of the objects.
    half : int
        Pixels on either side of the pixel nearest to a position.
    """
    rows, columns = tile_window
    alone: Windows = []
    for i, (y, x) in enumerate(places):
        cy, cx = round(y), round(x)
        window = (
            slice(max(cy - half, rows.start), min(cy + half + 1, rows.stop)),
            slice(max(cx - half, columns.start), min(cx + half + 1, columns.stop)),
        )
        alone.append((window, [i]))
    cells: dict[tuple[int, int], list[int]] = {}
    for i, (y, x) in enumerate(places):
        cells.setdefault((round(y) // INNER, round(x) // INNER), []).append(i)
    together = [(_around([alone[i][0] for i in served]), served) for served in cells.values()]
    return min((alone, together, [(tile_window, list(range(len(places))))]), key=_cost)


def _around(windows: Sequence[Window]) -> Window:
    """The smallest window that holds some."""
    rows, columns = (
        slice(min(w[axis].start for w in windows), max(w[axis].stop for w in windows)) for axis in (0, 1)
    )
    return rows, columns


def _cost(windows: Windows) -> int:
    """Chunks that windows are read from; opening one costs about as much as a chunk."""
    chunks = (
        math.prod((part.stop - 1) // INNER - part.start // INNER + 1 for part in window)
        for window, _ in windows
    )
    return len(windows) + sum(chunks)


def detector_pixels(
    field: Field, window: Window, frames: xr.Dataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns (time, y, x) of the detector pixels nearest to a window of the sky grid."""
    spans = [(s.start, s.stop) for s in window]
    found = [
        nearest_pixels(pixel_map, spans[0], spans[1], field.shape)[:2] for pixel_map in frame_maps(frames)
    ]
    return np.stack([rows for rows, _ in found]), np.stack([columns for _, columns in found])


def star_motion(field: Field, frames: xr.Dataset) -> float:
    """RMS distance in pixels of stars from their mean place on the detector, in frames without flags."""
    height, width = field.shape
    y, x = np.meshgrid([0.0, (height - 1) / 2, height - 1.0], [0.0, (width - 1) / 2, width - 1.0])
    good = frames["flags"].values == 0
    chosen = np.nonzero(good if good.any() else np.ones(len(good), bool))[0].tolist()
    places = np.array([frame_map(frames, k).evaluate(x.ravel(), y.ravel()) for k in chosen])
    return float(np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean()))


def drift(field: Field, frames: xr.Dataset) -> int:
    """Largest distance in pixels, an axis, between a sky pixel and the detector pixel nearest to it."""
    height, width = field.shape
    y, x = np.meshgrid([0.0, (height - 1) / 2, height - 1.0], [0.0, (width - 1) / 2, width - 1.0])
    reach = 0.0
    for pixel_map in frame_maps(frames):
        xd, yd = pixel_map.evaluate(x.ravel(), y.ravel())
        reach = max(reach, float(np.abs(xd - x.ravel()).max()), float(np.abs(yd - y.ravel()).max()))
    # A distorted map may move a pixel between these nine by a little more.
    return int(np.ceil(reach)) + 1
