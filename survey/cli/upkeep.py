"""Commands that look after a field: verify, prune, unlock."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from survey.cli._common import FIELD, METHOD
from survey.cli._group import main
from survey.io.locations import Location


@main.command()
@click.argument("field", type=FIELD)
@click.option("--repair", is_flag=True, help="Place images again; have the next run make the rest again.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(field: Location, repair: bool, as_json: bool) -> None:
    """Compare everything a field holds with the checksums of what was written.

    Exit status 0 only if nothing is wrong.

    Example: survey verify field --repair && survey run field
    """
    from survey.run.verify import verify as verify_field

    found = verify_field(field, repair=repair)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    for problem in found.problems if not as_json else ():
        click.echo(f"{problem.ledger} {problem.unit}: {problem.what}".strip())
    click.echo(f"{found.checked} units checked, {len(found.problems)} problems", err=True)
    for problem in found.hopeless:
        click.echo(f"{problem.ledger} {problem.unit}: {problem.what}", err=True)
    if found.repaired:
        click.echo(f"{len(found.repaired)} units mended or to be made again: survey run {field}", err=True)
    sys.exit(1 if found.hopeless or (found.problems and not repair) else 0)


@main.command()
@click.argument("field", type=FIELD)
@click.option("--delete", is_flag=True, help="Remove what is listed; without it nothing is touched.")
@click.option("--keep-runs", type=click.IntRange(0), help="Also the records of all but the latest runs.")
@click.option("--method", type=METHOD, help="Also everything made by this difference method.")
@click.option("--template", help="Also this template.")
def prune(
    field: Location, delete: bool, keep_runs: int | None, method: str | None, template: str | None
) -> None:
    """List, and with --delete remove, what no run will look at again.

    Example: survey prune field --keep-runs 10 --delete
    """
    from survey.run.upkeep import prune as prune_field

    found = prune_field(field, delete=delete, keep_runs=keep_runs, method=method, template=template)
    for leftover in found:
        click.echo(f"{leftover.size / 1e6:10.2f} MB  {leftover.path}  ({leftover.why})")
    total = sum(leftover.size for leftover in found) / 1e6
    click.echo(f"{total:.2f} MB {'removed' if delete else 'could go: --delete'}", err=True)


@main.command()
@click.argument("field", type=FIELD)
@click.option("--force", is_flag=True, help="Also where the run seems alive: two writers lose data.")
def unlock(field: Location, force: bool) -> None:
    """Remove the locks of runs that are dead.

    Exit status 0 only if nothing is locked afterwards.

    Example: survey unlock field
    """
    from survey.run.upkeep import unlock as unlock_field

    found = unlock_field(field, force=force)
    for held in found:
        state = "alive" if held.alive else "dead"
        what = "removed" if held.removed else "kept; --force removes it"
        click.echo(f"{held.group}: run {held.owner}, process {held.pid} on {held.host}, {state}: {what}")
    sys.exit(0 if all(held.removed for held in found) else 1)
