"""Blocks of targets on the detector's lattice, and how well each ridge predicts them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from survey.kernels._cpm_tile import Tile

Array = NDArray[np.float64]
# Rows and columns, [start, stop).
Block = tuple[tuple[int, int], tuple[int, int]]

# Ridges that cross-validation tries, in units of n_predictors x (target variance).
RIDGE_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)


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


def check_predicted(tile: Tile, used: NDArray[np.int64], blocks: list[Block]) -> None:
    """Raise if there were data to predict, and no pixel to predict any of them."""
    dead = np.asarray(tile.bad.all(0)).reshape(tile.shape)
    with_data = [b for b in blocks if not dead[slice(*b[0]), slice(*b[1])].all()]
    if with_data and not used.any():
        rows, columns = with_data[0]
        raise ValueError(
            f"no pixel may predict the block at rows {rows}, columns {columns} of a {tile.shape} tile; "
            "lower exclusion or row_column_exclusion, or give a larger halo"
        )


def block_scores(tile: Tile, blocks: list[Block]) -> Array:
    """Logarithm of the mean square held-out residual of every pixel with data, (ridge, pixels).

    Logarithms let every pixel count by its relative change.
    """
    found = [tile.scores(rows, columns, RIDGE_GRID) for rows, columns in blocks]
    return np.log(np.concatenate([np.zeros((len(RIDGE_GRID), 0)), *found], axis=1))


def best_ridge(scores: Array) -> float:
    """The ridge of least mean score; 1 where nothing was scored."""
    return RIDGE_GRID[int(np.argmin(scores.mean(1)))] if scores.size else 1.0
