"""What several commands share: options, settings, how a run ends, how a table is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from survey.io.locations import Location, locate


class FieldType(click.ParamType):
    """Where a field lives: a directory, or s3://BUCKET/NAME (gs://, az://)."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        try:
            return locate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


FIELD = FieldType()
# As in `survey.stages.methods`, which takes a second to import.
METHOD = click.Choice(["oversampled", "cpm", "sfft", "zogy", "hotpants"])


def scheduler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where the work runs; the command gets them as ``cluster``, for `change_cluster`."""

    @click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler: tcp://… or tls://…")
    @click.option(
        "--tls", type=click.Path(path_type=Path), help="Certificates, as `survey certs` makes them."
    )
    @click.option("--workers", type=click.IntRange(1), help="Processes, where a cluster is started for it.")
    @wraps(command)
    def with_cluster(
        *args: Any, scheduler: str | None, tls: Path | None, workers: int | None, **options: Any
    ) -> Any:
        folder = str(tls.resolve()) if tls else None
        cluster = {"scheduler": scheduler, "tls": folder, "workers": workers}
        return command(*args, cluster=cluster, **options)

    return with_cluster


def load_settings(path: Path | None, field: Location, **changes: Any) -> Any:
    """Settings of a file, or else those that the field keeps, with what the command line changes."""
    from survey.config import load_config
    from survey.run.api import stored_config

    config = load_config(path) if path else stored_config(field)
    change_cluster(config, **changes)
    return config


def change_cluster(config: Any, **changes: Any) -> None:
    """Put what the command line says of the cluster into the settings; None leaves a setting as it is."""
    for name, value in changes.items():
        if value is not None:
            setattr(config.cluster, name, value)


def finish(summary: Any) -> None:
    """Say what came of a run; exit status 0 only if all that was asked for was done."""
    for name, reason in summary.rejected:
        click.echo(f"left out {Path(name).name}: {reason}", err=True)
    for failure in summary.failures:
        click.echo(f"failed {failure.stage} {failure.unit}: {failure.reason}", err=True)
    if summary.failed_pairs:
        click.echo(f"left out {summary.failed_pairs} pairs that could not be subtracted", err=True)
    click.echo(
        f"{summary.status}: {summary.events} events, {summary.computed} units computed, "
        f"{summary.skipped} there already, {summary.seconds:.1f} s",
        err=True,
    )
    if not summary.ok:
        sys.exit(1)


def run_arguments(sources: tuple[str, ...], field: Location | None) -> tuple[Location, Any, list[str]]:
    """Tell a field, a settings file and frames apart."""
    from survey.config import load_config
    from survey.io.store import is_field
    from survey.run.api import stored_config

    first = locate(sources[0])
    if len(sources) == 1 and is_field(first):
        if field is not None and field != first:
            raise click.UsageError("a field is run where it is: leave -o out")
        return first, stored_config(first), []
    if len(sources) == 1 and first.suffix == ".toml":
        config = load_config(sources[0])
        target = field or Path(sources[0]).with_suffix("")
        return target, config, list(config.input.frames)
    if field is None:
        raise click.UsageError("say where the field shall be: -o FIELD")
    return field, stored_config(field), list(sources)


def print_table(table: Any, form: str, output: Path | None) -> None:
    from survey.io.catalogs import dump_table, write_table

    if output is not None:
        write_table(table, output, format=None if form == "table" else form)
    elif form == "parquet":
        raise click.UsageError("parquet is no text: give a file with -o")
    else:
        click.echo(dump_table(table, form), nl=False)
