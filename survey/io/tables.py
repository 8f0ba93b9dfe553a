"""What of a field is replaced as a whole: tables of frames, stars and calibration; templates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import xarray as xr

from survey.io.locations import Location, finish_swap, remove, swap
from survey.io.objects import ObjectPath
from survey.io.packed import is_copied, quiet_strings, read_group, write_group, write_plain


class FieldError(ValueError):
    """A field that is not there, is not one, or does not fit what is asked of it."""


@dataclass(frozen=True)
class Tables:
    """What of a field is replaced as a whole.

    Parameters
    ----------
    path : Location
        The field's directory.
    """

    path: Location

    @property
    def cube(self) -> Location:
        """The Zarr store."""
        return self.path / "cube.zarr"

    def write_table(self, name: str, table: xr.Dataset) -> None:
        """Replace a small group (``frames``, ``stars``, ``registration``, ``psf``) as a whole."""
        if isinstance(self.cube, ObjectPath):
            write_group(self._packed(name), self.cube / name, table)
            return
        self.restore_tables()
        fresh, live, old = (self.cube / n for n in (f".{name}.new", name, f".{name}.old"))
        for leftover in (fresh, old):
            remove(leftover)
        with quiet_strings():
            table.to_zarr(str(fresh), mode="w", consolidated=False, zarr_format=3)
        swap(fresh, live, old)

    @contextmanager
    def replacing(self, group: str) -> Iterator[str]:
        """Name of a group to write, which takes the place of ``group`` when the block ends without error.

        Until then, and after an error or a kill, the old group stays as it was.
        """
        self.restore_tables()
        parent, _, name = group.rpartition("/")
        fresh, old = (f"{parent}/.{name}.{end}".lstrip("/") for end in ("new", "old"))
        for leftover in (fresh, old):
            remove(self.cube / leftover)
        try:
            yield fresh
        except BaseException:
            remove(self.cube / fresh)
            raise
        swap(self.cube / fresh, self.cube / group, self.cube / old)

    def restore_tables(self) -> None:
        """Mend the half of a replacement that a kill may have left."""
        if isinstance(self.cube, ObjectPath):
            return
        for old in [*self.cube.glob(".*.old"), *self.cube.glob("template/.*.old")]:
            finish_swap(old.with_name(f"{old.name[:-4]}.new"), old.with_name(old.name[1:-4]), old)

    def has_table(self, name: str) -> bool:
        """Whether a small group has been written."""
        if isinstance(self.cube, ObjectPath):
            return self._packed(name).is_file()
        return (self.cube / name).exists()

    def _packed(self, name: str) -> ObjectPath:
        """In an object store: the small group in one object, which is replaced as a whole."""
        assert isinstance(self.path, ObjectPath)
        return self.path / "tables" / f"{name}.zip"

    def table_is_copied(self, name: str) -> bool:
        """Whether the plain copy of a small group is what it should be; on a file system it is the group."""
        return not isinstance(self.cube, ObjectPath) or is_copied(self._packed(name), self.cube / name)

    def copy_table(self, name: str) -> None:
        """Make the plain copy of a small group again."""
        if isinstance(self.cube, ObjectPath):
            write_plain(self._packed(name), self.cube / name)

    def remove_table(self, name: str) -> None:
        """Delete a small group."""
        if isinstance(self.cube, ObjectPath):
            remove(self._packed(name))
        remove(self.cube / name)

    def table(self, name: str) -> xr.Dataset:
        """A small group, loaded.

        Raises
        ------
        FieldError
            If it has not been written.
        """
        missing = FieldError(f"{self.path}: has no {name} yet; run the stage that writes it")
        if isinstance(self.cube, ObjectPath):
            try:
                return read_group(self._packed(name))
            except FileNotFoundError:
                raise missing from None
        if not self.has_table(name):
            raise missing
        with quiet_strings(), xr.open_zarr(str(self.cube / name), chunks=None, consolidated=False) as ds:
            return ds.load()

    def frames(self) -> xr.Dataset:
        """The table of frames, loaded.

        Raises
        ------
        FieldError
            If no frame has been ingested.
        """
        if not self.has_table("frames"):
            raise FieldError(f"{self.path}: holds no frames yet; `survey ingest FRAMES… -o {self.path}`")
        return self.table("frames")
