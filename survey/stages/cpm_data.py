"""What a tile of cpm is fitted from: samples of it and around it, campaign by campaign, and settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.cpm import FILL_REACH
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.frame_table import stretches
from survey.stages.methods import METHODS
from survey.stages.protocol import Unit
from survey.tiles import Tile

VARIABILITY = "variability/cpm"


@dataclass(frozen=True)
class Later:
    """Item of a unit that predicts epochs from ``start`` up to ``stop`` by a fit to all before.

    ``n_predictors`` and ``ridge`` are those that the field's first epochs chose.
    """

    start: int
    stop: int
    n_predictors: int
    ridge: float


@dataclass
class TileData:
    """Calibrated samples of a tile's core and halo.

    ``stretch`` (time,) numbers the campaign of each epoch: pointing changes between them, so that each has a
    fit of its own. ``excluded`` (y, x) are the pixels that the field's first epochs let predict nobody.
    """

    tile: Tile
    halo: int
    samples: CalibratedTile
    epoch_error: NDArray[np.float64]
    stretch: NDArray[np.int64]
    later: Later | None = None
    excluded: NDArray[np.bool_] | None = None

    @property
    def start(self) -> int:
        """The first epoch that is wanted."""
        return 0 if self.later is None else self.later.start


def tile_halo(config: Config) -> int:
    """Pixels around a core from which its predictors are drawn, and the gaps of these filled."""
    # A block at the core's edge begins up to a block before it.
    return int(np.ceil(config.cpm.exclusion)) + config.cpm.reach + config.cpm.block + FILL_REACH


def read(field: Field, unit: Unit, config: Config) -> TileData:
    """Calibrated samples of the core and its halo; of a unit of later epochs, up to the last of them."""
    assert unit.tile is not None
    later: Later | None = unit.items[0] if unit.items else None
    margin = tile_halo(config)
    window = unit.tile.window(margin, field.shape)
    frames = calibrated_frames(field)
    if later is not None:
        frames = frames.isel(time=slice(0, later.stop))
    noise = frames["background_rms"].values / frames["scale"].values
    known = np.isfinite(noise) & (noise > 0)
    # The same for every tile, or results would depend on the tiles; of the epochs that train.
    usual = noise[known & (np.arange(len(noise)) < (len(noise) if later is None else later.start))]
    relative = np.where(known, noise / np.median(usual), 1.0) if len(usual) else np.ones(len(noise))
    samples = read_calibrated(field, window, frames, grid=METHODS["cpm"].grid(config))
    excluded = None if later is None else np.asarray(field.array(VARIABILITY, "excluded")[window])
    return TileData(unit.tile, margin, samples, relative, stretches(frames), later, excluded)


def trains(data: TileData, config: Config) -> NDArray[np.bool_]:
    """Epochs to train on: of frames without flags, outside the intervals that the settings leave out."""
    train = data.samples.flags == 0
    for first, last in config.cpm.leave_out:
        train &= (data.samples.time < first) | (data.samples.time > last)
    return train


def campaigns(data: TileData, config: Config) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Epochs of every campaign that has some to predict, and how the kernels are called for them.

    Flagged frames are predicted and do not train. A campaign with too few epochs is left out where there
    are others, and where there are no data in this tile. Later epochs are predicted by those before, or if
    these are too few, as new campaigns have them, by one another in folds.
    """
    train, least = trains(data, config), 2 * config.cpm.folds
    numbers = np.unique(data.stretch)
    for number in np.unique(data.stretch[data.start :]):
        epochs = np.nonzero(data.stretch == number)[0]
        if train[epochs].sum() < least and len(numbers) > 1:
            continue
        before = int((epochs < data.start).sum())
        if data.samples.mask[epochs].all() or data.samples.mask[epochs[before:]].all():
            continue
        start = before if train[epochs[:before]].sum() >= least else 0
        yield epochs, {**_arguments(data, config, epochs, train[epochs]), "start": start}


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
