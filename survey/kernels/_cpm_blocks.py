"""Blocks of targets on the detector's lattice, and how well each ridge predicts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from survey.kernels._cpm_tile import Tile
from survey.kernels._predictors import allowed_predictors

Array = NDArray[np.float64]
# Rows and columns, [start, stop).
Block = tuple[tuple[int, int], tuple[int, int]]

# Ridges that cross-validation tries, in units of n_predictors x (target variance).
RIDGE_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
# Blocks on which the ridge is cross-validated.
_CV_BLOCKS, _CV_PIXELS = 4, 128


def lattice_blocks(shape, target, block: int, origin: tuple[int, int]):
    """Rows and columns of the target window, and the squares of the detector's lattice that it touches.

    They are taken whole: a pixel's predictors do not depend on where a window cuts its square.
    """
    spans = [s.indices(n)[:2] for s, n in zip(target or (slice(None), slice(None)), shape, strict=True)]
    edges = []
    for (start, stop), offset, n in zip(spans, origin, shape, strict=True):
        first = (start + offset) // block * block - offset
        edges.append([(max(a, 0), min(a + block, n)) for a in range(first, stop, block)])
    return *spans, [(rows, columns) for rows in edges[0] for columns in edges[1]]


def overlap(block: tuple[int, int], window: tuple[int, ...]) -> tuple[slice, slice]:
    """What block and window share along an axis, counted from the start of the window, of the block."""
    start, stop = max(block[0], window[0]), max(block[0], window[0], min(block[1], window[1]))
    return slice(start - window[0], stop - window[0]), slice(start - block[0], stop - block[0])


def check_predicted(tile: Tile, used: NDArray[np.int64], blocks: list[Block]) -> None:
    """Raise if there are targets, and the settings let no pixel with data predict any of them.

    Where data are too few to predict anything, nothing is predicted.
    """
    if used.any():
        return
    every, model = np.arange(len(tile.train)), tile.model
    alive = [b for b in blocks if tile.alive(tile.pixels(*b), every).any()]
    if alive and not any(
        len(allowed_predictors(tile.series.may, *b, *model.exclusion, model.farthest)[0]) for b in alive
    ):
        rows, columns = alive[0]
        raise ValueError(
            f"no pixel may predict the block at rows {rows}, columns {columns} of a {tile.series.shape} "
            "tile; lower exclusion or row_column_exclusion, or give a larger halo"
        )


def counts_of(n_predictors: int | Sequence[int]) -> list[int]:
    """Numbers of predictors to choose from."""
    return [n_predictors] if isinstance(n_predictors, int | np.integer) else [int(n) for n in n_predictors]


def choose(
    tile: Tile, blocks: list[Block], counts: list[int], ridge: float | None, block: int
) -> tuple[int, float]:
    """Number of predictors and ridge: as given, else the best on a few blocks."""
    if ridge is not None and len(counts) == 1:
        return counts[0], float(ridge)
    sample = spread(blocks, max(_CV_PIXELS // block**2, _CV_BLOCKS))
    totals = summed(block_scores(tile, sample, counts))
    return best(totals, counts, ridge) or (counts[-1], ridge or 1.0)


def lattice_scores(
    tile: Tile, target, block: int, origin: tuple[int, int], lattice: int, counts: Sequence[int]
) -> Array:
    """Sums of scores of every ``lattice``-th block along both axes that begins in the target window."""
    ys, xs, blocks = lattice_blocks(tile.series.shape, target, block, origin)
    chosen = [
        (rows, columns)
        for rows, columns in blocks
        if rows[0] >= ys[0] and columns[0] >= xs[0]
        and not ((rows[0] + origin[0]) // block % lattice or (columns[0] + origin[1]) // block % lattice)
    ]  # fmt: skip
    return summed(block_scores(tile, chosen, counts))


def spread(blocks: list[Block], count: int) -> list[Block]:
    """So many of the blocks, from the first to the last."""
    return [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, count).round().astype(int))]


def block_scores(tile: Tile, blocks: list[Block], counts: Sequence[int]) -> Array:
    """Logarithm of the mean square held-out residual of pixels with data, (count, ridge, pixels).

    Logarithms let every pixel count by its relative change. The pixels are those that every number of
    predictors can be judged on; infinity for a number with which a block cannot be fitted.
    """
    found = [np.zeros((len(counts), len(RIDGE_GRID), 0))]
    for rows, columns in blocks:
        squares = np.stack([tile.scores(rows, columns, n, RIDGE_GRID) for n in counts])
        able = np.asarray(np.isfinite(squares).any((1, 2)))
        common = np.isfinite(squares[able]).all((0, 1)) & able.any()
        found.append(np.where(able[:, None, None], np.log(squares), np.inf)[..., common])
    return np.concatenate(found, axis=2)


def best(
    totals: NDArray[np.floating], counts: Sequence[int], ridge: float | None = None
) -> tuple[int, float] | None:
    """Number of predictors and ridge of least mean score; None where nothing was scored.

    Parameters
    ----------
    totals : array (count, ridge, 2)
        Sums of scores, and pixels summed.
    counts : sequence of int
        The numbers of predictors scored.
    ridge : float, optional
        The ridge, where it is given: numbers are judged at the nearest of the grid.
    """
    if not totals[..., 1].all():
        return None
    scores = totals[..., 0] / totals[..., 1]
    if ridge is not None:
        nearest = int(np.argmin(np.abs(np.log(np.divide(RIDGE_GRID, ridge)))))
        return counts[int(np.argmin(scores[:, nearest]))], float(ridge)
    if not np.isfinite(scores).any():
        return None
    i, j = np.unravel_index(np.argmin(scores), scores.shape)
    return counts[int(i)], RIDGE_GRID[int(j)]


def summed(scores: Array) -> Array:
    """Sums over pixels, and their number, (count, ridge, 2)."""
    return np.stack([scores.sum(2), np.full(scores.shape[:2], float(scores.shape[2]))], axis=2)
