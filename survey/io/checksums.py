"""Checksums of stored arrays that add up: those of parts give that of the whole, whatever the parts.

Every element's bits and place are mixed into 64 bits, and these are added modulo 2^64. So a rewritten window
changes only its own cells' sums, and data written in row blocks have the sums of data written at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Edge in pixels of a cell, for which there is one sum: that of an inner chunk.
CELL = 64
MODULUS = 2**64
KEY, MIXER, SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)
ONE = np.uint64(1)
# All bits but the sign and those of infinity, by the bytes of a type: what lies above is not a number.
_FLOATS = {4: (0x7FFFFFFF, 0x7F800000), 8: (2**63 - 1, 0x7FF0000000000000)}
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@njit(cache=True, nogil=True)
def _add(words, terms, t0, y0, x0, height, width, cell, unsigned, infinite, sums):  # pragma: no cover
    """Add the mixed bits of (time, y, x and terms) words to the sums of their cells."""
    n_t, n_y, n_x = words.shape[0], words.shape[1], words.shape[2] // terms
    for t in range(n_t):
        for y in range(n_y):
            row = ((t0 + t) * height + y0 + y) * width * terms
            line = sums[(y0 + y) // cell - y0 // cell]
            for c in range(len(line)):
                left = max((x0 // cell + c) * cell - x0, 0) * terms
                right = min((x0 // cell + c + 1) * cell - x0, n_x) * terms
                key = np.uint64(row + x0 * terms + left) * KEY
                total = np.uint64(0)
                for k in range(left, right):
                    key += KEY
                    word = np.uint64(words[t, y, k])
                    # A store keeps of a chunk of NaN only that it is one: all of them count as one NaN.
                    if (word & unsigned) > infinite:
                        word = infinite + ONE
                    mixed = word + key
                    mixed ^= mixed >> SHIFT
                    mixed *= MIXER
                    total += mixed ^ (mixed >> SHIFT)
                line[c] += total


def cells_of(region: tuple[slice, ...]) -> list[tuple[int, int]]:
    """(y, x) indices of the cells that a region (…, y, x) touches, in the order of `cell_sums`."""
    y, x = region[-2:]
    return [
        (cy, cx)
        for cy in range(y.start // CELL, -(-y.stop // CELL))
        for cx in range(x.start // CELL, -(-x.stop // CELL))
    ]


def cell_sums(values: NDArray[np.generic], shape: tuple[int, int], region: tuple[slice, ...]) -> list[int]:
    """Checksums of a region of an array, one a cell of `CELL` x `CELL` pixels and all epochs and terms.

    Parameters
    ----------
    values : array (time, y, x, …) or (y, x, …)
        The region's values, in the type they are stored in.
    shape : tuple of int
        (y, x) shape of the whole array.
    region : tuple of slice
        (time, y, x) or (y, x), in pixels of the whole array.

    Returns
    -------
    list of int
        In the order of `cells_of`.
    """
    *time, y, x = region
    data = np.ascontiguousarray(values)
    terms = int(np.prod(data.shape[len(region) :]))
    words = data.view(_WORDS[data.dtype.itemsize])
    words = words.reshape(-1 if time else 1, y.stop - y.start, (x.stop - x.start) * terms)
    sums = np.zeros((-(-y.stop // CELL) - y.start // CELL, -(-x.stop // CELL) - x.start // CELL), np.uint64)
    floats = _FLOATS[data.dtype.itemsize] if data.dtype.kind == "f" else (0, 0)
    start = (time[0].start if time else 0, y.start, x.start)
    _add(words, terms, *start, *shape, CELL, np.uint64(floats[0]), np.uint64(floats[1]), sums)
    return [int(value) for value in sums.ravel()]
