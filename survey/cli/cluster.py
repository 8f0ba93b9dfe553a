"""Commands for runs that live elsewhere: submit, status, cancel, logs; and certificates for their cluster."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from survey.cli._common import FIELD, METHOD, change_cluster, run_arguments, scheduler_options
from survey.cli._group import main
from survey.io.locations import Location

ENDED_WELL = "done"


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", "field", type=FIELD, metavar="FIELD")
@click.option("--method", type=METHOD, help="Difference method.")
@scheduler_options
@click.option("--here", is_flag=True, help="Keep the driver on this machine, not beside the scheduler.")
@click.option("--strict", is_flag=True, help="Stop if one frame cannot be used.")
@click.option("--rebuild", is_flag=True, help="Compute everything again.")
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
def submit(
    sources: tuple[str, ...],
    field: Location | None,
    method: str | None,
    cluster: dict[str, Any],
    here: bool,
    strict: bool,
    rebuild: bool,
    no_report: bool,
) -> None:
    """Hand a run over and print its id; this terminal may be closed.

    The run's driver starts on the scheduler's host, or here where no scheduler is given. What is done already
    is not done again: submitting once more resumes a run that was lost.

    \b
    Examples:
      survey submit settings.toml --scheduler tls://10.0.0.1:8786 --tls certs
      survey submit night/*.fits -o field
    """
    from survey.run.submit import submit as submit_run

    target, config, frames = run_arguments(sources, field)
    change_cluster(config, **cluster)
    if method:
        config.method = method
    run_id = submit_run(
        target, config, frames, strict=strict, rebuild=rebuild, report=not no_report, here=here
    )
    click.echo(run_id)
    click.echo(f"survey status {target} --watch; survey logs {target}; survey cancel {target}", err=True)


@main.command()
@click.argument("field", type=FIELD)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--method", type=METHOD, default="oversampled", show_default=True)
@click.option("--watch", is_flag=True, help="Follow the run under way to its end.")
def status(field: Location, as_json: bool, method: str, watch: bool) -> None:
    """Say what a field holds, what runs on it and how its runs ended.

    \b
    Examples:
      survey status field
      survey status field --watch
    """
    from survey.run.live import run_states

    if watch:
        sys.exit(_watch(field))
    states = run_states(field)
    found = _contents(field, method, bool(states))
    if as_json:
        click.echo(json.dumps({**found, "runs": states}, default=str))
        return
    for name, value in found.items():
        click.echo(f"{name:<12} {value}")
    for state in states:
        click.echo(f"run          {_line(state)}")


def _contents(field: Location, method: str, submitted: bool) -> dict[str, Any]:
    """What the field holds; a run that has only just been submitted may not have made it yet."""
    from survey.io.store import FieldError
    from survey.run.status import field_status

    try:
        found = field_status(field, method)
    except FieldError:
        if not submitted:
            raise
        return {"field": f"{field} (nothing in it yet)"}
    found.pop("runs")
    return found


def _line(state: dict[str, Any]) -> str:
    """One run in one line."""
    words = f"{state['run_id']}: {state['state']}"
    if state["state"] == "running" and state["live"]["stages"]:
        return f"{words}, {_stage_words(state['live']['stages'][-1])}"
    if state["state"] == "lost":
        return f"{words} (its process is gone); what was done is kept: submit again to resume"
    if "computed" in state:
        words += f", {state['computed']} units in {state['seconds']:.1f} s"
    return words + (f", {len(state['failures'])} failed" if state.get("failures") else "")


def _stage_words(stage: dict[str, Any]) -> str:
    failed = f", {stage['failed']} failed" if stage["failed"] else ""
    return f"{stage['stage']} {stage['done']}/{stage['total']}{failed}"


def _watch(field: Location) -> int:
    """Print what changes until the latest submitted run has ended; exit status 0 only if it is done."""
    from survey.run.live import find_run, run_state

    folder = find_run(field)
    last = ""
    while True:
        state = run_state(folder)
        line = _line(state)
        if line != last:
            click.echo(line)
        last = line
        if state["state"] not in ("starting", "running"):
            for failure in state.get("failures", ()):
                click.echo(f"failed {failure['stage']} {failure['unit']}: {failure['reason']}", err=True)
            return 0 if state["state"] == ENDED_WELL else 1
        time.sleep(0.5)


@main.command()
@click.argument("field", type=FIELD)
@click.argument("run", required=False)
def cancel(field: Location, run: str | None) -> None:
    """Stop a submitted run; what it did is kept.

    Example: survey cancel field
    """
    from survey.run.live import cancel as cancel_run

    state = cancel_run(field, run)
    click.echo(_line(state), err=True)
    sys.exit(0 if state["state"] == "cancelled" else 1)


@main.command()
@click.argument("field", type=FIELD)
@click.argument("run", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
def logs(field: Location, run: str | None, follow: bool) -> None:
    """Print what a submitted run said.

    Example: survey logs field -f
    """
    from survey.run.live import find_run, run_state

    folder = find_run(field, run)
    printed = folder / "driver.log"  # warnings, and why a process could not even start
    if printed.exists():
        click.echo(printed.read_text(errors="replace"), nl=False)
    shown = 0
    while True:
        ended = run_state(folder)["state"] not in ("starting", "running")
        file = folder / "log.txt"
        text = file.read_bytes() if file.is_file() else b""
        click.echo(text[shown:].decode(errors="replace"), nl=False)
        shown = len(text)
        if not follow or ended:
            if not shown and not printed.exists():
                _tell_printed(folder)
            return
        time.sleep(0.5)


def _tell_printed(folder: Location) -> None:
    """Where to look for the words of a driver that died before it kept a log in a bucket."""
    from survey.run.submit import read_job

    job = read_job(folder)
    if "printed" in job:
        click.echo(f"no log; what its driver printed is in {job['printed']} on {job['host']}", err=True)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--host", "hosts", multiple=True, help="Name or address of the scheduler; may be repeated.")
@click.option("--days", type=click.IntRange(1), default=825, show_default=True, help="Validity.")
@click.option("--renew", is_flag=True, help="New certificates from the authority that is there.")
def certs(directory: Path, hosts: tuple[str, ...], days: int, renew: bool) -> None:
    """Make an authority and certificates, so that a cluster talks TLS and to nobody else.

    Without them an open Dask scheduler runs anyone's code.

    Example: survey certs certs --host scheduler.example.org
    """
    from survey.io.certificates import make_certificates

    for file in make_certificates(directory, hosts, days=days, renew=renew):
        click.echo(file)
    d = directory
    click.echo(
        "\nStart the cluster with them (give each host the files of its role only, ca-key.pem none):\n"
        f"  dask scheduler --protocol tls --tls-ca-file {d}/ca.pem --tls-cert {d}/scheduler.pem "
        f"--tls-key {d}/scheduler-key.pem\n"
        f"  dask worker tls://HOST:8786 --nthreads 1 --tls-ca-file {d}/ca.pem --tls-cert {d}/worker.pem "
        f"--tls-key {d}/worker-key.pem\n"
        f"and use it:  survey submit FIELD --scheduler tls://HOST:8786 --tls {d}",
        err=True,
    )
