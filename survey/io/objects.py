"""Places in object stores: ``s3://``, ``gs://`` and ``az://``, through obstore.

Only a URL ever leaves a process. Each opens its stores by its own environment (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_SERVICE_ACCOUNT``, ``AZURE_STORAGE_ACCOUNT_KEY`` …), and what a server says in
an error stays here: it can hold the name of a key.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import IO, Any, cast

URL = re.compile(r"(s3|gs|az):/{1,2}([^/]+)/*(.*)")
# Objects above this size are sent in parts: a part costs a request, and parts of a killed writer stay unseen.
MULTIPART_BYTES = 64 * 2**20
STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+?)(?:[:\n]|$)|<Code>(\w+)</Code>")


class StoreError(OSError):
    """An object store that cannot be reached, or does not do what is asked."""


def is_url(name: object) -> bool:
    """Whether a name is a place in an object store."""
    return URL.match(str(name)) is not None


def parse(name: object) -> ObjectPath:
    """The place that a URL names.

    Raises
    ------
    ValueError
        If the URL holds credentials or options: they belong into the environment.
    """
    found = URL.fullmatch(str(name))
    if found is None or not found[3].strip("/") or re.search("[@?#]", str(name)):
        raise ValueError(
            "a field in an object store is named s3://BUCKET/NAME (or gs://, az://) and nothing more: "
            "credentials, endpoint and region come from the environment (AWS_ACCESS_KEY_ID …)"
        )
    return ObjectPath(f"{found[1]}://{found[2]}", re.sub("/+", "/", found[3]).strip("/"))


@cache
def open_store(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise ImportError(f"{url}: needs the extra `objects`: pip install 'survey[objects]'") from None
    with told(url):
        return from_url(url)


@contextmanager
def told(place: object) -> Iterator[None]:
    """Turn obstore's errors into those of files, with the place and the kind, without the server's words."""
    from obstore import exceptions as kinds

    try:
        yield
    except (FileNotFoundError, kinds.NotFoundError):
        raise FileNotFoundError(f"{place}: no such object, or no such bucket") from None
    except (FileExistsError, kinds.AlreadyExistsError, kinds.PreconditionError):
        raise FileExistsError(f"{place}: was written by somebody else meanwhile") from None
    except (PermissionError, kinds.PermissionDeniedError, kinds.UnauthenticatedError):
        raise PermissionError(f"{place}: the store refuses these credentials (see the environment)") from None
    except kinds.BaseError as error:
        status = STATUS.search(str(error))
        reason = next(filter(None, status.groups())) if status else "cannot be reached"
        raise StoreError(f"{place}: {reason}") from None


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or the prefix of many, spelled as in pathlib.

    Parameters
    ----------
    root : str
        ``s3://bucket``.
    key : str
        Without a slash at either end.
    """

    root: str
    key: str

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __fspath__(self) -> str:
        raise TypeError(f"{self}: is no file")

    def __truediv__(self, other: str) -> ObjectPath:
        return ObjectPath(self.root, f"{self.key}/{other}".strip("/"))

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's ending with its dot."""
        dot = self.name.rfind(".")
        return self.name[dot:] if dot > 0 else ""

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.removesuffix(self.suffix)

    @property
    def parts(self) -> tuple[str, ...]:
        """Root and names."""
        return (self.root, *self.key.split("/"))

    @property
    def parent(self) -> ObjectPath:
        """What precedes the last slash."""
        return ObjectPath(self.root, self.key.rpartition("/")[0])

    @property
    def store(self) -> Any:
        """The bucket's store, opened once a process."""
        return open_store(self.root)

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.read_tagged()[0]

    def read_tagged(self) -> tuple[bytes, dict[str, str]]:
        """The whole object, and what names this version of it."""
        import obstore

        with told(self):
            found = obstore.get(self.store, self.key)
            named = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
            tags = {name: value for name, value in named.items() if value}
            return bytes(found.bytes()), tags

    def read_text(self, errors: str = "strict") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(errors=errors)

    def write_bytes(self, data: bytes, mode: Any = "overwrite") -> None:
        """Write the whole object, which readers see as it was or as it is then."""
        import obstore

        with told(self):
            big = len(data) > MULTIPART_BYTES and mode == "overwrite"
            obstore.put(self.store, self.key, data, mode=mode, use_multipart=big)

    def write_stream(self, stream: IO[bytes]) -> None:
        """Write what a file holds as the whole object, a part at a time."""
        import obstore

        with told(self):
            obstore.put(self.store, self.key, stream)

    def open_stream(self) -> IO[bytes]:
        """The object as a file that is read a piece at a time."""
        return cast("IO[bytes]", ObjectReader(self))

    def create(self, data: bytes) -> bool:
        """Write the object where there is none."""
        return self._write_if(data, "create")

    def replace(self, data: bytes, expected: bytes) -> bool:
        """Write the object where it still is what is expected."""
        try:
            found, tags = self.read_tagged()
            if found != expected or self._write_if(data, tags):
                return found == expected
            # Ceph (16) keeps a tag bare and compares it with the quoted one that it is sent: none ever fits.
            bare = {name: value.strip('"') for name, value in tags.items()}
            return bare != tags and self.read_tagged()[1] == tags and self._write_if(data, bare)
        except FileNotFoundError:
            return False

    def _write_if(self, data: bytes, mode: Any) -> bool:
        try:
            self.write_bytes(data, mode)
        except FileExistsError:
            # A write whose answer was lost is sent again, and meets itself.
            return self.exists() and self.read_bytes() == data
        return True

    def exists(self) -> bool:
        """Whether there is an object, or one under the prefix."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object."""
        import obstore

        try:
            with told(self):
                obstore.head(self.store, self.key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object under the prefix."""
        import obstore

        with told(self):
            stream = obstore.list(self.store, self.key + "/", chunk_size=1)
            return next(iter(stream), None) not in (None, [])

    def children(self) -> tuple[list[ObjectPath], list[ObjectPath]]:
        """Prefixes, and objects, right under this one, by name."""
        import obstore

        with told(self):
            found = obstore.list_with_delimiter(self.store, self.key + "/")
        prefixes = [ObjectPath(self.root, key.strip("/")) for key in found["common_prefixes"]]
        return sorted(prefixes), sorted(ObjectPath(self.root, meta["path"]) for meta in found["objects"])

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Prefixes and objects whose path below this one matches, one name a part of the pattern."""
        first, _, rest = pattern.partition("/")
        prefixes, objects = self.children()
        for prefix in prefixes:
            if fnmatchcase(prefix.name, first):
                yield from prefix.glob(rest) if rest else [prefix]
        if not rest:
            yield from (place for place in objects if fnmatchcase(place.name, first))

    def walk(self) -> list[dict[str, Any]]:
        """``path``, ``size`` and ``last_modified`` of every object under the prefix."""
        import obstore

        with told(self):
            return [dict(meta) for meta in obstore.list(self.store, self.key + "/").collect()]

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object; one that is not there is deleted."""
        remove_objects([self])

    def changed(self) -> float:
        """When the object was written, seconds since 1970 by the store's clock."""
        import obstore

        with told(self):
            return float(obstore.head(self.store, self.key)["last_modified"].timestamp())

    def size(self) -> int:
        """Bytes that the object holds."""
        import obstore

        with told(self):
            return int(obstore.head(self.store, self.key)["size"])

    def copy_to(self, other: ObjectPath) -> None:
        """Copy the object within its bucket."""
        import obstore

        with told(self):
            obstore.copy(self.store, self.key, other.key)


class ObjectReader(io.RawIOBase):
    """An object as a file; an error once it is another object than when it was opened."""

    def __init__(self, place: ObjectPath) -> None:
        import obstore

        self._place, self._at = place, 0
        with told(place):
            self._meta = obstore.head(place.store, place.key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, int(self._meta["size"]))[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        end = min(self._at + len(buffer), int(self._meta["size"]))
        if end <= self._at:
            return 0
        place = self._place
        with told(place):
            found = obstore.get(place.store, place.key, options={"range": (self._at, end)})
            data = bytes(found.bytes())
        if found.meta["e_tag"] != self._meta["e_tag"]:
            raise StoreError(f"{place}: was replaced while it was read; read it again")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def remove_objects(places: list[ObjectPath]) -> None:
    """Delete objects of one bucket, up to 1000 a request, in no order; what is not there is deleted.

    S3 says nothing of an object that is not there. Google and Azure refuse it, and leave it open which of the
    others are gone: these are deleted one by one.
    """
    import obstore

    if not places:
        return
    try:
        with told(places[0].root):
            obstore.delete(places[0].store, [place.key for place in places])
    except FileNotFoundError:
        for place in places:
            with suppress(FileNotFoundError), told(place):
                obstore.delete(place.store, [place.key])
