"""Differences by prediction: every pixel from pixels too far away to share its stars.

On the detector grid, where flat-field errors stay in their pixels. Where frames drift by more than a few
pixels a detector pixel's series holds no one star, and the sky grid does better (`deploy/ARCHITECTURE.md`).

A first pass predicts every pixel with one ridge and keeps the mean |difference| / photon error of each,
and how well each ridge of a grid, with each number of predictors asked for, does on blocks that lie on a
lattice of the field. From these one ridge, one number and the variable pixels are chosen for the whole field;
the second pass predicts without the variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.cpm import FILL_REACH, RIDGE_GRID, CPMFit, best, fit_cpm, ridge_scores
from survey.stages import forecast
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.frame_table import stretches
from survey.stages.methods import METHODS
from survey.stages.protocol import Outlook, Output, Stage, Unit, tile_units
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
    scores : array (count, ridge, 2)
        For every number of predictors and ridge: sum over the core's lattice blocks of the logarithm of
        squared residuals, and pixels summed.
    """

    core: Window
    deviation: NDArray[np.float32]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """What all tiles share in the second pass.

    Parameters
    ----------
    n_predictors : int
    ridge : float
    variable : bool array (y, x)
        Pixels of the field that must not predict.
    """

    n_predictors: int
    ridge: float
    variable: NDArray[np.bool_]

    def variable_in(self, window: Window) -> NDArray[np.bool_]:
        """The variable pixels of a window; of tiles that told nothing none is known."""
        found = np.zeros([part.stop - part.start for part in window], bool)
        known = self.variable[window]
        found[: known.shape[0], : known.shape[1]] = known
        return found


def tile_halo(config: Config) -> int:
    """Pixels around a core from which its predictors are drawn, and the gaps of these filled."""
    # A block at the core's edge begins up to a block before it.
    return int(np.ceil(config.cpm.exclusion)) + config.cpm.reach + config.cpm.block + FILL_REACH


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
    samples = read_calibrated(field, window, frames, grid=METHODS["cpm"].grid(config))
    return TileData(unit.tile, margin, samples, relative, stretches(frames))


def _trains(data: TileData, config: Config) -> NDArray[np.bool_]:
    """Epochs to train on: of frames without flags, outside the intervals that the settings leave out."""
    train = data.samples.flags == 0
    for first, last in config.cpm.leave_out:
        train &= (data.samples.time < first) | (data.samples.time > last)
    return train


