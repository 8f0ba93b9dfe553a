"""Frames into a field: scanned, registered, placed; new ones appended later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from survey.config import Config
from survey.io.calibration import check_calibration
from survey.io.frames import FrameHeader, FrameSource, combine_scans, find_files, scan_file
from survey.io.ledger import FieldBusyError
from survey.io.locations import Location, locate
from survey.io.store import Field, holds_frames
from survey.run.calls import map_calls
from survey.run.engine import Engine, Failure, Progress, Silent, stage_key
from survey.run.executor import Executor
from survey.run.opening import clear_unfinished, open_or_create
from survey.run.pattern import FieldPattern
from survey.run.record import new_run_id
from survey.run.worker import UnitReport
from survey.stages import frame_table, place, register
from survey.stages.calibrated import Grid
from survey.stages.measure import measure_frame
from survey.stages.protocol import Unit

logger = logging.getLogger(__name__)

# Files a scanning task opens: a header takes milliseconds, a task's overhead about two.
FILES_A_TASK = 16


class IngestError(RuntimeError):
    """Frames that cannot make or join a field, or that `strict` does not forgive."""


@dataclass
class IngestSummary:
    """What came of an ingest.

    Parameters
    ----------
    added : int
        Frames that the field holds now and did not before.
    rejected : list of (str, str)
        Frame and reason of those left out.
    warnings : list of str
        What a person should know.
    failures : list of Failure
        Blocks that could not be placed.
    frames : list of (str, str, str)
        Name, file and fingerprint of those added.
    """

    added: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    frames: list[tuple[str, str, str]] = field(default_factory=list)


def _scan_files(paths: Sequence[str], config: Config) -> list[Any]:
    return [scan_file(path, config.input) for path in paths]


def ingest(
    path: str | Location,
    frames: Sequence[str | Location],
    config: Config,
    executor: Executor,
    *,
    progress: Progress | None = None,
    strict: bool = False,
    run_id: str = "ingest",
    reports: list[UnitReport] | None = None,
) -> IngestSummary:
    """Make a field of frames, or append frames to one.

    Frames that cannot be used are listed with their reasons and left out, or with ``strict`` stop the
    ingest before anything is written.

    Parameters
    ----------
    reports : list of UnitReport, optional
        Gets what each file, frame and block took, also of an ingest that fails.

    Raises
    ------
    FrameError
        If no file matches.
    IngestError
        If no frame is usable, or with ``strict`` if one is not.
    FieldBusyError
        If another ingest writes the field, or has added frames since this one began.
    PatternError
        If the frames do not fit the field's pattern, or hold none.
    """
    progress = progress or Silent()
    reports = [] if reports is None else reports
    exists = holds_frames(path)
    if exists:
        check_calibration(config.input, Field.open(path).attrs.get("calibration", ()), str(path))
    old = Field.open(path).frames() if exists else None
    known = frame_table.stored_headers(old) if old is not None else []
    files = find_files([str(f) for f in frames])
    chunks = [files[i : i + FILES_A_TASK] for i in range(0, len(files), FILES_A_TASK)]
    scans = [
        scan
        for chunk in _raise_first(
            map_calls(executor, _scan_files, chunks, progress, "scan", config, reports=reports)
        )
        for scan in chunk
    ]
    found = combine_scans(scans, config.input, known)
    summary = IngestSummary(
        rejected=[(r.source.path, r.reason) for r in found.rejected], warnings=list(found.warnings)
    )
    measures = []
    pattern = FieldPattern(
        path,
        found.headers,
        config,
        lambda function, items, *args: map_calls(
            executor, function, items, progress, "pattern", *args, reports=reports
        ),
        old=exists,
    )
    shared = pattern.share(executor)
    results = map_calls(
        executor, measure_frame, found.headers, progress, "measure", config, shared, reports=reports
    )
    for header, result in zip(found.headers, results, strict=True):
        if isinstance(result, BaseException):
            summary.rejected.append((header.source.path, str(result)))
        else:
            measures.append(result)
    held = frame_table.stored_reference(Field.open(path).table("stars")) if exists else None
    asked = {r.source.path for r in found.rejected if r.kind == "filtered"}
    looked, lost = summary, dict[FrameSource, str]()
    while True:
        summary = replace(
            looked,
            rejected=[*looked.rejected, *((source.path, reason) for source, reason in lost.items())],
            warnings=list(looked.warnings),
        )
        kept = [m for m in measures if m.header.source not in lost]
        new, reference = None, held
        if kept:
            new, reference, unplaced, told = register.combine(kept, config, held)
            summary.rejected += [(source.path, reason) for source, reason in unplaced]
            summary.warnings += told
        bad = [reason for source, reason in summary.rejected if source not in asked]
        if strict and bad:
            raise IngestError(f"{len(bad)} frames cannot be used (--strict): {'; '.join(bad[:5])}")
        if new is None or new.sizes["time"] == 0:
            if exists:
                return summary
            reasons = "; ".join(reason for _, reason in summary.rejected[:5])
            raise IngestError(f"none of the {len(files)} files gave a usable frame: {reasons}")
        assert reference is not None
        pattern.check(new, reference.header.shape)
        headers = frame_table.stored_headers(new)
        # A field has the reference of whoever holds the lease when it is made.
        with Field(locate(path)).lease("images", run_id):
            _check_unchanged(path, old)
            target = open_or_create(path, config, reference, new.sizes["time"])
            pattern.keep(target)
            damaged = _place(target, config, executor, progress, old, new, headers, summary, run_id, reports)
            if not exists and not damaged:
                target.write_table("stars", frame_table.star_table(reference))
        if not damaged:
            break
        progress.message(f"{len(damaged)} frames are damaged and left out; the others are placed again")
        lost |= damaged
    if summary.failures and not exists:
        first = summary.failures[0]
        raise IngestError(f"{len(summary.failures)} blocks could not be placed: {first.unit}: {first.reason}")
    if not summary.failures:
        summary.added = len(headers)
        summary.frames = [(h.frame_id, h.source.path, h.fingerprint) for h in headers]
    return summary


def _raise_first(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _check_unchanged(path: str | Location, old: xr.Dataset | None) -> None:
    """The new frames were numbered and registered after these: others must not have come in between."""
    now = Field.open(path).frames() if holds_frames(path) else None
    before, after = ([] if t is None else t["frame_id"].values.tolist() for t in (old, now))
    if before != after:
        raise FieldBusyError(
            f"{path}: another ingest took it from {len(before)} to {len(after)} frames while this one read "
            "its files; nothing of this one is written: run it again"
        )


def _place(
    target: Field,
    config: Config,
    executor: Executor,
    progress: Progress,
    old: xr.Dataset | None,
    new: xr.Dataset,
    headers: list[FrameHeader],
    summary: IngestSummary,
    run_id: str,
    reports: list[UnitReport],
) -> dict[FrameSource, str]:
    """Write the new frames' blocks, then the table: the moment from which they belong to the field.

    Frames that turn out to be damaged are returned with the reason, and nothing belongs to the field.
    """
    start = 0 if old is None else old.sizes["time"]
    table = new if old is None else _joined(old, new)
    height, width = target.shape
    units = place.place_units(target, table, headers, start, config)
    clear_unfinished(target, start, table.sizes["time"], units)
    target.require_group("images/sky", {"time": table.sizes["time"], "y": height, "x": width})
    engine = Engine(target, config, executor, progress, ("images", run_id), reports=reports)
    engine.submit(
        "place",
        [(u, stage_key("place", config, u.name, {"frames": place.unit_identity(u)})) for u in units],
        label="ingest",
    )
    engine.collect()
    if damaged := {
        source: reason
        for error in engine.errors
        if isinstance(error, place.UnplacedError)
        for source, reason in error.lost
    }:
        return damaged
    summary.failures = engine.failures
    if not engine.failures:
        target.write_table("frames", table)
        engine.finish()
    return {}


def _joined(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Both tables, old frames first and as they were; new ones are flagged by comparison with all."""
    flags = old["flags"].values.copy()
    for name, dim in (("map", "term"), ("background", "background_term")):
        size = max(old.sizes[dim], new.sizes[dim])
        old = _padded(old, name, dim, size)
        new = _padded(new, name, dim, size)
    joined = xr.concat(
        [old, new], dim="time", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    joined = frame_table.flag_table(joined)
    joined["flags"].values[: len(flags)] = flags
    return joined


def _padded(table: xr.Dataset, name: str, dim: str, size: int) -> xr.Dataset:
    if table.sizes[dim] == size:
        return table
    values = table[name].values
    missing = np.full((*values.shape[:-1], size - values.shape[-1]), np.nan)
    dims = table[name].dims
    return table.drop_vars(name).assign({name: (dims, np.concatenate([values, missing], axis=-1))})


def place_grid(engine: Engine, grid: Grid) -> None:
    """Write ``images/<grid>`` of a field's frames, as far as it is missing, from the files they came in.

    Raises
    ------
    IngestError
        If a block could not be written, as where the files are gone.
    FieldBusyError
        If another run writes images.
    """
    field = engine.target
    ledger, wanted = field.ledger("place"), _grid_units(engine, grid)
    if all(ledger.has(unit.name, key) for unit, key in wanted):
        engine.skip(len(wanted))
        return
    owner = engine.holder[1] if engine.holder else new_run_id()
    with field.lease("images", owner):
        placer = Engine(field, engine.config, engine.executor, engine.progress, ("images", owner))
        # One list of reports and failures for the whole run.
        placer.reports, placer.failures = engine.reports, engine.failures
        failed = len(engine.failures)
        frames = field.frames()
        height, width = field.shape
        field.require_group(f"images/{grid}", {"time": frames.sizes["time"], "y": height, "x": width})
        placer.submit("place", _grid_units(engine, grid), label=f"place ({grid})")
        placer.collect()
        placer.finish()
    engine.skip(placer.skipped)
    if len(engine.failures) > failed:
        first = engine.failures[failed]
        raise IngestError(
            f"images/{grid} cannot be made: {first.unit}: {first.reason}; "
            "method needs the files that the field was made of where they were"
        )


def _grid_units(engine: Engine, grid: Grid) -> list[tuple[Unit, str]]:
    """Blocks of a grid and their keys, of the frames as the field holds them now."""
    field, config = engine.target, engine.config
    frames = field.frames()
    units = place.place_units(field, frames, frame_table.stored_headers(frames), 0, config, grid)
    return [(u, stage_key("place", config, u.name, {"frames": place.unit_identity(u)})) for u in units]
