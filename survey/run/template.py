"""Makes a template of a field: where its pixels come from, what they are measured in, how they are stored."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import survey
from survey.config import ClusterSettings
from survey.io.catalogs import read_table
from survey.io.locations import Location, absolute, locate
from survey.io.store import Field
from survey.run.calls import map_calls
from survey.run.engine import Progress, Silent
from survey.run.executor import Executor, connect
from survey.run.holding import held
from survey.run.identity import images_key
from survey.run.record import new_run_id
from survey.run.template_mosaic import Survey, make_mosaic
from survey.run.worker import function_key
from survey.run.written import written_entry
from survey.stages.calibrated import calibrated_frames
from survey.stages.events import Event
from survey.stages.methods import METHODS
from survey.stages.stack import Choice, choose_frames, stack_tile
from survey.stages.template_records import template_records, template_unit
from survey.templates.project import TemplateError
from survey.tiles import Tile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass
class TemplateSummary:
    """A template that has been made.

    Attributes
    ----------
    name : str
        As in ``[subtraction] template = "…"``.
    coverage : float
        Share of the grid with good pixels.
    attrs : dict
        What the group says of itself.
    warnings : list of str
    """

    name: str
    coverage: float
    attrs: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def make_template(
    path: str | Location,
    source: str,
    name: str | None = None,
    *,
    choice: Choice | None = None,
    survey_of: Survey | None = None,
    cluster: ClusterSettings | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> TemplateSummary:
    """Make ``template/<name>`` of a field, in place of one of that name.

    Parameters
    ----------
    path : path
        The field.
    source : str
        ``"stack"``, ``"ps1"``, ``"ls"``, ``"hips:<id>"``, or a FITS image with a WCS.
    name : str, optional
        By default after the source.
    choice : Choice, optional
        Which frames a stack takes.
    survey_of : Survey, optional
        Band, server and cache of a survey's images.
    cluster : ClusterSettings, optional
        Where a stack is made; by default on this machine.
    client : distributed.Client or "synchronous", optional
        A client to use instead.
    progress : Progress, optional

    Returns
    -------
    TemplateSummary

    Raises
    ------
    TemplateError
        If there is no such template, or it is not of this part of the sky.
    FieldBusyError
        If another process makes this template.
    """
    target = Field.open(absolute(locate(path)))
    name = _checked_name(name or _default_name(source))
    progress = progress or Silent()
    attrs: dict[str, Any] = {
        "name": name,
        "version": uuid.uuid4().hex[:12],
        "source": source,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "units": target.attrs["units"],
        "zero_point": target.attrs.get("zero_point"),
        "wcs": target.attrs.get("wcs"),
        "software": f"survey {survey.__version__}",
    }
    # A stack reads frames and their calibration, which a run may be about to change.
    groups = [f"template/{name}", *(["images"] if source == "stack" else [])]
    with threadpool_limits(1), held(target, new_run_id(), *groups):
        if source == "stack":
            cluster = cluster or ClusterSettings()
            with connect(cluster, client) as executor:
                summary = _write_stack(target, name, attrs, choice or Choice(), executor, progress)
        else:
            summary = _write_mosaic(target, name, source, attrs, survey_of or Survey())
    for warning in summary.warnings:
        progress.message(warning)
    return summary


def list_templates(path: str | Location) -> list[dict[str, Any]]:
    """What every template of a field says of itself: name, source, date, units, frames or images and more."""
    target = Field.open(path)
    return [target.group_attrs(f"template/{name}") for name in template_names(target)]


def template_names(target: Field) -> list[str]:
    """Names of the templates that a field holds."""
    return target.replaced()


def _default_name(source: str) -> str:
    text = source.removeprefix("hips:") if source.startswith("hips:") else Path(source).name.split(".fit")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "template"


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or name == "reference":
        raise TemplateError(
            f"template name {name!r}: take letters, digits, - and _; 'reference' is the oversampled one's"
        )
    return name


# -- own stack -----------------------------------------------------------------------------------


def _write_stack(
    target: Field, name: str, attrs: dict[str, Any], choice: Choice, executor: Executor, progress: Progress
) -> TemplateSummary:
    frames = calibrated_frames(target)
    chosen = choose_frames(frames, choice)
    events = _known_events(target)
    attrs |= {
        "frames": [str(frames["frame_id"].values[k]) for k in chosen],
        "mjd": [float(frames["time"].values[chosen].min()), float(frames["time"].values[chosen].max())],
        "psf_fwhm": float(np.median(frames["psf_fwhm"].values[chosen])),
        "choice": asdict(choice),
        "events_left_out": len([event for event in events if event["kind"] == "event"]),
        "images": images_key(target, frames),
    }
    with target.replacing(f"template/{name}", attrs["version"]) as fresh:
        _require(target, fresh, attrs)
        written = map_calls(
            executor, _stack_unit, target.tiles, progress, "stack", target.path, fresh, chosen, events
        )
        for result in written:
            if isinstance(result, BaseException):
                raise result
        _record(target, name, attrs, [result["sums"] for result in written])
    _strike_older(target, name)
    good = sum(result["good"] for result in written)
    spikes = sum(result["spikes"] for result in written)
    attrs = {**attrs, "spikes": spikes}
    return TemplateSummary(name, good / float(np.prod(target.shape)), attrs)


def _stack_unit(
    tile: Tile, path: Location, fresh: str, chosen: NDArray[np.int64], events: Sequence[Event]
) -> dict[str, Any]:
    """Stack a tile and write it; runs on a worker."""
    target = Field(path)
    stack = stack_tile(target, tile, chosen, events)
    arrays = {"flux": stack.flux, "error": stack.error, "mask": stack.mask}
    sums = target.write(fresh, arrays, tile.core)
    return {"sums": sums, "good": int((~stack.mask).sum()), "spikes": int(stack.spikes.sum())}


def _known_events(target: Field) -> list[Event]:
    """Events that searches have found, by any method, whose samples do not belong into a template."""
    names = ("kind", "x", "y", "time", "sigma_days")
    files = [target.events_path(method) for method in METHODS]
    rows = [row for file in files if file.exists() for row in read_table(file)]
    return [{name: row[name] for name in names} for row in rows]


def _write_mosaic(
    target: Field, name: str, source: str, attrs: dict[str, Any], asked: Survey
) -> TemplateSummary:
    warnings: list[str] = []
    made = make_mosaic(target, source, asked, attrs, warnings)
    arrays = {"flux": made.flux, "error": made.error, "mask": made.mask}
    written = []
    with target.replacing(f"template/{name}", attrs["version"]) as fresh:
        _require(target, fresh, attrs)
        for tile in target.tiles:
            cut = {part: values[tile.core] for part, values in arrays.items()}
            written.append(target.write(fresh, cut, tile.core))
        _record(target, name, attrs, written)
    _strike_older(target, name)
    return TemplateSummary(name, float((~made.mask).mean()), attrs, warnings)


# -- the store -----------------------------------------------------------------------------------


def _require(target: Field, group: str, attrs: dict[str, Any]) -> None:
    target.require_group(group, {"y": target.shape[0], "x": target.shape[1]}, attrs)


def _record(target: Field, name: str, attrs: dict[str, Any], written: list[dict[str, list[int]]]) -> None:
    """Say in the ledger what every tile of a version holds, before that becomes the template."""
    ledger = target.ledger(f"template/{name}")
    for tile, sums in zip(target.tiles, written, strict=True):
        unit = template_unit(attrs["version"], tile)
        piece = written_entry(f"template/{name}", tile.core, sums)
        ledger.record(unit, function_key("template", attrs, unit), {"written": [piece]})
    ledger.flush()


def _strike_older(target: Field, name: str) -> None:
    """Forget the versions before, and any that a kill kept from becoming the template."""
    ledger, kept = target.ledger(f"template/{name}"), template_records(target, name)
    ledger.invalidate([unit for unit in ledger.records if unit not in kept])
    ledger.compact()
