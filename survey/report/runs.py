"""What the runs cost, and what went wrong in them."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from survey.report.data import ReportData, Row
from survey.report.markup import count, duration, fixed, missing, section, table

MIB = 2**20


def runs(data: ReportData) -> str:
    """The section on the runs."""
    if not data.runs:
        return section("runs", "The runs", missing("No run has been recorded in this field."))
    last = data.runs[-1]
    parts = [history(data.runs)]
    timed = [run for run in data.runs if run.get("stages")]
    if timed:
        parts.append(stages(timed[-1], same=timed[-1] is last))
    parts += [failures(last), rejected(data.runs), versions(last)]
    return section("runs", "The runs", "".join(parts))


def history(records: list[Row]) -> str:
    """One row a run, newest first."""
    rows = [
        (
            escape(str(run.get("run_id", ""))),
            str(run.get("started", "")).replace("T", " ").replace("Z", ""),
            escape(str(run.get("status", ""))),
            duration(run.get("seconds")),
            count(run.get("inputs")),
            count(run.get("computed")),
            count(run.get("skipped")),
            count(run.get("events")),
            str(len(run.get("failures") or [])),
        )
        for run in records[::-1][:12]
    ]
    head = (
        "run",
        "started (UTC)",
        "status",
        "wall time",
        "frames added",
        "units done",
        "found done",
        "events",
        "failures",
    )
    return table(head, rows, left=(0, 1, 2))


def stages(run: Row, *, same: bool) -> str:
    """Units, seconds and memory of each stage, with a bar for its share."""
    table_of = run["stages"]
    work = {
        name: row.get("read", 0) + row.get("compute", 0) + row.get("write", 0)
        for name, row in table_of.items()
    }
    most = max(work.values(), default=0) or 1
    rows = []
    for name, row in table_of.items():
        each = unit_seconds(run, name)
        bar = f'<span class="bar" style="width:{100 * work[name] / most:.1f}%"></span>'
        rows.append(
            (
                escape(name),
                count(row.get("units")),
                fixed(row.get("read"), 2),
                fixed(row.get("compute"), 2),
                fixed(row.get("write"), 2),
                fixed(np.median(each), 2) if each else "–",
                fixed(max(each), 2) if each else "–",
                f"{row.get('memory', 0) / MIB:.0f}",
                f'<span class="track">{bar}</span>',
            )
        )
    head = (
        "stage",
        "units",
        "read (s)",
        "compute (s)",
        "write (s)",
        "median unit (s)",
        "longest (s)",
        "memory (MiB)",
        "share",
    )
    total = sum(work.values())
    wall = run.get("seconds") or 0
    words = f"{duration(total)} of work in {duration(wall)} of wall time"
    words += f", {total / wall:.2f} workers busy on average." if wall else "."
    words += " Memory: peak of a worker above where the unit began."
    which = (
        "the last run" if same else f"run {escape(str(run.get('run_id')))}, the last that computed anything"
    )
    return f"<h3>Stages of {which}</h3>{table(head, rows)}<p>{words}</p>"


def unit_seconds(run: Row, label: str) -> list[float]:
    """Seconds of each unit of a stage; labels as in the record, ``stage`` or ``stage (step)``."""
    found = []
    for unit in run.get("units", []):
        own = unit["stage"] if unit["step"] == "apply" else f"{unit['stage']} ({unit['step']})"
        if own == label:
            found.append(sum(unit["seconds"].values()))
    return found


def failures(run: Row) -> str:
    """Units of the last run that could not be done."""
    found = run.get("failures") or []
    if not found:
        return ""
    rows = [(escape(str(f["stage"])), escape(str(f["unit"])), escape(str(f["reason"]))) for f in found[:50]]
    return f"<h3>Failures</h3>{table(('stage', 'unit', 'reason'), rows, left=(0, 1, 2))}"


def rejected(records: list[Row]) -> str:
    """Frames that were not used and why, of all runs."""
    found = {str(path): str(reason) for run in records for path, reason in run.get("rejected") or []}
    if not found:
        return "<p>No frame was left out.</p>"
    rows = [(escape(Path(path).name), escape(reason)) for path, reason in list(found.items())[:100]]
    more = f"<p>and {len(found) - 100} more, in the run's record</p>" if len(found) > 100 else ""
    return f"<h3>Frames left out</h3>{table(('frame', 'reason'), rows, left=(0, 1))}{more}"


def versions(run: Row) -> str:
    """Versions of what the result may depend on."""
    found = run.get("versions") or {}
    words = ", ".join(f"{escape(name)}&nbsp;{escape(str(value))}" for name, value in found.items())
    return f'<p class="versions">{words}</p>' if words else ""
