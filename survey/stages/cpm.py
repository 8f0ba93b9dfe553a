"""Differences by prediction: every pixel from pixels too far away to share its stars.

On the detector grid, where flat-field errors stay in their pixels. Where frames drift by more than a few
pixels a detector pixel's series holds no one star, and the sky grid does better (`deploy/ARCHITECTURE.md`).
The ridge is fixed, so that it depends on no tile; predictors are the nearest of the tile and its halo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.kernels.cpm import fit_cpm
from survey.stages.calibrated import CalibratedTile, read_calibrated
from survey.stages.protocol import Output, Stage, Unit, tile_units
from survey.tiles import Tile

GROUP = "difference/cpm"
# What `fit_cpm` is called with; crude: the same for every field.
MODEL: dict[str, Any] = {
    "n_predictors": 200,
    "exclusion": 10,
    "row_column_exclusion": 4,
    "ridge": 1.0,
    "folds": 10,
}
# Predictors lie within this many pixels beyond the exclusion.
REACH = 14


@dataclass
class TileData:
    """Calibrated samples of a tile's core and halo."""

    tile: Tile
    halo: int
    samples: CalibratedTile


def tile_halo(config: Config) -> int:
    """Pixels around a core from which its predictors are drawn."""
    return int(MODEL["exclusion"]) + REACH


def read(field: Field, unit: Unit, config: Config) -> TileData:
    """Calibrated samples of the core and its halo."""
    assert unit.tile is not None
    margin = tile_halo(config)
    window = unit.tile.window(margin, field.shape)
    return TileData(unit.tile, margin, read_calibrated(field, window, grid=config.cpm.grid))


def apply(data: TileData, state: None, config: Config) -> Output:
    """Held-out residuals of the core; flagged frames are predicted and do not train."""
    samples, inner = data.samples, data.tile.inner(data.halo)
    train = samples.flags == 0
    fit = fit_cpm(samples.flux, samples.error, samples.mask, target=inner, train=train, **MODEL)
    bad = fit.mask | ~np.isfinite(fit.error)
    untrained = np.broadcast_to(~train[:, None, None], bad.shape)
    arrays = {
        "flux": np.where(bad, np.nan, fit.residual).astype(np.float32),
        "error": np.where(bad, np.nan, fit.error).astype(np.float32),
        "mask": bad,
        "fit_mask": untrained & ~bad,
        "leverage": np.zeros(bad.shape, np.float32),  # an epoch held out has none in its own prediction
    }
    payload = {
        "samples": int((~bad).sum()),
        "predictors": int(np.median(fit.n_predictors)),
        "ridge": fit.ridge,
    }
    region = (slice(0, len(samples.time)), *data.tile.core)
    return Output({GROUP: arrays}, region, payload=payload)


STAGE = Stage(
    "cpm", 1, lambda config: {**MODEL, "reach": REACH, "grid": config.cpm.grid}, tile_units, read, apply=apply
)
