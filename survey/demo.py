"""`survey demo`: a simulated field through the whole pipeline, compared with the truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from astropy.table import Table

from survey.config import Config
from survey.io.files import write_json
from survey.io.locations import Location
from survey.io.store import holds_frames
from survey.report import compare_field, write_report
from survey.run.api import run
from survey.run.record import RunSummary
from survey.simulate import simulate_field

# Events of the demo's field at its default size and above; half as many variables.
EVENTS = 12
# A smaller field has room for an event every so many pixels of its edge.
EDGE_AN_EVENT = 21


def demo(
    directory: str | Path,
    *,
    size: int = 256,
    frames: int = 96,
    seed: int = 1,
    progress: Any = None,
    client: Any = None,
) -> tuple[RunSummary, dict[str, Any], Location]:
    """Simulate a Roman-like field, run everything on it, compare the events with the truth.

    Returns
    -------
    summary : RunSummary
    comparison : dict
        Which of the simulated sources were found, and which events are none of them.
    report : Location
        The page to look at.

    Raises
    ------
    ValueError
        If the directory holds a demo of other frames.
    """
    directory = Path(directory)
    images = directory / "frames"
    if progress is not None:
        progress.start("simulate", frames, 0)
    started = time.monotonic()
    events = max(1, min(EVENTS, size // EDGE_AN_EVENT))
    field = directory / "field"
    _check_the_same(field, images / "truth.ecsv", {"seed": seed, "frames": frames, "shape": [size, size]})
    simulate_field(
        images,
        size=size,
        frames=frames,
        seed=seed,
        events=events,
        variables=events // 2,
        overwrite=True,
        progress=None if progress is None else lambda done, total: progress.advance("simulate", None),
    )
    if progress is not None:
        progress.message(f"{frames} frames of {size} x {size} pixels in {time.monotonic() - started:.1f} s")
    summary = run(field, Config(), frames=[images], client=client, progress=progress)
    comparison = compare(field, images / "truth.ecsv")
    return summary, comparison, write_report(field)


def _check_the_same(field: Path, truth: Path, asked: dict[str, Any]) -> None:
    """A field of other frames would be compared with this demo's truth."""
    if not holds_frames(field) or not truth.exists():
        return
    there = Table.read(truth).meta
    if other := [name for name, value in asked.items() if there.get(name) != value]:
        raise ValueError(
            f"{field.parent} holds a demo of another {', '.join(other)}: remove it, or give another directory"
        )


def compare(field: Path, truth: Path) -> dict[str, Any]:
    """Compare a field's events with a truth table and keep the result beside them."""
    comparison = compare_field(field, truth=truth) or {}
    write_json(field / "truth_comparison.json", comparison)
    return comparison
