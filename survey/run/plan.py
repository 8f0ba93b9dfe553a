"""What a run would do, and what it would take: units, memory, disk, time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import survey.stages.registry  # noqa: F401  (every stage may be asked for its memory)
from survey.config import Config, ConfigError, make_config, settings_hash
from survey.io.frames import combine_scans, find_files, scan_file
from survey.io.locations import Location
from survey.io.store import Field, holds_frames
from survey.run.engine import ledger_name
from survey.run.identity import images_key
from survey.run.oversampled import tile_key
from survey.stages import place, refine
from survey.stages.calibrated import calibrated_frames, outlook
from survey.stages.protocol import STAGES, Outlook, Unit
from survey.tiles import Tile, choose_tile_size, tile_grid

# Measured on one core of a two-core machine (tests/benchmarks); microseconds a pixel and epoch.
MICROSECONDS = {
    "ingest": 0.35,
    "refine": 0.25,
    "oversampled": 0.60,
    "detect": 0.60,
}
# Bytes a pixel and epoch on disk after compression: images, then differences.
DISK_BYTES = {"images": 8.5, "differences": 13.0}
# What the time leaves out, because only the run can tell: said beside it. Kernels took 90 to 140 s to compile
# on two cores, an event 0.7 s of work (1024 x 1024 x 192, 50 sources).
NOT_IN_TIME = "kernels compiled once a machine (1 to 3 min), events found (1 s of work each), the report"
# What compression leaves of the reference's sums.
SUMS_LEFT = 0.87


@dataclass
class Plan:
    """The forecast of a run.

    Parameters
    ----------
    frames, shape : int, tuple
        Epochs and (y, x) pixels.
    tile, n_tiles : int
    units : dict
        Stage -> (units to do, units there already).
    memory : float
        Bytes a worker needs for its largest tile above the import baseline.
    disk : float
        Bytes that the run will add.
    seconds : float
        Wall time on ``workers`` cores, from frames to the search; without `NOT_IN_TIME`.
    """

    frames: int
    shape: tuple[int, int]
    tile: int
    n_tiles: int
    workers: int
    units: dict[str, tuple[int, int]] = field(default_factory=dict)
    memory: float = 0.0
    disk: float = 0.0
    seconds: float = 0.0
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of everything, for a table."""
        height, width = self.shape
        rows = [
            ("frames", f"{self.frames} of {height} x {width} pixels"),
            ("tiles", f"{self.n_tiles} of {self.tile} pixels"),
            *((f"{name}", f"{todo} units to do, {done} there") for name, (todo, done) in self.units.items()),
            ("memory", f"{self.memory / 2**30:.2f} GiB a worker"),
            ("disk", f"{self.disk / 2**30:.2f} GiB"),
            ("time", f"about {_duration(self.seconds)} on {self.workers} workers, from frames to the search"),
            ("not in it", NOT_IN_TIME),
        ]
        if self.rejected:
            rows.append(("left out", f"{len(self.rejected)} frames"))
        return rows


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plan(path: str | Location, config: Config, frames: Sequence[str | Location] = ()) -> Plan:
    """Forecast a run without starting anything: headers are read, nothing is written.

    Parameters
    ----------
    path : path
        The field, existing or not.
    config : Config
        Settings of the run.
    frames : sequence of path
        Frames that would be ingested first.

    Raises
    ------
    FieldError
        If there is neither a field nor frames.
    """
    workers = config.cluster.workers or os.cpu_count() or 1
    exists = holds_frames(path)
    old = Field.open(path).frames().sizes["time"] if exists or not frames else 0
    rejected: list[tuple[str, str]] = []
    new = 0
    shape = Field.open(path).shape if old else (0, 0)
    if frames:
        scans = [scan_file(file, config.input) for file in find_files([str(f) for f in frames])]
        known: list[Any] = []
        if exists:
            from survey.stages.frame_table import stored_headers

            known = stored_headers(Field.open(path).frames())
        found = combine_scans(scans, config.input, known)
        rejected = [(r.source.path, r.reason) for r in found.rejected]
        new = len(found.headers)
        if found.headers and not old:
            shape = found.headers[0].shape
    epochs = old + new
    if old:
        tile = Field.open(path).tile_size
    else:
        tile = config.grid.tile or choose_tile_size(shape, max(epochs, 1), config.grid.memory * 2**30)
    tiles = tile_grid(shape, tile) if shape[0] else []
    forecast = Plan(epochs, shape, tile, len(tiles), workers, rejected=rejected)
    samples = shape[0] * shape[1]
    done = _done(Field.open(path), config) if old and not new else {}
    forecast.units = {"ingest": (math.ceil(new / config.grid.time_block) if new else 0, 0)}
    work = samples * new * MICROSECONDS["ingest"]
    for stage in ("oversampled", "detect"):
        there = min(done.get(stage, 0), len(tiles))
        forecast.units[stage] = (len(tiles) - there, there)
        work += samples * epochs * MICROSECONDS[stage] * (len(tiles) - there) / max(len(tiles), 1)
    if forecast.units["oversampled"][0]:
        work += samples * epochs * min(9 / max(len(tiles), 1), 1) * 2 * MICROSECONDS["refine"]
    share = forecast.units["oversampled"][0] / max(len(tiles), 1)
    forecast.seconds = work * 1e-6 / workers + 8
    seen = outlook(Field.open(path), config.subtraction.template) if old else Outlook(epochs)
    forecast.memory = _memory(shape, tile, replace(seen, epochs=epochs), config)
    kept = config.reference.for_epochs(epochs).n_basis if config.reference.keep_sums else 0
    sums = 8 * ((2 * kept - 1) ** 2 + kept**2) * SUMS_LEFT if kept else 0
    forecast.disk = samples * (
        new * DISK_BYTES["images"] + share * (epochs * DISK_BYTES["differences"] + sums)
    )
    return forecast


