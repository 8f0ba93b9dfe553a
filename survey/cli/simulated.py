"""Commands that make a field to try things on: demo, simulate."""

from __future__ import annotations

from pathlib import Path

import click

from survey.cli._common import finish
from survey.cli._group import main


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
    finish(summary)


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
