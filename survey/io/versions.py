"""A group of arrays in an object store that is replaced as a whole.

An object store renames nothing, and a template is too large for one object. So every writing is a version
of its own, whole before anybody looks at it, and one small object says which version is the group: its one
PUT is the replacement. Beside them lies a plain copy under the group's own name, for who knows Zarr only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from survey.io.locations import folders, remove
from survey.io.objects import ObjectPath, remove_objects


@dataclass(frozen=True)
class Versions:
    """The versions of one group.

    Parameters
    ----------
    field : ObjectPath
        The field.
    group : str
        As everybody calls it: ``template/<name>``.
    """

    field: ObjectPath
    group: str

    @property
    def pointer(self) -> ObjectPath:
        """The object that says which version is the group."""
        return self.field / "tables" / f"{self.group}.json"

    @property
    def plain(self) -> ObjectPath:
        """The copy under the group's own name."""
        return self.field / "cube.zarr" / self.group

    def name(self, version: str) -> str:
        """Group of a version."""
        parent, _, name = self.group.rpartition("/")
        return f"{parent}/.{name}.{version}"

    def live(self) -> str | None:
        """Group of the version that counts; None where there is none."""
        try:
            return str(json.loads(self.pointer.read_bytes())["group"])
        except FileNotFoundError:
            return None

    def all(self) -> list[ObjectPath]:
        """Every version, whole or not."""
        head = self.name("").rpartition("/")[2]
        return [place for place in folders(self.plain.parent) if place.name.startswith(head)]  # type: ignore[misc]

    def unused(self) -> list[ObjectPath]:
        """Versions that do not count, or no longer."""
        live = self.live()
        return [place for place in self.all() if live is None or place != self.field / "cube.zarr" / live]

    def point(self, version: str) -> None:
        """Make a version the group.

        The one before stays until the next, for whoever is in the middle of reading it.
        """
        before = self.live()
        self.pointer.write_bytes(json.dumps({"group": self.name(version)}).encode())
        self.copy()
        for place in self.unused():
            if before is None or place != self.field / "cube.zarr" / before:
                remove(place)

    def is_copied(self) -> bool:
        """Whether the plain copy is what the version that counts is."""
        wanted, there = _named(self._source()), _named(self.plain)
        return wanted.keys() == there.keys() and all(
            place.read_bytes() == there[name].read_bytes() for name, place in wanted.items()
        )

    def copy(self) -> None:
        """Make the plain copy again; the store copies its objects itself."""
        wanted = _named(self._source())
        for name, place in wanted.items():
            place.copy_to(self.plain / name)
        remove_objects([place for name, place in _named(self.plain).items() if name not in wanted])

    def _source(self) -> ObjectPath:
        return self.field / "cube.zarr" / (self.live() or self.group)


def _named(place: ObjectPath) -> dict[str, ObjectPath]:
    """Every object under a prefix by its name below it."""
    keys = [meta["path"] for meta in place.walk()]
    return {key.removeprefix(f"{place.key}/"): ObjectPath(place.root, key) for key in keys}
