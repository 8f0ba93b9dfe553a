"""The frames over time: seeing, scale, sky, registration, flags, dithers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from survey.kernels.frame_quality import FrameFlag
from survey.report.data import ReportData
from survey.report.markup import count, date, figure, fixed, missing, number, section, table
from survey.report.residuals import Residuals
from survey.report.theme import BLUE, GRID, MUTED, ORANGE, RED, light_grid, new_figure, to_svg
from survey.stages.calibrated import phases

WIDTH, HEIGHT = 400, 190


def flag_words(flags: Any) -> str:
    """Quality bits of a frame in words.

    Examples
    --------
    >>> flag_words(3)
    'trailed, hazy'
    """
    return ", ".join(str(f.name).lower().replace("_", " ") for f in FrameFlag if int(flags) & f) or "none"


def quality(data: ReportData, residuals: Residuals | None) -> str:
    """The section on the frames."""
    title = "The frames"
    frames = data.frames
    if frames is None:
        return section("frames", title, missing("No frames have been ingested."))
    time, flags = frames["time"].values - data.time_origin, frames["flags"].values
    series = [
        ("PSF width (FWHM)", "pixel", _column(frames, "psf_fwhm")),
        ("Photometric scale", "frame / reference frame", _column(frames, "scale")),
        ("Sky background", data.units, frames["background"].values[:, 0]),
        ("Registration residual", "pixel rms", _column(frames, "registration_rms")),
        ("Stars matched", "stars", _column(frames, "n_matched")),
        ("Elongation of stars", "major / minor axis", _column(frames, "elongation")),
    ]
    if residuals is not None:
        series.append(("Width of difference / error", "σ", residuals.frame_std))
    parts = [
        figure(
            over_time(time, values, flags, label, name, data.time_origin),
            f"<b>{name}</b>{_spread(values, flags)}",
        )
        for name, label, values in series
        if np.isfinite(values).any()
    ]
    parts.append(
        figure(coverage(data), "<b>Dithers</b>: sub-pixel phase of each frame at the field's centre.")
    )
    lead = f"{len(time)} frames, {int((flags != 0).sum())} of them flagged and kept out of the reference."
    if (flags != 0).any():
        lead += " Flagged frames are red crosses; triangles lie beyond the axis."
    return section("frames", title, f'<div class="grid small">{"".join(parts)}</div>{flagged(data)}', lead)


def _column(frames: Any, name: str) -> NDArray[Any]:
    values = frames[name].values if name in frames else np.full(frames.sizes["time"], np.nan)
    return np.asarray(values, float)


def _spread(values: NDArray[Any], flags: NDArray[Any]) -> str:
    good = values[(flags == 0) & np.isfinite(values)]
    if not good.size:
        return ""
    low, middle, high = np.percentile(good, [16, 50, 84])
    decimals = int(np.clip(1 - np.floor(np.log10(max(high - low, 1e-12))), 0, 5))
    low, middle, high = (fixed(value, decimals) for value in (low, middle, high))
    return f": median {middle}, 68 % within {low} … {high}"


def over_time(
    time: NDArray[Any], values: NDArray[Any], flags: NDArray[Any], label: str, name: str, origin: int
) -> str:
    """One quantity of all frames over time."""
    fig = new_figure(WIDTH, HEIGHT)
    axes = fig.add_subplot()
    light_grid(axes)
    good = flags == 0
    axes.plot(time[good], values[good], "o", ms=3.2, color=BLUE, mec="none")
    axes.plot(time[~good], values[~good], "x", ms=5, color=RED, mew=1.4)
    base = values[good & np.isfinite(values)]
    if base.size > 4:
        # A flagged frame may lie far off; it is drawn at the edge rather than flatten all the others.
        low, high = np.percentile(base, [0.5, 99.5])
        room = max(high - low, 1e-3 * abs(high), 1e-9)
        low, high = low - 0.6 * room, high + 0.6 * room
        beyond = np.isfinite(values) & ((values < low) | (values > high))
        for index in np.flatnonzero(beyond):
            top = values[index] > high
            axes.plot(
                time[index], high if top else low, "^" if top else "v", ms=5, clip_on=False,
                color=BLUE if good[index] else RED, mec="none",
            )  # fmt: skip
        axes.set_ylim(low, high)
    axes.set_ylabel(label)
    axes.set_xlabel(f"MJD − {origin}" if origin else "MJD")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return to_svg(fig, f"{name} over time")


def coverage(data: ReportData) -> str:
    """Phases of all frames at the field's centre."""
    frames = data.frames
    assert frames is not None
    y, x = (n // 2 for n in data.field.shape)
    py, px = (p.ravel() for p in phases(frames, (slice(y, y + 1), slice(x, x + 1)), data.field.shape))
    flags = frames["flags"].values
    fig = new_figure(300, 280)
    axes = fig.add_subplot()
    for edge in (-0.5, 0.5):
        axes.axhline(edge, color=GRID, lw=0.8)
        axes.axvline(edge, color=GRID, lw=0.8)
    axes.plot(px[flags == 0], py[flags == 0], "o", ms=4, color=ORANGE, mec="none", alpha=0.85)
    axes.plot(px[flags != 0], py[flags != 0], "x", ms=5, color=RED)
    axes.set(xlim=(-0.62, 0.62), ylim=(-0.62, 0.62), aspect="equal")
    axes.set_xlabel("phase x (pixel)")
    axes.set_ylabel("phase y (pixel)")
    axes.tick_params(color=MUTED)
    return to_svg(fig, "Sub-pixel phases of the frames")


def flagged(data: ReportData, most: int = 40) -> str:
    """Table of the flagged frames with what is wrong."""
    frames = data.frames
    assert frames is not None
    at = np.flatnonzero(frames["flags"].values)
    if not at.size:
        return ""
    rows = [
        (
            str(frames["frame_id"].values[k]),
            date(frames["time"].values[k]),
            flag_words(frames["flags"].values[k]),
            number(_column(frames, "psf_fwhm")[k]),
            number(_column(frames, "elongation")[k]),
            fixed(_column(frames, "scale")[k], 3),
            count(_column(frames, "n_matched")[k]),
        )
        for k in at[:most]
    ]
    head = ("frame", f"time ({data.time_scale})", "flagged as", "FWHM", "elongation", "scale", "stars")
    more = f"<p>and {at.size - most} more</p>" if at.size > most else ""
    return (
        f"<details {'open' if at.size <= 8 else ''}><summary>{at.size} flagged frames</summary>"
        f"{table(head, rows, left=(0, 1, 2))}{more}</details>"
    )
