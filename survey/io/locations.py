"""Where a field lives, and the few things that are done to files there.

A location is spelled as in pathlib, whatever it is: ``/``, ``name``, ``parent``, ``exists``, ``is_dir``,
``glob``, ``read_bytes``, ``read_text``, ``unlink``. What differs between kinds of storage is here, one
function each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from survey.io.objects import ObjectPath, is_url, parse, remove_objects

Location = Path | ObjectPath


def locate(name: str | Location) -> Location:
    """The location that a name means: a path, or an object store's URL.

    Raises
    ------
    ValueError
        If a URL holds more than a bucket and a name.
    """
    if isinstance(name, ObjectPath):
        return name
    return parse(name) if is_url(name) else Path(name)


def absolute(place: Location) -> Location:
    """The same place for processes with other working directories."""
    return place if isinstance(place, ObjectPath) else place.resolve()


def zarr_place(place: Location) -> Any:
    """What Zarr opens: a path, or a store."""
    if isinstance(place, ObjectPath):
        from survey.io.object_zarr import zarr_store

        return zarr_store(place)
    return str(place)


def write_atomic(place: Location, data: bytes, *, synced: bool = True) -> None:
    """Write a file through a temporary name and a rename, so that a kill leaves the old one.

    With ``synced`` it is on the disk itself when this returns, and outlives a host that loses power.
    """
    if isinstance(place, ObjectPath):
        place.write_bytes(data)
        return
    with writing(place, synced=synced) as stream:
        stream.write(data)


@contextmanager
def writing(place: Location, *, synced: bool = True) -> Iterator[IO[bytes]]:
    """A file to write piece by piece, which is there whole when the block ends, and not before.

    An error or a kill leaves what was there. For an object store the pieces wait in a file of this machine.
    """
    if isinstance(place, ObjectPath):
        with TemporaryFile() as stream:
            yield stream
            stream.seek(0)
            place.write_stream(stream)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            yield stream
            if synced:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(place)
        if synced:
            with suppress(OSError):  # not every file system knows folders as files
                _with_folder(place.parent, os.fsync)
    finally:
        temporary.unlink(missing_ok=True)


def sync(place: Location) -> None:
    """See that what this host wrote to a location's file system is on the disk, not only in its memory.

    An object store keeps what it has answered for.

    Raises
    ------
    OSError
        If the disk could not take it.
    """
    if isinstance(place, ObjectPath):
        return
    folder = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # Linux has it
        os.sync()
    elif _with_folder(folder, syncfs):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))


def _with_folder(folder: Path, call: Callable[[int], Any]) -> Any:
    number = os.open(folder, os.O_RDONLY)
    try:
        return call(number)
    finally:
        os.close(number)


def opened(place: Location) -> IO[bytes]:
    """A file to read piece by piece.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    return place.open_stream() if isinstance(place, ObjectPath) else place.open("rb")


def create(place: Location, data: bytes) -> bool:
    """Write a file where there is none; False, and nothing done, where there is one."""
    if isinstance(place, ObjectPath):
        return place.create(data)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with place.open("xb") as stream:
            stream.write(data)
    except FileExistsError:
        return False
    return True


def keep(source: Location, place: Location) -> None:
    """Have what a file holds under another name too, where there is none; an empty file if there is no file.

    Whoever puts a new file in the first one's place leaves the other as it was. Where a file system knows no
    second names, and in an object store, it is copied.
    """
    if isinstance(source, ObjectPath) or isinstance(place, ObjectPath):
        create(place, source.read_bytes() if source.is_file() else b"")
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except FileNotFoundError:
        create(place, b"")
    except FileExistsError:
        return
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        data = source.read_bytes() if source.is_file() else b""
        # who keeps it writes the source only then: what was read before nobody had kept it is the old one
        if not place.exists():
            write_atomic(place, data)


def size_of(place: Location) -> int:
    """Bytes that a file holds."""
    return place.size() if isinstance(place, ObjectPath) else place.stat().st_size


def replace(place: Location, data: bytes, expected: bytes) -> bool:
    """Write a file that still holds what is expected; False, and nothing done, where it does not.

    Exact in an object store. On a file system another writer may slip in between the look and the write.
    """
    if isinstance(place, ObjectPath):
        return place.replace(data, expected)
    try:
        if place.read_bytes() != expected:
            return False
    except FileNotFoundError:
        return False
    write_atomic(place, data)
    return True


def remove(place: Location) -> None:
    """Delete a file, or a folder and all it holds; what is not there is deleted."""
    if isinstance(place, ObjectPath):
        found = [ObjectPath(place.root, meta["path"]) for meta in place.walk()]
        remove_objects([place, *found] if place.is_file() else found)
    elif place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def remove_files(places: Sequence[Location]) -> None:
    """Delete files, in no order that may be relied upon."""
    remove_objects([place for place in places if isinstance(place, ObjectPath)])
    for place in places:
        if not isinstance(place, ObjectPath):
            place.unlink(missing_ok=True)


def folders(place: Location) -> list[Location]:
    """Folders in a folder, by name; none where it does not exist."""
    if isinstance(place, ObjectPath):
        return list(place.children()[0])
    return sorted(p for p in place.glob("*") if p.is_dir())


def files(place: Location, pattern: str) -> list[Location]:
    """Files below a folder whose path matches, by path; none where it does not exist."""
    return sorted(place.glob(pattern), key=str)


def changed(place: Location) -> float:
    """When a file was last written, seconds since 1970.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    return place.changed() if isinstance(place, ObjectPath) else place.stat().st_mtime


def swap(fresh: Location, live: Location, old: Location) -> None:
    """Put a folder on a file system in the place of another; a kill leaves one of the two."""
    assert isinstance(live, Path)
    assert isinstance(old, Path)
    assert isinstance(fresh, Path)
    while fresh.exists():
        if live.exists():
            live.rename(old)
        finish_swap(fresh, live, old)
    remove(old)


def finish_swap(fresh: Path, live: Path, old: Path) -> None:
    """Do the second half of a swap on a file system where the first is done, whether its writer lives or not.

    The fresh folder is whole by then. A folder is not renamed onto one that holds something: of several who
    come at once only one does anything.
    """
    for folder in (fresh, old):
        if live.exists():
            return
        try:
            folder.rename(live)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


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
    if isinstance(place, ObjectPath):
        for meta in place.walk():
            yield Entry(
                ObjectPath(place.root, meta["path"]), int(meta["size"]), meta["last_modified"].timestamp()
            )
        return
    for path in place.rglob("*") if place.is_dir() else [place]:
        if path.is_file():
            status = path.stat()
            yield Entry(path, status.st_size, status.st_mtime)
