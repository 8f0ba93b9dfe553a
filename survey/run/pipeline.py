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
from survey.stages import candidates, detect, oversampled, photometry, psf, refine
from survey.stages.calibrated import REFINED, calibrated_frames
from survey.stages.events import Event, touching
from survey.stages.protocol import Unit, tile_units
from survey.tiles import Tile

# What of the table of frames decides a calibrated sample.
CALIBRATION = ("map", "map_center", "map_scale", "scale", "background", "flags", "gain")


# Rounds of refinement: the first takes errors of percents to 1e-4, the second what was left in the reference.
REFINEMENTS = 2


class RunError(RuntimeError):
    """A run that cannot go on."""


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
        self.units: list[Unit] = tile_units(self.field, self.config)
        self.tiles = self.field.tiles
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
        keys = [self._first_key(u) for u in self._around(unit, detect.tile_halo(self.config))]
        return stage_key("detect", self.config, unit.name, {"difference": keys, "psf": self._psf_key()})

    # -- steps ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refine the calibration and make the arrays that the stages write."""
        self._refine()
        self.frames = calibrated_frames(self.field)
        self.images = images_key(self.field, self.frames)
        height, width = self.field.shape
        n = self.config.reference.n_basis
        sizes = {"time": self.frames.sizes["time"], "y": height, "x": width, "ky": n, "kx": n}
        for group in (self.group, "reference", f"search/{self.config.method}"):
            self.field.require_group(group, sizes)

    def run(self) -> list[Event]:
        """All stages; returns the events."""
        self.prepare()
        if not self._searched() and not self._search():
            return []
        events = self._events()
        refit = self._refit(events)
        self._photometry(events, refit)
        self.engine.collect()
        self._gather_light_curves()
        return events

    def _refine(self) -> None:
        """Scale, sky and offsets of the frames against a first reference, `REFINEMENTS` times."""
        frames = self.field.frames()
        inputs = {"images": images_key(self.field, frames)}
        ledger = self.engine.ledger("refine")
        key = stage_key("refine", self.config, "refine", inputs)
        if ledger.has("refine", key):
            return
        ledger.invalidate(["refine"])
        self.field.remove_table("registration")
        names = [str(name) for name in frames["frame_id"].values]
        reference = names.index(self.field.attrs["reference_frame"])
        for step in range(REFINEMENTS):
            label = f"refine {step + 1}"
            units = refine.units(self.field, self.config)
            self.engine.submit("refine", [(u, key) for u in units], step="partial", label=label, ledger=False)
            reports = self.engine.collect().get(label, {})
            if len(reports) < len(units):
                raise RunError(f"refine: {self.engine.failures[-1].reason}")
            partials = [reports[unit.name].result for unit in units]
            frames = refine.corrected(frames, refine.combine(partials, self.config), reference)
            self.field.write_table("registration", frames[list(REFINED)].reset_coords(drop=True))
        ledger.record("refine", key)
        ledger.flush()

    def only(self, stage: str, tile: int | None = None) -> list[dict[str, Any]]:
        """One stage alone, on one tile or on all, computed even where it is there already.

        Raises
        ------
        RunError
            If the tile does not exist, or what the stage needs is not there.
        """
        if tile is not None and not 0 <= tile < len(self.units):
            raise RunError(f"no tile {tile}: the field has tiles 0 to {len(self.units) - 1}")
        self.prepare()
        chosen = self.units if tile is None else [self.units[tile]]
        if stage == "oversampled":
            keyed = [(unit, self._first_key(unit)) for unit in chosen]
            state = None
        elif stage == "detect":
            if not self.field.has_table("psf"):
                raise RunError("no PSF yet: run `survey run` first, or give [psf] file")
            keyed = [(unit, self._detect_key(unit)) for unit in chosen]
            state = detect.prepare(self.field, psf.load(self.field), self.config)
        else:
            raise RunError(f"stage {stage!r} cannot run alone; oversampled and detect can")
        self.engine.ledger(stage).invalidate(unit.name for unit in chosen)
        self.engine.submit(stage, keyed, state=state)
        self.engine.collect()
        return self.engine.payloads(stage, chosen)

    def _searched(self) -> bool:
        """Whether reference, PSF, detection and candidates are all there already."""
        if not self._has_psf() or not all(
            self.engine.ledger("detect").has(unit.name, self._detect_key(unit)) for unit in self.units
        ):
            return False
        keyed = self._candidate_units()
        return all(self.engine.ledger("candidates").has(unit.name, key) for unit, key in keyed)

    def _has_psf(self) -> bool:
        return self.engine.ledger("psf").has("psf", self._psf_key())

    def _search(self) -> bool:
        """Reference, PSF, detection and candidates, as far as they are missing; False if that failed."""
        first = self.engine.submit("oversampled", [(unit, self._first_key(unit)) for unit in self.units])
        if not self._has_psf():
            self._build_psf(first)
        self.engine.collect()
        if not self._has_psf():
            return False
        state = detect.prepare(self.field, psf.load(self.field), self.config)
        around = {unit.name: self._around(unit, detect.tile_halo(self.config)) for unit in self.units}
        self.engine.submit(
            "detect",
            [(unit, self._detect_key(unit)) for unit in self.units],
            state=state,
            after=lambda unit: [first[u.name] for u in around[unit.name] if u.name in first],
        )
        self.engine.collect()
        self.engine.submit("candidates", self._candidate_units(), state=state)
        self.engine.collect()
        return True

    def _around(self, unit: Unit, halo: int) -> list[Unit]:
        assert unit.tile is not None
        return [self.units[tile.index] for tile in neighbours(unit.tile, self.tiles, halo, self.field.shape)]

    def _candidate_units(self) -> list[tuple[Unit, str]]:
        """Units that measure the merged peaks, with their keys."""
        self.peaks = detect.merged(self.engine.payloads("detect", self.units), self.config)
        keyed = []
        for unit in candidates.units(self.field, self.peaks):
            assert unit.tile is not None
            inputs = {"detect": self._detect_key(self.units[unit.tile.index]), "peaks": list(unit.items)}
            keyed.append((unit, stage_key("candidates", self.config, unit.name, inputs)))
        return keyed

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
        stars = psf.read_stars(self.field, psf.combine(partials, self.config), self.config)
        psf.save(self.field, psf.build(stars, self.config))
        self.engine.ledger("psf").record("psf", self._psf_key())

    def _events(self) -> list[Event]:
        """Decide which candidates are events and write their list."""
        found = self.engine.payloads("detect", self.units)
        thresholds = (np.array(found[0]["thresholds"]) * detect.noise_factors(found)).tolist()
        measured = self.engine.payloads("candidates", candidates.units(self.field, self.peaks))
        events = candidates.combine(measured, thresholds, self.field, self.config)
        candidates.write_events(self.field, self.config.method, events)
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
        around = {unit.name: self._around(unit, margin) for unit in self.units}
        wanted = photometry.units(self.field, self.config, [*events, *self.objects])
        keyed = []
        for unit in wanted:
            inputs = {
                "difference": [self._refit_key(u, self.touched[u.name]) for u in around[unit.name]],
                "psf": self._psf_key(),
                "objects": list(unit.items),
            }
            keyed.append((unit, stage_key("photometry", self.config, unit.name, inputs)))
        self.photometry_units = wanted
        self.engine.submit(
            "photometry",
            keyed,
            state=psf.load(self.field),
            after=lambda unit: [refit[u.name] for u in around[unit.name] if u.name in refit],
        )

    def _gather_light_curves(self) -> None:
        photometry.gather(self.field, self.config, [unit.name for unit in self.photometry_units])
