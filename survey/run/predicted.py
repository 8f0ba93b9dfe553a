"""Differences by prediction: a first pass over the field, then every tile; later epochs by all before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from survey.run.differences import Waiting
from survey.run.engine import stage_key
from survey.run.identity import images_key
from survey.stages.cpm import GROUP, VARIABILITY, Later
from survey.stages.events import Event
from survey.stages.protocol import Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

STAGE = "cpm"
# Share of a field's good samples without a prediction that is told.
MANY_UNPREDICTED = 0.01


class PredictedDifferences:
    """One stage in two passes, tile by tile; later epochs are predicted by a fit to all before them.

    The ledger remembers under a tile's name of how many ``epochs`` it was fitted as a whole, and under
    ``<tile>+<start>`` that those from ``start`` up to ``stop`` were added. Nothing that was there is written
    again, so an addition that was killed goes on with the tiles that lack it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.units = pipeline, pipeline.units
        self.epochs = int(pipeline.frames.sizes["time"])
        self.records = pipeline.engine.ledger(STAGE).records
        self._images = {self.epochs: pipeline.images}
        # Units that failed in the first pass, so that the second knows nothing of them: other keys.
        self.without: list[str] = next(
            (list(r.payload["without"]) for r in self.records.values() if r.payload.get("without")), []
        )

    def groups(self) -> tuple[str, ...]:
        """Differences, and the map of variables."""
        return GROUP, VARIABILITY

    def sizes(self) -> Mapping[str, int]:
        """None."""
        return {}

    @cached_property
    def _ends(self) -> list[int]:
        """Epochs of the whole fit, then of the field after each addition, the one that is wanted now last."""
        first = self._fitted()
        if not first:
            self.without = []
            return [self.epochs]
        known = {r.payload["start"]: r.payload["stop"] for r in self.records.values() if "stop" in r.payload}
        ends = [first]
        while known.get(ends[-1], self.epochs + 1) <= self.epochs:
            ends.append(known[ends[-1]])
        return ends if ends[-1] == self.epochs else [*ends, self.epochs]

    def _fitted(self) -> int:
        """Epochs that all tiles but the lost were fitted to, if their images are what they were; else 0."""
        units = self._kept()
        records = [self.records.get(unit.name) for unit in units]
        epochs = 0 if not records or records[0] is None else int(records[0].payload.get("epochs", 0))
        if not 0 < epochs <= self.epochs:
            return 0
        same = (
            record is not None and record.key == self._key(unit.name, [epochs])
            for unit, record in zip(units, records, strict=True)
        )
        return epochs if all(same) else 0

    def _kept(self) -> list[Unit]:
        """Tiles that were not lost in the first pass."""
        return [unit for unit in self.units if unit.name not in self.without]

    def additions(self) -> list[int]:
        """First epochs of what was added."""
        return self._ends[:-1]

    def _key(self, name: str, ends: Sequence[int]) -> str:
        """Of the images up to the last of some ends, and of how the field came to have them."""
        if ends[-1] not in self._images:
            pipeline = self.pipeline
            self._images[ends[-1]] = images_key(
                pipeline.field, pipeline.frames, pipeline.grid, epochs=ends[-1]
            )
        inputs: dict[str, Any] = {"images": self._images[ends[-1]]}
        if len(ends) > 1:
            inputs["appended"] = list(ends[:-1])
        if self.without:
            inputs["without"] = self.without
        return stage_key(STAGE, self.pipeline.config, name, inputs)

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """Of the images, and of how the tile came about."""
        return self._key(unit.name, self._ends)

    def before(self, unit: Unit) -> tuple[str, int] | None:
        """Key and number of epochs until the last addition; None where there was none."""
        if len(self._ends) == 1:
            return None
        return self._key(unit.name, self._ends[:-1]), self._ends[-2]

    def stands(self, unit: Unit, events: Sequence[Event], *, before: bool = False) -> str | None:
        """The key: nothing that was predicted is touched again."""
        if not before:
            return self.key(unit)
        earlier = self.before(unit)
        return None if earlier is None else earlier[0]

    def tries_again(self) -> bool:
        """Whether tiles were lost: they were searched as if they had no data."""
        return len(self._ends) > 0 and bool(self.without)  # which the first settles

    def submit(self) -> Waiting:
        """Every tile from two passes; or where they were made of earlier epochs, the later ones alone.

        Tiles that were lost are tried first: once one can be read, all is predicted anew as if it had been.
        """
        ends = self._ends
        if self.without and self._found_again():
            self.without, self._ends = [], [self.epochs]
            return self._submit_all()
        return self._submit_later() if len(ends) > 1 else self._submit_all()

    def _found_again(self) -> bool:
        """Whether a tile that was lost can be read; those that cannot are told of."""
        engine, label = self.pipeline.engine, "cpm (lost tiles)"
        lost = [(unit, self.key(unit)) for unit in self.units if unit.name in self.without]
        engine.submit(STAGE, lost, step="partial", label=label, ledger=False)
        return bool(engine.collect().get(label))

    def _submit_all(self) -> Waiting:
        pipeline, engine = self.pipeline, self.pipeline.engine
        ledger = engine.ledger(STAGE)
        keyed = [(unit, self.key(unit)) for unit in self._kept()]
        if all(ledger.has(unit.name, key) for unit, key in keyed):
            engine.skip(len(keyed))
            return {}
        self.without = []
        keyed = [(unit, self.key(unit)) for unit in self.units]
        ledger.invalidate([name for name in self.records if "+" in name])
        state, self.without = pipeline.gather_some(STAGE, keyed)
        ledger.invalidate(self.without)
        there = [(u, self.key(u)) for u in self.units if u.name not in self.without]
        tickets = engine.submit(
            STAGE, there, state_of=lambda unit: state.of(unit, pipeline.config), note=lambda _: self._note()
        )
        return {name: [ticket] for name, ticket in tickets.items()}

    def _note(self) -> dict[str, Any]:
        return {"epochs": self.epochs, **({"without": self.without} if self.without else {})}

    def _submit_later(self) -> Waiting:
        waiting: Waiting = {}
        for i, (start, stop) in enumerate(pairwise(self._ends), 2):
            keyed = []
            for unit in self._kept():
                chosen = self.records[unit.name].payload
                later = Later(start, stop, chosen["n_predictors"], chosen["ridge"])
                name = f"{unit.name}+{start}"
                keyed.append((Unit(name, unit.tile, (later,)), self._key(name, self._ends[:i])))
            # one shard may hold epochs of two additions: a tile's are written one after the other
            tickets = self.pipeline.engine.submit(
                STAGE, keyed, label="cpm (later epochs)",
                after=lambda unit: list(waiting.get(unit.name.partition("+")[0], ())),
                note=lambda unit: {"start": unit.items[0].start, "stop": unit.items[0].stop},
            )  # fmt: skip
            for name, ticket in tickets.items():
                waiting.setdefault(name.partition("+")[0], []).append(ticket)
        return waiting

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Nothing: what is predicted does not hold the event. What could not be predicted is told."""
        reports = [record.payload for record in self.records.values()]
        lost = sum(report["unpredicted"] for report in reports)
        samples = lost + sum(report["samples"] for report in reports)
        if lost > MANY_UNPREDICTED * samples:
            self.pipeline.engine.warn(
                f"cpm: {lost} good samples ({lost / samples:.0%}) could not be predicted and are masked: "
                "too few epochs train there, or most pixels that predict have no data; see [cpm] reach, "
                "folds"
            )
        return {}
