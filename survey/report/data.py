"""What a report is made of, read from a field; what is missing is None or empty."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.frames import parse_wcs
from survey.io.locations import Location, files
from survey.io.store import Field
from survey.io.tables import FieldError
from survey.kernels.reference import ReferenceFit
from survey.stages.calibrated import differenced_frames, read_calibrated
from survey.stages.differences import read_difference
from survey.stages.methods import METHODS, known_method
from survey.tiles import Window

Row = dict[str, Any]


@dataclasses.dataclass
class ReportData:
    """A field and its small products.

    Parameters
    ----------
    field : Field
        The cube, read piece by piece.
    method : str
        Difference method.
    frames : Dataset, optional
        The table of frames, calibration refined where that was done.
    events : list of dict, optional
        Best S/N first; None: not searched yet.
    curves : dict
        Light curves by object.
    runs : list of dict
        Records, oldest first; each with its ``units``.
    """

    field: Field
    method: str
    frames: xr.Dataset | None
    events: list[Row] | None
    curves: dict[str, Row]
    runs: list[Row]
    relative: Row | None = None
    comparison: Row | None = None
    truth: list[Row] = dataclasses.field(default_factory=list)

    @property
    def units(self) -> str:
        """The field's flux unit."""
        return str(self.field.attrs.get("units") or "flux")

    @property
    def config(self) -> Row:
        """Settings of the last run, else those stored in the field."""
        for run in reversed(self.runs):
            if run.get("settings"):
                return dict(run["settings"])
        return dict(self.field.attrs.get("config") or {})

    @property
    def method_config(self) -> Config:
        """Settings under which the method's differences were made, as far as the records tell."""
        settings = [run.get("settings") or {} for run in self.runs]
        mine = [s for s in settings if s.get("method") == self.method]
        return Config.model_validate({"method": self.method, "cpm": mine[-1].get("cpm", {}) if mine else {}})

    @property
    def extension(self) -> float:
        """Width of the reference's domain in pixels."""
        return float(self.config.get("reference", {}).get("extension", 1.2))

    @property
    def time_origin(self) -> int:
        """Whole day that figures count their times from."""
        return 0 if self.frames is None else int(np.floor(np.nanmin(self.frames["time"].values)))

    @property
    def time_scale(self) -> str:
        """Scale of the times, in capitals."""
        return str("utc" if self.frames is None else self.frames["time"].attrs.get("scale", "utc")).upper()

    def wcs(self) -> Any:
        """The sky grid's WCS, None where unknown."""
        text = self.field.attrs.get("wcs")
        return parse_wcs(text) if text else None


def load(path: str | Location, method: str) -> ReportData:
    """Read what a field holds of a method.

    Raises
    ------
    FieldError, SchemaError
        If there is no field, or one that this version cannot read, or what it holds is of other methods.
    MethodError
        If there is no such method.
    """
    target = Field.open(path)
    _check_method(target, known_method(method))
    frames = differenced_frames(target, method) if target.has_table("frames") else None
    if frames is not None and not frames.sizes.get("time"):
        frames = None
    events = _rows(target.events_path(method))
    if events is not None:
        events = [{**row, "psf_likeness": _likeness(row)} for row in events]
        events.sort(key=lambda row: -abs(_number(row.get("snr"))))
    curves = {row["object_id"]: row for row in _rows(target.light_curves_path(method)) or []}
    return ReportData(
        target, method, frames, events, curves, _runs(target), read_json(target.relative_path(method))
    )


def _check_method(target: Field, method: str) -> None:
    """A page of nothing would replace one that shows something."""
    held = [name for name in METHODS if target.has(f"difference/{name}")]
    if held and method not in held:
        raise FieldError(f"{target.path}: nothing of method {method!r} yet, only of {', '.join(held)}")


def _number(value: Any) -> float:
    return float(value) if value is not None and np.isfinite(value) else 0.0


def _likeness(row: Row) -> float | None:
    """How far an event looks like a star: the correlation of its pixels with the PSF."""
    return row.get("psf_likeness", row.get("psf_correlation"))


def _rows(path: Location) -> list[Row] | None:
    return read_parquet(path).to_pylist() if path.exists() else None


def read_json(path: Location) -> Row | None:
    """A JSON object, None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def _runs(target: Field) -> list[Row]:
    runs = []
    for file in files(target.path / "runs", "*/run.json"):
        record = json.loads(file.read_text())
        units = file.parent / "units.jsonl"
        record["units"] = (
            [json.loads(line) for line in units.read_text().splitlines()] if units.exists() else []
        )
        runs.append(record)
    return runs


def blocks(shape: tuple[int, int], size: int) -> Iterator[Window]:
    """Windows that partition an image, row by row."""
    for y in range(0, shape[0], size):
        for x in range(0, shape[1], size):
            yield slice(y, min(y + size, shape[0])), slice(x, min(x + size, shape[1]))


def around(shape: tuple[int, int], y: float, x: float, size: int) -> Window:
    """A window of this edge about a position, moved inside the image."""
    window = []
    for center, length in ((y, shape[0]), (x, shape[1])):
        edge = min(size, length)
        start = min(max(round(center) - edge // 2, 0), length - edge)
        window.append(slice(start, start + edge))
    return window[0], window[1]


def reference_fit(data: ReportData, window: Window) -> ReferenceFit | None:
    """The reference of a window; None where none has been written."""
    if not data.field.has("reference", "coefficients"):
        return None
    coefficients = np.asarray(data.field.array("reference", "coefficients")[window], np.float64)
    valid = np.any(coefficients != 0, axis=(2, 3)) & np.isfinite(coefficients).all(axis=(2, 3))
    if not valid.any():
        return None
    return ReferenceFit(
        np.where(valid[..., None, None], coefficients, 0.0),
        np.zeros(valid.shape, int),
        np.zeros(valid.shape),
        valid,
        data.extension,
    )


def native_reference(data: ReportData, window: Window) -> NDArray[Any] | None:
    """The reference at phase zero."""
    fit = reference_fit(data, window)
    return None if fit is None else fit.evaluate(np.zeros(1), np.zeros(1))[0]


def calibrated_frame(data: ReportData, k: int, window: Window, size: int = 64) -> NDArray[Any]:
    """One frame in the reference flux unit; bad samples NaN. Read in pieces, as all epochs come along."""
    (y0, y1), (x0, x1) = ((s.start, s.stop) for s in window)
    image = np.full((y1 - y0, x1 - x0), np.nan, np.float32)
    for rows, columns in blocks(image.shape, size):
        piece = (
            slice(rows.start + y0, rows.stop + y0),
            slice(columns.start + x0, columns.stop + x0),
        )
        samples = read_calibrated(data.field, piece, data.frames)
        image[rows, columns] = np.where(samples.mask[k], np.nan, samples.flux[k])
    return image


def difference(data: ReportData, k: int, window: Window) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Difference and error of one frame; bad samples NaN. None where none has been written."""
    found = differences(data, slice(k, k + 1), window, ("flux", "error", "mask"))
    if found is None or found["mask"].all():
        return None
    flux, error = (np.where(found["mask"][0], np.nan, found[name][0]) for name in ("flux", "error"))
    return flux, error


def differences(
    data: ReportData, epochs: slice, window: Window, names: tuple[str, ...]
) -> dict[str, NDArray[Any]] | None:
    """Arrays of some epochs in a window of the sky grid; None where no difference has been written."""
    if data.frames is None or not data.field.has(f"difference/{data.method}", "flux"):
        return None
    frames = data.frames.isel(time=slice(0, epochs.stop))
    return read_difference(data.field, window, frames, data.method_config, names, start=epochs.start)
