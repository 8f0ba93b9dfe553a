"""How each method's differences are made on a field: which stages, in which order, with which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from survey.run.engine import stage_key
from survey.run.worker import function_key
from survey.stages import oversampled
from survey.stages.events import Event
from survey.stages.protocol import STAGES, Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# Futures by name of the tile whose differences they make; none where all has ended already.
Waiting = dict[str, list[Any]]


class RunError(RuntimeError):
    """A run that cannot go on."""


class Differences(Protocol):
    """Makes ``difference/<method>``; the pipeline searches and measures it whatever the method."""

    def groups(self) -> tuple[str, ...]:
        """Groups of the store that its stages write."""

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """Key that a tile's differences carry when they are made, or made again without events."""

    def submit(self) -> Waiting:
        """Submit what is missing."""

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Make tiles again without the samples of the events that touch them, where the method can."""


class OversampledDifferences:
    """One stage, tile by tile, fitted again without the events."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def groups(self) -> tuple[str, ...]:
        """Differences and the reference."""
        return "difference/oversampled", "reference"

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """Of the images, and of the events left out."""
        inputs: dict[str, Any] = {"images": self.pipeline.images}
        if events:
            inputs["events"] = [[e["y"], e["x"], e["time"], e["sigma_days"]] for e in events]
        return stage_key("oversampled", self.pipeline.config, unit.name, inputs)

    def submit(self) -> Waiting:
        """Every tile with all its samples."""
        return self._submit({}, "oversampled")

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Tiles that events touch."""
        return self._submit(touched, "refit")

    def ensure(self) -> None:
        """A reference of these images in every tile, with or without events in it."""
        records = self.pipeline.engine.ledger("oversampled").records
        lacking = [
            unit
            for unit in self.pipeline.units
            if unit.name not in records or records[unit.name].payload.get("first") != self.key(unit)
        ]
        if lacking:
            self._submit({}, "reference", lacking)
            self.pipeline.engine.collect()

    def _submit(
        self, events: Mapping[str, list[Event]], label: str, units: Sequence[Unit] | None = None
    ) -> Waiting:
        units = self.pipeline.units if units is None else units
        records = dict(self.pipeline.engine.ledger("oversampled").records)
        first = {unit.name: self.key(unit) for unit in units}
        keyed = []
        for unit in units:
            mine = events.get(unit.name, ())
            record = records.get(unit.name)
            if mine and unit.tile and record is not None and record.key == first[unit.name]:
                # All samples are in the fit: only what the events reach differs without theirs.
                windows = oversampled.event_windows(unit.tile, mine, self.pipeline.config)
                unit = Unit(unit.name, unit.tile, windows)
            keyed.append((unit, self.key(unit, mine)))

        def note(unit: Unit) -> dict[str, Any]:
            kept = records[unit.name].payload if unit.items else {}
            kept = {name: value for name, value in kept.items() if name != "events"}
            return {**kept, "first": first[unit.name]}

        futures = self.pipeline.engine.submit(
            "oversampled", keyed, state_of=lambda unit: events.get(unit.name), label=label, note=note
        )
        return {name: [future] for name, future in futures.items()}


class StageDifferences:
    """One stage of any units: its partial results are combined first, where it has such."""

    def __init__(self, pipeline: Pipeline, stage: str, *, uses_reference: bool) -> None:
        self.pipeline = pipeline
        self.stage = STAGES[stage]
        self.uses_reference = uses_reference
        self.units = self.stage.units(pipeline.field, pipeline.config)
        self.by_tile = [u.name for u in self.units] == [u.name for u in pipeline.units]

    def groups(self) -> tuple[str, ...]:
        """Differences alone."""
        return (f"difference/{self.pipeline.config.method}",)

    def _unit_key(self, unit: Unit) -> str:
        inputs: dict[str, Any] = {"images": self.pipeline.images}
        if self.uses_reference:
            inputs["reference"] = self.pipeline.reference_key()
        return stage_key(self.stage.name, self.pipeline.config, unit.name, inputs)

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """The tile's own where units are tiles, else one for all."""
        if self.by_tile:
            return self._unit_key(unit)
        return function_key([self._unit_key(u) for u in self.units])

    def submit(self) -> Waiting:
        """Combine partial results where there are some, then every unit."""
        engine = self.pipeline.engine
        keyed = [(unit, self._unit_key(unit)) for unit in self.units]
        if all(engine.ledger(self.stage.name).has(unit.name, key) for unit, key in keyed):
            engine.skip(len(keyed))
            return {}
        state = self.pipeline.gather(self.stage.name, keyed) if self.stage.gathers else None
        futures = engine.submit(self.stage.name, keyed, state=state)
        if self.by_tile:
            return {name: [future] for name, future in futures.items()}
        engine.collect()
        return {}

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Nothing: what is predicted does not hold the event."""
        return {}


def differences_of(pipeline: Pipeline) -> Differences:
    """How the method that the settings name makes its differences."""
    method = pipeline.config.method
    if method == "oversampled":
        return OversampledDifferences(pipeline)
    return StageDifferences(pipeline, method, uses_reference=method == "sfft")
