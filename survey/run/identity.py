"""What a field's images are, as a key: everything made of them is keyed by it."""

from __future__ import annotations

import hashlib

import numpy as np
import xarray as xr

from survey.io.store import Field
from survey.run.worker import function_key
from survey.stages import place
from survey.stages.calibrated import Grid

# What of the table of frames decides a calibrated sample.
CALIBRATION = ("map", "map_center", "map_scale", "scale", "background", "flags", "gain")


def images_key(field: Field, frames: xr.Dataset, grid: Grid = "sky", *, epochs: int | None = None) -> str:
    """Identity of a grid's calibrated images: placed blocks and calibration.

    Parameters
    ----------
    frames : Dataset
        The table of frames.
    epochs : int, optional
        Of the first so many frames only: what the key was before others were appended.
    """
    epochs = frames.sizes["time"] if epochs is None else epochs
    digest = hashlib.sha256()
    for name in ("time", *CALIBRATION):
        digest.update(np.ascontiguousarray(_unpadded(frames[name].values[:epochs])).tobytes())
    placed = {}
    for unit, record in field.ledger("place").records.items():
        last = place.last_epoch(unit, grid)
        if last is not None and last <= epochs:
            placed[unit] = record.key
    return function_key(digest.hexdigest(), sorted(placed.items()))


def _unpadded(values: np.ndarray) -> np.ndarray:
    """Values without last columns that hold nothing: frames appended later may have needed more terms."""
    while values.ndim > 1 and values.shape[-1] > 1 and np.isnan(values[..., -1]).all():
        values = values[..., :-1]
    return values
