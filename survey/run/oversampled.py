"""The oversampled reference of a field: fitted tile by tile, later epochs added, events taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from survey.config import Config
from survey.run.differences import Waiting
from survey.run.engine import stage_key
from survey.run.identity import images_key
from survey.run.undone import note_additions
from survey.stages import candidates, oversampled
from survey.stages.events import Event
from survey.stages.prior import forget_prior
from survey.stages.protocol import Unit
from survey.tiles import Tile

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# What of an event decides which samples are kept out of the fit.
EXCLUDED = ("y", "x", "time", "sigma_days")
# Tiles to which later epochs are added before their records are written down.
ADDED_AT_ONCE = 32


def same_event(known: Event, event: Event) -> bool:
    """Whether an event is the one known before."""
    near = np.hypot(known["y"] - event["y"], known["x"] - event["x"]) <= candidates.SOURCE_RADIUS
    longest = max(known["sigma_days"], event["sigma_days"])
    shortest = min(known["sigma_days"], event["sigma_days"])
    return bool(near and abs(known["time"] - event["time"]) <= longest <= 2.5 * shortest)


def tile_key(
    config: Config, name: str, images: str, history: Sequence[int], events: Sequence[Event] = ()
) -> str:
    """Key of a tile: of its images, of the epochs that were added to them, of the events left out."""
    inputs: dict[str, Any] = {"images": images}
    if history:
        inputs["appended"] = list(history)
    if events:
        inputs["events"] = [[e[name] for name in EXCLUDED] for e in events]
    return stage_key("oversampled", config, name, inputs)


class OversampledDifferences:
    """One stage, tile by tile; later epochs are added to it, and events taken out of it.

    The ledger remembers of every tile how it came about: ``first``, its key with all samples in the fit;
    ``appended``, the epochs from which on samples were added to an older reference; ``before``, its key
    until the last of these, and ``root``, that before the first; ``windows``, the parts fitted without
    events, and ``excluded``, these events; ``sums``, whether later epochs can be added.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.units = pipeline, pipeline.units
        self.epochs = int(pipeline.frames.sizes["time"])
        self._images = {self.epochs: pipeline.images}
        self._keys: dict[tuple[str, int, tuple[int, ...]], str] = {}
        self.records = pipeline.engine.ledger("oversampled").records
        self.history: dict[str, list[int]] = {}
        self.later: dict[str, int] = {}
        for unit in pipeline.units:
            self._recall(unit)

    def groups(self) -> tuple[str, ...]:
        """Differences and the reference."""
        return "difference/oversampled", "reference"

    def sizes(self) -> Mapping[str, int]:
        """None."""
        return {}

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """Of the images, of how the tile came about, and of the events left out."""
        return self._key(unit, self.epochs, self.history[unit.name], events)

    def root(self, unit: Unit) -> str:
        """Key of the whole fit that later epochs were added to."""
        record = self.records.get(unit.name)
        if self.history[unit.name] and record is not None:
            return str(record.payload.get("root", record.payload["first"]))
        if record is None and self._began is not None:
            # lost when the others were made: what these are stays what it is
            return self._key(unit, self._began, [])
        return self.key(unit)

    @property
    def _began(self) -> int | None:
        """Epochs that the others were made of first, where some were added to; else None."""
        return min((history[0] for history in self.history.values() if history), default=None)

    def before(self, unit: Unit) -> tuple[str, int] | None:
        """Key and number of epochs until the last addition; None where there was none."""
        record = self.records.get(unit.name)
        if record is None or not self.history[unit.name] or record.payload.get("first") != self.key(unit):
            return None
        return record.payload["before"], self.history[unit.name][-1]

    def stands(self, unit: Unit, events: Sequence[Event], *, before: bool = False) -> str | None:
        """Key with the events that are out of it: where one more is taken out, all epochs change."""
        if not before:
            return self.key(unit, events)
        history = self.history[unit.name]
        return self._key(unit, history[-1], history[:-1], events) if self.before(unit) else None

    def additions(self) -> list[int]:
        """First epochs of what was added to the first tile, which stands for all."""
        return self.history[self.units[0].name]

    def tries_again(self) -> bool:
        """No: a tile that failed was not searched."""
        return False

    def submit(self) -> Waiting:
        """Every tile with all its samples; or with later ones added, what was out of its fit still out."""
        self._add_later("oversampled", self.pipeline.units)
        return self._submit({}, "oversampled", [u for u in self.pipeline.units if not self._is_added(u)])

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Tiles that events touch."""
        settled = {unit.name: self._settled(unit, touched[unit.name]) for unit in self.pipeline.units}
        return self._submit(settled, "refit")

    def excluded(self, unit: Unit) -> list[Event]:
        """Events whose samples are out of the tile's fit."""
        record = self.records.get(unit.name)
        rows = () if record is None else record.payload.get("excluded", ())
        return [{**dict(zip(EXCLUDED, row, strict=True)), "kind": "event"} for row in rows]

    def _settled(self, unit: Unit, events: Sequence[Event]) -> list[Event]:
        """Events, those known before epochs were added as they were then: what is out of the fit stays so.

        Later epochs move an event by a little of its error, which is no reason to fit again.
        """
        if not self.history[unit.name]:
            return list(events)
        known = self.excluded(unit)
        return [next((k for k in known if same_event(k, event)), event) for event in events]

    def ensure(self, lag: float = 0.0) -> None:
        """A reference of these images in every tile, with or without events in it.

        One that lacks later epochs, by at most the share ``lag`` of those it was made of, is good enough.
        """
        lacking = [u for u in self.pipeline.units if not (self._is_there(u) or self._lags(u, lag))]
        if lacking:
            self._add_later("reference", lacking)
            self._submit({}, "reference", [unit for unit in lacking if not self._is_added(unit)])
            self.pipeline.engine.collect()
            self.blank_lost(lacking)

    def blank_lost(self, units: Sequence[Unit]) -> None:
        """Where no reference could be made there is none, also for those who look over a tile's edge."""
        for unit in units:
            if unit.name in self.records:
                continue
            assert unit.tile is not None
            shape = (*unit.tile.shape, *self.pipeline.field.array("reference", "coefficients").shape[2:])
            self.pipeline.field.write("reference", {"coefficients": np.zeros(shape)}, unit.tile.core)

    def _is_added(self, unit: Unit) -> bool:
        return bool(self.history[unit.name]) and self._is_there(unit)

    def _is_there(self, unit: Unit) -> bool:
        record = self.records.get(unit.name)
        return record is not None and record.payload.get("first") == self.key(unit)

    def _lags(self, unit: Unit, lag: float) -> bool:
        """Whether nothing is wrong with a tile but that it lacks a few epochs."""
        known = self.later.get(unit.name)
        return known is not None and self.epochs - known <= lag * known

    def _key(self, unit: Unit, epochs: int, history: Sequence[int], events: Sequence[Event] = ()) -> str:
        place = (unit.name, epochs, tuple(history))
        if events:
            return self._new_key(unit, epochs, history, events)
        # A tile's key is asked for by all its neighbours, many times a run.
        if place not in self._keys:
            self._keys[place] = self._new_key(unit, epochs, history, ())
        return self._keys[place]

    def _new_key(self, unit: Unit, epochs: int, history: Sequence[int], events: Sequence[Event]) -> str:
        if epochs not in self._images:
            self._images[epochs] = images_key(self.pipeline.field, self.pipeline.frames, epochs=epochs)
        return tile_key(self.pipeline.config, unit.name, self._images[epochs], history, events)

    def _recall(self, unit: Unit) -> None:
        """Whether the tile's data are of these images, or of the first of them and can be added to."""
        self.history[unit.name] = []
        record = self.records.get(unit.name)
        if record is None:
            return
        known, history = record.payload.get("epochs", 0), record.payload.get("appended", [])
        if not 0 < known <= self.epochs or self._key(unit, known, history) != record.payload.get("first"):
            return
        if known == self.epochs:
            self.history[unit.name] = list(history)
        elif self.pipeline.config.reference.keep_sums and record.payload.get("sums"):
            self.history[unit.name] = [*history, known]
            self.later[unit.name] = known

    def _submit(
        self, events: Mapping[str, list[Event]], label: str, units: Sequence[Unit] | None = None
    ) -> Waiting:
        units = self.pipeline.units if units is None else units
        records = dict(self.records)
        sums = self.pipeline.config.reference.keep_sums
        keyed = []
        for unit in units:
            mine = events.get(unit.name, ())
            keyed.append((self._narrowed(unit, mine, records), self.key(unit, mine)))

        def note(unit: Unit) -> dict[str, Any]:
            mine = [[e[name] for name in EXCLUDED] for e in events.get(unit.name, ())]
            if not unit.items:
                return {
                    "first": self.key(unit),
                    "epochs": self.epochs,
                    "windows": [],
                    "excluded": mine,
                    "sums": sums,
                }
            kept = {k: v for k, v in records[unit.name].payload.items() if k != "events"}
            kept["written_before"] = kept.pop("written", [])
            windows = [[w.y0, w.y1, w.x0, w.x1] for w in unit.items]
            return {**kept, "windows": windows, "excluded": mine, "sums": sums and kept.get("sums", False)}

        tickets = self.pipeline.engine.submit(
            "oversampled", keyed, state_of=lambda unit: events.get(unit.name), label=label, note=note
        )
        return {name: [ticket] for name, ticket in tickets.items()}

    def _narrowed(self, unit: Unit, events: Sequence[Event], records: Mapping[str, Any]) -> Unit:
        """The unit, cut to the windows in which its data would change, where the rest is as it should be."""
        record = records.get(unit.name)
        if record is None or record.payload.get("first") != self.key(unit) or unit.tile is None:
            return unit
        old = [Tile(0, *w) for w in record.payload.get("windows", ())]
        new = oversampled.event_windows(unit.tile, events, self.pipeline.config)
        windows = oversampled.join_windows([*old, *new])
        return Unit(unit.name, unit.tile, windows) if windows else unit

    def _add_later(self, label: str, wanted: Sequence[Unit]) -> None:
        """Add later epochs to tiles that lack them, a few at a time.

        The sums before are kept until these are recorded. A tile that they could not be added to, for want of
        memory in any size, say, is fitted as a whole.
        """
        engine = self.pipeline.engine
        label = f"{label} (later epochs)"
        units = [unit for unit in wanted if unit.name in self.later]
        for first in range(0, len(units), ADDED_AT_ONCE):
            chosen = units[first : first + ADDED_AT_ONCE]
            records = {unit.name: self.records[unit.name] for unit in chosen}
            excluded = {unit.name: self.excluded(unit) for unit in chosen}
            laters = {name: oversampled.Later(self.later[name], old.key) for name, old in records.items()}
            items = {u.name: Unit(u.name, u.tile, (laters[u.name],)) for u in chosen}

            def note(unit: Unit, records: Mapping[str, Any] = records) -> dict[str, Any]:
                old = records[unit.name].payload
                return {
                    "first": self.key(unit),
                    "epochs": self.epochs,
                    "appended": self.history[unit.name],
                    "before": old["first"],
                    "root": old.get("root", old["first"]),
                    "windows": old.get("windows", []),
                    "excluded": old.get("excluded", []),
                    "sums": True,
                    "written_before": [w for w in old.get("written", ()) if w["group"] != "reference"],
                }

            def excluded_of(unit: Unit, excluded: Mapping[str, list[Event]] = excluded) -> list[Event]:
                return excluded[unit.name]

            note_additions(self.pipeline.field, records)
            keyed = [(items[unit.name], self.key(unit, self.excluded(unit))) for unit in chosen]
            engine.submit("oversampled", keyed, state_of=excluded_of, label=label, note=note)
            engine.collect()
            forget_prior(self.pipeline.field)
            for failure in [f for f in engine.failures if f.stage == label]:
                engine.failures.remove(failure)
                engine.progress.message(f"{failure.unit}: {failure.reason}; fitted as a whole")
            for unit in chosen:
                del self.later[unit.name]
                if unit.name not in self.records:
                    self.history[unit.name] = []
