"""A method's stages in their order, each unit after what it needs, nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from survey.config import Config
from survey.io.store import Field
from survey.run.engine import Engine, stage_key
from survey.run.worker import function_key
from survey.stages import detect, oversampled, photometry, psf
from survey.stages.events import Event, touching
from survey.stages.protocol import Unit, tile_units
from survey.tiles import Tile

# What of the table of frames decides a calibrated sample.
CALIBRATION = ("map", "map_center", "map_scale", "scale", "background", "flags", "gain")


def images_key(field: Field, frames: xr.Dataset) -> str:
    """Identity of the calibrated images: placed blocks and calibration."""
    digest = hashlib.sha256()
    for name in ("time", *CALIBRATION):
        digest.update(np.ascontiguousarray(frames[name].values).tobytes())
    placed = {unit: record.key for unit, record in field.ledger("place").records.items()}
    return function_key(digest.hexdigest(), sorted(placed.items()))


def neighbours(tile: Tile, tiles: Sequence[Tile], halo: int, shape: tuple[int, int]) -> list[Tile]:
    """Tiles whose cores a tile with halo reads, itself among them, in their order."""
    rows, columns = tile.window(halo, shape)
    return [
        t
        for t in tiles
        if t.y0 < rows.stop and t.y1 > rows.start and t.x0 < columns.stop and t.x1 > columns.start
    ]


class Pipeline:
    """The stages of method ``oversampled`` on one field.

    Parameters
    ----------
    engine : Engine
        Submits and records.
    objects : sequence of dict
        Targets whose light curves are wanted besides the events'.
    """

    def __init__(self, engine: Engine, objects: Sequence[dict[str, Any]] = ()) -> None:
        self.engine = engine
        self.field: Field = engine.target
        self.config: Config = engine.config
        self.objects = list(objects)
        self.frames = self.field.frames()
        self.units: list[Unit] = tile_units(self.field, self.config)
        self.tiles = self.field.tiles
        self.images = images_key(self.field, self.frames)
        self.group = f"difference/{self.config.method}"

    # -- keys -----------------------------------------------------------------------------------

    def _first_key(self, unit: Unit) -> str:
        return stage_key("oversampled", self.config, unit.name, {"images": self.images})

    def _refit_key(self, unit: Unit, events: list[Event]) -> str:
        if not events:
            return self._first_key(unit)
        rows = [[e["y"], e["x"], e["time"], e["sigma_days"]] for e in events]
        return stage_key("oversampled", self.config, unit.name, {"images": self.images, "events": rows})

    def _psf_key(self) -> str:
        return stage_key("psf", self.config, "psf", {"tiles": [self._first_key(unit) for unit in self.units]})

    def _detect_key(self, unit: Unit) -> str:
        assert unit.tile is not None
        around = neighbours(unit.tile, self.tiles, detect.tile_halo(self.config), self.field.shape)
        keys = [self._first_key(self.units[tile.index]) for tile in around]
        return stage_key("detect", self.config, unit.name, {"difference": keys, "psf": self._psf_key()})

    # -- steps ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the arrays that the stages write."""
        height, width = self.field.shape
        n = self.config.reference.n_basis
        sizes = {"time": self.frames.sizes["time"], "y": height, "x": width, "ky": n, "kx": n}
        for group in (self.group, "reference", f"search/{self.config.method}"):
            self.field.require_group(group, sizes)

    def run(self) -> list[Event]:
        """All stages; returns the events."""
        self.prepare()
        detected = all(
            self.engine.ledger("detect").has(unit.name, self._detect_key(unit)) for unit in self.units
        )
        if not (detected and self.engine.ledger("psf").has("psf", self._psf_key())):
            self._search()
        if not self.engine.ledger("psf").has("psf", self._psf_key()):
            return []
        events = self._events()
        refit = self._refit(events)
        self._photometry(events, refit)
        self.engine.collect()
        self._gather_light_curves()
        return events

    def _search(self) -> None:
        """Reference, PSF and detection of whatever is missing."""
        first = self.engine.submit("oversampled", [(unit, self._first_key(unit)) for unit in self.units])
        if not self.engine.ledger("psf").has("psf", self._psf_key()):
            self._build_psf(first)
        else:
            self.engine.collect()
        if not self.engine.ledger("psf").has("psf", self._psf_key()):
            return
        state = psf.load(self.field)
        units = [(unit, self._detect_key(unit)) for unit in self.units]
        self.engine.submit("detect", units, state=state)
        self.engine.collect()

    def _build_psf(self, first: dict[str, Any]) -> None:
        self.engine.submit(
            "psf",
            [(unit, self._psf_key()) for unit in self.units],
            step="partial",
            after=lambda unit: [first[unit.name]] if unit.name in first else [],
            label="psf",
            ledger=False,
        )
        reports = self.engine.collect().get("psf", {})
        partials = [reports[unit.name].result for unit in self.units if unit.name in reports]
        if len(partials) < len(self.units):
            return
        self.engine.ledger("psf").invalidate(["psf"])
        psf.save(self.field, psf.combine(partials, self.config))
        self.engine.ledger("psf").record("psf", self._psf_key())

    def _events(self) -> list[Event]:
        """Merge the tiles' candidates and write the list of events."""
        found = self.engine.payloads("detect", self.units)
        events = detect.combine([payload["candidates"] for payload in found], self.config, self.field)
        detect.write_events(self.field, self.config.method, events)
        return events

    def _refit(self, events: list[Event]) -> dict[str, Any]:
        """Fit again the tiles that events touch, without the events' samples."""
        reach = oversampled.EVENT_RADIUS + oversampled.tile_halo(self.config)
        wanted = events if self.config.detect.refit else []
        self.touched = {
            unit.name: touching(wanted, unit.tile, reach) for unit in self.units if unit.tile is not None
        }
        keyed = [(unit, self._refit_key(unit, self.touched[unit.name])) for unit in self.units]
        return self.engine.submit(
            "oversampled", keyed, state_of=lambda unit: self.touched[unit.name], label="refit"
        )

    def _photometry(self, events: list[Event], refit: dict[str, Any]) -> None:
        """Light curves of events and targets, tile by tile, each after the refits it reads."""
        margin = photometry.tile_halo(self.config)
        around = {
            unit.name: neighbours(unit.tile, self.tiles, margin, self.field.shape)
            for unit in self.units
            if unit.tile is not None
        }
        wanted = photometry.units(self.field, self.config, [*events, *self.objects])
        keyed = []
        for unit in wanted:
            near = [self.units[t.index] for t in around[unit.name]]
            inputs = {
                "difference": [self._refit_key(u, self.touched[u.name]) for u in near],
                "psf": self._psf_key(),
                "objects": list(unit.items),
            }
            keyed.append((unit, stage_key("photometry", self.config, unit.name, inputs)))
        self.photometry_units = wanted
        self.engine.submit(
            "photometry",
            keyed,
            state=psf.load(self.field),
            after=lambda unit: [refit[t.name] for t in around[unit.name] if t.name in refit],
        )

    def _gather_light_curves(self) -> None:
        photometry.gather(self.field, self.config, [unit.name for unit in self.photometry_units])
