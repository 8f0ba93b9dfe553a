"""Commands that show what was found: events, lightcurve, report."""

from __future__ import annotations

from pathlib import Path

import click

from survey.cli._common import FIELD, METHOD, print_table
from survey.cli._group import main
from survey.io.locations import Location

FORM = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "ecsv", "votable", "parquet"]),
    default="table",
    show_default=True,
)
OUTPUT = click.option("-o", "--output", type=click.Path(path_type=Path), help="File; needed for parquet.")


@main.command()
@click.argument("field", type=FIELD)
@click.option("--method", type=METHOD, default="oversampled", show_default=True)
@FORM
@OUTPUT
def events(field: Location, method: str, form: str, output: Path | None) -> None:
    """List the events found in a field.

    Times are MJD at mid-exposure, pixels of the reference grid count from 0. Flags add up: 1 edge,
    2 saturated neighbour, 4 single epoch, 8 moving, 16 unlike the PSF.

    Example: survey events field --format csv > events.csv
    """
    from survey.run.results import list_events

    print_table(list_events(field, method), form, output)


@main.command()
@click.argument("field", type=FIELD)
@click.option("--event", metavar="ID", help="An event of the list.")
@click.option("--ra", type=float, help="Degrees.")
@click.option("--dec", type=float, help="Degrees.")
@click.option("--x", type=float, help="Pixel of the reference grid, from 0.")
@click.option("--y", type=float)
@click.option("--method", type=METHOD, default="oversampled", show_default=True)
@click.option(
    "--relative", is_flag=True, help="Corrected by comparison stars, in units of the reference flux."
)
@FORM
@OUTPUT
def lightcurve(
    field: Location,
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

    Flux is that of the difference, in the image's unit: add reference_flux for the star's own. Flags add
    up: 1 no data, 2 a bad pixel within the PSF, 4 kept out of the reference's fit, 8 a flagged frame.

    Example: survey lightcurve field --ra 31.0427 --dec 46.6878 --relative --format csv
    """
    from survey.run.results import light_curve

    table = light_curve(field, method, event=event, ra=ra, dec=dec, x=x, y=y, relative=relative)
    print_table(table, form, output)


@main.command()
@click.argument("field", type=FIELD)
@click.option("--method", type=METHOD, default="oversampled", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Instead of FIELD/report.html.")
def report(field: Location, method: str, output: Path | None) -> None:
    """Draw the report of a field: one self-contained HTML page.

    Example: survey report field
    """
    from survey.report import write_report

    click.echo(write_report(field, method, output))
