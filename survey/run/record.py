"""The record of a run: what was asked, with which versions, what it cost, what failed and why."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from survey.config import Config, to_show
from survey.io.files import write_json
from survey.io.locations import Location, write_atomic
from survey.io.store import Field, is_field
from survey.run.engine import Engine, Failure
from survey.run.worker import UnitReport
from survey.stages.frame_table import stored_headers

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
    inputs : int
        Frames that the run added to the field.
    added : list of (str, str, str)
        Name, file and fingerprint of each.
    frames : dict
        All of the field that the run worked on: their ``number``, a ``hash`` of their fingerprints.
    failed_pairs : int
        Pairs of frames (by group of objects and direction) that NN2 could not subtract and went on without.
    attempts : list of dict
        Earlier attempts of a submitted run, whose cluster was lost: seconds, units computed, failures. What
        they did is in the sums above.
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
    added: list[tuple[str, str, str]] = field(default_factory=list)
    frames: dict[str, Any] = field(default_factory=dict)
    failed_pairs: int = 0
    attempts: list[dict[str, Any]] = field(default_factory=list)

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


@dataclass
class Recorder:
    """What a run's record is made of, as it comes in.

    Parameters
    ----------
    summary : RunSummary
    path : Location
        The field.
    config : Config
        Settings of the run.
    """

    summary: RunSummary
    path: Location
    config: Config
    reports: list[UnitReport] = field(default_factory=list)
    engine: Engine | None = None

    def follow(self, engine: Engine) -> None:
        """From here on this engine's reports, failures and warnings are the run's, and its settings."""
        self.engine, self.config = engine, engine.config
        self.summary.frames = frames_identity(engine.target)

    def close(self) -> None:
        """Fill the summary and write the record, where there is a field to write it to."""
        summary, engine, reports = self.summary, self.engine, self.reports
        if engine is not None:
            summary.failures += engine.failures
            summary.warnings += engine.warnings
            summary.computed, summary.skipped = len(engine.reports), engine.skipped
            reports = [*reports, *engine.reports]
        summary.stages = summarise_stages(reports)
        file = self.path / "runs" / summary.run_id / "run.json"
        if file.exists():
            add_attempt(summary, json.loads(file.read_text()))
        if is_field(self.path):
            write_record(self.path, summary, self.config, reports)


@contextmanager
def recorded(
    summary: RunSummary,
    path: Location,
    config: Config,
    clock: float,
    *,
    told: type[Exception] | tuple[()] = (),
) -> Iterator[Recorder]:
    """See a run to its end: its status, what failed and its record are kept, however the block is left.

    Parameters
    ----------
    summary : RunSummary
        Filled here, besides what the block itself adds.
    path : Location
        The field, which need not exist yet.
    clock : float
        What `begin` read.
    told : exception type
        Errors that the summary tells and that go no further; all others are raised again.
    """
    recorder = Recorder(summary, path, config)
    try:
        yield recorder
        engine = recorder.engine
        summary.status = "failed" if summary.failures or (engine and engine.failures) else "done"
    except KeyboardInterrupt:
        summary.status = "interrupted"
        raise
    except Exception as error:
        summary.status = "failed"
        summary.failures.append(Failure("run", "", f"{type(error).__name__}: {error}"))
        if not isinstance(error, told):
            raise
    finally:
        summary.seconds = time.monotonic() - clock
        # On a full disk what is being raised says how to go on, and there is no room for a record.
        with nullcontext() if summary.status == "done" else suppress(OSError):
            recorder.close()


def add_attempt(summary: RunSummary, earlier: Mapping[str, Any]) -> None:
    """Count what the record of a run's attempts so far says to what its last one did."""
    told = {name: earlier[name] for name in ("status", "seconds", "computed", "failures")}
    summary.attempts = [*earlier["attempts"], told]
    # The last attempt found done what those before it had computed.
    summary.skipped = max(summary.skipped - earlier["computed"], 0)
    summary.seconds += earlier["seconds"]
    summary.computed += earlier["computed"]
    summary.inputs += earlier["inputs"]
    summary.added = [*(tuple(row) for row in earlier["added"]), *summary.added]
    summary.rejected = summary.rejected or [tuple(row) for row in earlier["rejected"]]
    summary.warnings = list(dict.fromkeys([*earlier["warnings"], *summary.warnings]))
    for stage, row in earlier["stages"].items():
        now = summary.stages.setdefault(stage, dict.fromkeys(row, 0.0))
        for name, value in row.items():
            now[name] = max(now[name], value) if name == "memory" else now[name] + value


def frames_identity(field_: Field) -> dict[str, Any]:
    """Number of a field's frames, and a hash of what is in their files."""
    prints = [header.fingerprint for header in stored_headers(field_.frames())]
    return {"number": len(prints), "hash": hashlib.sha256("\n".join(prints).encode()).hexdigest()[:16]}


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
    """Write ``runs/<run>/run.json``; a line a unit into ``units.jsonl``, after those of earlier attempts."""
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
        file = folder / "units.jsonl"
        before = file.read_bytes() if file.exists() else b""
        write_atomic(file, before + ("\n".join(lines) + "\n").encode())
    record: dict[str, Any] = {
        **asdict(summary),
        "settings": to_show(config),
        "versions": versions(),
    }
    write_json(folder / "run.json", record)