def _stretches(data: TileData, config: Config) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Epochs of every campaign, and how the kernels are called for them.

    Flagged frames are predicted and do not train. A campaign with too few epochs is left out where there
    are others, and where there are no data in this tile.
    """
    numbers, train = np.unique(data.stretch), _trains(data, config)
    for number in numbers:
        epochs = np.nonzero(data.stretch == number)[0]
        if train[epochs].sum() < 2 * config.cpm.folds and len(numbers) > 1:
            continue
        if not data.samples.mask[epochs].all():
            yield epochs, _arguments(data, config, epochs, train[epochs])


def _arguments(
    data: TileData, config: Config, epochs: NDArray[np.int64], train: NDArray[np.bool_]
) -> dict[str, Any]:
    settings, samples = config.cpm, data.samples
    return {
        "flux": samples.flux[epochs],
        "error": samples.error[epochs],
        "mask": samples.mask[epochs],
        "target": data.tile.inner(data.halo),
        "exclusion": settings.exclusion,
        "row_column_exclusion": settings.row_column_exclusion,
        "predictors": settings.predictors,
        "folds": settings.folds,
        "block": settings.block,
        "farthest": settings.exclusion + settings.reach,
        "train": train,
        "epoch_error": data.epoch_error[epochs],
        "origin": (data.samples.window[0].start, data.samples.window[1].start),
        "components": settings.components,
        "time_order": settings.time_order,
        "time": samples.time[epochs],
        "weights": settings.weights,
        "held_out": settings.residuals == "held-out",
    }


def _fit(data: TileData, config: Config, state: State, exclude: NDArray[np.bool_] | None) -> CPMFit:
    """The core predicted campaign by campaign; masked where none could be."""
    rows, columns = data.tile.core
    shape = (len(data.stretch), rows.stop - rows.start, columns.stop - columns.start)
    prediction, residual, error = (np.full(shape, np.nan) for _ in range(3))
    mask, used = np.ones(shape, bool), np.zeros(shape[1:], np.int64)
    for epochs, arguments in _stretches(data, config):
        fit = fit_cpm(n_predictors=state.n_predictors, ridge=state.ridge, exclude=exclude, **arguments)
        prediction[epochs], residual[epochs], error[epochs] = fit.prediction, fit.residual, fit.error
        mask[epochs] = fit.mask
        used = np.maximum(used, fit.n_predictors)
    return CPMFit(prediction, residual, error, mask, state.ridge, used)


def _deviation(fit: CPMFit, data: TileData) -> NDArray[np.float32]:
    """Mean |difference| / photon error of every pixel of the core, 0 where there is none.

    The error of the difference will not do: a variable bends its own coefficients, and so its error.
    """
    good = ~fit.mask
    error = data.samples.error[(slice(None), *data.tile.inner(data.halo))]
    pulls = np.where(good, np.abs(np.nan_to_num(fit.residual)) / np.where(good, error, 1.0), 0.0)
    return (pulls.sum(0) / np.maximum(good.sum(0), 1)).astype(np.float32)


def _first(config: Config) -> State:
    """What the first pass takes, and a pass that knows of no other."""
    return State(config.cpm.counts[-1], config.cpm.ridge or FIRST_RIDGE, np.zeros((0, 0), bool))


def partial(data: TileData, config: Config) -> FirstPass:
    """Deviations of the core's pixels, and how well each ridge does on its lattice blocks."""
    settings = config.cpm
    scores = np.zeros((len(settings.counts), len(RIDGE_GRID), 2))
    if settings.ridge is None or len(settings.counts) > 1:
        for _, arguments in _stretches(data, config):
            scores += ridge_scores(lattice=LATTICE, n_predictors=settings.counts, **arguments)
    rows, columns = data.tile.core
    deviation = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    if settings.two_passes:
        deviation = _deviation(_fit(data, config, _first(config), None), data)
    return FirstPass(data.tile.core, deviation, scores)


def combine(partials: list[FirstPass], config: Config) -> State:
    """One ridge and number of predictors for the field, and its variable pixels."""
    shape = tuple(max(p.core[axis].stop for p in partials) for axis in (0, 1))
    deviation = np.zeros(shape, np.float32)
    for p in partials:
        deviation[p.core] = p.deviation
    settings, first = config.cpm, _first(config)
    total = np.sum([p.scores for p in partials], axis=0)
    count, ridge = best(total, settings.counts, settings.ridge) or (first.n_predictors, first.ridge)
    seen = deviation[deviation > 0]
    limit = settings.variable
    if len(seen):
        limit = max(limit, float(np.quantile(seen, 1 - settings.max_variable, method="higher")))
    return State(count, ridge, deviation > limit)


def apply(data: TileData, state: State | None, config: Config) -> Output:
    """Residuals of the core, held out unless the settings say otherwise."""
    window = data.samples.window
    exclude = None if state is None else state.variable_in(window)
    fit = _fit(data, config, state or _first(config), exclude)
    bad = fit.mask | ~np.isfinite(fit.error)
    untrained = np.broadcast_to(~_trains(data, config)[:, None, None], bad.shape)
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
        "unpredicted": int((bad & ~data.samples.mask[(slice(None), *data.tile.inner(data.halo))]).sum()),
        "predictors": int(np.median(fit.n_predictors)),
        "ridge": fit.ridge,
        "variables": 0 if state is None else int(state.variable[data.tile.core].sum()),
        "median deviation": round(float(np.median(deviation)), 4),
    }
    region = (slice(0, len(data.samples.time)), *data.tile.core)
    return Output({GROUP: arrays, VARIABILITY: {"deviation": deviation}}, region, payload=payload)


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile and all that may predict it."""
    return forecast.predicted(unit, outlook, tile_halo(config))


STAGE = Stage(
    "cpm",
    6,
    lambda config: config.cpm,
    tile_units,
    read,
    partial=partial,
    combine=combine,
    apply=apply,
    memory=memory,
)
