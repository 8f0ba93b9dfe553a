"""Runs NN2 on a field: PSFs, positions, pairs, and the light curves they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.locations import Location, absolute, locate
from survey.io.store import Field
from survey.kernels.frame_quality import FrameFlag
from survey.run.api import stored_config
from survey.run.differences import RunError
from survey.run.engine import Engine, Progress, Silent, stage_key
from survey.run.executor import connect
from survey.run.frame_psfs import ensure_frame_psfs, frame_psf_units, own_pixels, psf_keys
from survey.run.holding import held
from survey.run.nn2_nights import CarriedKeys, Measured, Nights
from survey.run.progress import Failure
from survey.run.record import RunSummary, begin, recorded
from survey.run.targets import read_targets
from survey.run.worker import function_key
from survey.stages import nn2, psf
from survey.stages.calibrated import calibrated_frames
from survey.stages.nn2_curves import gather, nn2_path, row_blocks
from survey.stages.nn2_pairs import position_pairs
from survey.stages.nn2_plan import Group, object_groups
from survey.stages.protocol import STAGES, Unit

# Frames that no kernel mends. Haze, a bright sky or a broad PSF only make a frame's pairs weigh less, and a
# small shift is the kernel's business.
UNUSABLE = int(FrameFlag.TRAILED | FrameFlag.UNREGISTERED)
# What a run of NN2 holds while it writes.
LEASE = nn2.FOLDER
# Groups that say what the epochs' flux units are, and how far steady light errs, and differences of them all
# together: upper limits, for memory.
MOST_GROUPS, MOST_SUMS = 100, 500_000


def run_nn2(
    path: str | Location,
    config: Config | None = None,
    *,
    objects: Sequence[Mapping[str, Any]] | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Light curves from all pairs of a field's frames, for its events and targets.

    Parameters
    ----------
    path : path
        The field; frames must have been ingested. Events are those of ``method``, where it has been run.
    config : Config, optional
        Settings; by default those stored in the field.
    objects : sequence of mapping, optional
        What to measure instead of events and targets: ``object_id``, ``y``, ``x`` (pixels of the reference
        grid), ``kind`` ("event": it varies, and stays out of the fit of the kernels; or "target").
    client, progress
        As in `survey.run`. What is done already is not done again.

    Returns
    -------
    RunSummary
        ``events`` is the number of light curves, in ``lightcurves/nn2/<method>.parquet``; ``failed_pairs``
        that of the pairs they go without.

    Raises
    ------
    RunError
        If there is nothing to measure, or fewer than two usable frames.
    FieldBusyError
        If another run writes the field.
    """
    config, progress = config or stored_config(path), progress or Silent()
    path = absolute(locate(path))
    summary, clock = begin(path, config.method)
    with threadpool_limits(1), connect(config.cluster, client) as executor:
        field = Field.open(path)
        engine = Engine(field, config, executor, progress, (LEASE, summary.run_id))
        with (
            recorded(summary, path, config, clock) as record,
            # Neither frames nor their calibration may change meanwhile.
            held(field, summary.run_id, "images", LEASE) as engine.leases,
        ):
            record.follow(engine)
            found = objects_of(field, config) if objects is None else [dict(o) for o in objects]
            work = AllPairs(engine, found)
            summary.events = work.run()
            summary.failed_pairs = work.failed_pairs
            engine.finish()
    return summary


def objects_of(field: Field, config: Config) -> list[dict[str, Any]]:
    """Events of the method, and targets."""
    objects: list[dict[str, Any]] = []
    if field.events_path(config.method).exists():
        columns = ["object_id", "y", "x"]
        for row in read_parquet(field.events_path(config.method)).select(columns).to_pylist():
            objects.append({**row, "kind": "event"})
    return [*objects, *read_targets(field, config)]


