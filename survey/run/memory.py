"""A worker's memory: what is freed is kept during a unit's work and given back after it; what it took."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil

from survey.stages.forecast import MMAP_BYTES

# glibc's numbers of the parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Arrays beyond it are mapped in huge pages by NumPy.
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


@contextmanager
def loaded_apart() -> Iterator[None]:
    """Within it garbage is not looked for among what was there before.

    Modules and compiled kernels are some hundred thousand objects, and every full collection goes through
    them all.
    """
    if gc.get_freeze_count():  # by the caller, who goes on with it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


def resident() -> int:
    """Resident size of this process, bytes."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Start the kernel's high-water mark of resident memory again, where the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """Highest resident size of this process since `reset_peak`, bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident()
