"""The record of a run: what was asked, with which versions, what it cost, what failed and why."""

from __future__ import annotations

import json
import platform
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from survey.config import Config
from survey.io.files import write_json
from survey.io.locations import Location, write_atomic
from survey.run.engine import Engine, Failure
from survey.run.worker import UnitReport

PACKAGES = ("survey", "numpy", "scipy", "numba", "astropy", "sep", "zarr", "xarray", "dask", "distributed")

# The id that a submitted run was given when it was handed over.
RUN_ID: ContextVar[str | None] = ContextVar("RUN_ID", default=None)


@dataclass
class RunSummary:
    """What came of a run.

    Parameters
    ----------
    run_id : str
        Names its folder in ``<field>/runs``.
    status : str
        ``done``, ``failed`` (some units), ``interrupted``.
    method : str
        Difference method.
    seconds : float
        Wall time.
    computed, skipped : int
        Units done now, and found done.
    failures : list of Failure
    warnings : list of str
        What the run went on with: frames that a method could not subtract.
    events : int
        Events in the list.
    stages : dict
        Stage -> units, seconds of work, highest memory above the import baseline.
    rejected : list of (str, str)
        Frames that were not used and why.
    failed_pairs : int
        Pairs of frames (by group of objects and direction) that NN2 could not subtract and went on without.
    """

    run_id: str
    path: str
    method: str
    status: str = "running"
    started: str = ""
    seconds: float = 0.0
    computed: int = 0
    skipped: int = 0
    events: int = 0
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    inputs: int = 0
    failed_pairs: int = 0

    @property
    def ok(self) -> bool:
        """Whether all that was asked for was done."""
        return self.status == "done"


def new_run_id() -> str:
    """A name that sorts by time; a submitted run keeps the one it was given."""
    return RUN_ID.get() or time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


def begin(path: Location | str, method: str) -> tuple[RunSummary, float]:
    """Summary of a run that starts now, and the clock's reading for `recorded`."""
    summary = RunSummary(new_run_id(), str(path), method)
    summary.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return summary, time.monotonic()


@contextmanager
def recorded(
    summary: RunSummary, engine: Engine, clock: float, *, told: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """See a run to its end: its status, what failed and its record are kept, however the block is left.

    Parameters
    ----------
    summary : RunSummary
        Filled here, besides what the block itself adds.
    engine : Engine
        Whose reports, failures and warnings are the run's.
    clock : float
        What `begin` read.
    told : exception type
        Errors that the summary tells and that go no further; all others are raised again.
    """
    try:
        yield
        summary.status = "failed" if engine.failures or summary.failures else "done"
    except KeyboardInterrupt:
        summary.status = "interrupted"
        raise
    except Exception as error:
        summary.status = "failed"
        engine.failures.append(Failure("run", "", f"{type(error).__name__}: {error}"))
        if not isinstance(error, told):
            raise
    finally:
        summary.failures += engine.failures
        summary.warnings += engine.warnings
        summary.computed, summary.skipped = len(engine.reports), engine.skipped
        summary.stages = summarise_stages(engine.reports)
        summary.seconds = time.monotonic() - clock
        write_record(engine.target.path, summary, engine.config, engine.reports)


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def summarise_stages(reports: Sequence[UnitReport]) -> dict[str, dict[str, float]]:
    """Units, seconds and peak memory of each stage and step."""
    table: dict[str, dict[str, float]] = {}
    for report in reports:
        label = report.stage if report.step == "apply" else f"{report.stage} ({report.step})"
        row = table.setdefault(label, {"units": 0, "read": 0.0, "compute": 0.0, "write": 0.0, "memory": 0.0})
        row["units"] += 1
        for name, seconds in report.seconds.items():
            row[name] += seconds
        row["memory"] = max(row["memory"], report.peak_memory - report.baseline_memory)
    return table


def write_record(
    field_path: Location, summary: RunSummary, config: Config, reports: Iterable[UnitReport]
) -> None:
    """Write ``runs/<run>/run.json`` and one line a unit in ``units.jsonl``."""
    folder = field_path / "runs" / summary.run_id
    lines = [
        json.dumps(
            {
                "stage": r.stage,
                "step": r.step,
                "unit": r.unit,
                "key": r.key,
                "seconds": {name: round(value, 4) for name, value in r.seconds.items()},
                "peak_memory": r.peak_memory,
                "baseline_memory": r.baseline_memory,
            }
        )
        for r in reports
    ]
    if lines:
        write_atomic(folder / "units.jsonl", ("\n".join(lines) + "\n").encode())
    record: dict[str, Any] = {
        **asdict(summary),
        "settings": config.model_dump(mode="json"),
        "versions": versions(),
    }
    write_json(folder / "run.json", record)
