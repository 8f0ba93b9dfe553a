"""Command that writes what a field holds for other programs: export."""

from __future__ import annotations

from pathlib import Path

import click

from survey.cli._common import FIELD, METHOD
from survey.cli._group import main
from survey.io.locations import Location


@main.command()
@click.argument("field", type=FIELD)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; by default FIELD/export.")
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(["reference", "templates", "differences", "cutouts", "events", "lightcurves", "all"]),
    help="May be repeated; by default all but differences and cutouts.",
)
@click.option("--method", type=METHOD, default="oversampled", show_default=True, help="Difference method.")
@click.option("--frame", "frames", multiple=True, metavar="NAME", help="Differences of this frame.")
@click.option("--event", "events", multiple=True, metavar="ID", help="Cutouts of this event.")
@click.option("--size", default=41, show_default=True, type=click.IntRange(3), help="Cutouts' edge, pixels.")
@click.option(
    "--tables",
    "table_format",
    type=click.Choice(["csv", "ecsv", "votable", "parquet"]),
    default="ecsv",
    show_default=True,
    help="Format of tables.",
)
def export(
    field: Location,
    output: Path | None,
    what: tuple[str, ...],
    method: str,
    frames: tuple[str, ...],
    events: tuple[str, ...],
    size: int,
    table_format: str,
) -> None:
    """Write images as FITS, and tables, for other programs.

    \b
    Examples:
      survey export field                              reference, templates, events, light curves
      survey export field --event E00001 --size 61     differences around an event, a cube
      survey export field --what differences --frame frame-0007
    """
    from survey.run.export import KINDS
    from survey.run.export import export as export_field

    asked = set(what) | ({"differences"} if frames else set()) | ({"cutouts"} if events else set())
    kinds = KINDS if "all" in asked else [kind for kind in KINDS if kind in asked]
    written = export_field(
        field, output, what=kinds or None, method=method, frames=frames, events=events, size=size,
        table_format=table_format,
    )  # fmt: skip
    for path in written:
        click.echo(path)
