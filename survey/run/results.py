"""What came out of a field: events and light curves as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Table

from survey.config import Config, make_config
from survey.io.catalogs import as_table, read_table
from survey.io.files import write_json
from survey.io.locations import Location
from survey.io.store import Field
from survey.kernels.psf import psf_magnitudes
from survey.run.targets import TargetError, pixel_to_sky, sky_to_pixel
from survey.stages import difference_psf, photometry
from survey.stages.methods import known_method
from survey.stages.object_stamp import FLAG_KEPT_OUT_OF_FIT
from survey.stages.relative import RelativeLightCurve, relative_light_curve
from survey.tiles import Window


class ResultError(ValueError):
    """A result that is not there."""


def list_events(path: str | Location, method: str = "oversampled") -> Table:
    """Events found in a field.

    Parameters
    ----------
    path : path
        The field.
    method : str
        Difference method.

    Returns
    -------
    astropy.table.Table
        One row an event, best S/N first, with units.

    Raises
    ------
    ResultError
        If the search has not been run.
    MethodError
        If there is no such method.
    """
    field = Field.open(path)
    file = field.events_path(known_method(method))
    if not file.exists():
        raise ResultError(
            f"{path}: no events of method {method!r} yet; `survey run {path} --method {method}`"
        )
    scale = field.time_scale
    return as_table(
        read_table(file), flux_unit=field.attrs["units"], time_scale=scale, meta={"time_scale": scale}
    )


def light_curve(
    path: str | Location,
    method: str = "oversampled",
    *,
    event: str | None = None,
    ra: float | None = None,
    dec: float | None = None,
    x: float | None = None,
    y: float | None = None,
    relative: bool = False,
) -> Table:
    """Light curve of an event, of a position on the sky, or of a pixel position.

    Parameters
    ----------
    path : path
        The field.
    method : str
        Difference method.
    event : str, optional
        An event's ``object_id``.
    ra, dec : float, optional
        Degrees, ICRS.
    x, y : float, optional
        Pixels of the reference grid, centres from 0.
    relative : bool
        Add the reference flux, divide by it, and correct by an ensemble of comparison stars.

    Returns
    -------
    astropy.table.Table
        Columns time (MJD at mid-exposure in the scale of ``meta["time_scale"]``), flux, error, flags,
        reference_flux and its error; difference flux in the field's unit, or with ``relative`` flux in units
        of the reference flux. Where the zero point is known, magnitudes of
        reference and difference together, and the 3-sigma limit where there is no such flux.

    Raises
    ------
    ResultError
        If the event is unknown.
    TargetError
        If the position is not in the field.
    """
    field = Field.open(path)
    config = make_config({**field.attrs["config"], "method": method}, source=f"settings stored in {path}")
    if not field.has_table("psf"):
        raise ResultError(f"{path}: no differences yet; `survey run {path}`")
    config = difference_psf.as_subtracted(field, config)
    model = difference_psf.load(field, config)
    item = _item(field, method, event, ra, dec, x, y)
    if relative:
        return relative_table(relative_light_curve(field, model, item, config))
    half = config.photometry.size // 2 + 2
    data = photometry.read_window(field, _window(field, item, half), config)
    measured = photometry.measure(data, model, item, config)
    columns = {name: measured[name] for name in ("time", "flux", "error", "flags")}
    # One number, but a column: not every format of tables keeps what stands beside the columns.
    for name in ("reference_flux", "reference_flux_error"):
        columns[name] = np.full(len(columns["time"]), measured[name])
    zero_point = field.attrs.get("zero_point")
    if zero_point is not None and np.isfinite(zero_point):
        total = measured["flux"] + measured["reference_flux"]
        magnitudes = psf_magnitudes(total, measured["error"], zero_point)
        columns["magnitude"], columns["magnitude_error"] = magnitudes.magnitude, magnitudes.error
        columns["magnitude_limit"] = magnitudes.limit
    ra_, dec_ = pixel_to_sky(field, measured["x"], measured["y"])
    names = ("x", "y", "position_error", "reference_flux", "reference_flux_error")
    meta = {name: measured[name] for name in names} | {"time_scale": field.time_scale}
    return as_table(
        Table(columns),
        flux_unit=field.attrs["units"],
        time_scale=field.time_scale,
        meta={**meta, "ra": float(ra_[0]), "dec": float(dec_[0])},
    )


def relative_table(found: RelativeLightCurve) -> Table:
    """A relative light curve as a table: from differences, and apertures on the same frames beside it.

    Both are in units of the reference flux: an aperture, which holds not all of a star's light, by its
    median.
    """
    unit = found.difference.normalisation / found.reference_flux
    columns = {
        "time": found.time,
        "flux": found.difference.flux * unit,
        "error": found.difference.error * unit,
        "flags": found.flags,
        "aperture_flux": found.aperture.flux * unit,
        "aperture_error": found.aperture.error * unit,
    }
    table = as_table(Table(columns), meta={"reference_flux": found.reference_flux})
    table.meta["comparisons"] = len(found.difference.comparisons)
    return table


def write_relative(field: Field, config: Config, item: dict[str, Any]) -> None:
    """Keep a target's relative light curve beside the field, for the report."""
    table = relative_table(relative_light_curve(field, difference_psf.load(field, config), item, config))
    document: dict[str, Any] = {name: np.asarray(table[name]).tolist() for name in table.colnames}
    # Samples kept out of the reference's fit are good data.
    flags = np.asarray(table["flags"]) & ~FLAG_KEPT_OUT_OF_FIT
    document["flags"] = flags.tolist()
    document["name"] = str(item["object_id"])
    document["comparison stars"] = int(table.meta["comparisons"])
    for name, words in (("flux", "difference photometry"), ("aperture_flux", "aperture photometry")):
        good = np.isfinite(table[name]) & (flags == 0)
        steps = np.diff(np.asarray(table[name])[good])
        # Differences of neighbours do not know a transit or a slope.
        scatter = np.nan
        if len(steps) > 2:
            spread = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2)
            scatter = spread / abs(float(np.median(np.asarray(table[name])[good])))
        document[f"{words}: scatter from point to point [mmag]"] = round(1085.7 * scatter, 2)
    write_json(field.relative_path(config.method), document)


