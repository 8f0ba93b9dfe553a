"""Windows of images of which some tiles cannot be read, for measurements that can do without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from survey.io.store import Field
from survey.stages.calibrated import CalibratedTile, Grid, calibrated_frames, phases, read_calibrated
from survey.tiles import Window

# What is put together from the tiles of a window, and reads so where there is none.
_PLANES = {"flux": np.nan, "error": np.nan, "mask": True}


def read_readable(
    field: Field,
    window: Window,
    frames: xr.Dataset | None = None,
    grid: Grid = "sky",
    *,
    start: int = 0,
) -> tuple[CalibratedTile, list[str]]:
    """As `read_calibrated`, but samples of tiles that cannot be read are masked; and the names of these.

    Raises
    ------
    Exception
        What reading raised, if no tile of the window can be read.
    """
    try:
        return read_calibrated(field, window, frames, grid, start=start), []
    except Exception as error:
        first = error
    frames = calibrated_frames(field) if frames is None else frames
    found: dict[str, CalibratedTile] = {}
    lost = []
    for tile in field.tiles:
        part = tuple(
            slice(max(w.start, c.start), min(w.stop, c.stop)) for w, c in zip(window, tile.core, strict=True)
        )
        if any(p.start >= p.stop for p in part):
            continue
        try:
            found[tile.name] = read_calibrated(field, (part[0], part[1]), frames, grid, start=start)
        except Exception:
            lost.append(tile.name)
    if not found:
        raise first
    return _joined(
        list(found.values()), window, phases(frames.isel(time=slice(start, None)), window, field.shape, grid)
    ), lost


def _joined(
    parts: list[CalibratedTile], window: Window, own_phases: tuple[np.ndarray, np.ndarray]
) -> CalibratedTile:
    """One window of its parts."""
    shape = (len(parts[0].time), *(w.stop - w.start for w in window))
    planes = {name: np.full(shape, value, getattr(parts[0], name).dtype) for name, value in _PLANES.items()}
    for part in parts:
        at = tuple(
            slice(p.start - w.start, p.stop - w.start) for p, w in zip(part.window, window, strict=True)
        )
        for name, plane in planes.items():
            plane[(slice(None), *at)] = getattr(part, name)
    return replace(parts[0], **planes, phase_y=own_phases[0], phase_x=own_phases[1], window=window)
