"""How each method's differences are made on a field: which stages, in which order, with which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from survey.run.differences import Differences, Waiting
from survey.run.engine import stage_key
from survey.run.oversampled import OversampledDifferences
from survey.run.pairwise import PairDifferences
from survey.run.subtraction import SubtractionDifferences
from survey.run.worker import function_key
from survey.stages.events import Event
from survey.stages.protocol import STAGES, Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline


class StageDifferences:
    """One stage of any units: its partial results are combined first, where it has such."""

    def __init__(self, pipeline: Pipeline, stage: str, *, uses_reference: bool) -> None:
        self.pipeline = pipeline
        self.stage = STAGES[stage]
        self.uses_reference = uses_reference
        self.units = self.stage.units(pipeline.field, pipeline.config)
        self.by_tile = [u.name for u in self.units] == [u.name for u in pipeline.units]
        # Units that failed in the first pass, so that the second knows nothing of them: other keys.
        self.without: list[str] = []

    def groups(self) -> tuple[str, ...]:
        """Differences, and the map of variables where the method makes one."""
        method = self.pipeline.config.method
        also = ("variability/cpm",) if method == "cpm" else ()
        return (f"difference/{method}", *also)

    def sizes(self) -> Mapping[str, int]:
        """None."""
        return {}

    def _unit_key(self, unit: Unit) -> str:
        inputs: dict[str, Any] = {"images": self.pipeline.images}
        if self.uses_reference:
            inputs["reference"] = self.pipeline.reference_key()
        if self.without:
            inputs["without"] = self.without
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
        state = None
        if self.stage.gathers:
            state, self.without = self.pipeline.gather_some(self.stage.name, keyed)
            keyed = [(u, self._unit_key(u)) for u in self.units if u.name not in self.without]
            engine.ledger(self.stage.name).invalidate(self.without)
        tickets = engine.submit(self.stage.name, keyed, state=state)
        if self.by_tile:
            return {name: [ticket] for name, ticket in tickets.items()}
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
    if method == "sfft":
        return SubtractionDifferences(pipeline)
    if method in ("zogy", "hotpants"):
        return PairDifferences(pipeline)
    return StageDifferences(pipeline, method, uses_reference=False)