def _item(
    field: Field,
    method: str,
    event: str | None,
    ra: float | None,
    dec: float | None,
    x: float | None,
    y: float | None,
) -> dict[str, Any]:
    pairs = ((event, event), (ra, dec), (x, y))
    given = [pair for pair in pairs if pair != (None, None)]
    if len(given) != 1 or None in given[0]:
        raise TargetError("give one of: an event, both RA and Dec, both x and y")
    if event is not None:
        rows = list_events(field.path, method)
        index = np.flatnonzero(np.asarray(rows["object_id"]).astype(str) == event)
        if not index.size:
            raise ResultError(f"{field.path}: no event {event!r}; `survey events {field.path}` lists them")
        return {name: rows[name][index[0]] for name in ("x", "y", "time", "sigma_days")}
    if ra is not None and dec is not None:
        x, y = sky_to_pixel(field, ra, dec)
    assert x is not None
    assert y is not None
    if not (-0.5 <= x < field.shape[1] - 0.5 and -0.5 <= y < field.shape[0] - 0.5):
        raise TargetError(
            f"pixel ({x:.1f}, {y:.1f}) lies outside the field of {field.shape[1]} x {field.shape[0]} pixels"
        )
    # A position that is given is taken as it is: one that follows the noise would follow it upwards.
    return {"x": x, "y": y, "refine": False}


def _window(field: Field, item: dict[str, Any], half: int) -> Window:
    cy, cx = round(float(item["y"])), round(float(item["x"]))
    return (
        slice(max(cy - half, 0), min(cy + half + 1, field.shape[0])),
        slice(max(cx - half, 0), min(cx + half + 1, field.shape[1])),
    )
