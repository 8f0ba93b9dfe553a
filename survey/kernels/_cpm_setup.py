"""From a cube and what a user asks for to a tile that can be fitted."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from survey.kernels._cpm_series import make_series
from survey.kernels._cpm_tile import Model, Tile
from survey.kernels._predictors import CHOICES, Choice, fitting_exclusion


def make_tile(
    cube: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    exclusion: float = 16,
    row_column_exclusion: int = 10,
    farthest: float | None = None,
    predictors: Choice = "closest",
    folds: int = 10,
    train: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    epoch_error: ArrayLike | None = None,
    components: int | None = None,
    time_order: int = 0,
    time: ArrayLike | None = None,
    weights: Literal["epoch", "pixel"] = "epoch",
    held_out: bool = True,
    start: int = 0,
) -> Tile:
    """The tile's series and model; see `fit_cpm` for what it is made of."""
    shape, *others = (np.shape(a) for a in cube)
    if len(shape) != 3 or any(other != shape for other in others):
        raise ValueError(
            f"flux, error and mask must have one (time, y, x) shape, not {shape}, {others[0]}, {others[1]}"
        )
    if predictors not in CHOICES:
        raise ValueError(f"unknown predictors {predictors!r}; choose one of {', '.join(CHOICES)}")
    if weights not in ("epoch", "pixel"):
        raise ValueError(f"unknown weights {weights!r}; choose epoch or pixel")
    n_time = shape[0]
    if not 0 <= start < n_time:
        raise ValueError(f"start = {start}: there are {n_time} epochs")
    epochs = np.nonzero(np.ones(n_time, bool) if train is None else np.asarray(train, bool))[0]
    left_out = np.setdiff1d(np.arange(n_time), epochs)
    if start:
        epochs = epochs[epochs < start]
    if folds < 2 or len(epochs) < 2 * folds:
        raise ValueError(f"{len(epochs)} training epochs are too few for {folds} folds; lower folds (>= 2)")
    if farthest is None:
        fitting = fitting_exclusion(shape[1:], exclusion, row_column_exclusion)
    else:
        fitting = exclusion, row_column_exclusion
    model = Model(
        predictors, folds, components, time_order, weights, held_out, fitting,
        np.inf if farthest is None else farthest,
    )  # fmt: skip
    given = None if epoch_error is None else np.broadcast_to(np.asarray(epoch_error, float), (n_time,))
    series = make_series(cube, epochs, None if exclude is None else np.asarray(exclude, bool), given)
    when = np.arange(n_time, dtype=float) if time is None else np.asarray(time, float)
    return Tile(series, model, epochs, when, start=start, left_out=left_out)
