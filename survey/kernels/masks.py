"""Masks of pixels: their growth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grow_square(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """A mask grown to all pixels at most `radius` columns and `radius` rows away.

    Parameters
    ----------
    mask : bool array (..., y, x)
        True = bad.
    radius : int
        Pixels; 0 returns the mask itself.

    Notes
    -----
    A square is a row of pixels swept along a column, and a sweep is an OR of shifted copies: 15 times as
    fast as a dilation by iterated 3 x 3 squares (1 ms for 16 ms, 1024 x 1024, radius 2).
    """
    return grow_rectangle(mask, (radius, radius))


def grow_rectangle(mask: NDArray[np.bool_], radii: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask grown to all pixels at most so many rows and columns away; see `grow_square`."""
    for axis, radius in zip((mask.ndim - 2, mask.ndim - 1), radii, strict=True):
        if not radius:
            continue
        source = np.moveaxis(mask, axis, 0)
        mask = mask.copy()
        grown = np.moveaxis(mask, axis, 0)
        for step in range(1, min(radius, len(source) - 1) + 1):
            grown[step:] |= source[:-step]
            grown[:-step] |= source[step:]
    return mask
