"""Stages in their order, each unit after what it needs, nothing twice, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from survey.config import Config
from survey.io.store import Field
from survey.run.differences import RunError, Waiting
from survey.run.engine import Engine, stage_key
from survey.run.grids import place_grid
from survey.run.identity import images_key
from survey.run.light_curves import LightCurves
from survey.run.methods import differences_of
from survey.run.oversampled import OversampledDifferences
from survey.run.refinement import refine_frames
from survey.run.search import Search
from survey.run.undone import undo_additions
from survey.stages import candidates, difference_psf, light_curve_tables, oversampled, photometry, psf
from survey.stages.calibrated import calibrated_frames
from survey.stages.differences import drift
from survey.stages.events import Event, touching
from survey.stages.methods import TEMPLATE_METHODS, method_of
from survey.stages.protocol import STAGES, Unit, tile_units
from survey.stages.template_records import template_looks
from survey.tiles import Tile

__all__ = ["Pipeline", "RunError", "neighbours"]

# Share of its epochs that the reference of a method which does not subtract it may lack, and is then given at
# once: adding costs the same for few and for many.
LAG = 0.25
# Stages after the differences that can be run on one tile.
ALONE = ("detect", "candidates", "photometry")


def neighbours(tile: Tile, tiles: Sequence[Tile], halo: int, shape: tuple[int, int]) -> list[Tile]:
    """Tiles whose cores a tile with halo reads, itself among them, in their order."""
    rows, columns = tile.window(halo, shape)
    return [
        t
        for t in tiles
        if t.y0 < rows.stop and t.y1 > rows.start and t.x0 < columns.stop and t.x1 > columns.start
    ]


class Pipeline:
    """The stages of one method on one field.

    Differences are the method's own affair (`survey.run.methods`). The effective PSF and the flux of
    objects in a reference come from the oversampled reference, which is made first where it is missing.

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
        self.grid = method_of(self.config).grid(self.config)
        self.objects = list(objects)
        self.units: list[Unit] = tile_units(self.field, self.config)
        self.tiles = self.field.tiles
        self.search = Search(self)
        # Keys over all tiles, asked for by every tile; None: to be made.
        self._psf_key: str | None = None
        self._reference_key: str | None = None
        # Tiles that failed, so that the PSF knows none of their stars: another PSF, by another key.
        self.without: list[str] = []

    # -- keys -----------------------------------------------------------------------------------

    def reference_key(self) -> str:
        """Identity of the reference as it is now."""
        if self._reference_key is None:
            records = self.engine_of("oversampled").ledger("oversampled").records
            keys = {u.name: records[u.name].key for u in self.units if u.name in records}
            self._reference_key = stage_key("oversampled", self.config, "all", keys)
        return self._reference_key

    def forget_reference(self) -> None:
        """Ask for the reference's identity anew: it was made again."""
        self._reference_key = None

    def psf_key(self) -> str:
        """Of the reference that knows of no events, nor of epochs that were added to it."""
        if self._psf_key is None:
            keys = [self.reference.root(unit) for unit in self.units]
            inputs: dict[str, Any] = {"tiles": keys, **({"without": self.without} if self.without else {})}
            if self.config.psf.file is not None:
                inputs["file"] = psf.file_identity(self.field, self.config.psf.file)
            self._psf_key = stage_key("psf", self.config, "psf", inputs)
        return self._psf_key

    def engine_of(self, method: str) -> Engine:
        """The engine whose ledgers are a method's."""
        if method == self.config.method:
            return self.engine
        assert self.base is not None
        return self.base.engine

    # -- steps ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refine the calibration, place what the method needs and make the arrays that the stages write."""
        self.base: Pipeline | None = None
        if self.config.method == "oversampled":
            # Before the refinement, which lays later frames on this reference, or all anew without one.
            undo_additions(self.field, self.engine.ledger("oversampled"), "oversampled.oversampled")
            refine_frames(self.engine)
        else:
            # Which refines the frames: once a run, before anybody reads them.
            self.base = self._prepare_base()
            self.without = self.base.without
        if self.grid != "sky":
            place_grid(self.engine, self.grid)
        self.frames = calibrated_frames(self.field)
        self.images = images_key(self.field, self.frames, self.grid)
        self.reach = drift(self.field, self.frames) if self.grid != "sky" else 0
        self.differences = differences_of(self)
        self.reference: OversampledDifferences = (
            self.differences if isinstance(self.differences, OversampledDifferences) else self.base.reference  # type: ignore[union-attr]
        )
        height, width = self.field.shape
        n = self.config.reference.n_basis
        sizes = {"time": self.frames.sizes["time"], "y": height, "x": width, "ky": n, "kx": n}
        sizes |= {"my": 2 * n - 1, "mx": 2 * n - 1}
        sizes |= self.differences.sizes()
        for group in (*self.differences.groups(), f"search/{self.config.method}"):
            self._make_room(group, sizes)

    def _make_room(self, group: str, sizes: Mapping[str, int]) -> None:
        """Make a group's arrays or let them grow; those of another number of polynomials are made anew."""
        if not self.field.fits(group, sizes):
            self.engine.ledger(self.config.method).invalidate(unit.name for unit in self.differences.units)
            self.field.remove_group(group)
        attrs: dict[str, str] = {}
        if group == f"difference/{self.config.method}":
            attrs["grid"] = self.grid
            if self.config.method in TEMPLATE_METHODS:
                attrs["template"] = self.config.subtraction.template
                attrs["psf"] = self.config.subtraction.psf
                attrs["looks"] = str(template_looks(self.field, self.config.subtraction.template))
        self.field.require_group(group, sizes, attrs)

    def _prepare_base(self) -> Pipeline:
        """The reference and PSF that other methods lean on, made as far as they are missing."""
        config = self.config.model_copy(update={"method": "oversampled"})
        # Its workers write what this method's lease says nothing of.
        holder = self.engine.holder and ("difference/oversampled", self.engine.holder[1])
        engine = Engine(self.field, config, self.engine.executor, self.engine.progress, holder)
        engine.leases = self.engine.leases
        # One list of reports and failures for the whole run.
        engine.reports, engine.failures = self.engine.reports, self.engine.failures
        engine.warnings = self.engine.warnings
        base = Pipeline(engine)
        base.prepare()
        base.reference.ensure(0.0 if method_of(self.config).subtracts_reference(self.config) else LAG)
        base._psf_key = None
        if not base.has_psf():
            base.build_psf({})
        engine.finish()
        return base

    def run(self) -> list[Event]:
        """All stages; returns the events."""
        self.prepare()
        if not self.has_psf() and self.base is not None:
            return []
        done = self.search.is_done() and not self.differences.tries_again()
        if not done and not self._difference_and_search():
            return []
        events = self.search.events()
        refit = self._refit(events)
        self._photometry(events, refit)
        self.engine.collect()
        self._note_versions()
        return self._gather_light_curves(events)

    def touching(self, events: Sequence[Event], unit: Unit) -> list[Event]:
        """Events that reach closely enough to a tile to bend its reference."""
        assert unit.tile is not None
        return touching(events, unit.tile, oversampled.EVENT_RADIUS + oversampled.tile_halo(self.config))

    def gather_some(self, stage: str, keyed: Sequence[tuple[Unit, str]]) -> tuple[Any, list[str]]:
        """What a stage's partial results combine to without those that failed, and the names of these.

        Raises
        ------
        RunError
            If every unit failed.
        """
        found = self.partials(stage, keyed)
        if not found:
            raise RunError(f"{stage}: {self.engine.failures[-1].reason}")
        lost = [unit.name for unit, _ in keyed if unit.name not in found]
        return STAGES[stage].combine(list(found.values()), self.config), lost

    def partials(self, stage: str, keyed: Sequence[tuple[Unit, str]]) -> dict[str, Any]:
        """A stage's partial results by unit, in their order, without those that failed."""
        label = f"{stage} (sums)"
        self.engine.submit(stage, keyed, step="partial", label=label, ledger=False)
        reports = self.engine.collect().get(label, {})
        return {unit.name: reports[unit.name].result for unit, _ in keyed if unit.name in reports}

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
        chosen = [u for u in self.units if tile is None or u is self.units[tile]]
        names = {unit.name for unit in chosen}
        every, state = self._alone(stage, chosen)
        keyed = [(unit, key) for unit, key in every if unit.name in names]
        self.engine.ledger(stage).invalidate(unit.name for unit, _ in keyed)
        self.engine.submit(stage, keyed, state=state)
        self.engine.collect()
        if stage == "photometry":
            # the list of events has been written without the light curves' peaks
            self.photometry_units = [unit for unit, _ in every]
            self._gather_light_curves(self.search.events())
        return self.engine.payloads(stage, [unit for unit, _ in keyed])

    def _alone(self, stage: str, chosen: Sequence[Unit]) -> tuple[list[tuple[Unit, str]], Any]:
        """Units, keys and state of a stage that is run alone."""
        if stage == self.config.method:
            if [u.name for u in STAGES[stage].units(self.field, self.config)] != [u.name for u in self.units]:
                raise RunError(f"stage {stage!r} does not work tile by tile; run it by `survey run`")
            if STAGES[stage].gathers:
                raise RunError(f"stage {stage!r} needs sums over all tiles; run it by `survey run`")
            return [(unit, self.differences.key(unit)) for unit in chosen], None
        if stage not in ALONE:
            able = ", ".join((self.config.method, *ALONE))
            raise RunError(f"stage {stage!r} cannot run alone; these can: {able}")
        if not self.field.has_table("psf"):
            raise RunError("no PSF yet: run `survey run` first, or give [psf] file")
        if stage == "detect":
            return [(unit, self.search.detect_key(unit)) for unit in chosen], self.search.prepare()
        if not self.search.is_done(with_candidates=stage == "photometry"):
            raise RunError(f"{stage} needs the search of every tile: run `survey run` first")
        if stage == "candidates":
            return self.search.candidate_units(), self.search.prepare()
        events = self.search.events()
        self._touch(events)
        return self._photometry_units(events), difference_psf.load(self.field, self.config)

    def has_psf(self) -> bool:
        """Whether the PSF of this reference is there."""
        return self.engine.ledger("psf").has("psf", self.psf_key())

    def _difference_and_search(self) -> bool:
        """Differences, PSF, detection and candidates, as far as they are missing; False if that failed."""
        first = self.differences.submit()
        self._psf_key = None  # a tile to which epochs could not be added has lost its past
        if not self.has_psf():
            self.build_psf(first)
        self.engine.collect()
        if not self.has_psf():
            return False
        return self.search.run(self.search.prepare(), first)

    def futures(self, waiting: Waiting, unit: Unit, halo: int) -> list[Any]:
        """Futures of the differences that a tile with halo reads."""
        if not waiting:
            return []
        return [future for u in self.around(unit, halo) for future in waiting.get(u.name, ())]

    def around(self, unit: Unit, halo: int) -> list[Unit]:
        """Units whose differences a tile with halo reads, itself among them."""
        assert unit.tile is not None
        near = neighbours(unit.tile, self.tiles, halo + self.reach, self.field.shape)
        return [self.units[tile.index] for tile in near]

    def build_psf(self, first: Waiting) -> None:
        """Gather the field's best stars tile by tile and build the effective PSF."""
        self.engine.submit(
            "psf",
            [(unit, self.psf_key()) for unit in self.units],
            step="partial",
            after=lambda unit: first.get(unit.name, []),
            label="psf",
            ledger=False,
        )
        reports = self.engine.collect().get("psf", {})
        partials = [reports[unit.name].result for unit in self.units if unit.name in reports]
        if not partials:
            return
        self.without, self._psf_key = [unit.name for unit in self.units if unit.name not in reports], None
        self.engine.ledger("psf").invalidate(["psf"])
        stars = psf.read_stars(self.field, psf.combine(partials, self.config), self.config)
        psf.save(self.field, psf.build(stars, self.config), self.config.psf.file)
        self.engine.ledger("psf").record("psf", self.psf_key())
        self.engine.ledger("psf").flush()

    def _touch(self, events: Sequence[Event]) -> None:
        """Events that touch each tile closely enough to bend its reference."""
        wanted = events if self.config.detect.refit else []
        self.touched: Mapping[str, list[Event]] = {
            unit.name: self.touching(wanted, unit) for unit in self.units
        }

    def _refit(self, events: list[Event]) -> Waiting:
        """Make the tiles that events touch again, without the events' samples."""
        self._touch(events)
        return self.differences.refit(self.touched)

    def _photometry_units(self, events: list[Event]) -> list[tuple[Unit, str]]:
        """Units that measure events and targets, with their keys."""
        margin = photometry.tile_halo(self.config)
        keyed = []
        for unit in photometry.units(self.field, self.config, [*events, *self.objects]):
            near = self.around(unit, margin)
            inputs = {
                "difference": [self.differences.key(u, self.touched[u.name]) for u in near],
                "psf": self.psf_key(),
                "objects": list(unit.items),
            }
            if self.base is not None:
                inputs["reference"] = self.reference_key()
            keyed.append((unit, stage_key("photometry", self.config, unit.name, inputs)))
        return keyed

    def _photometry(self, events: list[Event], refit: Waiting) -> None:
        """Light curves of events and targets, tile by tile, each after the refits it reads."""
        keyed = self._photometry_units(events)
        self.photometry_units = [unit for unit, _ in keyed]
        margin, curves = photometry.tile_halo(self.config), LightCurves(self)
        self.engine.submit(
            "photometry",
            [(curves.with_known(unit), key) for unit, key in keyed],
            state=difference_psf.load(self.field, self.config),
            after=lambda unit: self.futures(refit, unit, margin),
            note=lambda unit: {"of": curves.identity(unit), "epochs": self.frames.sizes["time"]},
        )

    def _note_versions(self) -> None:
        """Say of every epoch how often the reference of its difference had been added to."""
        starts = self.differences.additions()
        version = np.searchsorted(starts, np.arange(self.frames.sizes["time"]), side="right")
        self.field.array(f"difference/{self.config.method}", "version")[:] = version.astype(np.int16)

    def _gather_light_curves(self, events: list[Event]) -> list[Event]:
        """Write all light curves as one table; returns the events with the peaks of theirs, written too."""
        names = [unit.name for unit in self.photometry_units]
        curves = light_curve_tables.gather(self.field, self.config, names)
        events = light_curve_tables.with_peaks(events, curves)
        candidates.write_events(self.field, self.config.method, events)
        return events
