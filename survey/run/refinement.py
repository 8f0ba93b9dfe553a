"""Scale, sky and offsets of all frames against a first reference: the barrier before any differences."""

from __future__ import annotations

import hashlib

import numpy as np
import xarray as xr

from survey.io.store import Field
from survey.run.engine import Engine, stage_key
from survey.run.methods import RunError
from survey.run.worker import function_key
from survey.stages import place, refine
from survey.stages.calibrated import REFINED, Grid

# What of the table of frames decides a calibrated sample.
CALIBRATION = ("map", "map_center", "map_scale", "scale", "background", "flags", "gain")

# Rounds of refinement: the first takes errors of percents to 1e-4, the second what was left in the reference.
REFINEMENTS = 2


def images_key(field: Field, frames: xr.Dataset, grid: Grid = "sky") -> str:
    """Identity of a grid's calibrated images: placed blocks and calibration."""
    digest = hashlib.sha256()
    for name in ("time", *CALIBRATION):
        digest.update(np.ascontiguousarray(frames[name].values).tobytes())
    placed = {
        unit: record.key
        for unit, record in field.ledger("place").records.items()
        if unit.startswith(f"{place.prefix(grid)}epochs")
    }
    return function_key(digest.hexdigest(), sorted(placed.items()))


def refine_frames(engine: Engine) -> None:
    """Write ``registration`` with refined scale, sky and offsets, unless it is there.

    Raises
    ------
    RunError
        If a window of the field could not be fitted.
    """
    field, config = engine.target, engine.config
    frames = field.frames()
    ledger = engine.ledger("refine")
    key = stage_key("refine", config, "refine", {"images": images_key(field, frames)})
    if ledger.has("refine", key):
        return
    ledger.invalidate(["refine"])
    field.remove_table("registration")
    names = [str(name) for name in frames["frame_id"].values]
    reference = names.index(field.attrs["reference_frame"])
    for step in range(REFINEMENTS):
        label = f"refine {step + 1}"
        units = refine.units(field, config)
        engine.submit("refine", [(u, key) for u in units], step="partial", label=label, ledger=False)
        reports = engine.collect().get(label, {})
        if len(reports) < len(units):
            raise RunError(f"refine: {engine.failures[-1].reason}")
        partials = [reports[unit.name].result for unit in units]
        frames = refine.corrected(frames, refine.combine(partials, config), reference)
        field.write_table("registration", frames[list(REFINED)].reset_coords(drop=True))
    ledger.record("refine", key)
    ledger.flush()