def _memory(shape: tuple[int, int], tile: int, seen: Outlook, config: Config) -> float:
    """Forecast of the hungriest stage: of those that all methods share, and the method's own."""
    config = config.model_copy(update={"reference": config.reference.for_epochs(seen.epochs)})
    epochs = min(config.grid.time_block, seen.epochs)
    whole, window = (Tile(0, 0, size, 0, size) for size in (tile, min(refine.EDGE, max(shape))))
    rows, columns = place.block_shape(shape[1], tile, config.grid.time_block, config)
    placed = place.block_memory(epochs, min(rows, shape[0]), columns)
    asked = [("refine", Unit("", window)), ("detect", Unit("", whole))]
    asked += [(name, Unit("", whole, (0, epochs))) for name in {"oversampled", config.method}]
    stages = ((STAGES[name].memory, unit) for name, unit in asked)
    return max(placed, *(stage(unit, seen, config) for stage, unit in stages if stage is not None))


def _done(field: Field, config: Config) -> dict[str, int]:
    """Units that a run would find done: made of the frames as they are now, by these settings."""
    frames = calibrated_frames(field)
    reference = config.reference.for_epochs(frames.sizes["time"])
    config = config.model_copy(update={"reference": reference})
    images = images_key(field, frames)
    made = sum(
        record.payload.get("first") == tile_key(config, name, images, record.payload.get("appended", []))
        for name, record in field.ledger(ledger_name("oversampled", "oversampled")).records.items()
    )
    searched = len(field.ledger(ledger_name("detect", config.method)).records)
    whole = made == len(field.tiles) and _searches_alike(field, config)
    return {"oversampled": made, "detect": searched if whole else 0}


def _searches_alike(field: Field, config: Config) -> bool:
    """Whether the method's last run that ended searched with these settings; yes, where none has ended."""
    ended = [r for r in field.runs() if r["method"] == config.method and r["status"] == "done"]
    if not ended:
        return True
    try:
        before = make_config(ended[-1]["settings"])
    except ConfigError:
        return False
    stages = [STAGES[name] for name in ("detect", "psf")]
    return all(settings_hash(s.settings(before)) == settings_hash(s.settings(config)) for s in stages)