class AllPairs:
    """The stages of NN2 in their order.

    Parameters
    ----------
    engine : Engine
    objects : list of dict
    """

    def __init__(self, engine: Engine, objects: list[dict[str, Any]]) -> None:
        self.engine, self.field, self.config = engine, engine.target, engine.config
        self.settings = self.config.nn2
        if not objects:
            raise RunError(
                f"{self.field.path}: no events and no targets; run `survey run` first, "
                "or name targets: [photometry] targets = 'stars.csv'"
            )
        self.frames = calibrated_frames(self.field)
        if later := int(self.field.frames().sizes["time"] - self.frames.sizes["time"]):
            engine.warn(f"{later} frames are not calibrated yet and left out: `survey run` first")
        self.epochs = np.flatnonzero((self.frames["flags"].values & UNUSABLE) == 0)
        if len(self.epochs) < 2:
            raise RunError(f"{self.field.path}: {len(self.epochs)} usable frames; a pair takes 2")
        self.groups = object_groups(objects, self.settings.cell, self.settings.margin)
        self.carried = self.settings.subtract == "carried"

    def run(self) -> int:
        """Make what is missing; returns the number of light curves."""
        self.keys_of = self._keys()
        nights = Nights(self.engine, self.epochs, self.keys_of)
        measured = self._measured(nights)
        units = [unit for found in measured for unit in nights.units(found)]
        self.n_pairs = sum(len(unit.items[1]) for unit in units) // len(measured)
        self.groups = [m.named(given) for m, given in zip(measured, self.groups, strict=True)]
        stage = nights.stage
        keyed = [(unit, self._key(stage, unit, unit.items[1])) for unit in units]
        self.engine.submit(stage, keyed, state=psf.load(self.field) if self.carried else None)
        self.engine.collect()
        self.failed_pairs = sum(len(p["failed"]) for p in self.engine.payloads(stage, units))
        for group, own in by_group(units).items():
            self._check(stage, group, own)
        # Only now: a light curve of what the check struck out would count as done for ever.
        done = [(unit, key) for unit, key in keyed if self.engine.ledger(stage).has(unit.name, key)]
        return self._solve(done)

    def _check(self, stage: str, group: str, units: list[Unit]) -> None:
        """A group that frames show and of which no pair could be subtracted has failed; it is tried again."""
        payloads = self.engine.payloads(stage, units)
        failed = [pair for payload in payloads for pair in payload["failed"]]
        if failed and not sum(payload["measured"] for payload in payloads):
            reason = f"none of {len(failed)} pairs could be subtracted; the first: {failed[0][2]}"
            self.engine.failures.append(Failure(stage, group, reason))
            self.engine.ledger(stage).invalidate(unit.name for unit in units)

    def _keys(self) -> Callable[[Group], Sequence[str]]:
        """What a group's pairs depend on, epoch by epoch; frames and PSFs are made as far as missing."""
        if self.carried:
            if not self.field.has("difference/oversampled", "flux") or not self.field.has_table("psf"):
                raise RunError(
                    f"{self.field.path}: [nn2] subtract = 'carried' goes through the oversampled reference: "
                    f"`survey run {self.field.path}` first"
                )
            made = self.field.ledger("oversampled.oversampled").records.values()
            if any(record.payload.get("epochs", 0) < self.frames.sizes["time"] for record in made):
                raise RunError(
                    f"{self.field.path}: the oversampled reference lacks later frames, through which [nn2] "
                    f"subtract = 'carried' goes: `survey run {self.field.path} --method oversampled` first"
                )
            return CarriedKeys(self.field, self.frames)
        images = own_pixels(self.engine, self.frames)
        keyed = frame_psf_units(self.engine, images)
        psfs = psf_keys(self.config, images, keyed, ensure_frame_psfs(self.engine, keyed))
        keys = [function_key(*pair) for pair in zip(images, psfs, strict=True)]
        return lambda group: keys

    def _key(self, stage: str, unit: Unit, epochs: Any) -> str:
        """Of a unit that looks at some epochs."""
        keys = self.keys_of(unit.items[0])
        inputs = {"epochs": [keys[k] for k in np.unique(epochs)], "items": _plain(unit.items)}
        return stage_key(stage, self.config, unit.name, inputs)

    def _measured(self, nights: Nights) -> list[Measured]:
        """All groups with their places: as earlier runs found them, or found now."""
        known = {group.name: nights.recall(group) for group in self.groups}
        fresh = [group for group in self.groups if known[group.name] is None]
        places, lost = self._places(fresh) if nights.refines else ({}, set())
        for group in fresh:
            objects = []
            for item in group.objects:
                if item["object_id"] in places:
                    y, x, error = places[item["object_id"]]
                    item = {**item, "y": y, "x": x, "position_error": error}
                objects.append(item)
            placed = replace(group, objects=tuple(objects))
            known[group.name] = nights.begin(group, placed, kept=group.name not in lost)
        return [found for found in known.values() if found is not None]

    def _places(self, groups: list[Group]) -> tuple[dict[str, list[float]], set[str]]:
        """Places (y, x, error) of objects, where their differences say; groups that failed."""
        wanted = [g for g in groups if any(o.get("refine", True) for o in g.objects)]
        units = [Unit(g.name, items=(g, self.epochs)) for g in wanted]
        looked_at = position_pairs(self.epochs)
        keyed = [(unit, self._key("nn2_positions", unit, looked_at)) for unit in units]
        self.engine.submit("nn2_positions", keyed)
        self.engine.collect()
        places: dict[str, list[float]] = {}
        for payload in self.engine.payloads("nn2_positions", units):
            places |= payload["positions"]
        records = self.engine.ledger("nn2_positions").records
        return places, {unit.name for unit in units if unit.name not in records}

    def _solve(self, done: list[tuple[Unit, str]]) -> int:
        """Solve all groups on one zero point, with one pooled share of the subtraction's variance."""
        sums, parts = STAGES["nn2_scales"], by_group([unit for unit, _ in done])
        shared = {
            "pairs": function_key([key for _, key in done]),
            "scales": [sums.version, sums.settings(self.config), MOST_GROUPS, MOST_SUMS],
        }
        units, keys = [], []
        for unit in nn2.units(self.groups, self.epochs):
            names = tuple(part.name for part in parts.get(unit.items[0].name, []))
            unit = Unit(unit.name, items=(*unit.items, names))
            units.append(unit)
            keys.append(stage_key("nn2", self.config, unit.name, {**shared, "items": _plain(unit.items)}))
        ledger = self.engine.ledger("nn2")
        if all(ledger.has(unit.name, key) for unit, key in zip(units, keys, strict=True)):
            self.engine.skip(len(units))
        else:
            scales = self._scales(done)
            full = [Unit(unit.name, items=(*unit.items, *scales)) for unit in units]
            keyed = list(zip(full, keys, strict=True))
            self.engine.submit("nn2", keyed, state=self._gather("nn2", keyed))
            self.engine.collect()
        # What failed now may have left a part of an earlier run.
        solved = [unit.name for unit, key in zip(units, keys, strict=True) if ledger.has(unit.name, key)]
        return gather(self.field, self.config.method, solved)

    def _scales(self, done: list[tuple[Unit, str]]) -> tuple[tuple[float, ...], float]:
        """Flux units of the epochs, the reference frame's being 1; share of steady light that is an error."""
        of_group, keys = by_group([unit for unit, _ in done]), {unit.name: key for unit, key in done}
        most = max(1, min(MOST_GROUPS, MOST_SUMS // self.n_pairs))
        names = [part.name for group in spread(list(of_group), most) for part in of_group[group]]
        keyed = [(Unit(name, items=(self.epochs, name)), keys[name]) for name in names]
        scales, share = self._gather("nn2_scales", keyed)
        if len(scales) != len(self.epochs):
            return (1.0,) * len(self.epochs), share
        found = np.array(scales)
        reference = int(np.argmin(np.abs(self.frames["scale"].values[self.epochs] - 1)))
        return tuple((found / found[reference]).tolist()), share

    def _gather(self, stage: str, keyed: Sequence[tuple[Unit, str]]) -> Any:
        """What the partial results of units combine to."""
        label = f"{stage} (sums)"
        self.engine.submit(stage, keyed, step="partial", label=label, ledger=False)
        reports = self.engine.collect().get(label, {})
        if len(reports) < len(keyed):
            raise RunError(f"{stage}: {self.engine.failures[-1].reason}")
        return STAGES[stage].combine([reports[unit.name].result for unit, _ in keyed], self.config)


def by_group(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units of pairs by the names of their groups."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.items[0].name, []).append(unit)
    return found


def spread(names: list[str], most: int) -> list[str]:
    """At most so many of them, evenly taken."""
    if len(names) <= most:
        return names
    return [names[k] for k in np.linspace(0, len(names) - 1, most).round().astype(int)]


def nn2_light_curves(path: str | Location, method: str = "oversampled") -> list[dict[str, Any]]:
    """All rows of NN2's light curves: ``time``, ``flux``, ``error``, ``flags``, and the pairs they came of.

    They are sorted by ``object_id``. Where there are many, `survey.stages.nn2_curves.row_blocks` reads them
    a block at a time.

    Raises
    ------
    RunError
        If there are none yet.
    """
    field = Field.open(path)
    if not nn2_path(field, method).exists():
        raise RunError(f"{path}: no NN2 light curves yet; `survey nn2 {path}`")
    rows = [row for block in row_blocks(field, method) for row in block]
    return sorted(rows, key=lambda row: str(row["object_id"]))


def _plain(value: Any) -> Any:
    """Items of a unit as plain data, for keys."""
    if isinstance(value, Group):
        return [value.name, value.y, value.x, value.size, [dict(o) for o in value.objects]]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
