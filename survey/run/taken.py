"""Events that a method takes out of the reference it subtracts, remembered: no kill changes the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from survey.io.ledger import Record
from survey.run.engine import stage_key
from survey.run.oversampled import EXCLUDED, same_event
from survey.stages.events import Event

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# Its one record.
EVENTS = "events"


def _rows(events: list[Event]) -> list[list[Any]]:
    return [[event[name] for name in EXCLUDED] for event in events]


class TakenEvents:
    """What one method took out of the oversampled reference, where that is its template.

    The record is written before the reference is touched. While the method's differences are not all made
    again it carries the key of those in which the events were found, so that whoever takes up a killed run
    goes on taking out. Whoever makes differences anew puts the events back first: they are found as at first.
    What other methods took out stays out.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.base = pipeline.base if pipeline.config.subtraction.template == "reference" else None
        self.ledger = pipeline.engine.ledger("taken")

    @property
    def _record(self) -> Record | None:
        return self.ledger.records.get(EVENTS)

    def interrupted(self) -> str | None:
        """Key of the differences in which the events were found that a killed run was taking out."""
        record = self._record
        if (
            self.base is None
            or record is None
            or record.payload["made"]
            or record.payload["of"] != self._of()
        ):
            return None
        return record.key

    def _of(self) -> str:
        """Identity of what differences are made of, whatever is out of the reference."""
        assert self.base is not None
        inputs = {"images": self.pipeline.images, "psf": self.base.psf_key()}
        return stage_key(self.pipeline.config.method, self.pipeline.config, EVENTS, inputs)

    def new(self, touched: Mapping[str, list[Event]]) -> dict[str, list[Event]]:
        """Of the events that bend each tile's reference, those that are in it; none if it is no template."""
        if self.base is None:
            return {}
        known = {unit.name: self.base.reference.excluded(unit) for unit in self.base.units}
        return {
            name: [event for event in touched[name] if not any(same_event(k, event) for k in old)]
            for name, old in known.items()
        }

    def take_out(self, touched: Mapping[str, list[Event]], searched: str) -> bool:
        """Make the reference without events; False where it is not the template or holds none of them.

        Parameters
        ----------
        touched : mapping
            Tile -> events that bend its reference.
        searched : str
            Key of the differences in which they were found.
        """
        if self.base is None:
            return False
        known = {unit.name: self.base.reference.excluded(unit) for unit in self.base.units}
        new = self.new(touched)
        if not any(new.values()) and self.interrupted() is None:
            return False
        before = {} if self._record is None else self._record.payload["events"]
        taken = {
            name: [*before.get(name, []), *(r for r in _rows(events) if r not in before.get(name, []))]
            for name, events in new.items()
        }
        self._write(searched, {"of": self._of(), "made": False, "events": taken})
        self._refit({name: [*old, *new[name]] for name, old in known.items()})
        return True

    def end(self) -> None:
        """The differences from the reference without the events are made."""
        record = self._record
        if record is not None:
            self._write(record.key, {**record.payload, "made": True})

    def put_back(self) -> bool:
        """Make the reference with the events that the method took out; False if there are none."""
        record = self._record
        if self.base is None or record is None:
            return False
        known = {unit.name: self.base.reference.excluded(unit) for unit in self.base.units}
        taken = record.payload["events"]
        left = {
            name: [e for e in events if _rows([e])[0] not in taken.get(name, [])]
            for name, events in known.items()
        }
        changed = left != known
        if changed:
            self._refit(left)
        self.ledger.invalidate([EVENTS])
        return changed

    def _refit(self, events: Mapping[str, list[Event]]) -> None:
        """The reference without these events."""
        assert self.base is not None
        self.base.reference.refit(events)
        self.base.engine.collect()
        self.base.reference.blank_lost(self.base.units)
        self.base.engine.finish()
        self.pipeline.forget_reference()

    def _write(self, key: str, payload: dict[str, Any]) -> None:
        self.ledger.record(EVENTS, key, payload)
        self.ledger.flush()
