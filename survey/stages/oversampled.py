"""Oversampled (Dazzle) differences: a per-pixel Legendre reference over the sub-pixel phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.kernels.reference import difference_images, halo
from survey.stages.calibrated import CalibratedTile, read_calibrated
from survey.stages.events import Event, event_mask
from survey.stages.protocol import Output, Stage, Unit, tile_units
from survey.tiles import Tile

# Radius in pixels around an event within which samples leave the fit; the PSF's wings beyond it hold
# too little of an event to bend a reference.
EVENT_RADIUS = 4.0


@dataclass
class TileData:
    """Calibrated samples of a tile's core and halo."""

    tile: Tile
    halo: int
    samples: CalibratedTile


def tile_halo(config: Config) -> int:
    """Pixels of overlap that make a tile's core equal to the whole image's."""
    return halo(config.reference.extension)


def read(field: Field, unit: Unit, config: Config) -> TileData:
    """Calibrated samples of the core and its halo."""
    assert unit.tile is not None
    margin = tile_halo(config)
    return TileData(unit.tile, margin, read_calibrated(field, unit.tile.window(margin, field.shape)))


def apply(data: TileData, state: Sequence[Event] | None, config: Config) -> Output:
    """Reference and leave-one-out differences of the core.

    Parameters
    ----------
    state : sequence of events, optional
        Events whose samples are kept out of the fit.
    """
    samples, settings = data.samples, config.reference
    excluded = np.broadcast_to((samples.flags != 0)[:, None, None], samples.flux.shape)
    if state:
        excluded = excluded | event_mask(state, samples.time, samples.window, EVENT_RADIUS, settings.n_basis)
    result = difference_images(
        samples.flux,
        samples.error,
        samples.mask,
        samples.phase_y,
        samples.phase_x,
        n_basis=settings.n_basis,
        extension=settings.extension,
        iterations=settings.iterations,
        clip=settings.clip,
        min_images=settings.needed_images,
        fit_mask=excluded,
        gain=samples.gain if np.isfinite(samples.gain).all() else None,
    )
    y, x = data.tile.inner(data.halo)
    cube = (slice(None), y, x)
    tile = data.tile
    difference = {
        "flux": result.flux[cube],
        "error": result.error[cube],
        "mask": result.mask[cube],
        "fit_mask": result.fit_mask[cube],
        "leverage": result.leverage[cube],
    }
    reference = {
        "coefficients": result.reference.coefficients[y, x],
        "n_used": result.reference.n_used[y, x],
        "chi2": result.reference.chi2[y, x],
    }
    good = ~np.asarray(result.mask[cube], bool)
    scaled = difference["flux"][good] / difference["error"][good]
    payload = {
        "samples": int(good.sum()),
        "sum": float(scaled.sum(dtype=np.float64)),
        "sum2": float((scaled.astype(np.float64) ** 2).sum()),
        "clipped": int(difference["fit_mask"].sum()),
        "histogram": np.histogram(scaled, np.linspace(-8, 8, 81))[0].tolist(),
        "events": len(state or ()),
    }
    region = (slice(0, len(samples.time)), *tile.core)
    return Output({"difference/oversampled": difference, "reference": reference}, region, payload=payload)


def merge(payloads: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the row blocks of a tile."""
    histogram = np.sum([payload["histogram"] for payload in payloads], axis=0)
    merged = {name: sum(p[name] for p in payloads) for name in ("samples", "sum", "sum2", "clipped")}
    return {**merged, "histogram": histogram.tolist(), "events": max(p["events"] for p in payloads)}


STAGE = Stage("oversampled", 1, lambda config: config.reference, tile_units, read, apply=apply, merge=merge)
