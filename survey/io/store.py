"""The field: one directory with the cube, its ledgers, events, light curves and run records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle

from survey.io.checksums import CELL, cell_sums, cells_of
from survey.io.ledger import Lease, Ledger, holder_of
from survey.io.locations import Location, files, locate, remove, zarr_place
from survey.io.packed import quiet_strings
from survey.io.tables import FieldError, Tables
from survey.schema import SCHEMA_VERSION, ArraySpec, SchemaError, arrays_of
from survey.tiles import Tile, tile_grid

# Inner chunks are read whole: 64 x 64 pixels of one time block serve both a tile and a cutout.
INNER = CELL
# Each part costs a rewrite of its shards; more parts are written as one box, whose chunks are compressed.
PATCHED_APART = 2


@dataclass(frozen=True)
class Field(Tables):
    """A field on disk.

    Parameters
    ----------
    path : Location
        Its directory.
    """

    @classmethod
    def create(cls, path: str | Location, shape: tuple[int, int], attrs: Mapping[str, Any]) -> Field:
        """Make an empty field.

        Parameters
        ----------
        path : path
            Directory to make; may exist if it holds no field.
        shape : tuple of int
            (y, x) shape of the sky grid.
        attrs : mapping
            ``tile_size`` and ``time_block`` (pixels, epochs), ``units``, ``wcs`` and what else is known.

        Raises
        ------
        FieldError
            If there is a field already.
        """
        field = cls(locate(path))
        if is_field(path):
            raise FieldError(f"{path}: there is a field already; give another directory, or append to it")
        # In one write: a kill leaves a field that says what it is, or none.
        attributes = {"schema_version": SCHEMA_VERSION, "shape": list(shape), **attrs}
        zarr.create_group(zarr_place(field.cube), attributes=attributes, zarr_format=3)
        return field

    @classmethod
    def open(cls, path: str | Location) -> Field:
        """Open an existing field.

        Raises
        ------
        FieldError
            If there is none at the path.
        SchemaError
            If it was written by a version whose layout this one does not know.
        """
        field = cls(locate(path))
        if not (field.cube / "zarr.json").exists():
            raise FieldError(f"{path}: not a field (no cube.zarr in it); make one with `survey ingest`")
        version = field.attrs.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SchemaError(
                f"{path}: schema version {version}, but this is survey with schema version {SCHEMA_VERSION}; "
                "install the version that wrote it, or ingest the frames again"
            )
        field.restore_tables()
        return field

    @cached_property
    def root(self) -> zarr.Group:
        """The Zarr group at the store's root."""
        return zarr.open_group(zarr_place(self.cube), mode="r+", zarr_format=3)

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the field, read once."""
        return dict(zarr.open_group(zarr_place(self.cube), mode="r", zarr_format=3).attrs)

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) shape of the sky grid."""
        y, x = self.attrs["shape"]
        return int(y), int(x)

    @property
    def tile_size(self) -> int:
        """Edge of a tile in pixels."""
        return int(self.attrs["tile_size"])

    @property
    def time_block(self) -> int:
        """Epochs in one shard."""
        return int(self.attrs["time_block"])

    @property
    def tiles(self) -> list[Tile]:
        """All tiles in their fixed order."""
        return tile_grid(self.shape, self.tile_size)

    def ledger(self, stage: str) -> Ledger:
        """The ledger of a stage, as it is on disk now."""
        return Ledger(self.path / "ledger" / stage.replace("/", "."))

    def lease(self, group: str, owner: str) -> Lease:
        """The right to write a group."""
        return Lease(self.path / "leases" / f"{group.replace('/', '.')}.json", owner)

    def holder(self, group: str) -> str | None:
        """The run that holds the lease of a group, None where nobody does."""
        return holder_of(self.lease(group, "").path)

    def has(self, group: str, name: str | None = None) -> bool:
        """Whether a group, or an array of it, exists."""
        group = self.live(group)
        return (group if name is None else f"{group}/{name}") in self.root

    def group_attrs(self, group: str) -> dict[str, Any]:
        """Attributes of a group.

        Raises
        ------
        FieldError
            If it has not been written yet.
        """
        try:
            return dict(self.root[self.live(group)].attrs)
        except KeyError:
            raise FieldError(f"{self.path}: has no {group}") from None

    def array(self, group: str, name: str) -> zarr.Array:
        """One array of the store.

        Raises
        ------
        FieldError
            If it has not been written yet.
        """
        try:
            found = self.root[f"{self.live(group)}/{name}"]
        except KeyError:
            raise FieldError(
                f"{self.path}: has no {group}/{name} yet; run the stage that writes it"
            ) from None
        assert isinstance(found, zarr.Array)
        return found

    def require_group(self, group: str, sizes: Mapping[str, int], attrs: Mapping[str, Any] = {}) -> None:
        """Make the arrays of a group, or grow them along time to the sizes given.

        Arrays with a dimension that has no size here are left out: nobody keeps the reference's sums, say.
        """
        with quiet_strings():
            parent = self.root.require_group(group)
        if dict(parent.attrs) != {**dict(parent.attrs), **attrs}:
            parent.attrs.update(dict(attrs))
        for spec in arrays_of(group):
            if not set(spec.dims) <= set(sizes):
                continue
            shape = tuple(int(sizes[dim]) for dim in spec.dims)
            if spec.name not in parent:
                self._create_array(parent, spec, shape)
                continue
            array = parent[spec.name]
            assert isinstance(array, zarr.Array)
            if array.shape != shape:
                if array.shape[1:] != shape[1:] or array.shape[0] > shape[0]:
                    raise FieldError(
                        f"{self.path}: {group}/{spec.name} has shape {array.shape}, not {shape}; "
                        "it was made with other settings: run with --rebuild"
                    )
                array.resize(shape)

    def cut_group(self, group: str, epochs: int) -> None:
        """Shorten the arrays of a group to so many epochs, where they are longer."""
        for spec in arrays_of(group):
            if spec.dims[0] != "time" or not self.has(group, spec.name):
                continue
            array = self.array(group, spec.name)
            if array.shape[0] > epochs:
                array.resize((epochs, *array.shape[1:]))

    def fits(self, group: str, sizes: Mapping[str, int]) -> bool:
        """Whether what is there of a group has these sizes, or can grow to them along time."""
        for spec in arrays_of(group):
            if not self.has(group, spec.name) or not set(spec.dims) <= set(sizes):
                continue
            for dim, length in zip(spec.dims, self.array(group, spec.name).shape, strict=True):
                if length > sizes[dim] or (dim != "time" and length != sizes[dim]):
                    return False
        return True

    def remove_group(self, group: str) -> None:
        """Delete a group and all it holds."""
        remove(self.cube / group)

    def _create_array(self, parent: zarr.Group, spec: ArraySpec, shape: tuple[int, ...]) -> None:
        inner, shard = [], []
        for dim, size in zip(spec.dims, shape, strict=True):
            if dim == "time":
                inner.append(self.time_block)
                shard.append(self.time_block)
            elif dim in ("y", "x"):
                edge = min(INNER, self.tile_size)
                inner.append(edge if self.tile_size % edge == 0 else self.tile_size)
                shard.append(self.tile_size)
            else:
                inner.append(size)
                shard.append(size)
        units = self.attrs["units"] if spec.units == "flux" else spec.units
        array = parent.create_array(
            spec.name,
            shape=shape,
            dtype=spec.dtype,
            chunks=tuple(inner),
            shards=tuple(shard),
            fill_value=spec.fill,
            compressors=BloscCodec(cname="lz4", clevel=_level(spec.dtype), shuffle=BloscShuffle.bitshuffle),
            dimension_names=spec.dims,
        )
        array.attrs.update({"units": units, "long_name": spec.meaning})

    def write(
        self, group: str, arrays: Mapping[str, NDArray[Any]], region: tuple[slice, ...]
    ) -> dict[str, list[int]]:
        """Write a region of several arrays; returns the checksums of each, as `cell_sums` orders them.

        ``region`` is (time, y, x) for cubes; arrays without time take its (y, x).

        Raises
        ------
        FieldError
            If an array has no room for the values: Zarr itself would drop some without a word.
        """
        sums = {}
        for name, values in sorted(arrays.items()):
            array = self.array(group, name)
            place = _region_of(array, region)
            data = np.ascontiguousarray(values, dtype=array.dtype)
            _check_room(array, place, data)
            array[place] = data
            sums[name] = cell_sums(data, self.shape, place)
        return sums

    def stored(self, group: str, name: str, region: tuple[slice, ...]) -> NDArray[Any]:
        """A region, as `write` takes it, of an array as it is stored."""
        array = self.array(group, name)
        return np.asarray(array[_region_of(array, region)])

    def checksums(self, group: str, name: str, region: tuple[slice, ...]) -> list[int]:
        """Checksums of a region of an array as it is stored: what `write` returned for it."""
        values = self.stored(group, name, region)
        return cell_sums(values, self.shape, _region_of(self.array(group, name), region))

    def patch(
        self,
        group: str,
        name: str,
        region: tuple[slice, ...],
        parts: Sequence[tuple[tuple[slice, ...], NDArray[Any]]],
    ) -> dict[tuple[int, int], int]:
        """Replace parts of a region of one array; returns the checksums of the cells that hold them.

        Parameters
        ----------
        region : tuple of slice
            (time, y, x) of what one writer owns.
        parts : sequence of (region, array)
            Inside it.
        """
        array = self.array(group, name)
        whole = _region_of(array, region)
        placed = [(_region_of(array, part), values) for part, values in parts]
        boxes = [_cells_around([part], whole) for part, _ in placed]
        if len(boxes) > PATCHED_APART:
            boxes = [_cells_around(boxes, whole)]
        sums: dict[tuple[int, int], int] = {}
        for box in boxes:
            data = np.asarray(array[box])
            for part, values in placed:
                if _within(part, box):
                    data[_relative(part, box)] = values
            array[box] = data
            sums.update(zip(cells_of(box), cell_sums(data, self.shape, box), strict=True))
        return sums

    # -- small products -------------------------------------------------------------------------

    def events_path(self, method: str) -> Location:
        """File of the events found by a method."""
        return self.path / "events" / f"{method}.parquet"

    def light_curves_path(self, method: str) -> Location:
        """File of the light curves measured by a method."""
        return self.path / "lightcurves" / f"{method}.parquet"

    def relative_path(self, method: str) -> Location:
        """File of the target's light curve relative to comparison stars, by a method's differences."""
        return self.path / "lightcurves" / f"{method}.relative.json"

    def runs(self) -> list[dict[str, Any]]:
        """Records of all runs, oldest first."""
        return [json.loads(file.read_text()) for file in files(self.path / "runs", "*/run.json")]


