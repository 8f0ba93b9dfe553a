"""The search of one method's differences: what has to be searched, what was found, which of it are events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from survey.run.differences import RunError, Waiting
from survey.run.engine import stage_key
from survey.stages import candidates, detect, psf
from survey.stages.events import Event
from survey.stages.protocol import Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline


class Search:
    """Detection tile by tile, and the measurement of the peaks that all tiles together have.

    A tile to which only epochs were added is searched in the stretch of time that they bear upon.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.engine, self.config = pipeline.engine, pipeline.config
        # Tiles whose search was taken up where new epochs bear upon it, in this run.
        self._resumed: dict[str, detect.Later] = {}

    def detect_key(self, unit: Unit) -> str:
        """Of a tile's search: the differences it looks at, the PSF, the method."""
        keys = [self.pipeline.differences.key(u) for u in self._around(unit)]
        inputs = {"difference": keys, "psf": self.pipeline.psf_key(), "method": self.config.method}
        return stage_key("detect", self.config, unit.name, inputs)

    def is_done(self, *, with_candidates: bool = True) -> bool:
        """Whether reference, PSF, detection and candidates are all there already."""
        ledger = self.engine.ledger("detect")
        if not self.pipeline.has_psf() or not all(
            ledger.has(unit.name, self.detect_key(unit)) for unit in self.pipeline.units
        ):
            return False
        keyed = self.candidate_units()
        ledger = self.engine.ledger("candidates")
        return not with_candidates or all(ledger.has(unit.name, key) for unit, key in keyed)

    def run(self, state: detect.Search, first: Waiting) -> bool:
        """Search every tile after the differences it reads, and measure the peaks; False if none could be."""
        units = self.pipeline.units
        self._tell_blind(state)
        self.engine.submit(
            "detect",
            [(self._later_unit(unit, state), self.detect_key(unit)) for unit in units],
            state=state,
            after=lambda unit: self.pipeline.futures(first, unit, detect.tile_halo(self.config)),
            note=lambda unit: {"searched": self._searched_key(unit, before=False)},
        )
        self.engine.collect()
        if not self.engine.payloads("detect", units):
            return False
        keyed = [(self._with_known(unit), key) for unit, key in self.candidate_units()]
        self.engine.submit("candidates", keyed, state=state)
        self.engine.collect()
        return True

    def _tell_blind(self, state: detect.Search) -> None:
        """Warn of time scales at which the search cannot find anything."""
        blind = detect.blind_scales(state.bank)
        if blind:
            scales, unit = ", ".join(f"{sigma:g}" for sigma in blind), self.config.detect.unit
            span = float(np.ptp(state.bank.time))
            self.engine.warn(
                f"no event of {scales} {unit} can be found in frames that span {span:.3g} {unit}: the "
                "reference takes it up; give shorter scales, [detect] temporal_sigma"
            )

    def _tell_cut(self, found: list[dict[str, Any]]) -> None:
        """Warn where peaks were left out before it was known whether they are events."""
        most = self.config.detect.max_events
        if len(self.peaks) >= most:
            self.engine.warn(
                f"the field has {most} peaks or more: weaker ones were not measured and may be events; raise "
                "[detect] max_events"
            )
        full = sum(payload["found"] > len(payload["candidates"]) for payload in found)
        if full:
            self.engine.warn(f"{full} tiles have more peaks than are kept of one: their weakest are lost")

    def candidate_units(self) -> list[tuple[Unit, str]]:
        """Units that measure the merged peaks, with their keys."""
        self.peaks = detect.merged(self.engine.payloads("detect", self.pipeline.units), self.config)
        keyed = []
        for unit in candidates.units(self.pipeline.field, self.peaks):
            assert unit.tile is not None
            searched = self.detect_key(self.pipeline.units[unit.tile.index])
            inputs = {"detect": searched, "peaks": list(unit.items)}
            keyed.append((unit, stage_key("candidates", self.config, unit.name, inputs)))
        return keyed

    def events(self) -> list[Event]:
        """Decide which candidates are events and write their list.

        Raises
        ------
        RunError
            If no tile was searched.
        """
        field = self.pipeline.field
        found = self.engine.payloads("detect", self.pipeline.units)
        if not found:
            raise RunError("no tile could be searched: see what failed before")
        thresholds = (np.array(found[0]["thresholds"]) * detect.noise_factors(found)).tolist()
        measured = self.engine.payloads("candidates", candidates.units(field, self.peaks))
        events = candidates.combine(measured, thresholds, field, self.config)
        self._tell_cut(found)
        candidates.write_events(field, self.config.method, events)
        return events

    def prepare(self) -> detect.Search:
        """Bank and thresholds, for the PSF that the field has now."""
        field = self.pipeline.field
        return detect.prepare(field, psf.load(field), self.config)

    def _around(self, unit: Unit) -> list[Unit]:
        return self.pipeline.around(unit, detect.tile_halo(self.config))

    def _with_known(self, unit: Unit) -> Unit:
        """A tile's peaks, and what is known of those that epochs added in this run do not bear upon."""
        record = self.engine.ledger("candidates").records.get(unit.name)
        later = self._resumed.get(unit.name)
        if record is None or later is None:
            return unit
        return candidates.with_known(unit, record.payload, later.centers)

    def _searched_key(self, unit: Unit, *, before: bool) -> str | None:
        """What a search of a tile looks at, now or before epochs were added; None: there was no before."""
        around = self._around(unit)
        keys = [self.pipeline.differences.key(u) for u in around]
        if before:
            older = [self.pipeline.differences.before(u) for u in around]
            if any(o is None for o in older):
                return None
            keys = [o[0] for o in older if o is not None]
        inputs = {"difference": keys, "psf": self.pipeline.psf_key()}
        return stage_key("detect", self.config, unit.name, inputs)

    def _later_unit(self, unit: Unit, state: detect.Search) -> Unit:
        """The tile to search, or where only epochs were added the stretch of time that they bear upon."""
        record = self.engine.ledger("detect").records.get(unit.name)
        wanted = self._searched_key(unit, before=True)
        if record is None or wanted is None or record.payload.get("searched") != wanted:
            return unit
        older = self.pipeline.differences.before(unit)
        assert older is not None
        later = detect.later_search(self.pipeline.frames, state.bank, older[1], record.payload)
        if later is None:
            return unit
        self._resumed[unit.name] = later
        return Unit(unit.name, unit.tile, (later,))
