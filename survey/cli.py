"""The command `survey`: thin words over the public functions. Heavy imports wait until they are needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import survey.upkeep_cli  # noqa: F401  (its commands join those of cluster_cli)
from survey.cluster_cli import COMMANDS as CLUSTER_COMMANDS

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Failed(click.ClickException):
    """Something that a person can mend: shown without a traceback."""


class _Group(click.Group):
    """Shows expected errors as one line, and interruptions as what they are."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("\ninterrupted; what was done is kept: run the same command again to resume", err=True)
            sys.exit(130)
        except (ValueError, RuntimeError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            raise Failed(f"{error}") from None


@click.group(name="survey", cls=_Group, context_settings=CONTEXT)
@click.option("--traceback", is_flag=True, help="Show Python tracebacks of errors.")
@click.version_option(package_name="survey")
def main(traceback: bool) -> None:
    """Difference imaging and event search for image time series.

    \b
    survey demo                          a simulated field through everything
    survey run night/*.fits -o field     frames in; differences, events and light curves out
    survey events field                  what was found
    survey report field                  the page to look at
    """


def _scheduler(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler to use.")(
        function
    )
    return click.option("--workers", type=click.IntRange(1), help="Processes of the embedded cluster.")(
        function
    )


def _config(path: Path | None, **changes: Any) -> Any:
    from survey.config import Config, load_config

    config = load_config(path) if path else Config()
    if changes.get("scheduler"):
        config.cluster.scheduler = changes["scheduler"]
    if changes.get("workers"):
        config.cluster.workers = changes["workers"]
    return config


def _finish(summary: Any) -> None:
    """Say what came of a run; exit status 0 only if all that was asked for was done."""
    for name, reason in summary.rejected:
        click.echo(f"left out {Path(name).name}: {reason}", err=True)
    for failure in summary.failures:
        click.echo(f"failed {failure.stage} {failure.unit}: {failure.reason}", err=True)
    click.echo(
        f"{summary.status}: {summary.events} events, {summary.computed} units computed, "
        f"{summary.skipped} there already, {summary.seconds:.1f} s",
        err=True,
    )
    if not summary.ok:
        sys.exit(1)


@main.command()
@click.option(
    "-o", "--output", "directory", type=click.Path(path_type=Path), default=Path("demo"), metavar="DIR"
)
@click.option("--size", type=click.IntRange(64), default=256, show_default=True, help="Edge in pixels.")
@click.option("--frames", type=click.IntRange(48), default=96, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def demo(directory: Path, size: int, frames: int, seed: int) -> None:
    """Simulate a Roman-like field, run everything on it, and compare the events with the truth.

    Example: survey demo -o demo
    """
    from survey.demo import demo as run_demo
    from survey.progress import TerminalProgress

    with TerminalProgress() as progress:
        summary, comparison, page = run_demo(
            directory, size=size, frames=frames, seed=seed, progress=progress
        )
    rows = comparison.get("rows", [])
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        click.echo(f"{kind}: {sum(bool(row['found']) for row in mine)} of {len(mine)} found")
    click.echo(f"false alarms: {len(comparison.get('false_alarms', []))}")
    click.echo(f"look at {page}")
    _finish(summary)


@main.command()
@click.option("-o", "--output", "directory", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--size", type=click.IntRange(32), default=256, show_default=True, help="Edge in pixels.")
@click.option("--frames", type=click.IntRange(1), default=96, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--events", type=click.IntRange(0), default=12, show_default=True, help="Microlensing events.")
@click.option("--rotation", type=float, default=0.0, show_default=True, help="Largest rotation, degrees.")
@click.option("--overwrite", is_flag=True, help="Replace frames in the directory.")
def simulate(
    directory: Path, size: int, frames: int, seed: int, events: int, rotation: float, overwrite: bool
) -> None:
    """Write a crowded, dithered, Roman-like series of FITS frames, and the truth about it.

    Example: survey simulate -o frames --size 512 --frames 96
    """
    from survey.progress import TerminalProgress
    from survey.simulate import simulate_field

    with TerminalProgress() as progress:
        progress.start("simulate", frames, 0)
        simulate_field(
            directory,
            size=size,
            frames=frames,
            seed=seed,
            events=events,
            rotation=rotation,
            overwrite=overwrite,
            progress=lambda done, total: progress.advance("simulate", None),
        )


@main.command()
@click.argument("frames", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=click.Path(path_type=Path), required=True, metavar="FIELD")
@click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), help="Settings (TOML).")
@click.option("--strict", is_flag=True, help="Stop if one frame cannot be used.")
@_scheduler
def ingest(
    frames: tuple[str, ...],
    field: Path,
    config_path: Path | None,
    strict: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Make a field of frames, or append frames to one.

    Example: survey ingest night1/*.fits -o field
    """
    from survey.progress import TerminalProgress
    from survey.run.api import append_frames, stored_config

    config = (
        _config(config_path, scheduler=scheduler, workers=workers) if config_path else stored_config(field)
    )
    if scheduler:
        config.cluster.scheduler = scheduler
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
@click.option("-o", "--output", "field", type=click.Path(path_type=Path), metavar="FIELD")
@click.option("--method", type=click.Choice(["oversampled", "cpm", "sfft"]), help="Difference method.")
@click.option("--strict", is_flag=True, help="Stop if one frame cannot be used.")
@click.option("--rebuild", is_flag=True, help="Compute everything again.")
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@_scheduler
def run(
    sources: tuple[str, ...],
    field: Path | None,
    method: str | None,
    strict: bool,
    rebuild: bool,
    no_report: bool,
    scheduler: str | None,
    workers: int | None,
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

    target, config, frames = _run_arguments(sources, field)
    if scheduler:
        config.cluster.scheduler = scheduler
    if workers:
        config.cluster.workers = workers
    if method:
        config.method = method
    with TerminalProgress() as progress:
        summary = run_field(target, config, progress=progress, frames=frames, strict=strict, rebuild=rebuild)
        if not no_report and summary.ok:
            _write_report(target, config.method, progress)
    _finish(summary)


def _run_arguments(sources: tuple[str, ...], field: Path | None) -> tuple[Path, Any, list[str]]:
    """Tell a field, a settings file and frames apart."""
    from survey.config import Config, load_config
    from survey.run.api import stored_config

    first = Path(sources[0])
    if len(sources) == 1 and (first / "cube.zarr").exists():
        if field is not None and field != first:
            raise click.UsageError("a field is run where it is: leave -o out")
        return first, stored_config(first), []
    if len(sources) == 1 and first.suffix == ".toml":
        config = load_config(first)
        target = field or first.with_suffix("")
        return target, config, list(config.input.frames)
    if field is None:
        raise click.UsageError("say where the field shall be: -o FIELD")
    config = stored_config(field) if (field / "cube.zarr").exists() else Config()
    return field, config, list(sources)


def _write_report(field: Path, method: str, progress: Any) -> None:
    from survey.report import write_report

    progress.message(f"report: {write_report(field, method)}")


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=click.Path(path_type=Path), metavar="FIELD")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--workers", type=click.IntRange(1), help="Processes to plan for.")
def plan(sources: tuple[str, ...], field: Path | None, as_json: bool, workers: int | None) -> None:
    """Forecast memory, disk and time of a run; starts and writes nothing.

    Example: survey plan night/*.fits -o field
    """
    import json
    from dataclasses import asdict

    from survey.run.plan import plan as make_plan

    target, config, frames = _run_arguments(sources, field)
    if workers:
        config.cluster.workers = workers
    forecast = make_plan(target, config, frames)
    if as_json:
        click.echo(json.dumps(asdict(forecast)))
        return
    for name, value in forecast.rows():
        click.echo(f"{name:<12} {value}")


@main.command()
@click.argument("field", type=click.Path(path_type=Path))
@click.option("--method", default="oversampled", show_default=True)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "ecsv", "votable", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File; needed for parquet.")
def events(field: Path, method: str, form: str, output: Path | None) -> None:
    """List the events found in a field.

    Example: survey events field --format csv > events.csv
    """
    from survey.run.results import list_events

    _print_table(list_events(field, method), form, output)


@main.command()
@click.argument("field", type=click.Path(path_type=Path))
@click.option("--event", metavar="ID", help="An event of the list.")
@click.option("--ra", type=float, help="Degrees.")
@click.option("--dec", type=float, help="Degrees.")
@click.option("--x", type=float, help="Pixel of the reference grid, from 0.")
@click.option("--y", type=float)
@click.option("--method", default="oversampled", show_default=True)
@click.option(
    "--relative", is_flag=True, help="Corrected by comparison stars, in units of the reference flux."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "ecsv", "votable", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File; needed for parquet.")
def lightcurve(
    field: Path,
    event: str | None,
    ra: float | None,
    dec: float | None,
    x: float | None,
    y: float | None,
    method: str,
    relative: bool,
    form: str,
    output: Path | None,
) -> None:
    """Print the light curve of an event or of any position.

    Example: survey lightcurve field --ra 31.0427 --dec 46.6878 --relative --format csv
    """
    from survey.run.results import light_curve

    table = light_curve(field, method, event=event, ra=ra, dec=dec, x=x, y=y, relative=relative)
    _print_table(table, form, output)


def _print_table(table: Any, form: str, output: Path | None) -> None:
    from survey.io.catalogs import dump_table, write_table

    if output is not None:
        write_table(table, output, format=None if form == "table" else form)
    elif form == "parquet":
        raise click.UsageError("parquet is no text: give a file with -o")
    else:
        click.echo(dump_table(table, form), nl=False)


@main.command()
@click.argument("field", type=click.Path(path_type=Path))
@click.option("--method", default="oversampled", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Instead of FIELD/report.html.")
def report(field: Path, method: str, output: Path | None) -> None:
    """Draw the report of a field: one self-contained HTML page.

    Example: survey report field
    """
    from survey.report import write_report

    click.echo(write_report(field, method, output))


def _stage_command(stage: str, words: str) -> None:
    @main.command(name=stage, help=f"{words}\n\nExample: survey {stage} field --tile 3")
    @click.argument("field", type=click.Path(path_type=Path))
    @click.option(
        "--tile", type=click.IntRange(0), help="This tile only, in this process; default all tiles."
    )
    def command(field: Path, tile: int | None) -> None:
        import json

        from survey.progress import TerminalProgress
        from survey.run.api import run_stage

        with TerminalProgress() as progress:
            payloads, reports = run_stage(
                field, stage, tile, client=None if tile is None else "synchronous", progress=progress
            )
        for report, payload in zip(reports, payloads, strict=False):
            seconds = ", ".join(f"{name} {value:.2f} s" for name, value in report.seconds.items())
            memory = (report.peak_memory - report.baseline_memory) / 2**20
            click.echo(f"{report.unit}: {seconds}, {memory:.0f} MiB above the baseline")
            click.echo(json.dumps({k: v for k, v in payload.items() if not isinstance(v, list)}))


_stage_command("oversampled", "Fit the oversampled reference and its differences: this stage alone.")
_stage_command("detect", "Search the differences for peaks: this stage alone.")
_stage_command("candidates", "Measure the search's peaks: this stage alone.")
_stage_command("photometry", "Light curves of events and targets: this stage alone.")


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", required=True, type=click.Path(path_type=Path), metavar="FIELD")
@click.option("--interval", default=10.0, show_default=True, help="Seconds between looks.")
@click.option("--settle", default=2.0, show_default=True, help="Seconds a file must not have changed.")
@click.option("--first", type=click.IntRange(1), help="Frames to wait for before a new field is made.")
@click.option("--idle", type=float, help="Stop when nothing has come for so many seconds.")
def watch(
    sources: tuple[str, ...],
    field: Path,
    interval: float,
    settle: float,
    first: int | None,
    idle: float | None,
) -> None:
    """Work on frames as they arrive in a directory; Ctrl-C stops, and leaves a field that can be resumed.

    \b
    Example:
      survey watch night/ -o field --interval 30
    """
    from survey.progress import TerminalProgress
    from survey.run.watch import Batch
    from survey.run.watch import watch as watch_frames

    def tell(batch: Batch) -> None:
        left_out = len(batch.summary.rejected)
        click.echo(
            f"{batch.summary.run_id}: {len(batch.latency)} frames, {left_out} left out, "
            f"{batch.summary.events} events; latency up to {batch.slowest:.0f} s"
        )

    with TerminalProgress() as progress:
        watch_frames(
            list(sources),
            field,
            interval=interval,
            settle=settle,
            first=first,
            idle=idle,
            progress=progress,
            done=tell,
        )


for _found in CLUSTER_COMMANDS:
    main.add_command(_found)


if __name__ == "__main__":
    main()
