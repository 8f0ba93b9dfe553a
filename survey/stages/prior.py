"""The reference that later epochs are added to, kept until they are recorded: added twice is added once.

A cluster runs a task again whose worker died, also where it had written already. Then the reference in the
store holds the later epochs, and adding must begin from the one before. Zarr puts a new file in a shard's
place, so the old one is kept by a second name and nothing is copied; an object store has it written again.
"""

from __future__ import annotations

import numpy as np
import zarr
from numpy.typing import NDArray

from survey.io.locations import Location, keep, remove, size_of, write_atomic, zarr_place
from survey.io.store import Field
from survey.tiles import Tile

NAMES = ("coefficients", "n_used", "chi2", "normal", "moment")
FOLDER = "adding"

Arrays = dict[str, NDArray[np.generic]]


def prior_reference(field: Field, tile: Tile, before: str, margin: int = 0) -> Arrays:
    """Arrays (y, x, ...) of the reference of a tile, or of rows of it, as they were under the key ``before``.

    Around it, as far as the field goes, ``margin`` pixels are zero. Whoever comes first, and has written
    nothing yet, keeps the whole tile's for those who come after.
    """
    whole = field.tiles[tile.index]
    for name in NAMES:
        _keep(field, name, whole, before)
    size = [part.stop - part.start for part in tile.window(margin, field.shape)]
    arrays: Arrays = {}
    for name in NAMES:
        values = _read(field, name, whole, before, tile)
        arrays[name] = np.zeros((*size, *values.shape[2:]), values.dtype)
        arrays[name][tile.inner(margin)] = values
    return arrays


def restore_prior(field: Field, tile: Tile, before: str) -> None:
    """Write back what is kept of a tile; where not all is kept, nothing was written."""
    if all(_place(field, name, tile, before).exists() for name in NAMES):
        arrays = {name: _read(field, name, tile, before, tile) for name in NAMES}
        field.write("reference", arrays, tile.core)


def forget_prior(field: Field) -> None:
    """Drop all that is kept: what it was for is recorded, or given up."""
    remove(field.path / FOLDER)


def _shard(array: zarr.Array, tile: Tile) -> str:
    """Name of the file that holds a tile of an array."""
    edges = array.shards or array.chunks
    place = [tile.y0 // edges[0], tile.x0 // edges[1], *[0] * (array.ndim - 2)]
    return str(array.metadata.encode_chunk_key(tuple(place)))


def _folder(field: Field, name: str, tile: Tile, before: str) -> Location:
    return field.path / FOLDER / f"{tile.name}-{before}" / name


def _place(field: Field, name: str, tile: Tile, before: str) -> Location:
    return _folder(field, name, tile, before) / _shard(field.array("reference", name), tile)


def _keep(field: Field, name: str, tile: Tile, before: str) -> None:
    """Keep a tile's file of one array, unless one is kept."""
    place = _place(field, name, tile, before)
    if not place.exists():
        stored = field.cube / "reference" / name
        about = _folder(field, name, tile, before) / "zarr.json"
        write_atomic(about, (stored / "zarr.json").read_bytes())
        keep(stored / _shard(field.array("reference", name), tile), place)


def _read(field: Field, name: str, whole: Tile, before: str, tile: Tile) -> NDArray[np.generic]:
    """A tile, or rows of it, out of the whole one's kept file; an empty one stands for none."""
    array = field.array("reference", name)
    if not size_of(_place(field, name, whole, before)):
        return np.full((*tile.shape, *array.shape[2:]), array.fill_value, array.dtype)
    kept = zarr.open_array(zarr_place(_folder(field, name, whole, before)), mode="r")
    return np.asarray(kept[tile.core])
