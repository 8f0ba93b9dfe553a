"""Differences with one kernel a frame: passes of sums over all tiles, then every tile alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from survey.run.differences import RunError, Waiting
from survey.run.engine import stage_key
from survey.run.oversampled import same_event
from survey.run.worker import function_key
from survey.stages import matching
from survey.stages.events import Event
from survey.stages.protocol import STAGES, Unit

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# Sums that may wait at the client at once, beside their totals: tiles times frames times a kernel's matrix.
_BYTES = 512 * 2**20

# Epochs of a block, a unit of it, and its key.
Keyed = tuple[tuple[int, int], Unit, str]


class FrameFits(Protocol):
    """What is fitted to the frames of a block: fed with the tiles' sums in their order, pass by pass."""

    @property
    def state(self) -> Any:
        """What the tiles are told of the frames, so far."""

    def add(self, tile: Any) -> None:
        """Sums of one more tile."""

    def step(self) -> None:
        """A pass has ended."""


class SubtractionDifferences:
    """Methods whose stage sums normal equations of every frame over all tiles, then subtracts tile by tile.

    Where the reference is the template, events bend it: they are taken out of it and all is subtracted again.
    The ledger remembers of such differences under ``searched`` the key of those in which the events were
    found, so that nobody searches again.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        matching.check_template(pipeline.field, pipeline.config)
        self.stage = STAGES[pipeline.config.method]
        self.units = self.stage.units(pipeline.field, pipeline.config)
        self._searched = self._recall() or self._key()

    def groups(self) -> tuple[str, ...]:
        """Differences alone."""
        return (f"difference/{self.pipeline.config.method}",)

    def sizes(self) -> Mapping[str, int]:
        """Those of the kernels, which are kept with the differences."""
        model = matching.model_of(self.pipeline.field, self.pipeline.config)
        return matching.kernel_sizes(model)

    @property
    def passes(self) -> int:
        """Times that the tiles' sums are made before they are subtracted."""
        return self.pipeline.config.subtraction.passes

    def _fits(self, span: tuple[int, int]) -> FrameFits:
        """What is fitted to the frames of a block."""
        field, config = self.pipeline.field, self.pipeline.config
        return matching.FrameFits(matching.model_of(field, config), span[1] - span[0], config)

    def _frame_bytes(self) -> int:
        """What one frame's sums of one tile take."""
        return matching.bytes_of_sums(self.pipeline.field, self.pipeline.config)

    def _unit_key(self, unit: Unit) -> str:
        return stage_key(self.stage.name, self.pipeline.config, unit.name, self._inputs())

    def _inputs(self) -> dict[str, Any]:
        """Keys of what the differences are made of."""
        pipeline, name = self.pipeline, self.pipeline.config.subtraction.template
        inputs: dict[str, Any] = {"images": pipeline.images}
        if name == "reference":
            inputs["reference"] = pipeline.reference_key()
        else:
            # whoever writes a template anew gives it other attributes
            inputs["template"] = pipeline.field.group_attrs(f"template/{name}")
        return inputs

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """One for all, as every tile depends on the sums of all: of the differences that were searched.

        What is measured once events are out of the reference is keyed by the reference besides.
        """
        return self._searched

    def _key(self) -> str:
        return function_key([self._unit_key(u) for u in self.units])

    def _recall(self) -> str | None:
        """Key of the differences in which those events were found that are out of these."""
        records = self.pipeline.engine.ledger(self.stage.name).records
        found = set()
        for unit in self.units:
            record = records.get(unit.name)
            if record is None or record.key != self._unit_key(unit):
                return None
            found.add(record.payload.get("searched"))
        return found.pop() if len(found) == 1 else None

    def before(self, unit: Unit) -> tuple[str, int] | None:
        """None: where one frame's kernel changes, all is searched."""
        return None

    def additions(self) -> list[int]:
        """Those of the reference."""
        return self.pipeline.reference.additions()

    def submit(self) -> Waiting:
        """Blocks of frames whose differences are missing: kernels first, then every tile."""
        self._searched = self._key()
        self._submit(self.stage.name, {})
        self._tell_failed()
        return {}

    def _tell_failed(self) -> None:
        """Warn of frames without a kernel, whose differences are masked; raise if there is no other."""
        engine, name = self.pipeline.engine, self.stage.name
        failed = {k: why for p in engine.payloads(name, self.units) for k, why in p["failed"]}
        if not failed:
            return
        count, first = self.pipeline.frames.sizes["time"], min(failed)
        text = f"{name}: {len(failed)} of {count} frames have no kernel and are masked; frame {first}: "
        if len(failed) == count:
            raise RunError(text + failed[first])
        engine.warn(text + failed[first])

    def _submit(self, label: str, note: Mapping[str, Any]) -> None:
        engine = self.pipeline.engine
        keyed = [(unit, self._unit_key(unit)) for unit in self.units]
        ledger = engine.ledger(self.stage.name)
        blocks: dict[tuple[int, int], list[tuple[Unit, str]]] = {}
        for unit, key in keyed:
            blocks.setdefault(unit.items[:2], []).append((unit, key))
        missing = {
            span: units for span, units in blocks.items() if not all(ledger.has(u.name, k) for u, k in units)
        }
        engine.skip(len(keyed) - sum(len(units) for units in missing.values()))
        for group in self._groups(missing):
            fits = self._fitted({span: missing[span] for span in group})
            for span in group:
                self._keep(span, fits[span])
                engine.submit(
                    self.stage.name, missing[span], state=fits[span].state, label=label, note=lambda _: note
                )
            engine.collect()

    def _keep(self, span: tuple[int, int], fit: FrameFits) -> None:
        """Write what was fitted to the frames of a block beside their differences."""
        model = matching.model_of(self.pipeline.field, self.pipeline.config)
        for name, values in matching.kernel_arrays(model, fit.state).items():
            self.pipeline.field.array(self.groups()[0], name)[slice(*span)] = values

    def _groups(self, blocks: Mapping[tuple[int, int], Any]) -> list[list[tuple[int, int]]]:
        """Blocks that go through their passes together, as many as the client's memory takes."""
        size = self._frame_bytes()
        groups: list[list[tuple[int, int]]] = []
        room = 0.0
        for span, units in blocks.items():
            need = size * len(units) * (span[1] - span[0])
            if not groups or need > room:
                groups.append([])
                room = _BYTES
            groups[-1].append(span)
            room -= need
        return groups

    def _parts(self, keyed: Sequence[Keyed]) -> list[Sequence[Keyed]]:
        """Units as many at a time as the client's memory takes, one at least."""
        longest = max(span[1] - span[0] for span, _, _ in keyed)
        size = self._frame_bytes() * longest
        count = max(1, _BYTES // size)
        return [keyed[i : i + count] for i in range(0, len(keyed), count)]

    def _fitted(self, blocks: Mapping[tuple[int, int], list[tuple[Unit, str]]]) -> dict[Any, FrameFits]:
        """Kernels, or what else is fitted, of every frame of some blocks."""
        fits = {span: self._fits(span) for span in blocks}
        for _ in range(self.passes):
            keyed = [
                (span, Unit(unit.name, unit.tile, (*span, fits[span].state)), key)
                for span, units in blocks.items()
                for unit, key in units
            ]
            # tiles are added in their order, a few at a time: so the sums have the same bits however few
            for part in self._parts(keyed):
                found = self.pipeline.gather(self.stage.name, [(unit, key) for _, unit, key in part])
                for (span, _, _), sums in zip(part, found, strict=True):
                    fits[span].add(sums)
            for fit in fits.values():
                fit.step()
        return fits

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Take events out of the reference, where that is the template, and subtract it again.

        What another method has found and taken out stays out.
        """
        if self._take_out(touched):
            self.pipeline.forget_reference()
            self._submit("refit", {"searched": self._searched})
        self._tell_failed()
        return {}

    def _take_out(self, touched: Mapping[str, list[Event]]) -> bool:
        """Make the reference without events; False where it is not the template or holds none of them."""
        base = self.pipeline.base
        if base is None or self.pipeline.config.subtraction.template != "reference":
            return False
        known = {unit.name: base.reference.excluded(unit) for unit in base.units}
        new = {
            name: [event for event in touched[name] if not any(same_event(k, event) for k in old)]
            for name, old in known.items()
        }
        if not any(new.values()):
            return False
        base.reference.refit({name: [*old, *new[name]] for name, old in known.items()})
        base.engine.collect()
        base.engine.finish()
        return True
