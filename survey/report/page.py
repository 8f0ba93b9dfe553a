"""The page: header, sections, style."""

from __future__ import annotations

from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs.utils import proj_plane_pixel_scales

from survey.io.locations import Location, absolute, locate, write_atomic
from survey.io.sky_positions import pixels_to_sky
from survey.report.comparison import comparison
from survey.report.data import ReportData, load, read_json
from survey.report.events import events
from survey.report.markup import date, duration, fixed, number
from survey.report.methods import methods
from survey.report.nn2 import nn2
from survey.report.noise import noise
from survey.report.pictures import pictures
from survey.report.quality import quality
from survey.report.residuals import Residuals, accumulate
from survey.report.runs import runs
from survey.report.sources import field_truth
from survey.report.style import STYLE
from survey.report.target import target
from survey.report.theme import drawing
from survey.report.truth import compare_with_truth
from survey.report.variables import variables


def write_report(
    path: str | Location,
    method: str = "oversampled",
    output: str | Location | None = None,
    *,
    truth: str | Path | None = None,
) -> Location:
    """Write the report of a field: one HTML page without any external request.

    Parts that a field does not have yet are named as missing.

    Parameters
    ----------
    path : path
        The field.
    method : str
        Difference method.
    output : path, optional
        File to write; by default ``<field>/report.html``.
    truth : path, optional
        Table of the true sources of a simulated field; by default ``truth.ecsv`` beside its frames.

    Returns
    -------
    Location
        The file written.

    Raises
    ------
    FieldError, SchemaError
        If there is no field at the path, or one that this version cannot read, or all it holds is of other
        methods than this one.
    MethodError
        If there is no such method.
    """
    data = load(path, method)
    add_truth(data, truth)
    with drawing():
        text = render(data)
    target_file = locate(output) if output is not None else data.field.path / "report.html"
    write_atomic(target_file, text.encode())
    return target_file


def add_truth(data: ReportData, truth: str | Path | None) -> None:
    """A comparison made now where the truth is known, else the one that a demo left in the field."""
    data.truth = field_truth(data.field, truth)
    if data.truth and data.events is not None:
        curves = list(data.curves.values())
        data.comparison = compare_with_truth(data.events, data.truth, light_curves=curves)
    else:
        data.comparison = read_json(data.field.path / "truth_comparison.json")


def render(data: ReportData) -> str:
    """The page as text."""
    residuals = accumulate(data)
    parts = [
        ("pictures", "Field", pictures(data)),
        ("variables", "Variables", variables(data)),
        ("events", "Events", events(data)),
        ("truth", "Truth", comparison(data)),
        ("methods", "Methods", methods(data, residuals)),
        ("nn2", "All pairs", nn2(data)),
        ("target", "Target", target(data)),
        ("noise", "Errors", noise(data, residuals)),
        ("frames", "Frames", quality(data, residuals)),
        ("runs", "Runs", runs(data)),
    ]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, body in parts if body)
    name = escape(absolute(data.field.path).name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name}: survey report</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{name}</h1>{headline(data)}{tiles(data, residuals)}</header><nav>{links}</nav>"
        f"<main>{''.join(body for _, _, body in parts)}</main>"
        f"<footer>survey {escape(version())}, method {escape(data.method)}</footer></body></html>\n"
    )


def version() -> str:
    """Version of this software."""
    try:
        return metadata.version("survey")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def headline(data: ReportData) -> str:
    """One line that says what this field is and how far it has come."""
    if not data.runs:
        state = "no run recorded"
    else:
        last = data.runs[-1]
        state = f"last run {escape(str(last.get('status')))} in {duration(last.get('seconds'))}"
    height, width = data.field.shape
    return f'<p class="headline">{width} × {height} pixels · method {escape(data.method)} · {state}</p>'


def tiles(data: ReportData, residuals: Residuals | None) -> str:
    """The figures that matter at a glance."""
    items: list[tuple[str, str, str]] = []
    frames = data.frames
    if frames is not None:
        time, flags = frames["time"].values, frames["flags"].values
        bad = int((flags != 0).sum())
        items.append(("frames", str(len(time)), f"{bad} flagged" if bad else "none flagged"))
        span = float(time.max() - time.min())
        items.append(("time span", number(span, 3, unit="d"), f"{date(time.min())}<br>{date(time.max())}"))
        fwhm = frames["psf_fwhm"].values
        if np.isfinite(fwhm).any():
            items.append(("PSF width", number(np.nanmedian(fwhm), 3, unit="pixel"), "median FWHM"))
    attrs = data.field.attrs
    if attrs.get("band"):
        items.append(("band", escape(str(attrs["band"])), escape(str(attrs.get("detector") or ""))))
    items += sky(data)
    if data.events is not None:
        count = len(data.events)
        best = f"best S/N {fixed(abs(data.events[0]['snr']), 1)}" if count else "none above the threshold"
        items.append(("events", str(count), best))
    if residuals is not None:
        mean = f"mean {fixed(residuals.of().mean, 4, sign=True)}"
        items.append(("difference / error", f"{fixed(residuals.of().std, 3)} σ", f"width; {mean}"))
    cells = "".join(
        f"<div{' class=broad' if len(v) > 16 else ''}><dt>{k}</dt><dd>{v}</dd><dd class=note>{n}</dd></div>"
        for k, v, n in items
    )
    return f'<dl class="tiles">{cells}</dl>'


def sky(data: ReportData) -> list[tuple[str, str, str]]:
    """Centre of the field on the sky and the pixel's size."""
    wcs: Any = data.wcs()
    if wcs is None:
        return [("sky position", "unknown", "no WCS")]
    height, width = data.field.shape
    ra, dec = (v[0] for v in pixels_to_sky(wcs, (width - 1) / 2, (height - 1) / 2))
    where = SkyCoord(ra, dec, unit="deg")
    right = where.ra.to_string("h", sep=":", precision=1, pad=True)
    up = where.dec.to_string("deg", sep=":", precision=0, alwayssign=True, pad=True)
    pixel = 3600 * float(np.mean(proj_plane_pixel_scales(wcs)))
    note = f"{fixed(ra, 5)}°, {fixed(dec, 5, sign=True)}° · {number(pixel, 3)}″ a pixel"
    return [("centre (ICRS)", f"{right} {up}".replace("-", "−"), note)]
