"""From a name in a request to a field: nothing outside the folder that is served can be named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from survey.io.store import is_field


class OutsideError(ValueError):
    """A name that is none, or means something outside the folder that is served."""


def place_in(root: Path, name: str) -> Path:
    """The place below a folder that a name of a request means.

    Symbolic links are followed first, so that none leads out either.

    Raises
    ------
    OutsideError
        If the name is absolute, a URL, has empty or dotted parts, or leads out of the folder.
    """
    parts = name.split("/")
    if any(part.strip(". ") == "" or "\\" in part or ":" in part or "\0" in part for part in parts):
        raise OutsideError(f"{name!r}: no name of a field")
    base = root.resolve()
    place = base.joinpath(*parts).resolve()
    if not place.is_relative_to(base) or place == base:
        raise OutsideError(f"{name!r}: lies outside the folder that is served")
    return place


def field_in(root: Path, name: str) -> Path:
    """The field of a name.

    Raises
    ------
    OutsideError
        See `place_in`.
    FileNotFoundError
        If there is no field of that name.
    """
    place = place_in(root, name)
    if not is_field(place):
        raise FileNotFoundError(f"{name!r}: no field of that name")
    return place


def fields_in(root: Path) -> Iterator[str]:
    """Names of the fields below a folder, as `field_in` takes them: its own, and those of its folders."""
    for pattern in ("*/cube.zarr", "*/*/cube.zarr"):
        for cube in sorted(root.glob(pattern)):
            name = str(cube.parent.relative_to(root))
            try:
                field_in(root, name)
            except (OutsideError, FileNotFoundError):
                continue
            yield name
