"""How a worker's allocator treats what is freed: kept during a unit's work, given back after it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# glibc's numbers of the parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Larger than any chunk, smaller than a tile's cubes: those are mapped in huge pages by NumPy.
MMAP_BYTES = 16 << 20
TRIM_BYTES = 2 * MMAP_BYTES


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it the process uses memory again that it freed; at its end what is free goes back.

    A Dask nanny starts its workers with ``MALLOC_TRIM_THRESHOLD_=65536``. That also freezes glibc's other
    threshold at 128 KiB, so that every chunk that is read or compressed is mapped, faulted in page by page
    and unmapped: 250,000 faults for reading one tile, and twice the time. Does nothing where the allocator
    is not glibc's.
    """
    libc = _glibc()
    try:
        yield
    finally:
        # Otherwise the holes would count against the worker's limit until the next unit.
        if libc is not None:
            libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, its thresholds set; None where it has none."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, TRIM_BYTES)
        return libc if libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None
