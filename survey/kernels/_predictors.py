"""Which pixels may predict a block of target pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from survey.kernels._group_lasso import select

Choice = Literal["closest", "brightness", "similarity", "cosine", "random", "l1"]
CHOICES = ("closest", "brightness", "similarity", "cosine", "random", "l1")
# Choices that look at the series.
LOOKING = ("similarity", "cosine", "l1")
# Of how many times as many pixels, the closest, L1 regression selects.
_L1_POOL = 4


def fitting_exclusion(
    shape: tuple[int, int], exclusion: float, row_column_exclusion: int
) -> tuple[float, int]:
    """Exclusions that leave predictors in a small frame.

    In a frame less than four exclusions wide the exclusion becomes a quarter of the frame's smaller side
    and the excluded rows and columns shrink in proportion.
    """
    fits = -(-min(shape) // 4)
    if exclusion <= fits:
        return exclusion, row_column_exclusion
    return float(fits), int(row_column_exclusion * fits / exclusion)


def allowed_predictors(
    usable: NDArray[np.bool_],
    rows: tuple[int, int],
    columns: tuple[int, int],
    exclusion: float,
    row_column_exclusion: int,
    farthest: float = np.inf,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Flat indices of pixels that may predict every target of a block, and their distance to the block.

    Parameters
    ----------
    usable : bool array (y, x)
        Pixels with data that may predict at all.
    rows, columns : tuple of int
        Block of targets, [start, stop).
    exclusion : float
        Least distance in pixels to the nearest target.
    row_column_exclusion : int
        Pixels within this many rows or columns of a target are left out; 0 leaves none out.
    farthest : float
        Largest distance in rows or columns: within a halo of it a choice does not depend on the tile.
    """
    # nothing further away is looked at: a tile has many blocks
    top, left = (max(first - int(np.ceil(min(farthest, first))), 0) for first, _ in (rows, columns))
    bottom, right = (
        last + int(np.ceil(min(farthest, size)))
        for (_, last), size in zip((rows, columns), usable.shape, strict=True)
    )
    y, x = np.nonzero(usable[top:bottom, left:right])
    y, x = y + top, x + left
    dy = np.maximum(np.maximum(rows[0] - y, y - (rows[1] - 1)), 0)
    dx = np.maximum(np.maximum(columns[0] - x, x - (columns[1] - 1)), 0)
    far = np.hypot(dy, dx)
    keep = (far >= exclusion) & (np.maximum(dy, dx) <= farthest)
    if row_column_exclusion > 0:
        keep &= (dy > row_column_exclusion) & (dx > row_column_exclusion)
    return y[keep] * usable.shape[1] + x[keep], far[keep]


class Neighbourhood:
    """Places around blocks of one size from which predictors may come, the nearest first.

    Parameters
    ----------
    size : tuple of int
        Rows and columns of a block.
    exclusion, row_column_exclusion, farthest
        As `allowed_predictors` takes them; ``farthest`` is finite.
    """

    def __init__(
        self, size: tuple[int, int], exclusion: float, row_column_exclusion: int, farthest: float
    ) -> None:
        self._reach = reach = int(np.ceil(farthest))
        rows, columns = ((reach, reach + n) for n in size)
        around = np.ones([n + 2 * reach for n in size], bool)
        found, distance = allowed_predictors(around, rows, columns, exclusion, row_column_exclusion, farthest)
        order = np.argsort(distance, kind="stable")
        self._distance = distance[order]
        self._y, self._x = (at - reach for at in np.divmod(found[order], around.shape[1]))

    def of(
        self, usable: NDArray[np.bool_], rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Flat indices of the usable pixels (y, x) around a block, and their distance, which grows."""
        height, width = usable.shape
        flat, distance = (rows[0] + self._y) * width + columns[0] + self._x, self._distance
        reach = self._reach
        if min(rows[0], columns[0]) < reach or rows[1] + reach > height or columns[1] + reach > width:
            y, x = rows[0] + self._y, columns[0] + self._x
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            flat, distance = flat[inside], distance[inside]
        good = usable.reshape(-1)[flat]
        return flat[good], distance[good]


def choose_predictors(
    choice: Choice,
    n: int,
    candidates: NDArray[np.int64],
    distance: NDArray[np.float64],
    series: NDArray[np.float64] | None,
    brightness: NDArray[np.float64],
    targets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The n best candidates, as sorted flat indices (so that gathering them walks memory forward).

    Parameters
    ----------
    choice : str
        ``closest``; ``brightness``: nearest in flux to the targets' median; ``similarity``: largest
        correlation in time with the targets' mean; ``cosine``: largest cosine of the angle to it, means not
        taken off; ``l1``: last to vanish under a growing L1 penalty; ``random``: the same draw for the same
        candidates.
    n : int
        How many at most.
    candidates, distance : arrays (candidates,)
        From `allowed_predictors`.
    series : array (pixels, time), optional
        Normalised fluxes of all pixels in the training epochs, for the choices in `LOOKING`.
    brightness : array (pixels,)
        Each pixel's median flux.
    targets : int array
        Flat indices of the target pixels.
    """
    if len(candidates) <= n:
        return np.sort(candidates)
    if choice == "closest":
        rank = distance
    elif choice == "brightness":
        rank = np.abs(brightness[candidates] - np.median(brightness[targets]))
    elif choice == "random":
        rank = np.random.default_rng(len(candidates)).random(len(candidates))
    elif series is None:
        raise ValueError(f"choice {choice!r} needs the series")
    elif choice == "similarity":
        rank = -np.abs(_cosines(_centred(series[candidates]), _centred(series[targets].mean(0))))
    elif choice == "cosine":
        rank = -np.abs(_cosines(series[candidates], series[targets].mean(0)))
    else:
        candidates = candidates[np.argsort(distance, kind="stable")[: _L1_POOL * n]]
        return np.sort(candidates[select(series[candidates], series[targets], n)])
    return np.sort(candidates[np.argsort(rank, kind="stable")[:n]])


def _centred(series: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(series - series.mean(-1, keepdims=True))


def _cosines(series: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the angle between every series and one, times the length of that one."""
    length = np.sqrt((series**2).sum(1))
    return np.asarray(series @ one / np.maximum(length, 1e-300))
