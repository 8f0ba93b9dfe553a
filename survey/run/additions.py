"""How differences from a template came about: made of the first frames, then of those that came later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from survey.io.ledger import Record
from survey.run.worker import function_key

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# Its one record.
_ENDS = "ends"
Row = list[Any]


class Additions:
    """Frames that a method's differences had when they were made first, and after each addition.

    Frames that come later are subtracted from the template as it is then; what was made before stays. Where
    the template is the reference it has grown in between, and events were taken out of it. One that was not
    found in the frames of a difference's own reference was weak there and stays in it: nothing is made anew.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.count = pipeline, int(pipeline.frames.sizes["time"])
        self.ledger = pipeline.engine.ledger("nights")
        record: Record | None = self.ledger.records.get(_ENDS)
        self._past: list[dict[str, Any]] = [] if record is None else list(record.payload["past"])
        if self._past and self._past[-1]["end"] > self.count:
            self._past = []
        self._references: dict[tuple[str, int], str] = {}

    @property
    def ends(self) -> list[int]:
        """Frames after each addition, the one that is wanted now last."""
        known = [entry["end"] for entry in self._past]
        return known if known and known[-1] == self.count else [*known, self.count]

    @property
    def start(self) -> int:
        """First epoch of the last addition."""
        return self.ends[-2] if len(self.ends) > 1 else 0

    def forget(self) -> None:
        """Make all of them together."""
        self._past = []

    def before(self) -> tuple[str, int] | None:
        """Key of the differences that were searched, and epochs, before the last addition."""
        if len(self.ends) == 1:
            return None
        entry = self._past[len(self.ends) - 2]
        return entry["searched"], entry["end"]

    def remember(self, searched: str) -> None:
        """All differences up to the last addition are there; ``searched``: the key that the search knows."""
        ends = self.ends
        past = [*self._past[: len(ends) - 1]]
        past.append({"end": ends[-1], "searched": searched, "out": self._out()})
        if past != self._past or _ENDS not in self.ledger.records:
            self._past = past
            self.ledger.record(_ENDS, searched, {"past": past})
            self.ledger.flush()

    def reference(self, last: int) -> str:
        """Identity of the reference that a difference whose last epoch is ``last`` - 1 was made from."""
        end = next(end for end in self.ends if end >= last)
        place = self.pipeline.reference_key(), end
        if place not in self._references:
            self._references[place] = self._reference(end)
        return self._references[place]

    def _reference(self, end: int) -> str:
        base = self.pipeline.base
        assert base is not None
        tiles: dict[str, Any] = {}
        for unit in base.units:
            record = base.reference.records.get(unit.name)
            if record is None:
                continue
            payload = record.payload
            added = [start for start in payload.get("appended", ()) if start < end]
            excluded = [list(row) for row in payload.get("excluded", ()) if self._counts(row, end)]
            tiles[unit.name] = [payload.get("root", payload["first"]), added, excluded]
        return function_key(tiles)

    def _counts(self, row: Row, end: int) -> bool:
        """Whether an event that is out of the reference was out when it had its first ``end`` epochs."""
        if end == self.count:
            return True
        entry = next((entry for entry in self._past if entry["end"] == end), None)
        return entry is not None and list(row) in entry.get("out", [])

    def _out(self) -> list[Row]:
        """Events that are out of the reference."""
        base = self.pipeline.base
        if base is None or self.pipeline.config.subtraction.template != "reference":
            return []
        rows = (
            row for record in base.reference.records.values() for row in record.payload.get("excluded", ())
        )
        return sorted({tuple(row): list(row) for row in rows}.values())
