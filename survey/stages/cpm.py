"""Differences by prediction: every pixel from pixels too far away to share its stars.

On the detector grid, where flat-field errors stay in their pixels. Where frames drift by more than a few
pixels a detector pixel's series holds no one star, and the sky grid does better (`deploy/ARCHITECTURE.md`).

A first pass predicts every pixel with one ridge and keeps the mean |difference| / photon error of each,
and how well each ridge of a grid does on blocks that lie on a lattice of the field. From these one ridge
and the variable pixels are chosen for the whole field; the second pass predicts without the variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.cpm import RIDGE_GRID, CPMFit, fit_cpm, ridge_scores
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.frame_table import stretches
from survey.stages.protocol import Output, Stage, Unit, tile_units
from survey.tiles import Tile, Window

GROUP, VARIABILITY = "difference/cpm", "variability/cpm"
# Ridge of the first pass, and of a pass that knows of no other.
FIRST_RIDGE = 1.0
# One block in so many, along both axes, tells which ridge is best.
LATTICE = 4


@dataclass
class TileData:
    """Calibrated samples of a tile's core and halo.

    ``stretch`` (time,) numbers the campaign of each epoch: pointing changes between them, so that each has a
    fit of its own.
    """

    tile: Tile
    halo: int
    samples: CalibratedTile
    epoch_error: NDArray[np.float64]
    stretch: NDArray[np.int64]


@dataclass(frozen=True)
class FirstPass:
    """What one tile tells of the field.

    Parameters
    ----------
    core : tuple of slice
    deviation : array (y, x)
        Mean |difference| / photon error of the core.
    scores : array (ridge, 2)
        Sum over the core's lattice blocks of the logarithm of squared residuals, and pixels summed.
    """

    core: Window
    deviation: NDArray[np.float32]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """What all tiles share in the second pass.

    Parameters
    ----------
    ridge : float
    variable : bool array (y, x)
        Pixels of the field that must not predict.
    """

    ridge: float
    variable: NDArray[np.bool_]


def tile_halo(config: Config) -> int:
    """Pixels around a core from which its predictors are drawn."""
    # A block at the core's edge begins up to a block before it.
    return int(np.ceil(config.cpm.exclusion)) + config.cpm.reach + config.cpm.block


def read(field: Field, unit: Unit, config: Config) -> TileData:
    """Calibrated samples of the core and its halo."""
    assert unit.tile is not None
    margin = tile_halo(config)
    window = unit.tile.window(margin, field.shape)
    frames = calibrated_frames(field)
    noise = frames["background_rms"].values / frames["scale"].values
    known = np.isfinite(noise) & (noise > 0)
    # The same for every tile, or results would depend on the tiles.
    relative = np.where(known, noise / np.median(noise[known]), 1.0) if known.any() else np.ones(len(noise))
    samples = read_calibrated(field, window, frames, grid=config.cpm.grid)
    return TileData(unit.tile, margin, samples, relative, stretches(frames))


def _stretches(data: TileData, config: Config) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Epochs of every campaign with data in this tile, and how the kernels are called for them.

    Flagged frames are predicted and do not train. A campaign with too few epochs is left out where there
    are others.
    """
    settings = config.cpm
    numbers = np.unique(data.stretch)
    train = (data.samples.flags == 0) & ~data.samples.mask.all((1, 2))
    for number in numbers:
        epochs = np.nonzero(data.stretch == number)[0]
        count = int(train[epochs].sum())
        if count == 0 or (count < 2 * settings.folds and len(numbers) > 1):
            continue
        yield epochs, _arguments(data, config, epochs)


def _arguments(data: TileData, config: Config, epochs: NDArray[np.int64]) -> dict[str, Any]:
    settings, samples = config.cpm, data.samples
    return {
        "flux": samples.flux[epochs],
        "error": samples.error[epochs],
        "mask": samples.mask[epochs],
        "target": data.tile.inner(data.halo),
        "n_predictors": settings.n_predictors,
        "exclusion": settings.exclusion,
        "row_column_exclusion": settings.row_column_exclusion,
        "predictors": settings.predictors,
        "folds": settings.folds,
        "block": settings.block,
        "farthest": settings.exclusion + settings.reach,
        "train": samples.flags[epochs] == 0,
        "epoch_error": data.epoch_error[epochs],
        "origin": (data.samples.window[0].start, data.samples.window[1].start),
    }


