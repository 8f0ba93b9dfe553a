"""The target's light curve, corrected by comparison stars, against aperture photometry."""

from __future__ import annotations

from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

from survey.report.data import ReportData, Row
from survey.report.markup import facts, figure, finite, fixed, section
from survey.report.theme import BLUE, MUTED, ORANGE, light_grid, new_figure, to_svg

NAMES = ("name", "object_id")


def target(data: ReportData) -> str:
    """The section on the target; nothing where no relative photometry was done."""
    found = data.relative
    if not found or "time" not in found:
        return ""
    origin = int(np.floor(np.nanmin(np.asarray(found["time"], float))))
    words = (
        "Flux in units of that in the reference, corrected by the same comparison stars. "
        "Grey: frames flagged as poor."
    )
    pairs = [
        (name.replace("_", " "), _text(value))
        for name, value in found.items()
        if name not in NAMES and _scalar(value)
    ]
    body = figure(relative_figure(found, origin), words, css="wide-figure")
    name = escape(next((str(found[key]) for key in NAMES if found.get(key)), "The target"))
    return section("target", name, body + facts(pairs))


def _scalar(value: object) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return f"{value:.4g}" if finite(value) else escape(str(value))


def relative_figure(found: Row, origin: int) -> str:
    """PSF and aperture light curves, one above the other on the same scale."""
    time = np.asarray(found["time"], float) - origin
    flags = np.asarray(found.get("flags") or np.zeros(time.shape), int)
    curves = [
        ("differences", BLUE, "flux", "error"),
        ("aperture", ORANGE, "aperture_flux", "aperture_error"),
    ]
    curves = [curve for curve in curves if curve[2] in found]
    fig = new_figure(760, 200 * len(curves) + 30)
    panels = np.atleast_1d(fig.subplots(len(curves), 1, sharex=True, sharey=True))
    inside = []
    for axes, (name, colour, flux_name, error_name) in zip(panels, curves, strict=True):
        flux = np.asarray([np.nan if v is None else v for v in found[flux_name]], float)
        error = np.asarray(
            [np.nan if v is None else v for v in found.get(error_name, np.zeros(len(flux)))], float
        )
        light_grid(axes)
        good = np.isfinite(flux) & (flags == 0)
        axes.errorbar(
            time[~good],
            flux[~good],
            error[~good],
            fmt="o",
            ms=2.6,
            color=MUTED,
            mec="none",
            elinewidth=0.5,
            alpha=0.6,
        )
        axes.errorbar(
            time[good], flux[good], error[good], fmt="o", ms=3.4, color=colour, mec="none", elinewidth=0.8
        )
        noise = _scatter(flux[good])
        axes.set_title(f"{name}: point-to-point scatter {fixed(100 * noise, 2)} %", loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        inside.append(flux[good])
    known = np.concatenate(inside)
    if known.size > 4:
        low, high = np.percentile(known, [0.5, 99.5])
        panels[0].set_ylim(low - 0.35 * (high - low), high + 0.35 * (high - low))
    panels[-1].set_xlabel(f"MJD − {origin}")
    fig.supylabel("relative flux", fontsize=11)
    return to_svg(fig, "Relative light curve of the target, PSF and aperture")


def _scatter(flux: np.ndarray) -> float:
    """Robust scatter between neighbours, free of a slow change; relative to the median."""
    if flux.size < 3:
        return float("nan")
    steps = np.diff(flux) / np.sqrt(2)
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / abs(np.median(flux)))
