"""The field that an ingest writes into, whatever an earlier one that did not end left there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from survey.config import Config, from_store, to_store
from survey.io.calibration import KINDS, calibration_identity
from survey.io.locations import Location
from survey.io.store import Field, holds_frames, is_field
from survey.stages import place, register
from survey.stages.measure import FrameMeasure
from survey.stages.protocol import Unit
from survey.tiles import choose_tile_size


def kept_settings(target: Field, config: Config) -> Config:
    """A run's settings, with those by which the field's images were made as the field has them.

    Who asks with others gets what is there: all that is made of the images would be made anew for every one
    who asks otherwise. Calibration files that are gone are those given, whose contents are the same.
    """
    stored = from_store(target.attrs["config"], source=f"settings stored in {target.path}")
    found = stored.input
    moved = {
        kind: getattr(config.input, kind)
        for kind in KINDS
        if getattr(config.input, kind) and not _is_there(getattr(found, kind))
    }
    offsets = config.registration.refine_offsets
    changes = {
        "input": found.model_copy(update=moved),
        "grid": stored.grid,
        "calibrate": stored.calibrate,
        "registration": stored.registration.model_copy(update={"refine_offsets": offsets}),
    }
    return config.model_copy(update=changes)


def _is_there(file: str | None) -> bool:
    """Whether there is nothing to miss."""
    return file is None or Path(file).is_file()


def keep_settings(target: Field, config: Config) -> None:
    """Keep a run's settings, `kept_settings`, so that the next one without any goes on with them.

    The method stays: it is chosen for a run.
    """
    stored = dict(target.attrs["config"])
    new = {**to_store(config), "method": stored["method"]}
    if new != stored:
        target.root.attrs["config"] = new


def other_settings(stored: dict[str, Any], config: Config) -> list[str]:
    """Names of settings that images are made by and that differ from those of a field's images."""
    given = to_store(config)
    names = []
    for table in ("input", "registration", "calibrate", "grid"):
        for name, value in given[table].items():
            live = (table, name) in (("input", "frames"), ("registration", "refine_offsets"))
            if not live and value != stored.get(table, {}).get(name, value):
                names.append(f"[{table}] {name}")
    return names


def open_or_create(path: str | Location, config: Config, reference: FrameMeasure, epochs: int) -> Field:
    """The field at a path; made, or made anew where it holds no frame yet.

    Parameters
    ----------
    reference : FrameMeasure
        The frame that defines its grid.
    epochs : int
        Frames that come in, for the size of a new field's tiles.
    """
    if holds_frames(path):
        return Field.open(path)
    header = reference.header
    size = config.grid.tile or choose_tile_size(header.shape, epochs, config.grid.memory * 2**30)
    attrs: dict[str, Any] = {
        "tile_size": size,
        "time_block": config.grid.time_block,
        "units": header.units or "count",
        "zero_point": header.zero_point,
        "wcs": header.wcs_text or register.catalog_wcs(reference, config),
        "detector_shape": list(header.shape),
        "calibration": calibration_identity(config.input),
        "band": header.band,
        "detector": header.detector,
        "reference_frame": header.frame_id,
        "config": to_store(config),
    }
    if not is_field(path):
        return Field.create(path, header.shape, attrs)
    target = Field.open(path)
    # An ingest that did not end left it. What it placed has keys of its own: only another grid undoes that.
    before, grid = dict(target.attrs), attrs["config"]["grid"]
    loose = ("tile_size", "config")
    if before.get("config", {}).get("grid") == grid and all(
        before.get(name) == value for name, value in attrs.items() if name not in loose
    ):
        if before["config"] != attrs["config"]:
            target.root.attrs.update({"config": attrs["config"]})
        return Field.open(path)
    target.ledger("place").invalidate(list(target.ledger("place").records))
    if target.has("images/sky"):
        target.remove_group("images/sky")
    target.root.attrs.update({"shape": list(header.shape), **attrs})
    return Field.open(path)


def clear_unfinished(target: Field, start: int, total: int, units: Sequence[Unit]) -> None:
    """Drop blocks of other frames that an ingest which did not end left behind the field's."""
    ledger, wanted = target.ledger("place"), {unit.name for unit in units}
    behind = [name for name in ledger.records if (place.epoch_span(name) or (0, 0))[1] > start]
    ledger.invalidate([name for name in behind if name not in wanted])
    target.cut_group("images/sky", total)
