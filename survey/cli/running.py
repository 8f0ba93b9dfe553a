"""Commands that compute: ingest, run, watch, plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from survey.cli._common import (
    FIELD,
    METHOD,
    change_cluster,
    finish,
    load_settings,
    run_arguments,
    scheduler_options,
)
from survey.cli._group import main
from survey.io.locations import Location


@main.command()
@click.argument("frames", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=FIELD, required=True, metavar="FIELD")
@click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), help="Settings (TOML).")
@click.option("--strict", is_flag=True, help="Stop if one frame cannot be used.")
@scheduler_options
def ingest(
    frames: tuple[str, ...],
    field: Location,
    config_path: Path | None,
    strict: bool,
    cluster: dict[str, Any],
) -> None:
    """Make a field of frames, or append frames to one.

    Example: survey ingest night1/*.fits -o field
    """
    from survey.progress import TerminalProgress
    from survey.run.api import append_frames

    config = load_settings(config_path, field, **cluster)
    with TerminalProgress() as progress:
        summary = append_frames(field, frames, config, progress=progress, strict=strict)
    for name, reason in summary.rejected:
        click.echo(f"left out {Path(name).name}: {reason}", err=True)
    for text in summary.warnings:
        click.echo(text, err=True)
    for failure in summary.failures:
        click.echo(f"failed {failure.unit}: {failure.reason}", err=True)
    click.echo(f"{summary.added} frames added", err=True)
    if summary.failures:
        sys.exit(1)


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=FIELD, metavar="FIELD")
@click.option("--method", type=METHOD, help="Difference method.")
@click.option("--strict", is_flag=True, help="Stop if one frame cannot be used.")
@click.option("--rebuild", is_flag=True, help="Compute everything again.")
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@scheduler_options
def run(
    sources: tuple[str, ...],
    field: Location | None,
    method: str | None,
    strict: bool,
    rebuild: bool,
    no_report: bool,
    cluster: dict[str, Any],
) -> None:
    """Run all stages: on frames, by a settings file, or on a field.

    What is done already is not done again, so an interrupted run is resumed by the same command.

    \b
    Examples:
      survey run night/*.fits -o field
      survey run settings.toml -o field
      survey run field --scheduler tcp://10.0.0.1:8786
    """
    from survey.progress import TerminalProgress
    from survey.run.api import run as run_field

    target, config, frames = run_arguments(sources, field)
    change_cluster(config, **cluster)
    if method:
        config.method = method
    with TerminalProgress() as progress:
        summary = run_field(target, config, progress=progress, frames=frames, strict=strict, rebuild=rebuild)
        if not no_report and summary.ok:
            _write_report(target, config.method, progress)
    finish(summary)


def _write_report(field: Location, method: str, progress: Any) -> None:
    from survey.report import write_report

    progress.message(f"report: {write_report(field, method)}")


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=FIELD, required=True, metavar="FIELD")
@click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), help="Settings (TOML).")
@click.option("--interval", default=10.0, show_default=True, help="Seconds between looks.")
@click.option("--settle", default=2.0, show_default=True, help="Seconds a file must not have changed.")
@click.option("--first", type=click.IntRange(1), help="Frames to wait for before a new field is made.")
@click.option("--idle", type=float, help="Stop when nothing has come for so many seconds.")
@scheduler_options
def watch(
    sources: tuple[str, ...],
    field: Location,
    config_path: Path | None,
    interval: float,
    settle: float,
    first: int | None,
    idle: float | None,
    cluster: dict[str, Any],
) -> None:
    """Work on frames as they arrive in a directory; Ctrl-C stops, and leaves a field that can be resumed.

    Example: survey watch night/ -o field --interval 30
    """
    from survey.progress import TerminalProgress
    from survey.run.watch import Batch
    from survey.run.watch import watch as watch_frames

    def tell(batch: Batch) -> None:
        click.echo(
            f"{batch.summary.run_id}: {len(batch.latency)} frames, {len(batch.summary.rejected)} left out, "
            f"{batch.summary.events} events; latency up to {batch.slowest:.0f} s"
        )

    config = load_settings(config_path, field, **cluster)
    with TerminalProgress() as progress:
        watch_frames(
            list(sources), field, config, interval=interval, settle=settle, first=first, idle=idle,
            progress=progress, done=tell,
        )  # fmt: skip


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=FIELD, metavar="FIELD")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--workers", type=click.IntRange(1), help="Processes to plan for.")
def plan(sources: tuple[str, ...], field: Location | None, as_json: bool, workers: int | None) -> None:
    """Forecast memory, disk and time of a run; starts and writes nothing.

    Example: survey plan night/*.fits -o field
    """
    import json
    from dataclasses import asdict

    from survey.run.plan import plan as make_plan

    target, config, frames = run_arguments(sources, field)
    change_cluster(config, workers=workers)
    forecast = make_plan(target, config, frames)
    if as_json:
        click.echo(json.dumps(asdict(forecast)))
        return
    for name, value in forecast.rows():
        click.echo(f"{name:<12} {value}")
