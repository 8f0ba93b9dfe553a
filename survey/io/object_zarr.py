"""Zarr in an object store; apart, because Zarr takes a third of a second to import."""

from __future__ import annotations

from functools import cache
from typing import Any

from zarr.storage import ObjectStore

from survey.io.objects import MULTIPART_BYTES, ObjectPath, open_store, told


class Objects(ObjectStore[Any]):
    """A Zarr store in an object store, which no task can carry away."""

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a store knows credentials and stays in its process; send the field's URL")

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """One object or a range of it; None where there is none."""
        with told(f"{self.store}: {key}"):
            return await super().get(key, *args, **kwargs)

    async def get_partial_values(self, *args: Any, **kwargs: Any) -> Any:
        """Several ranges of objects."""
        with told(self.store):
            return await super().get_partial_values(*args, **kwargs)

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        try:
            with told(f"{self.store}: {key}"):
                return await super().exists(key)
        except FileNotFoundError:
            return False

    async def set(self, key: str, value: Any) -> None:
        """Write one object in one request."""
        import obstore

        self._check_writable()
        data = value.as_buffer_like()
        with told(f"{self.store}: {key}"):
            await obstore.put_async(
                self.store, key, data, use_multipart=memoryview(data).nbytes > MULTIPART_BYTES
            )

    async def delete(self, key: str) -> None:
        """Delete one object."""
        with told(f"{self.store}: {key}"):
            await super().delete(key)


@cache
def zarr_store(place: ObjectPath) -> Objects:
    """The Zarr store under a prefix, opened once a process."""
    return Objects(open_store(str(place)))
