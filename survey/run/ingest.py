"""Frames into a field: scanned, registered, placed; new ones appended later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xarray as xr

from survey.config import Config
from survey.io.calibration import check_calibration
from survey.io.frames import FrameHeader, FrameSource, Scan, combine_scans, find_files, scan_file
from survey.io.ledger import FieldBusyError, Lease
from survey.io.locations import Location, locate
from survey.io.store import Field, holds_frames
from survey.run.calls import OF_THE_MACHINE, map_calls
from survey.run.engine import Engine, Failure, Progress, Silent, stage_key
from survey.run.executor import Executor
from survey.run.opening import clear_unfinished, open_or_create, other_settings
from survey.run.pattern import FieldPattern
from survey.run.progress import describe
from survey.run.worker import UnitReport
from survey.stages import frame_table, place, register
from survey.stages.measure import FrameMeasure, measure_frame

logger = logging.getLogger(__name__)

# What placing is called in progress and among failures.
INGEST = "ingest"
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
    reports = [] if reports is None else reports
    work = _Ingest(path, config, executor, progress or Silent(), strict, run_id, reports)
    work.measure(work.scan(find_files([str(f) for f in frames])))
    while work.register():
        if work.place():
            break
    return work.summary


class _Ingest:
    """The steps of an ingest, and what each leaves to the next."""

    def __init__(
        self,
        path: str | Location,
        config: Config,
        executor: Executor,
        progress: Progress,
        strict: bool,
        run_id: str,
        reports: list[UnitReport],
    ) -> None:
        self.path, self.config, self.executor = path, config, executor
        self.progress, self.strict, self.run_id, self.reports = progress, strict, run_id, reports
        self.exists = holds_frames(path)
        self.others: list[str] = []
        self.old: xr.Dataset | None = None
        self.held: FrameMeasure | None = None
        if self.exists:
            target = Field.open(path)
            check_calibration(config.input, target.attrs.get("calibration", ()), str(path))
            self.others = other_settings(target.attrs["config"], config)
            self.old = target.frames()
            self.held = frame_table.stored_reference(target.table("stars"))
        self.summary = self.looked = IngestSummary()
        self.measures: list[FrameMeasure] = []
        # Frames found damaged when they were placed, with the reason.
        self.lost: dict[FrameSource, str] = {}

    def _map(self, function: Callable[..., Any], items: Sequence[Any], label: str, *args: Any) -> list[Any]:
        return map_calls(self.executor, function, items, self.progress, label, *args, reports=self.reports)

    def scan(self, files: Sequence[str]) -> Scan:
        """Headers of the files' frames, and which of them cannot be used."""
        chunks = [files[i : i + FILES_A_TASK] for i in range(0, len(files), FILES_A_TASK)]
        scans = [
            scan
            for chunk in _raise_first(self._map(_scan_files, chunks, "scan", self.config))
            for scan in chunk
        ]
        known = [] if self.old is None else frame_table.stored_headers(self.old)
        found = combine_scans(scans, self.config.input, known)
        self.looked = IngestSummary(
            rejected=[(r.source.path, r.reason) for r in found.rejected], warnings=list(found.warnings)
        )
        if self.others:
            self.looked.warnings.append(
                f"the frames in the field were taken in with other settings ({', '.join(self.others)}) and "
                "stay as they are; make a new field to change them"
            )
        self.n_files = len(files)
        self.asked = {r.source.path for r in found.rejected if r.kind == "filtered"}
        return found

    def measure(self, found: Scan) -> None:
        """Stars, sky and PSF width of every frame, less the detector's pattern.

        Raises
        ------
        IngestError
            If a frame could not be looked at for a reason that is not its own.
        """
        self.pattern = FieldPattern(
            self.path,
            found.headers,
            self.config,
            lambda function, items, *args: self._map(function, items, "pattern", *args),
            old=self.exists,
        )
        shared = self.pattern.share(self.executor)
        results = self._map(measure_frame, found.headers, "measure", self.config, shared)
        for header, result in zip(found.headers, results, strict=True):
            if isinstance(result, OF_THE_MACHINE):
                raise IngestError(
                    f"{header.source.path}: {describe(result)}, also alone; nothing is written: run again "
                    "when that is mended, or leave the frame out"
                ) from result
            if isinstance(result, BaseException):
                self.looked.rejected.append((header.source.path, str(result)))
            else:
                self.measures.append(result)

    def register(self) -> bool:
        """Put the frames on the reference's grid; False where the field exists and none is new.

        Raises
        ------
        IngestError
            If no frame is usable, or with ``strict`` if one is not.
        """
        lost = [(source.path, reason) for source, reason in self.lost.items()]
        summary = self.summary = replace(
            self.looked, rejected=[*self.looked.rejected, *lost], warnings=list(self.looked.warnings)
        )
        kept = [m for m in self.measures if m.header.source not in self.lost]
        self.new: xr.Dataset | None = None
        self.reference = self.held
        if kept:
            self.new, self.reference, unplaced, told = register.combine(kept, self.config, self.held)
            summary.rejected += [(source.path, reason) for source, reason in unplaced]
            summary.warnings += told
        bad = [reason for source, reason in summary.rejected if source not in self.asked]
        if self.strict and bad:
            raise IngestError(f"{len(bad)} frames cannot be used (--strict): {'; '.join(bad[:5])}")
        if self.new is not None and self.new.sizes["time"]:
            return True
        if not self.exists:
            reasons = "; ".join(reason for _, reason in summary.rejected[:5])
            raise IngestError(f"none of the {self.n_files} files gave a usable frame: {reasons}")
        return False

    def place(self) -> bool:
        """Write the frames; False where some turned out damaged, and the others are to be registered anew.

        Raises
        ------
        FieldBusyError
            If another ingest writes the field, or has added frames since this one began.
        IngestError
            If the first frames of a field cannot be written.
        """
        new, reference, summary = self.new, self.reference, self.summary
        assert new is not None
        assert reference is not None
        self.pattern.check(new, reference.header.shape)
        headers = frame_table.stored_headers(new)
        # A field has the reference of whoever holds the lease when it is made.
        with Field(locate(self.path)).lease("images", self.run_id) as lease:
            _check_unchanged(self.path, self.old)
            target = open_or_create(self.path, self.config, reference, new.sizes["time"])
            self.pattern.keep(target)
            damaged = self._write(target, new, headers, reference, lease)
        if damaged:
            self.progress.message(
                f"{len(damaged)} frames are damaged and left out; the others are placed again"
            )
            self.lost |= damaged
            return False
        if summary.failures and not self.exists:
            first = summary.failures[0]
            raise IngestError(
                f"{len(summary.failures)} blocks could not be placed: {first.unit}: {first.reason}"
            )
        if not summary.failures:
            summary.added = len(headers)
            summary.frames = [(h.frame_id, h.source.path, h.fingerprint) for h in headers]
        return True

    def _write(
        self,
        target: Field,
        new: xr.Dataset,
        headers: list[FrameHeader],
        reference: FrameMeasure,
        lease: Lease,
    ) -> dict[FrameSource, str]:
        """Write the new frames' blocks, then the table: the moment from which they belong to the field.

        Frames that turn out to be damaged are returned with the reason, and nothing belongs to the field.
        """
        old, config = self.old, self.config
        start = 0 if old is None else old.sizes["time"]
        table = new if old is None else frame_table.joined_tables(old, new)
        height, width = target.shape
        units = place.place_units(target, table, headers, start, config)
        clear_unfinished(target, start, table.sizes["time"], units)
        target.require_group("images/sky", {"time": table.sizes["time"], "y": height, "x": width})
        holder = ("images", self.run_id)
        engine = Engine(
            target, config, self.executor, self.progress, holder, leases=[lease], reports=self.reports
        )
        engine.submit(
            "place",
            [(u, stage_key("place", config, u.name, {"frames": place.unit_identity(u)})) for u in units],
            label=INGEST,
        )
        engine.collect()
        if damaged := {
            source: reason
            for error in engine.errors
            if isinstance(error, place.UnplacedError)
            for source, reason in error.lost
        }:
            return damaged
        self.summary.failures = engine.failures
        if not engine.failures:
            if not self.exists:
                # A field that holds frames must hold the stars that later ones are registered by.
                target.write_table("stars", frame_table.star_table(reference))
            target.write_table("frames", table)
            engine.finish()
        return {}


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
