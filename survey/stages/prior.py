"""The reference that later epochs are added to, kept until they are recorded: added twice is added once.

A cluster runs a task again whose worker died, also where it had written already. Then the reference in the
store holds the later epochs, and adding must begin from the one before.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from survey.io.checksums import CELL
from survey.io.locations import Location, remove, write_atomic
from survey.io.store import Field
from survey.tiles import Tile

NAMES = ("coefficients", "n_used", "chi2", "normal", "moment")
FOLDER = "adding"

Arrays = dict[str, NDArray[np.generic]]


def prior_reference(field: Field, tile: Tile, before: str, margin: int = 0) -> Arrays:
    """Arrays (y, x, ...) of the reference of a tile, or of rows of it, as they were under the key ``before``.

    Around it, as far as the field goes, ``margin`` pixels are zero. Whoever comes first, and has written
    nothing yet, keeps them for those who come after; bands of rows apart, so that row blocks of any height
    find theirs and none needs more memory than its own rows take.
    """
    size = [part.stop - part.start for part in tile.window(margin, field.shape)]
    inner, columns = tile.inner(margin)
    whole: Arrays = {}
    for band in _bands(field, tile):
        rows = slice(max(band.y0, tile.y0) - band.y0, min(band.y1, tile.y1) - band.y0)
        top = inner.start + band.y0 - tile.y0
        for name, values in _band(field, band, before).items():
            if name not in whole:
                whole[name] = np.zeros((*size, *values.shape[2:]), values.dtype)
            whole[name][top + rows.start : top + rows.stop, columns] = values[rows]
    return whole


def restore_prior(field: Field, tile: Tile, before: str) -> None:
    """Write back what is kept of a tile; where nothing is kept, nothing was written."""
    for band in _bands(field, tile):
        kept = _load(_place(field, band, before))
        if kept is not None:
            field.write("reference", kept, band.core)


def forget_prior(field: Field) -> None:
    """Drop all that is kept: what it was for is recorded, or given up."""
    remove(field.path / FOLDER)


def _bands(field: Field, tile: Tile) -> list[Tile]:
    """The bands that a tile's rows lie in."""
    whole = field.tiles[tile.index]
    first = whole.y0 + (tile.y0 - whole.y0) // CELL * CELL
    return [replace(whole, y0=y, y1=min(y + CELL, whole.y1)) for y in range(first, tile.y1, CELL)]


def _place(field: Field, band: Tile, before: str) -> Location:
    return field.path / FOLDER / f"{band.name}-rows-{band.y0:05d}-{before}.npz"


def _band(field: Field, band: Tile, before: str) -> Arrays:
    place = _place(field, band, before)
    kept = _load(place)
    if kept is not None:
        return kept
    stored = {name: np.asarray(field.array("reference", name)[band.core]) for name in NAMES}
    # Another may have kept it meanwhile and begun to write: then what was read here may be half of each.
    kept = _load(place)
    if kept is not None:
        return kept
    write_atomic(place, _packed(stored))
    return stored


def _load(place: Location) -> Arrays | None:
    try:
        data = place.read_bytes()
    except FileNotFoundError:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {name: found[name] for name in NAMES}


def _packed(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
