"""What a field holds and how its runs ended."""

from __future__ import annotations

from typing import Any

from survey.io.ledger import holder_of
from survey.io.locations import Location, files
from survey.io.store import Field
from survey.run.engine import ledger_name
from survey.run.results import ResultError, list_events
from survey.stages.methods import known_method
from survey.stages.protocol import STAGES


def field_status(path: str | Location, method: str = "oversampled") -> dict[str, Any]:
    """Frames, tiles, units done per stage, events and runs of a field.

    Raises
    ------
    FieldError
        If there is no field at the path.
    MethodError
        If there is no such method.
    """
    field, method = Field.open(path), known_method(method)
    frames = field.frames()
    height, width = field.shape
    time = frames["time"].values
    flagged = int((frames["flags"].values != 0).sum())
    found: dict[str, Any] = {
        "field": str(field.path),
        "frames": f"{len(time)} of {height} x {width} pixels, MJD {time.min():.4f} to {time.max():.4f}",
        "flagged": f"{flagged} frames",
        "tiles": f"{len(field.tiles)} of {field.tile_size} pixels",
    }
    for stage in STAGES:
        done = len(field.ledger(ledger_name(stage, method)).records)
        if done:
            found[stage] = f"{done} units done"
    try:
        found["events"] = len(list_events(path, method))
    except ResultError:
        found["events"] = "not searched yet"
    held = {file.stem.replace(".", "/", 1): file for file in files(field.path / "leases", "*.json")}
    if held:
        found["writing"] = {group: holder_of(file) for group, file in held.items()}
    found["runs"] = [
        f"{r['run_id']}: {r['status']}, {r['computed']} units in {r['seconds']:.1f} s"
        + (f", {len(r['failures'])} failed" if r["failures"] else "")
        for r in field.runs()
    ]
    return found
