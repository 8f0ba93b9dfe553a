"""Commands about templates: template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from survey.cli._common import FIELD, change_cluster, scheduler_options
from survey.cli._group import main
from survey.io.locations import Location


@main.command()
@click.argument("field", type=FIELD)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="stack, ps1, ls, hips:<id>, or a FITS image with a WCS; without it, the templates are listed.",
)
@click.option("--name", help="Name of the template; by default after the source.")
@click.option("--frames", type=click.IntRange(3), help="stack: so many of the sharpest frames.")
@click.option("--after", type=float, metavar="MJD", help="stack: only frames after this time.")
@click.option("--before", type=float, metavar="MJD", help="stack: only frames before this time.")
@click.option("--leave-out", multiple=True, metavar="FRAME", help="stack: not this frame; may be repeated.")
@click.option("--band", help="ps1, ls: by default the field's.")
@click.option("--server", metavar="URL", help="ps1, ls, hips: a mirror.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of fetched files; or $SURVEY_CACHE.")
@click.option("--asinh/--linear", default=None, help="hips: scale of its values; by default by its name.")
@click.option("--catalog", type=click.Path(path_type=Path), help="Table of stars: bad ones are masked.")
@click.option("--magnitude", default="mag", show_default=True, help="Column of the catalog.")
@click.option("--saturation", type=float, metavar="MAG", help="Brighter stars of the catalog are masked.")
@click.option("--mask-radius", default=5.0, show_default=True, help="Pixels masked around a bad star.")
@scheduler_options
def template(
    field: Location,
    source: str | None,
    name: str | None,
    frames: int | None,
    after: float | None,
    before: float | None,
    leave_out: tuple[str, ...],
    band: str | None,
    server: str | None,
    cache: Path | None,
    asinh: bool | None,
    catalog: Path | None,
    magnitude: str,
    saturation: float | None,
    mask_radius: float,
    cluster: dict[str, Any],
) -> None:
    """Make a template on the grid of a field, for the methods sfft, zogy and hotpants.

    \b
    Examples:
      survey template field                            what there is
      survey template field --from stack
      survey template field --from stack --before 58107.2 --name before
      survey template field --from deep.fits --name deep
      survey template field --from ps1 --band r
      survey template field --from hips:CDS/P/DES-DR2/r --name des

    A run uses it with  [subtraction] template = "deep". A stack is made in this process, or with --workers or
    --scheduler on a cluster.
    """
    from survey.progress import TerminalProgress
    from survey.run.api import stored_config
    from survey.run.template import Survey, make_template
    from survey.stages.stack import Choice
    from survey.templates.fetch import Archive, default_folder

    if source is None:
        _list(field)
        return
    config = stored_config(field)
    change_cluster(config, **cluster)
    choice = Choice(frames, after, before, leave_out)
    archive = Archive(cache or default_folder())
    asked = Survey(band, server, archive, asinh, catalog, magnitude, saturation, mask_radius)
    with TerminalProgress() as progress:
        found = make_template(
            field, source, name, choice=choice, survey_of=asked, progress=progress, cluster=config.cluster,
            client=None if any(cluster.values()) else "synchronous",
        )  # fmt: skip
    click.echo(f'template/{found.name}: {found.coverage:.1%} of the field is good; [subtraction] template = '
               f'"{found.name}"')  # fmt: skip


def _list(field: Location) -> None:
    """Name, source and date of every template."""
    from survey.run.template import list_templates

    found = list_templates(field)
    for attrs in found:
        click.echo(f"{attrs['name']:<16} from {attrs['source']}, {attrs['date']}")
    if not found:
        click.echo(f"no template yet: survey template {field} --from stack", err=True)