def _fit(data: TileData, config: Config, ridge: float, exclude: NDArray[np.bool_] | None) -> CPMFit:
    """The core predicted campaign by campaign; masked where none could be."""
    rows, columns = data.tile.core
    shape = (len(data.stretch), rows.stop - rows.start, columns.stop - columns.start)
    prediction, residual, error = (np.full(shape, np.nan) for _ in range(3))
    mask, used = np.ones(shape, bool), np.zeros(shape[1:], np.int64)
    for epochs, arguments in _stretches(data, config):
        fit = fit_cpm(ridge=ridge, exclude=exclude, **arguments)
        prediction[epochs], residual[epochs], error[epochs] = fit.prediction, fit.residual, fit.error
        mask[epochs] = fit.mask
        used = np.maximum(used, fit.n_predictors)
    return CPMFit(prediction, residual, error, mask, ridge, used)


def _deviation(fit: CPMFit, data: TileData) -> NDArray[np.float32]:
    """Mean |difference| / photon error of every pixel of the core, 0 where there is none.

    The error of the difference will not do: a variable bends its own coefficients, and so its error.
    """
    good = ~fit.mask
    error = data.samples.error[(slice(None), *data.tile.inner(data.halo))]
    pulls = np.where(good, np.abs(np.nan_to_num(fit.residual)) / np.where(good, error, 1.0), 0.0)
    return (pulls.sum(0) / np.maximum(good.sum(0), 1)).astype(np.float32)


def partial(data: TileData, config: Config) -> FirstPass:
    """Deviations of the core's pixels, and how well each ridge does on its lattice blocks."""
    first = config.cpm.ridge or FIRST_RIDGE
    scores = np.zeros((len(RIDGE_GRID), 2))
    if config.cpm.ridge is None:
        for _, arguments in _stretches(data, config):
            scores += ridge_scores(lattice=LATTICE, **arguments)
    rows, columns = data.tile.core
    deviation = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    if config.cpm.two_passes:
        deviation = _deviation(_fit(data, config, first, None), data)
    return FirstPass(data.tile.core, deviation, scores)


def combine(partials: list[FirstPass], config: Config) -> State:
    """One ridge for the field, and its variable pixels."""
    shape = tuple(max(p.core[axis].stop for p in partials) for axis in (0, 1))
    deviation = np.zeros(shape, np.float32)
    for p in partials:
        deviation[p.core] = p.deviation
    total = np.sum([p.scores for p in partials], axis=0)
    ridge = config.cpm.ridge or FIRST_RIDGE
    if config.cpm.ridge is None and total[:, 1].all():
        ridge = RIDGE_GRID[int(np.argmin(total[:, 0] / total[:, 1]))]
    seen = deviation[deviation > 0]
    limit = config.cpm.variable
    if len(seen):
        limit = max(limit, float(np.quantile(seen, 1 - config.cpm.max_variable, method="higher")))
    return State(float(ridge), deviation > limit)


def apply(data: TileData, state: State | None, config: Config) -> Output:
    """Held-out residuals of the core."""
    window = data.samples.window
    ridge = config.cpm.ridge or FIRST_RIDGE if state is None else state.ridge
    exclude = None if state is None else state.variable[window]
    fit = _fit(data, config, ridge, exclude)
    bad = fit.mask | ~np.isfinite(fit.error)
    untrained = np.broadcast_to((data.samples.flags != 0)[:, None, None], bad.shape)
    arrays = {
        "flux": np.where(bad, np.nan, fit.residual).astype(np.float32),
        "error": np.where(bad, np.nan, fit.error).astype(np.float32),
        "mask": bad,
        "fit_mask": untrained & ~bad,
        "leverage": np.zeros(bad.shape, np.float32),  # an epoch held out has none in its own prediction
    }
    deviation = _deviation(fit, data)
    payload = {
        "samples": int((~bad).sum()),
        "predictors": int(np.median(fit.n_predictors)),
        "ridge": fit.ridge,
        "variables": 0 if state is None else int(state.variable[data.tile.core].sum()),
        "median deviation": round(float(np.median(deviation)), 4),
    }
    region = (slice(0, len(data.samples.time)), *data.tile.core)
    return Output({GROUP: arrays, VARIABILITY: {"deviation": deviation}}, region, payload=payload)


STAGE = Stage(
    "cpm", 4, lambda config: config.cpm, tile_units, read, partial=partial, combine=combine, apply=apply
)
