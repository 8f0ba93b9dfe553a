"""Scale, sky and offsets of all frames against a first reference: the barrier before any differences."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import xarray as xr

from survey.run.differences import RunError
from survey.run.engine import Engine, stage_key
from survey.run.identity import images_key
from survey.stages import refine
from survey.stages.calibrated import REFINED
from survey.tiles import Tile

# Rounds of refinement: the first takes errors of percents to 1e-4, the second what was left in the reference.
REFINEMENTS = 2
# With offsets, whose errors blur the reference that shows them, more, until all frames move by less, pixels.
OFFSET_REFINEMENTS, SETTLED = 10, 0.005


def refine_frames(engine: Engine) -> None:
    """Write ``registration`` with refined scale, sky and offsets, unless it is there.

    Frames that were appended are refined against the reference of those before, whose calibration stays
    as it is: so nothing made of them has to be made again.

    A window that cannot be fitted is told and left out. Whoever runs again looks at it again: where it can be
    fitted then, all is refined anew.

    Raises
    ------
    RunError
        If no window of the field could be fitted.
    """
    field, config = engine.target, engine.config
    frames = field.frames()
    ledger = engine.ledger("refine")
    epochs = int(frames.sizes["time"])

    def key(known: int, without: Sequence[str]) -> str:
        inputs = {"images": images_key(field, frames, epochs=known)}
        return stage_key("refine", config, "refine", {**inputs, **({"without": without} if without else {})})

    record = ledger.records.get("refine")
    known = 0 if record is None else int(record.payload.get("epochs", 0))
    without: list[str] = [] if record is None else record.payload.get("without", [])
    kept = record is not None and 0 < known <= epochs and record.key == key(known, without)
    if kept and without:
        kept = not _sums(engine, "refine", "refine again", 0, without)
    if kept and known == epochs:
        return
    kept = kept and _can_add(engine, known)
    if kept:
        # What is recorded of the first frames stays true: a killed addition is begun again, nothing else.
        _refine_later(engine, frames, known)
    else:
        ledger.invalidate(["refine"])
        without = _refine_all(engine, frames)
    ledger.record("refine", key(epochs, without), {"epochs": epochs, "without": without})
    ledger.flush()


def _can_add(engine: Engine, known: int) -> bool:
    """Whether there are a calibration and a reference of the first frames, in most windows at least.

    A tile that cannot be read has no reference; what it would tell of later frames the others tell as well.
    """
    field = engine.target
    if not (
        field.has_table("registration")
        and field.table("registration").sizes["time"] >= known
        and field.has("reference", "normal")
    ):
        return False
    windows = [unit.tile for unit in refine.units(field, engine.config) if unit.tile is not None]
    made = field.ledger("oversampled.oversampled").records
    return 2 * _shown(windows, field.tiles, made) > len(windows)


def _shown(windows: Sequence[Tile], tiles: Sequence[Tile], made: Container[str]) -> int:
    """Windows whose tiles all have a reference."""
    lost = [tile for tile in tiles if tile.name not in made]
    return sum(
        not any(t.y0 < w.y1 and w.y0 < t.y1 and t.x0 < w.x1 and w.x0 < t.x1 for t in lost) for w in windows
    )


def _refine_all(engine: Engine, frames: xr.Dataset) -> list[str]:
    """Refine all frames; returns the windows that could not be fitted."""
    field, config = engine.target, engine.config
    field.remove_table("registration")
    names = [str(name) for name in frames["frame_id"].values]
    reference = names.index(field.attrs["reference_frame"])
    windows = _windows(engine)
    good = windows
    offsets = config.registration.refine_offsets
    for step in range(OFFSET_REFINEMENTS if offsets else REFINEMENTS):
        sums = _sums(engine, "refine", f"refine {step + 1}", 0, good)
        good = list(sums)
        correction = refine.combine(_some(engine, sums), config, scale=refine.one_psf(frames))
        frames = refine.corrected(frames, correction, reference)
        field.write_table("registration", frames[list(REFINED)].reset_coords(drop=True))
        if offsets and step + 1 >= REFINEMENTS and np.abs(correction[:, 2:]).max() < SETTLED:
            break
    return [name for name in windows if name not in good]


def _refine_later(engine: Engine, frames: xr.Dataset, known: int) -> None:
    """Refine the frames from ``known`` on against the stored reference; the table grows by them.

    A window that cannot be fitted is told and left out for good: the reference takes these frames in next,
    and is then no longer the one before them.
    """
    field, config = engine.target, engine.config
    old = field.table("registration").isel(time=slice(0, known))
    start = refine.joined(old, frames, known)
    field.write_table("registration", start[list(REFINED)].reset_coords(drop=True))
    # One round: the reference is good, and what it says of a frame is linear.
    sums = _sums(engine, "refine_later", "refine later", known, _windows(engine))
    correction = refine.combine(_some(engine, sums), config, gauge=False, scale=refine.one_psf(frames))
    start = refine.corrected_later(start, correction, known)
    field.write_table("registration", start[list(REFINED)].reset_coords(drop=True))


def _windows(engine: Engine) -> list[str]:
    return [unit.name for unit in refine.units(engine.target, engine.config)]


def _sums(
    engine: Engine, stage: str, label: str, start: int, windows: Sequence[str]
) -> dict[str, refine.Sums]:
    """Sums of these windows, as far as they could be fitted; the others are among the engine's failures."""
    units = [u for u in refine.units(engine.target, engine.config, start) if u.name in windows]
    key = stage_key(stage, engine.config, label, {"start": start})
    engine.submit(stage, [(unit, key) for unit in units], step="partial", label=label, ledger=False)
    reports = engine.collect().get(label, {})
    return {unit.name: reports[unit.name].result for unit in units if unit.name in reports}


def _some(engine: Engine, sums: Mapping[str, refine.Sums]) -> list[refine.Sums]:
    """The sums; raises where there are none."""
    if not sums:
        raise RunError(f"refine: {engine.failures[-1].reason}")
    return list(sums.values())
