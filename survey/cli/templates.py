"""Commands about templates: template."""

from __future__ import annotations

from pathlib import Path

import click

from survey.cli._common import change_cluster, scheduler_options
from survey.cli._group import main


@main.command()
@click.argument("field", type=click.Path(path_type=Path))
@click.option("--from", "source", required=True, metavar="SOURCE", help="stack, or a FITS image with a WCS.")
@click.option("--name", help="Name of the template; by default after the source.")
@click.option("--frames", type=click.IntRange(3), help="stack: so many of the sharpest frames.")
@click.option("--after", type=float, metavar="MJD", help="stack: only frames after this time.")
@click.option("--before", type=float, metavar="MJD", help="stack: only frames before this time.")
@click.option("--leave-out", multiple=True, metavar="FRAME", help="stack: not this frame; may be repeated.")
@scheduler_options
def template(
    field: Path,
    source: str,
    name: str | None,
    frames: int | None,
    after: float | None,
    before: float | None,
    leave_out: tuple[str, ...],
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Make a template on the grid of a field, for the methods sfft, zogy and hotpants.

    \b
    Examples:
      survey template field --from stack
      survey template field --from stack --before 58107.2 --name before
      survey template field --from deep.fits --name deep

    A run uses it with  [subtraction] template = "deep". A stack is made in this process, or with --workers or
    --scheduler on a cluster.
    """
    from survey.progress import TerminalProgress
    from survey.run.api import stored_config
    from survey.run.template import make_template
    from survey.stages.stack import Choice

    config = stored_config(field)
    change_cluster(config, scheduler=scheduler, workers=workers)
    choice = Choice(frames, after, before, leave_out)
    with TerminalProgress() as progress:
        found = make_template(
            field, source, name, choice=choice, progress=progress, cluster=config.cluster,
            client=None if scheduler or workers else "synchronous",
        )  # fmt: skip
    click.echo(f'template/{found.name}: {found.coverage:.1%} of the field is good; [subtraction] template = '
               f'"{found.name}"')  # fmt: skip
