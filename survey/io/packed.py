"""Small groups in an object store: one object each, so that a replacement is seen whole or not at all.

A Zarr group is many objects, and an object store renames nothing. The truth is a zip of the group; beside it
lies the plain group, for readers who know Zarr only, written after it.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import xarray as xr
from zarr.buffer.cpu import Buffer
from zarr.errors import UnstableSpecificationWarning
from zarr.storage import MemoryStore

from survey.io.locations import Location, entries, remove_files, write_atomic


@contextmanager
def quiet_strings() -> Iterator[None]:
    """Zarr's string type has no final specification yet, and says so at every write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        yield


def write_group(packed: Location, plain: Location, table: xr.Dataset) -> None:
    """Write a small group as one object, then its plain copy."""
    objects: dict[str, Any] = {}
    with quiet_strings():
        table.to_zarr(MemoryStore(objects), mode="w", consolidated=False, zarr_format=3)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for key, value in sorted(objects.items()):
            archive.writestr(zipfile.ZipInfo(key), value.to_bytes())
    write_atomic(packed, sink.getvalue())
    write_plain(packed, plain)


def write_plain(packed: Location, plain: Location) -> None:
    """Make the plain group what the packed one is."""
    objects = _unpack(packed)
    for key, value in objects.items():
        write_atomic(plain / key, value)
    keep = {str(plain / key) for key in objects}
    remove_files([entry.place for entry in entries(plain) if str(entry.place) not in keep])


def is_copied(packed: Location, plain: Location) -> bool:
    """Whether the plain group is what the packed one is."""
    there = {str(entry.place): entry.place for entry in entries(plain)}
    objects = {str(plain / key): value for key, value in _unpack(packed).items()}
    return there.keys() == objects.keys() and all(there[k].read_bytes() == v for k, v in objects.items())


def read_group(packed: Location) -> xr.Dataset:
    """A small group, loaded."""
    store = MemoryStore({key: Buffer.from_bytes(value) for key, value in _unpack(packed).items()})
    with quiet_strings():
        return xr.open_zarr(store, chunks=None, consolidated=False).load()


def _unpack(packed: Location) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(packed.read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
