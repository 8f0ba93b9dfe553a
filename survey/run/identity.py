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
    placed = {unit: key for (_, last), unit, key in _placed(field, grid) if last <= epochs}
    return function_key(_calibration(frames, slice(0, epochs)), sorted(placed.items()))


def epoch_keys(field: Field, frames: xr.Dataset, grid: Grid = "sky") -> list[str]:
    """Identity of each epoch's calibrated image: frames that come later do not change it."""
    holding: list[tuple[int, list[str]]] = [(frames.sizes["time"] + 1, [])] * frames.sizes["time"]
    for (first, last), _, key in sorted(_placed(field, grid)):
        for k in range(first, min(last, len(holding))):
            # on the detector's grid a block that grew has a record of each of its lengths: the first stands
            if last < holding[k][0]:
                holding[k] = (last, [])
            if last == holding[k][0]:
                holding[k][1].append(key)
    return [function_key(_calibration(frames, slice(k, k + 1)), keys) for k, (_, keys) in enumerate(holding)]


def _placed(field: Field, grid: Grid) -> list[tuple[tuple[int, int], str, str]]:
    """Blocks of a grid: the epochs they hold, name and key."""
    records = field.ledger("place").records.items()
    spans = ((place.epoch_span(unit, grid), unit, record.key) for unit, record in records)
    return [(span, unit, key) for span, unit, key in spans if span is not None]


def _calibration(frames: xr.Dataset, epochs: slice) -> str:
    """Hash of what of the table of frames decides the calibrated samples of some epochs."""
    digest = hashlib.sha256()
    for name in ("time", *CALIBRATION):
        digest.update(np.ascontiguousarray(_unpadded(frames[name].values[epochs])).tobytes())
    return digest.hexdigest()


def _unpadded(values: np.ndarray) -> np.ndarray:
    """Values without last columns that hold nothing: frames appended later may have needed more terms."""
    while values.ndim > 1 and values.shape[-1] > 1 and np.isnan(values[..., -1]).all():
        values = values[..., :-1]
    return values
