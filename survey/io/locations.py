"""Where a field lives, and the few things that are done to files there.

A location is spelled as in pathlib, whatever it is: ``/``, ``name``, ``parent``, ``exists``, ``is_dir``,
``glob``, ``read_bytes``, ``read_text``, ``unlink``. What differs between kinds of storage is here, one
function each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Location = Path


def locate(name: str | Location) -> Location:
    """The location that a name means."""
    return Path(name)


def absolute(place: Location) -> Location:
    """The same place for processes with other working directories."""
    return place.resolve()


def write_atomic(place: Location, data: bytes) -> None:
    """Write a file through a temporary name and a rename, so that a kill leaves the old one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def create(place: Location, data: bytes) -> bool:
    """Write a file where there is none; False, and nothing done, where there is one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with place.open("xb") as stream:
            stream.write(data)
    except FileExistsError:
        return False
    return True


def remove(place: Location) -> None:
    """Delete a file, or a folder and all it holds; what is not there is deleted."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def remove_files(places: list[Location]) -> None:
    """Delete files, in no order that may be relied upon."""
    for place in places:
        place.unlink(missing_ok=True)


def folders(place: Location) -> list[Location]:
    """Folders in a folder, by name; none where it does not exist."""
    return sorted(p for p in place.glob("*") if p.is_dir())


def changed(place: Location) -> float:
    """When a file was last written, seconds since 1970.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    return place.stat().st_mtime


def swap(fresh: Location, live: Location, old: Location) -> None:
    """Put a folder in the place of another, so that a kill leaves one of the two."""
    if live.exists():
        live.rename(old)
    fresh.rename(live)
    remove(old)


@dataclass(frozen=True)
class Entry:
    """A file somewhere under a folder.

    Parameters
    ----------
    size : int
        Bytes.
    changed : float
        When it was last written, seconds since 1970.
    """

    place: Location
    size: int
    changed: float


def entries(place: Location) -> Iterator[Entry]:
    """The file, or every file under the folder."""
    for path in place.rglob("*") if place.is_dir() else [place]:
        if path.is_file():
            status = path.stat()
            yield Entry(path, status.st_size, status.st_mtime)
