"""Differences with one kernel a frame: passes of sums over all tiles, then every tile alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from survey.run.additions import Additions
from survey.run.blocks import Block, Span, at_once, blocks_of
from survey.run.differences import RunError, Waiting
from survey.run.engine import stage_key
from survey.run.identity import epoch_keys
from survey.run.taken import TakenEvents
from survey.run.tickets import Ticket
from survey.run.worker import function_key
from survey.stages import matching
from survey.stages.events import Event
from survey.stages.kernel_model import model_of
from survey.stages.protocol import STAGES, Unit
from survey.stages.template_records import template_looks

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline

# Sums that may wait at the client at once, beside their totals: tiles times frames times a kernel's matrix.
_BYTES = 512 * 2**20
# Time scales before its centre at which an event has begun.
BEGUN = 2.0
# A frame is sharper than a template whose FWHM, times this, exceeds its own.
SHARPER = 0.95


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

    Where the reference is the template, events bend it: they are taken out of it, and what was made of it in
    this run or is of the latest frames is subtracted again.
    The ledger remembers of such differences under ``searched`` the key of those in which the events were
    found, so that nobody searches again.

    Frames that come later are blocks of their own (`Additions`): they alone are subtracted and searched.

    A tile whose data cannot be read is told and left out: the frames of its block are fitted to the sums of
    the others, by another key. Every later run looks at it again, and makes all anew once it can be read.
    """

    sharpens = True  # the template is convolved to every frame's PSF, whichever is the broader

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        matching.check_template(pipeline.field, pipeline.config)
        self.stage = STAGES[pipeline.config.method]
        self.images = self._image_keys()
        name = pipeline.config.subtraction.template
        # whoever writes a template anew gives it other attributes
        self._template = None if name == "reference" else pipeline.field.group_attrs(f"template/{name}")
        self._standing: dict[Any, str] = {}
        self.added = Additions(pipeline)
        self._take_units()
        if self._is_old(self._earlier()):
            self._begin_anew()
        self.taken = TakenEvents(pipeline)
        self._searched = self.taken.interrupted() or self._recall() or self._key()

    def _take_units(self) -> None:
        """Units and blocks of the field's frames, as they came."""
        pipeline = self.pipeline
        self.units = matching.units(pipeline.field, pipeline.config, self.added.ends)
        self.blocks = blocks_of(self.units)
        for block in self.blocks.values():
            block.recall(pipeline.engine.ledger("lost"))

    def _begin_anew(self) -> None:
        """All frames at once: what was made of the earlier ones is no more what it should be."""
        self.added.forget()
        self._take_units()
        ledger, names = self.pipeline.engine.ledger(self.stage.name), {unit.name for unit in self.units}
        ledger.invalidate([name for name in ledger.records if name not in names])

    def _earlier(self) -> list[Block]:
        """Blocks that were made before the last addition."""
        return [block for block in self.blocks.values() if block.span[1] <= self.added.start]

    def groups(self) -> tuple[str, ...]:
        """Differences alone."""
        return (f"difference/{self.pipeline.config.method}",)

    def sizes(self) -> Mapping[str, int]:
        """Those of the kernels, which are kept with the differences."""
        model = model_of(self.pipeline.field, self.pipeline.config)
        return matching.kernel_sizes(model)

    @property
    def passes(self) -> int:
        """Times that the tiles' sums are made before they are subtracted."""
        return self.pipeline.config.subtraction.passes

    def _fits(self, span: Span) -> FrameFits:
        """What is fitted to the frames of a block."""
        field, config = self.pipeline.field, self.pipeline.config
        return matching.FrameFits(model_of(field, config), span[1] - span[0], config)

    def _frame_bytes(self) -> int:
        """What one frame's sums of one tile take."""
        return matching.bytes_of_sums(self.pipeline.field, self.pipeline.config)

    def _unit_key(self, unit: Unit) -> str:
        span = unit.items[:2]
        without = self.blocks[span].without
        inputs = {**self._inputs(span), "epochs": span, **({"without": without} if without else {})}
        return stage_key(self.stage.name, self.pipeline.config, unit.name, inputs)

    def _image_keys(self) -> list[str]:
        """Identity of each epoch's image."""
        return epoch_keys(self.pipeline.field, self.pipeline.frames)

    def _inputs(self, span: Span) -> dict[str, Any]:
        """Keys of what the differences of some epochs are made of."""
        inputs: dict[str, Any] = {"images": self.images[slice(*span)]}
        if self._template is None:
            inputs["reference"] = self.added.reference(span[1])
        else:
            inputs["template"] = self._template
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
        for block in self.blocks.values():
            for unit in block.units:
                record = records.get(unit.name)
                if unit.name in block.lost:
                    continue
                if record is None or record.key != self._unit_key(unit):
                    return None
                if block.span[0] >= self.added.start:
                    found.add(record.payload.get("searched"))
        return found.pop() if len(found) == 1 else None

    def before(self, unit: Unit) -> tuple[str, int] | None:
        """Those of the earlier frames, which stand; None where all is made of one piece."""
        return self.added.before()

    def stands(self, unit: Unit, events: Sequence[Event], *, before: bool = False) -> str | None:
        """Keys of all units: where an event was taken out of the reference, these change."""
        end = self.added.start if before else self.added.count
        if not end:
            return None
        # asked for by every tile's neighbours: one hash of all units as long as these are what they are
        lacking = tuple((span, tuple(block.without)) for span, block in self.blocks.items())
        state = end, self.pipeline.reference_key(), lacking
        if state not in self._standing:
            keys = [self._unit_key(unit) for unit in self.units if unit.items[1] <= end]
            self._standing[state] = function_key(keys)
        return self._standing[state]

    def additions(self) -> list[int]:
        """First epochs of what was added."""
        return self.added.ends[:-1]

    def tries_again(self) -> bool:
        """No: what was lost was not searched."""
        return False

    def submit(self) -> Waiting:
        """Blocks of frames whose differences are missing: kernels first, then every tile."""
        wanted = self._stale()
        wanted += [block for block in self._lossy() if block not in wanted and self._is_healed(block)]
        if any(block in wanted for block in self._earlier()):
            self._begin_anew()
            wanted = list(self.blocks.values())
        self._skip(wanted)
        for block in wanted:
            block.forget()
        if wanted:
            self._tell_broad()
            # where earlier differences stand, what was found in them stays out of the reference
            if not self._earlier():
                self.taken.put_back()
            self._make(self._stale(), self.stage.name, {})
            self._searched = self._key()
        self.added.remember(self._searched)
        self._tell_failed()
        return self._lost()

    def _tell_broad(self) -> None:
        """Warn of a template broader than frames: a kernel would have to sharpen it, noise and all."""
        pipeline, name = self.pipeline, self.pipeline.config.subtraction.template
        width = template_looks(pipeline.field, name)[0]
        frames = pipeline.frames["psf_fwhm"].values
        sharper = int((frames < SHARPER * width).sum())
        if self.sharpens and sharper:
            pipeline.engine.warn(
                f"{self.stage.name}: template/{name} (FWHM {width:.1f} px) is broader than {sharper} of "
                f"{len(frames)} frames: sharpened for them, its noise grows; method zogy does without"
            )

    def _stale(self) -> list[Block]:
        """Blocks whose differences are not all there, but for units that failed when they were made."""
        return [block for block in self.blocks.values() if self._is_old([block])]

    def _is_old(self, blocks: Sequence[Block]) -> bool:
        """Whether differences of blocks are not what they should be."""
        ledger = self.pipeline.engine.ledger(self.stage.name)
        return not all(
            ledger.has(unit.name, self._unit_key(unit))
            for block in blocks
            for unit in block.units
            if unit.name not in block.lost
        )

    def _lossy(self) -> list[Block]:
        """Blocks of which units failed."""
        return [block for block in self.blocks.values() if block.lost]

    def _is_healed(self, block: Block) -> bool:
        """Whether what a block's failed units would change has to be made anew, as one fails no longer."""
        state, lost = self._fits(block.span).state, set(block.lost)
        units = [u for u in self._able(block.units) if u.name in lost & set(block.without)]
        again = [(Unit(unit.name, unit.tile, (*block.span, state)), "again") for unit in units]
        if again and self.pipeline.partials(self.stage.name, again):
            return True
        if lost == set(block.without):
            return False
        # The others' sums were in: only these are subtracted again, and nothing else has changed.
        searched = self._noted(block)
        self._make([block], self.stage.name, {} if searched is None else {"searched": searched})
        return searched is not None and set(block.lost) != lost

    def _noted(self, block: Block) -> str | None:
        """Key of the differences in which events were found that are out of those of a block."""
        records = self.pipeline.engine.ledger(self.stage.name).records
        found = (records[u.name].payload.get("searched") for u in block.units if u.name in records)
        return next(found, None)

    def _able(self, units: Sequence[Unit]) -> list[Unit]:
        """Units in whose tiles there is a reference, where that is the template."""
        base = self.pipeline.base
        if base is None or self.pipeline.config.subtraction.template != "reference":
            return list(units)
        made = base.engine.ledger("oversampled").records
        return [unit for unit in units if unit.tile is not None and unit.tile.name in made]

    def _lost(self) -> Waiting:
        """A failed ticket for every unit without differences, so that who would read them fails, too."""
        waiting: Waiting = {}
        for block in self.blocks.values():
            for unit in block.units:
                if unit.name in block.lost and unit.tile is not None:
                    name = self.stage.name
                    ticket = Ticket(name, "apply", unit, "", name, status="failed")
                    waiting.setdefault(unit.tile.name, []).append(ticket)
        return waiting

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

    def _skip(self, blocks: Sequence[Block]) -> None:
        """Count what other blocks have as found done."""
        others = [block for block in self.blocks.values() if block not in blocks]
        self.pipeline.engine.skip(sum(len(block.units) - len(block.lost) for block in others))

    def _make(self, blocks: Sequence[Block], label: str, note: Mapping[str, Any]) -> None:
        """Fit the frames of blocks and subtract them, as many at once as the client's memory takes.

        Raises
        ------
        RunError
            If no unit of the field has differences then.
        """
        engine = self.pipeline.engine
        ledger, known = engine.ledger(self.stage.name), engine.ledger("lost")
        for group in at_once(blocks, self._frame_bytes(), _BYTES):
            fits = self._fitted(group)
            for block in group:
                keyed = [(unit, self._unit_key(unit)) for unit in block.summed]
                # Before the kernels: old differences and new kernels do not belong together.
                wanted = {unit.name for unit, key in keyed if ledger.has(unit.name, key)}
                ledger.invalidate(unit.name for unit in block.units if unit.name not in wanted)
                if keyed:
                    self._keep(block.span, fits[block.span])
                state = fits[block.span].state
                engine.submit(self.stage.name, keyed, state=state, label=label, note=lambda _: note)
            engine.collect()
            for block in group:
                block.lost = [unit.name for unit in block.units if unit.name not in ledger.records]
                block.remember(known)
            known.flush()
        if len(self.units) == sum(len(block.lost) for block in self.blocks.values()):
            raise RunError(f"{self.stage.name}: {engine.failures[-1].reason}")

    def _keep(self, span: Span, fit: FrameFits) -> None:
        """Write what was fitted to the frames of a block beside their differences."""
        model = model_of(self.pipeline.field, self.pipeline.config)
        for name, values in matching.kernel_arrays(model, fit.state).items():
            self.pipeline.field.array(self.groups()[0], name)[slice(*span)] = values

    def _fitted(self, blocks: Sequence[Block]) -> dict[Span, FrameFits]:
        """Kernels, or what else is fitted, of every frame of some blocks; notes the units that fail."""
        for block in blocks:
            able = {unit.name for unit in self._able(block.units)}
            block.without += [
                u.name for u in block.units if u.name not in able and u.name not in block.without
            ]
        fits = {block.span: self._fits(block.span) for block in blocks}
        for step in range(self.passes):
            if self._add_sums(blocks, fits) and step:
                # What the passes before were told by units that are lost now nobody could tell again.
                return self._fitted(blocks)
            for fit in fits.values():
                fit.step()
        return fits

    def _add_sums(self, blocks: Sequence[Block], fits: Mapping[Span, FrameFits]) -> bool:
        """Add the tiles' sums to the fits, in their order; whether a unit failed."""
        keyed = [
            (block, Unit(unit.name, unit.tile, (*block.span, fits[block.span].state)))
            for block in blocks
            for unit in block.summed
        ]
        failed = False
        # a few at a time: the sums have the same bits however few
        for part in self._parts(keyed):
            found = self.pipeline.partials(self.stage.name, [(unit, "sums") for _, unit in part])
            for block, unit in part:
                if unit.name in found:
                    fits[block.span].add(found[unit.name])
                else:
                    failed = True
                    block.without.append(unit.name)
        return failed

    def _parts(self, keyed: Sequence[tuple[Block, Unit]]) -> list[Sequence[tuple[Block, Unit]]]:
        """Units as many at a time as the client's memory takes, one at least."""
        if not keyed:
            return []
        longest = max(block.span[1] - block.span[0] for block, _ in keyed)
        count = max(1, _BYTES // (self._frame_bytes() * longest))
        return [keyed[i : i + count] for i in range(0, len(keyed), count)]

    def _tell_dimmed(self, touched: Mapping[str, list[Event]]) -> None:
        """Warn of events that had begun, too weak to be found, in frames whose differences stay."""
        start, time = self.added.start, self.pipeline.frames["time"].values
        if not start:
            return
        events = [event for new in self.taken.new(touched).values() for event in new]
        begun = {
            (event["y"], event["x"], event["time"])
            for event in events
            if event["time"] - BEGUN * event["sigma_days"] < time[:start].max()
        }
        if begun:
            self.pipeline.engine.warn(
                f"{self.stage.name}: events that were too weak to be found before ({len(begun)}) are in the "
                "reference of earlier differences and a little dimmer there; --rebuild makes these anew"
            )

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Take events out of the reference, where that is the template, and subtract it again.

        What another method has found and taken out stays out. Differences of earlier frames stay.
        """
        self._tell_dimmed(touched)
        if self.taken.take_out(touched, self._searched):
            self._make(self._stale(), "refit", {"searched": self._searched})
            self.taken.end()
        self.added.remember(self._searched)
        self._tell_failed()
        return self._lost()