def _level(dtype: str) -> int:
    """Effort of compression: sums in double precision are noise but for a few bits, and no effort helps."""
    return 1 if np.dtype(dtype).itemsize == 8 else 5


def _region_of(array: zarr.Array, region: tuple[slice, ...]) -> tuple[slice, ...]:
    """(time, y, x) for a cube, (y, x) for an array without time."""
    dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
    return region if "time" in dims else region[-2:]


def _check_room(array: zarr.Array, place: tuple[slice, ...], data: NDArray[Any]) -> None:
    """Zarr writes what fits and says nothing of the rest."""
    room = tuple(len(range(*part.indices(n))) for part, n in zip(place, array.shape, strict=False))
    if data.shape[: len(room)] != room:
        raise FieldError(
            f"{array.name}: {data.shape} values for {room} places; did the field's frames change meanwhile?"
        )


def _cells_around(parts: Sequence[tuple[slice, ...]], whole: tuple[slice, ...]) -> tuple[slice, ...]:
    """The cells that parts touch, made one box, as far as it lies in a region; all its epochs."""
    box = list(whole)
    for axis in (-2, -1):
        low = min(part[axis].start for part in parts) // CELL * CELL
        high = -(-max(part[axis].stop for part in parts) // CELL) * CELL
        box[axis] = slice(max(low, whole[axis].start), min(high, whole[axis].stop))
    return tuple(box)


def _relative(part: tuple[slice, ...], box: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, box, strict=True))


def _within(part: tuple[slice, ...], box: tuple[slice, ...]) -> bool:
    return all(b.start <= a.start and a.stop <= b.stop for a, b in zip(part, box, strict=True))


def is_field(path: str | Location) -> bool:
    """Whether there is a field at a path."""
    return (locate(path) / "cube.zarr" / "zarr.json").exists()


def holds_frames(path: str | Location) -> bool:
    """Whether there is a field at a path that frames belong to already."""
    return Field(locate(path)).has_table("frames")


def open_field(path: str | Location) -> xr.DataTree:
    """Open a field's cube as a tree of lazily read datasets.

    Parameters
    ----------
    path : path
        The field's directory.

    Returns
    -------
    xarray.DataTree
        One node a group: ``images/sky``, ``frames``, ``reference``, ``difference/<method>`` …

    Raises
    ------
    FieldError
        If there is no field at the path.
    """
    field = Field.open(path)
    with quiet_strings():
        tree = xr.open_datatree(zarr_place(field.cube), engine="zarr", consolidated=False, chunks=None)
    for parent in tree.children.values():
        # In an object store: versions of what stands beside them under its own name.
        parent.children = {n: child for n, child in parent.children.items() if not n.startswith(".")}
    return tree
