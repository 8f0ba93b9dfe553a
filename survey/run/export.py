"""What a field holds, as files that other programs read: FITS images, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS

import survey
from survey.config import Config, make_config
from survey.io.catalogs import FORMATS, as_table, explode, read_table, write_table
from survey.io.frames import parse_wcs
from survey.io.images import write_fits
from survey.io.locations import Location
from survey.io.store import Field
from survey.kernels.reference import ReferenceFit
from survey.run.results import ResultError, list_events
from survey.run.template import template_names
from survey.stages.calibrated import calibrated_frames
from survey.stages.differences import read_difference
from survey.stages.methods import known_method
from survey.tiles import Window

KINDS = ("reference", "templates", "differences", "cutouts", "events", "lightcurves")
ENDINGS = {"csv": "csv", "ecsv": "ecsv", "votable": "vot", "parquet": "parquet"}


def export(
    path: str | Location,
    output: str | Path | None = None,
    *,
    what: Sequence[str] | None = None,
    method: str = "oversampled",
    frames: Sequence[str] = (),
    events: Sequence[str] = (),
    size: int = 41,
    table_format: str = "ecsv",
) -> list[Path]:
    """Write what a field holds as FITS images and tables.

    Parameters
    ----------
    path : path
        The field.
    output : path, optional
        Folder; by default ``<field>/export``.
    what : sequence of str, optional
        Of `KINDS`; by default what there is of reference, templates, events and light curves. The reference
        is evaluated at the pixels' centres; differences are one file a frame with SCI, ERR and MASK; cutouts
        are cubes (time, y, x) of an event's differences with a table of times.
    method : str
        Difference method.
    frames : sequence of str
        Differences of these frames only; by default all.
    events : sequence of str
        Cutouts of these events only; by default all.
    size : int
        Edge of a cutout in pixels.
    table_format : {"csv", "ecsv", "votable", "parquet"}

    Returns
    -------
    list of Path
        The files, in the order they were written.

    Raises
    ------
    ResultError
        If something that was asked for is not there, or has no such name.
    """
    target, method = Field.open(path), known_method(method)
    what = _there(target, method) if what is None else what
    if unknown := [kind for kind in what if kind not in KINDS]:
        raise ResultError(f"cannot export {unknown[0]!r}; known: {', '.join(KINDS)}")
    if table_format not in FORMATS:
        raise ResultError(f"no table format {table_format!r}; known: {', '.join(FORMATS)}")
    folder = Path(output) if output is not None else target.path / "export"
    if not isinstance(folder, Path):
        raise ResultError(f"{path}: files for other programs go to a file system: give -o FOLDER")
    config = make_config({**target.attrs["config"], "method": method}, source=f"settings stored in {path}")
    written: list[Path] = []
    if "reference" in what:
        written.append(_reference(target, folder))
    if "templates" in what:
        written += [_template(target, name, folder) for name in template_names(target)]
    if "differences" in what:
        written += [_difference(target, k, config, folder) for k in _frames_asked(target, config, frames)]
    if "cutouts" in what:
        written += _cutouts(target, config, events, size, folder)
    if "events" in what:
        table = list_events(target.path, method)
        written.append(folder / f"events-{method}.{ENDINGS[table_format]}")
        write_table(table, written[-1])
    if "lightcurves" in what:
        file = folder / f"lightcurves-{method}.{ENDINGS[table_format]}"
        written.append(_light_curves(target, method, file))
    return written


def _there(target: Field, method: str) -> list[str]:
    """What a field holds of what is small enough to be exported unasked."""
    has = {
        "reference": target.has("reference", "coefficients"),
        "templates": bool(template_names(target)),
        "events": target.events_path(method).exists(),
        "lightcurves": target.light_curves_path(method).exists(),
    }
    if not any(has.values()):
        raise ResultError(f"{target.path}: nothing to export yet; `survey run {target.path}`")
    return [kind for kind, there in has.items() if there]


def _wcs(target: Field) -> WCS | None:
    text = target.attrs.get("wcs")
    return parse_wcs(text) if text else None


def _cards(target: Field, **more: Any) -> dict[str, Any]:
    """Primary header: what is true of the whole field, and of this file."""
    return {
        "ORIGIN": f"survey {survey.__version__}",
        "FILTER": target.attrs.get("band"),
        "DETECTOR": str(target.attrs.get("detector") or "") or None,
        "REFFRAME": (str(target.attrs.get("reference_frame")), "frame that defines grid and flux unit"),
        "MAGZPT": target.attrs.get("zero_point"),
        **more,
    }


def _reference(target: Field, folder: Path) -> Path:
    """The oversampled reference at the centres of the pixels."""
    if not target.has("reference", "coefficients"):
        raise ResultError(f"{target.path}: no reference yet; `survey run {target.path}`")
    flux = np.full(target.shape, np.nan, np.float32)
    extension = float(target.attrs["config"]["reference"]["extension"])
    for tile in target.tiles:
        coefficients = np.asarray(target.array("reference", "coefficients")[tile.core], float)
        valid, zeros = np.any(coefficients != 0, axis=(2, 3)), np.zeros(tile.shape)
        fit = ReferenceFit(coefficients, zeros.astype(int), zeros, valid, extension)
        flux[tile.core] = fit.evaluate(np.zeros(1), np.zeros(1))[0]
    used, chi2 = (np.asarray(target.array("reference", name)[...]) for name in ("n_used", "chi2"))
    arrays = {"flux": flux, "mask": ~np.isfinite(flux), "nused": used, "chi2": chi2}
    return write_fits(
        folder / "reference.fits", arrays,
        wcs=_wcs(target), units=target.attrs["units"], cards=_cards(target, CONTENT="reference"),
    )  # fmt: skip


def _template(target: Field, name: str, folder: Path) -> Path:
    group = f"template/{name}"
    arrays = {part: np.asarray(target.array(group, part)[...]) for part in ("flux", "error", "mask")}
    attrs = target.group_attrs(group)
    cards = _cards(
        target,
        CONTENT="template",
        TEMPLATE=name,
        SOURCE=str(attrs.get("source"))[:60],
        DATE=attrs.get("date"),
        MAGZPT=attrs.get("zero_point"),
        NFRAMES=len(attrs.get("frames", ())) or None,
    )
    return write_fits(
        folder / f"template-{name}.fits", arrays, wcs=_wcs(target), units=str(attrs.get("units")), cards=cards
    )


def _frames_asked(target: Field, config: Config, names: Sequence[str]) -> list[int]:
    """Numbers of the frames whose differences are asked for."""
    _check_differences(target, config)
    known = [str(name) for name in calibrated_frames(target)["frame_id"].values]
    if unknown := sorted(set(names) - set(known)):
        raise ResultError(f"no frame {unknown[0]!r} in the field, which holds {known[0]} … {known[-1]}")
    return [k for k, name in enumerate(known) if not names or name in names]


def _check_differences(target: Field, config: Config) -> None:
    if not target.has(f"difference/{config.method}", "flux"):
        raise ResultError(
            f"{target.path}: no differences of method {config.method!r} yet; "
            f"`survey run {target.path} --method {config.method}`"
        )


def _difference(target: Field, k: int, config: Config, folder: Path) -> Path:
    """Differences of one frame."""
    frames = calibrated_frames(target).isel(time=slice(0, k + 1))
    window = (slice(0, target.shape[0]), slice(0, target.shape[1]))
    names = ("flux", "error", "mask", "fit_mask")
    arrays = {
        name: values[0]
        for name, values in read_difference(target, window, frames, config, names, start=k).items()
    }
    name = str(frames["frame_id"].values[k])
    cards = _cards(target, CONTENT="difference", METHOD=config.method, **_frame_cards(frames, k))
    return write_fits(
        folder / f"difference-{config.method}-{_file_name(name)}.fits", arrays,
        wcs=_wcs(target), units=target.attrs["units"], cards=cards,
    )  # fmt: skip


def _frame_cards(frames: xr.Dataset, k: int) -> dict[str, Any]:
    scale = frames["time"].attrs.get("scale", "utc")
    return {
        "FRAME": str(frames["frame_id"].values[k]),
        "MJD-AVG": (float(frames["time"].values[k]), "MJD at mid-exposure"),
        "TIMESYS": scale.upper(),
        "EXPTIME": float(frames["exposure"].values[k]),
        "PSFFWHM": (float(frames["psf_fwhm"].values[k]), "[pixel]"),
        "PHOTSCAL": (float(frames["scale"].values[k]), "frame over reference flux"),
        "FLAGS": int(frames["flags"].values[k]),
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _cutouts(target: Field, config: Config, names: Sequence[str], size: int, folder: Path) -> list[Path]:
    """Cubes of the differences around events."""
    _check_differences(target, config)
    table = list_events(target.path, config.method)
    ids = [str(name) for name in table["object_id"]]
    if unknown := sorted(set(names) - set(ids)):
        raise ResultError(f"no event {unknown[0]!r}; `survey events {target.path}` lists them")
    rows = [i for i, name in enumerate(ids) if not names or name in names]
    return [_cutout(target, table[i], config, size, folder) for i in rows]


def _cutout(target: Field, event: Any, config: Config, size: int, folder: Path) -> Path:
    frames = calibrated_frames(target)
    window = _around(target, float(event["y"]), float(event["x"]), size)
    arrays = read_difference(target, window, frames, config, ("flux", "error", "mask"))
    times = fits.BinTableHDU.from_columns(
        [
            fits.Column("time", "D", unit="d", array=frames["time"].values),
            fits.Column("frame", "40A", array=[str(name) for name in frames["frame_id"].values]),
            fits.Column("flags", "K", array=frames["flags"].values),
        ]
    )
    wcs = _wcs(target)
    name = str(event["object_id"])
    cards = _cards(
        target, CONTENT="cutout", METHOD=config.method, OBJECT=name,
        X=(float(event["x"]) - window[1].start, "[pixel] of the event, from 0"),
        Y=(float(event["y"]) - window[0].start, "[pixel] of the event, from 0"),
    )  # fmt: skip
    return write_fits(
        folder / f"cutout-{config.method}-{_file_name(name)}.fits", arrays,
        wcs=None if wcs is None else wcs[window], units=target.attrs["units"], cards=cards,
        tables={"EPOCHS": times},
    )  # fmt: skip


def _around(target: Field, y: float, x: float, size: int) -> Window:
    """Window of an edge about a position, moved to lie in the field."""
    spans = []
    for middle, length in ((y, target.shape[0]), (x, target.shape[1])):
        edge = min(size, length)
        start = min(max(round(middle) - edge // 2, 0), length - edge)
        spans.append(slice(start, start + edge))
    return spans[0], spans[1]


def _light_curves(target: Field, method: str, path: Path) -> Path:
    """Light curves of events and targets, one row an epoch except in Parquet."""
    file = target.light_curves_path(method)
    if not file.exists():
        raise ResultError(
            f"{target.path}: no light curves of method {method!r} yet; "
            f"`survey run {target.path} --method {method}`"
        )
    table = read_table(file)
    if path.suffix != ".parquet":
        table = explode(table)
    write_table(as_table(table, flux_unit=target.attrs["units"]), path)
    return path
