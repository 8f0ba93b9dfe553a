"""The functions a person calls: make a field, run it, look at what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from threadpoolctl import threadpool_limits

from survey.config import Config, from_store
from survey.io.locations import Location, absolute, locate
from survey.io.store import Field, FieldError, holds_frames, is_field
from survey.run.engine import Engine, Progress, Silent
from survey.run.executor import Executor, connect
from survey.run.holding import held
from survey.run.ingest import IngestSummary, ingest
from survey.run.memory import loaded_apart
from survey.run.opening import keep_settings, kept_settings, other_settings
from survey.run.pairwise import check_program
from survey.run.pipeline import Pipeline, RunError
from survey.run.rebuild import begin_rebuild, end_rebuild
from survey.run.record import Recorder, RunSummary, begin, new_run_id, recorded
from survey.run.results import write_relative
from survey.run.settle import settle
from survey.run.targets import read_targets
from survey.stages.relative import RelativeError


def create_field(
    path: str | Location,
    frames: Sequence[str | Location],
    config: Config | None = None,
    *,
    client: Any = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> IngestSummary:
    """Make a field of frames.

    Parameters
    ----------
    path : path
        Directory of the new field.
    frames : sequence of path
        Files, directories or glob patterns.
    config : Config, optional
        Settings; the defaults serve calibrated FITS frames with a WCS or stars.
    client : distributed.Client or "synchronous", optional
        Where the work runs; by default an embedded cluster with a process a core.
    progress : Progress, optional
        Told what happens.
    strict : bool
        Refuse everything if one frame cannot be used.

    Returns
    -------
    IngestSummary
        With every frame left out and why.

    Raises
    ------
    FieldError
        If there is a field at the path already.
    FrameError, IngestError
        If no frame is usable.
    """
    if holds_frames(path):
        raise FieldError(f"{path}: there is a field already; add to it with append_frames")
    return append_frames(path, frames, config, client=client, progress=progress, strict=strict)


def append_frames(
    path: str | Location,
    frames: Sequence[str | Location],
    config: Config | None = None,
    *,
    client: Any = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> IngestSummary:
    """Add frames to a field; those it holds already are listed as duplicates and left out.

    Parameters as in `create_field`; the field's own settings are used where none are given.
    """
    config = config or stored_config(path)
    path = absolute(locate(path))
    with threadpool_limits(1), connect(config.cluster, client) as executor:
        return ingest(path, frames, config, executor, progress=progress, strict=strict, run_id=new_run_id())


def stored_config(path: str | Location) -> Config:
    """Settings of a field's last run, all but where work runs; the defaults where there is none yet."""
    if not is_field(path):
        return Config()
    return from_store(Field.open(path).attrs["config"], source=f"settings stored in {path}")


def run(
    path: str | Location,
    config: Config | None = None,
    *,
    client: Any = None,
    progress: Progress | None = None,
    frames: Sequence[str | Location] = (),
    strict: bool = False,
    rebuild: bool = False,
) -> RunSummary:
    """Run everything that is missing of a field: differences, events, light curves.

    Parameters
    ----------
    path : path
        The field; made of ``frames`` if it does not exist yet.
    config : Config, optional
        Settings; by default those stored in the field.
    client : distributed.Client or "synchronous", optional
        Where the work runs; by default an embedded cluster with a process a core. The numbers are the
        same to the last bit whatever runs them.
    progress : Progress, optional
        Told what happens.
    frames : sequence of path
        Frames to ingest first.
    strict : bool
        Stop if a frame cannot be used.
    rebuild : bool
        Compute everything again; one that did not end goes on where it was.

    Returns
    -------
    RunSummary
        Also written to ``<field>/runs``.

    Raises
    ------
    FieldBusyError
        If another run writes the field.
    HotpantsError
        If the method is hotpants and there is no such program.
    """
    config = config or stored_config(path)
    progress = progress or Silent()
    summary, clock = begin(path, config.method)
    path = absolute(locate(path))  # workers have working directories of their own
    # What the client combines must not depend on its BLAS threads either.
    with (
        threadpool_limits(1),
        loaded_apart(),
        connect(config.cluster, client) as executor,
        recorded(summary, path, config, clock, told=RunError) as record,
    ):
        if executor.dashboard:
            progress.message(f"dashboard: {executor.dashboard}")
        if not frames:
            Field.open(path)  # where there is none, nothing is left behind
        check_program(config, executor)
        with held(Field(path), summary.run_id, *_groups(config)) as leases:
            if frames:
                _take_in(path, frames, config, executor, progress, strict, record)
            field = Field.open(path)
            others = other_settings(field.attrs["config"], config)
            if others and not frames:  # an ingest has said so
                progress.message(f"{', '.join(others)}: as the field's images were made, not as given")
            asked = config = kept_settings(field, config)
            config, warnings = settle(field, config, progress, rebuild=rebuild)
            holder = (f"difference/{config.method}", summary.run_id)
            engine = Engine(field, config, executor, progress, holder, leases)
            record.follow(engine)
            for warning in warnings:
                engine.warn(warning)
            keep_settings(field, asked)
            if rebuild:
                begin_rebuild(field, config, summary.run_id, progress)
            targets = read_targets(field, config)
            pipeline = Pipeline(engine, targets)
            summary.events = len(pipeline.run())
            if config.photometry.relative and targets and not engine.failures:
                try:
                    write_relative(field, config, targets[0])
                except RelativeError as problem:
                    engine.warn(f"{targets[0]['object_id']}: no relative light curve: {problem}")
            engine.finish()
            end_rebuild(field, config)
    return summary


def _take_in(
    path: Location,
    frames: Sequence[str | Location],
    config: Config,
    executor: Executor,
    progress: Progress,
    strict: bool,
    record: Recorder,
) -> None:
    """Ingest a run's frames; what came of it goes into the run's summary."""
    summary = record.summary
    taken = ingest(
        path,
        frames,
        config,
        executor,
        progress=progress,
        strict=strict,
        run_id=summary.run_id,
        reports=record.reports,
    )
    summary.rejected, summary.failures = taken.rejected, list(taken.failures)
    summary.inputs, summary.added = taken.added, taken.frames
    for warning in taken.warnings:
        progress.message(warning)


def run_stage(
    path: str | Location,
    stage: str,
    tile: int | None = None,
    *,
    client: Any = "synchronous",
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Run one stage alone, on one tile or on all: for looking closely.

    Returns
    -------
    payloads : list of dict
        What each unit reported.
    reports : list of UnitReport
        Seconds and memory of each unit.

    Raises
    ------
    RunError
        If the tile does not exist, or what the stage needs is not there, or a unit failed.
    """
    field = Field.open(path)
    config, _ = settle(field, stored_config(path), progress or Silent())
    owner = new_run_id()
    with (
        connect(config.cluster, client) as executor,
        held(field, owner, *_groups(config)) as leases,
    ):
        holder = (f"difference/{config.method}", owner)
        engine = Engine(field, config, executor, progress or Silent(), holder, leases)
        payloads = Pipeline(engine).only(stage, tile)
        engine.finish()
        if engine.failures:
            raise RunError("; ".join(f"{f.unit}: {f.reason}" for f in engine.failures))
        return payloads, engine.reports


def _groups(config: Config) -> list[str]:
    """What a run holds: a method's groups, the reference that all methods lean on, and the frames.

    Frames that came in while it works would be in some of its tiles and not in others.
    """
    return ["images", *(f"difference/{method}" for method in sorted({config.method, "oversampled"}))]
