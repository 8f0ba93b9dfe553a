"""What of a field is replaced as a whole: tables of frames, stars and calibration; templates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import xarray as xr

from survey.io.locations import Location, files, finish_swap, folders, remove, swap, sync
from survey.io.objects import ObjectPath
from survey.io.packed import is_copied, quiet_strings, read_group, write_group, write_plain
from survey.io.versions import Versions

# Groups under this one are replaced as a whole.
REPLACED = "template"


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

    # -- groups of arrays -----------------------------------------------------------------------

    @contextmanager
    def replacing(self, group: str, version: str) -> Iterator[str]:
        """Name of a group to write, which takes the place of ``group`` when the block ends without error.

        Until then, and after an error or a kill, the old group stays as it was. ``version`` is a name that no
        other replacement of the group has had; one at a time replaces a group.
        """
        versions = self.versions(group)
        parent, _, name = group.rpartition("/")
        if versions is None:
            self.restore_tables()
            fresh, old = (f"{parent}/.{name}.{end}" for end in ("new", "old"))
            for leftover in (fresh, old):
                remove(self.cube / leftover)
        else:
            fresh = versions.name(version)
        try:
            yield fresh
        except BaseException:
            remove(self.cube / fresh)
            raise
        if versions is None:
            swap(self.cube / fresh, self.cube / group, self.cube / old)
        else:
            versions.point(version)

    def versions(self, group: str) -> Versions | None:
        """Versions of a group that is replaced as a whole; None on a file system, where it is a folder."""
        parent, _, name = group.partition("/")
        if not isinstance(self.path, ObjectPath) or parent != REPLACED or not name or name.startswith("."):
            return None
        return Versions(self.path, group)

    def live(self, group: str) -> str:
        """The group whose arrays are those of ``group`` now."""
        versions = self.versions(group)
        return group if versions is None else versions.live() or group

    def replaced(self) -> list[str]:
        """Names of the groups that are replaced as a whole."""
        names = {place.name for place in folders(self.cube / REPLACED) if not place.name.startswith(".")}
        if isinstance(self.path, ObjectPath):
            # A version has no plain copy yet where a kill came between; a plain group may have no versions.
            names |= {place.stem for place in files(self.path / "tables" / REPLACED, "*.json")}
        return sorted(names)

    def unused_places(self) -> list[Location]:
        """What replacements have left: halves, and versions that do not count."""
        found: list[Location] = []
        if isinstance(self.path, ObjectPath):
            pointed = {self.cube / self.live(f"{REPLACED}/{name}") for name in self.replaced()}
            hidden = [place for place in folders(self.cube / REPLACED) if place.name.startswith(".")]
            return [place for place in hidden if place not in pointed]
        for pattern in (".*.new", ".*.old", f"{REPLACED}/.*.new", f"{REPLACED}/.*.old"):
            found += self.cube.glob(pattern)
        return found

    # -- tables ---------------------------------------------------------------------------------

    def restore_tables(self) -> None:
        """Mend the half of a replacement that a kill may have left."""
        if isinstance(self.cube, ObjectPath):
            return
        for old in [*self.cube.glob(".*.old"), *self.cube.glob(f"{REPLACED}/.*.old")]:
            finish_swap(old.with_name(f"{old.name[:-4]}.new"), old.with_name(old.name[1:-4]), old)

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
        sync(self.cube)
        swap(fresh, live, old)

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

    def table(self, name: str, *, fresh: bool = False) -> xr.Dataset:
        """A small group, loaded: the caller's own copy.

        Parameters
        ----------
        name : str
        fresh : bool
            Read it also where this process has done so since it was written.

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
        read = _read.__wrapped__ if fresh else _read
        return read(self.cube / name, _stamp(self.cube / name)).copy(deep=True)

    @property
    def time_scale(self) -> str:
        """Scale of the frames' times: utc, tai, tt or tdb."""
        return str(self.frames()["time"].attrs.get("scale", "utc"))

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


def _stamp(place: Path) -> tuple[int, ...]:
    """What tells a group from the one before it: each is written in a folder of its own."""
    # Opened, not looked up: that is when a network file system asks its server.
    with (place / "zarr.json").open("rb") as file:
        found = os.fstat(file.fileno())
    return found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _read(place: Path, stamp: tuple[int, ...]) -> xr.Dataset:
    """A small group; a unit asks for the same ones several times, and all of a worker's units do."""
    with quiet_strings(), xr.open_zarr(str(place), chunks=None, consolidated=False) as ds:
        return ds.load()
