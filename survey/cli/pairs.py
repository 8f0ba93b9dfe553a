"""Light curves from all pairs of frames: nn2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from survey.cli._common import (
    FIELD,
    METHOD,
    change_cluster,
    finish,
    load_settings,
    print_table,
    scheduler_options,
)
from survey.cli._group import main
from survey.io.locations import Location


@main.command()
@click.argument("field", type=FIELD)
@click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), help="Settings (TOML).")
@click.option("--targets", type=click.Path(path_type=Path), help="Table with ra, dec or x, y.")
@click.option("--method", type=METHOD, help="Difference method whose events are measured.")
@click.option(
    "--subtract", type=click.Choice(["sfft", "zogy", "hotpants", "carried"]), help="How pairs are subtracted."
)
@click.option("--pairs", metavar="all|K", help="All pairs, or K random partners a frame.")
@click.option("--compare", is_flag=True, help="Print NN2's scatter beside every single template's.")
@scheduler_options
def nn2(
    field: Location,
    config_path: Path | None,
    targets: Path | None,
    method: str | None,
    subtract: str | None,
    pairs: str | None,
    compare: bool,
    cluster: dict[str, Any],
) -> None:
    """Light curves of events and targets from all pairs of frames (Barris et al. 2005).

    They are written to FIELD/lightcurves/nn2, with the pairs they came of. What is done is not done again.

    Example: survey nn2 field --targets stars.csv --pairs 8 --compare
    """
    from survey.config import make_config
    from survey.io.store import Field
    from survey.progress import TerminalProgress
    from survey.run.nn2 import run_nn2

    config = load_settings(config_path, field)
    changes = {"subtract": subtract, "pairs": pairs if pairs in (None, "all") else _number(str(pairs))}
    values = config.model_dump()
    values["nn2"] |= {name: value for name, value in changes.items() if value is not None}
    if targets is not None:
        values["photometry"]["targets"] = str(targets.resolve())
    if method is not None:
        values["method"] = method
    config = make_config(values, source="command line")
    change_cluster(config, **cluster)
    with TerminalProgress() as progress:
        summary = run_nn2(field, config, progress=progress)
    if compare and summary.ok:
        print_table(_comparison(Field.open(field), config.method), "table", None)
    click.echo(f"{summary.events} light curves in {field / 'lightcurves' / 'nn2'}", err=True)
    finish(summary)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither 'all' nor a number", param_hint="--pairs") from None


def _comparison(field: Any, method: str) -> object:
    """One row a template: its scatter, and NN2's over it."""
    from astropy.table import Table

    from survey.stages.nn2_compare import compare_with_templates
    from survey.stages.nn2_curves import row_blocks

    found, epochs = compare_with_templates(row_blocks(field, method))
    names = field.frames()["frame_id"].values
    table = Table(found.rows())
    table["template"] = [str(names[k]) for k in epochs]
    for name in table.colnames[1:]:
        table[name].format = ".3g" if name == "ks_probability" else ".4g"
    return table
