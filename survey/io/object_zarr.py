"""Zarr in an object store; apart, because Zarr takes a third of a second to import."""

from __future__ import annotations

from functools import cache
from typing import Any

from zarr.storage import ObjectStore

from survey.io.objects import MULTIPART_BYTES, ObjectPath, open_store, told


class Objects(ObjectStore[Any]):
    """A Zarr store in an object store, which no task can carry away."""

    def __init__(self, store: Any, *, read_only: bool = False, url: str = "") -> None:
        super().__init__(store, read_only=read_only)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> Objects:
        """The same objects, to be written or not."""
        return Objects(self.store, read_only=read_only, url=self.url)

    def __str__(self) -> str:
        # obstore's own words for a store of Azure's panic where its account comes from the environment.
        return self.url

    __repr__ = __str__

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a store knows credentials and stays in its process; send the field's URL")

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """One object or a range of it; None where there is none."""
        with told(f"{self.url}/{key}"):
            return await super().get(key, *args, **kwargs)

    async def get_partial_values(self, *args: Any, **kwargs: Any) -> Any:
        """Several ranges of objects."""
        with told(self.url):
            return await super().get_partial_values(*args, **kwargs)

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        try:
            with told(f"{self.url}/{key}"):
                return await super().exists(key)
        except FileNotFoundError:
            return False

    async def set(self, key: str, value: Any) -> None:
        """Write one object in one request."""
        import obstore

        self._check_writable()
        data = value.as_buffer_like()
        with told(f"{self.url}/{key}"):
            await obstore.put_async(
                self.store, key, data, use_multipart=memoryview(data).nbytes > MULTIPART_BYTES
            )

    async def delete(self, key: str) -> None:
        """Delete one object."""
        with told(f"{self.url}/{key}"):
            await super().delete(key)


@cache
def zarr_store(place: ObjectPath) -> Objects:
    """The Zarr store under a prefix, opened once a process."""
    return Objects(open_store(str(place)), url=str(place))
