"""Stages alone, for debugging."""

from __future__ import annotations

import click

from survey.cli._common import FIELD
from survey.cli._group import main
from survey.io.locations import Location


def _stage_command(stage: str, words: str) -> None:
    @main.command(name=stage, help=f"{words}\n\nExample: survey {stage} field --tile 3")
    @click.argument("field", type=FIELD)
    @click.option(
        "--tile", type=click.IntRange(0), help="This tile only, in this process; default all tiles."
    )
    def command(field: Location, tile: int | None) -> None:
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
