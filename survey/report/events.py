"""The best events: cutouts, light curve, numbers."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from survey.kernels.candidates import EventFlag
from survey.kernels.reference import ReferenceFit
from survey.report import stretch
from survey.report.data import ReportData, Row, around, difference, reference_fit
from survey.report.markup import (
    count,
    date,
    facts,
    figure,
    fixed,
    missing,
    number,
    section,
    table,
    with_error,
)
from survey.report.pictures import GREY, SCORE, nearest_frame
from survey.report.theme import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    light_grid,
    new_figure,
    picture_uri,
    to_svg,
)
from survey.report.truth import excess
from survey.stages.calibrated import read_calibrated
from survey.stages.photometry import FLAG_BAD_PIXEL, FLAG_FRAME, FLAG_KEPT_OUT_OF_FIT, FLAG_NO_DATA

CUTOUT = 25
# A light curve longer than this many time scales gets a second panel about its event.
LONG, CLOSE = 30.0, 6.0
LISTED = 60


def event_words(flags: Any) -> str:
    """Bits of an event in words.

    Examples
    --------
    >>> event_words(5)
    'edge, single epoch'
    """
    words = (str(f.name).lower().replace("_", " ") for f in EventFlag if f and int(flags or 0) & f)
    return ", ".join(words).replace("psf", "PSF") or "none"


def events(data: ReportData) -> str:
    """The section of events: cards of the best, a table of the rest."""
    if data.events is None:
        return section("events", "Events", missing("The field has not been searched for events yet."))
    if not data.events:
        text = "The search found no event above its threshold."
        return section("events", "Events", missing(text))
    shown = data.events[: int(data.config.get("report", {}).get("events", 12))]
    matches = {row["object_id"]: row for row in (data.comparison or {}).get("rows", []) if row.get("found")}
    cards = "".join(
        card(data, event, i + 1, matches.get(event["object_id"])) for i, event in enumerate(shown)
    )
    total = len(data.events)
    lead = f"{total} event{'s' if total != 1 else ''} above the threshold, best S/N first"
    lead += f"; the first {len(shown)} with pictures." if total > len(shown) else "."
    return section("events", "Events", cards + listing(data), lead)


def card(data: ReportData, event: Row, rank: int, match: Row | None) -> str:
    """One event."""
    curve = data.curves.get(event["object_id"])
    true = None
    if match is not None:
        true = next((row for row in data.truth if row.get("id") == match.get("id")), None)
    head = f'<h3><span class="rank">{rank}</span> {escape(str(event["object_id"]))} '
    head += f'<span class="tag">S/N {fixed(event["snr"], 1)}</span>'
    if match is not None:
        head += f' <span class="tag true">true {match["kind"]}</span>'
    elif data.comparison is not None:
        head += ' <span class="tag false">no true source</span>'
    flags = event_words(event.get("flags"))
    if flags != "none":
        head += f' <span class="tag flag">{flags}</span>'
    picture = missing("No light curve has been measured yet.")
    if curve is not None:
        picture = figure(
            light_curve(curve, event, data.units, data.time_origin, true),
            curve_caption(curve, true),
            css="wide-figure",
        )
    return (
        f'<article class="event" id="event-{rank}">{head}</h3>'
        f'<div class="card"><div>{cutouts(data, event)}{picture}</div>'
        f"{facts(numbers(data, event, curve, match))}</div></article>"
    )


# -- cutouts --------------------------------------------------------------------------------------


def cutouts(data: ReportData, event: Row) -> str:
    """Frame at the peak, reference, difference and map of the search about an event."""
    frames = data.frames
    if frames is None:
        return missing("No frames.")
    k = nearest_frame(frames["time"].values, frames["flags"].values, event["time"])
    window = around(data.field.shape, event["y"], event["x"], CUTOUT)
    samples = read_calibrated(data.field, window, frames)
    frame = np.where(samples.mask[k], np.nan, samples.flux[k])
    fit = reference_fit(data, window)
    model = at_phase(fit, samples.phase_y[k], samples.phase_x[k]) if fit is not None else None
    known = frame if model is None else np.stack([frame, model])
    norm = stretch.asinh_norm(known)
    parts = [cutout(frame, norm, GREY, "frame", event, window, data.units)]
    if model is not None:
        parts.append(cutout(model, norm, GREY, "reference", event, window, data.units))
    found = difference(data, k, window)
    if found is not None:
        half = max(abs(event.get("amplitude") or 0.0) * 0.25, 4 * float(np.nanmedian(found[1])), 1e-12)
        parts.append(cutout(found[0], Normalize(-half, half), GREY, "difference", event, window, data.units))
    if data.field.has(f"search/{data.method}", "significance"):
        snr = np.abs(np.asarray(data.field.array(f"search/{data.method}", "significance")[window]))
        top = max(abs(event["snr"]), 8.0)
        parts.append(cutout(snr, Normalize(0, top), SCORE, "largest |S/N|", event, window, ""))
    return f'<div class="cutouts">{"".join(parts)}</div>'


def at_phase(fit: ReferenceFit, phase_y: Any, phase_x: Any) -> NDArray[Any]:
    """The reference where one frame's samples were taken."""
    return fit.evaluate(np.asarray(phase_y)[None], np.asarray(phase_x)[None])[0]


def cutout(
    image: NDArray[Any],
    norm: Normalize,
    cmap: str,
    name: str,
    event: Row,
    window: tuple[slice, slice],
    units: str,
) -> str:
    """A small picture with two ticks at the event and its range below."""
    height, width = image.shape
    left = 100 * (event["x"] - window[1].start + 0.5) / width
    top = 100 * (1 - (event["y"] - window[0].start + 0.5) / height)
    limits = f"{number(norm.vmin, 2)} … {number(norm.vmax, 2, unit=units)}"
    alt = f"{name}, {width} by {height} pixels about the event"
    return (
        f'<figure class="cutout"><div class="stamp"><img src="{picture_uri(image, norm, cmap)}" alt="{alt}">'
        f'<i class="cross" style="left:{left:.1f}%;top:{top:.1f}%"></i></div>'
        f"<figcaption><b>{name}</b><br>{limits}</figcaption></figure>"
    )


# -- light curve ----------------------------------------------------------------------------------


def light_curve(curve: Row, event: Row, units: str, origin: int, true: Row | None) -> str:
    """Difference flux over time, the event's time scale above; a closer look where the event is short."""
    time = np.asarray(curve["time"], float)
    sigma = float(event.get("sigma_days") or 0)
    long = sigma > 0 and np.ptp(time) > LONG * sigma
    fig = new_figure(590, 375)
    ratios = (1.9, 1) if long else (1,)
    panels: list[Axes] = list(
        fig.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    )
    for i, axes in enumerate(panels):
        draw_curve(axes, curve, origin, true)
        if sigma:
            scale_bar(axes, event, origin, label=i == 0)
        axes.set_xlabel(f"MJD − {origin}" if origin else "MJD")
        axes.xaxis.set_major_locator(MaxNLocator(6 if i == 0 else 4))
        if i == 1:
            peak = event["time"] - origin
            axes.set_xlim(peak - CLOSE * sigma, peak + CLOSE * sigma)
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(f"difference flux ({units})")
            axes.yaxis.set_major_locator(MaxNLocator(5))
    set_range(panels[0], curve)
    return to_svg(fig, f"Light curve of {event['object_id']}")


KINDS = (
    # Which points, marker, colour, filled, in words. The first that applies counts.
    (FLAG_FRAME, "x", RED, "flagged frame"),
    (FLAG_BAD_PIXEL, "s", ORANGE, "bad pixel in the star"),
    (FLAG_KEPT_OUT_OF_FIT, "o", BLUE, "kept out of the reference"),
)


def point_kinds(flags: NDArray[Any]) -> list[tuple[NDArray[np.bool_], str, str, bool, str]]:
    """Points of a light curve by what is known against them: mask, marker, colour, filled, words."""
    left = np.ones(flags.shape, bool) & ((flags & FLAG_NO_DATA) == 0)
    kinds = []
    for bit, marker, colour, words in KINDS:
        mine = left & ((flags & bit) != 0)
        left &= ~mine
        kinds.append((mine, marker, colour, False, words))
    return [(left, "o", BLUE, True, "in the fit"), *kinds[::-1]]


def draw_curve(axes: Axes, curve: Row, origin: int, true: Row | None) -> None:
    """Points with error bars and, where it is known, the true light curve."""
    time, flux, error = (np.asarray(curve[name], float) for name in ("time", "flux", "error"))
    flags = np.asarray(curve["flags"], int)
    light_grid(axes)
    axes.axhline(0, color=MUTED, lw=0.8)
    for mask, marker, colour, filled, _ in point_kinds(flags):
        if mask.any():
            inside = colour if filled else "none"
            axes.errorbar(
                time[mask] - origin,
                flux[mask],
                error[mask],
                fmt=marker,
                ms=3.6,
                color=colour,
                elinewidth=0.9,
                mfc=inside,
                mew=0 if filled else 1.1,
            )
    if true is not None and true.get("kind") == "microlensing":
        fine = np.linspace(time.min(), time.max(), 600)
        fine = np.sort(np.concatenate([fine, true["t0"] + np.linspace(-4, 4, 300) * true["duration"]]))
        fine = fine[(fine >= time.min()) & (fine <= time.max())]
        axes.plot(fine - origin, excess(true, fine), color=GREEN, lw=1.3, zorder=1)


def scale_bar(axes: Axes, event: Row, origin: int, *, label: bool) -> None:
    """A bar of plus and minus one time scale at the event's time."""
    peak, sigma = event["time"] - origin, event["sigma_days"]
    across = axes.get_xaxis_transform()
    axes.plot(
        [peak - sigma, peak + sigma], [0.965, 0.965], color=INK, lw=3, transform=across, solid_capstyle="butt"
    )
    axes.plot([peak, peak], [0.94, 0.99], color=INK, lw=1, transform=across)
    axes.margins(x=0.03)
    if label:
        early = peak < np.mean(axes.get_xlim())
        side, ha = (1, "left") if early else (-1, "right")
        axes.annotate(
            f"± σ = {number(sigma, 2)} d",
            (peak + side * sigma, 0.965),
            (6 * side, 0),
            xycoords=across,
            textcoords="offset points",
            ha=ha,
            va="center",
            fontsize=9,
        )


def set_range(axes: Axes, curve: Row) -> None:
    """Flux range that well-measured points set; a poor one may leave it."""
    flux, error = (np.asarray(curve[name], float) for name in ("flux", "error"))
    good = np.isfinite(flux) & np.isfinite(error)
    if not good.any():
        return
    good &= error <= 4 * np.median(error[good])
    low, high = float((flux - error)[good].min()), float((flux + error)[good].max())
    room = max(high - low, 1e-12)
    axes.set_ylim(low - 0.06 * room, high + 0.16 * room)


def curve_caption(curve: Row, true: Row | None) -> str:
    """What the markers of a light curve mean; only those that are there."""
    words = []
    for mask, _, _, filled, meaning in point_kinds(np.asarray(curve["flags"], int)):
        if mask.any():
            kind = (
                "Filled points"
                if filled
                else {"flagged frame": "crosses", "bad pixel in the star": "squares"}.get(
                    meaning, "open points"
                )
            )
            words.append(f"{kind}: {meaning}")
    if true is not None and true.get("kind") == "microlensing":
        words.append("line: the truth")
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "." if text else ""


# -- numbers --------------------------------------------------------------------------------------


def numbers(data: ReportData, event: Row, curve: Row | None, match: Row | None) -> list[tuple[str, str]]:
    """What is known of an event, as names and values."""
    y, x = event["y"], event["x"]
    pairs = []
    if event.get("ra") is not None and np.isfinite(event["ra"]):
        pairs.append(("RA, Dec", f"{fixed(event['ra'], 6)}°, {fixed(event['dec'], 6, sign=True)}°"))
    pairs += [
        ("x, y", f"{fixed(x, 2)}, {fixed(y, 2)} pixel"),
        ("peak", f"MJD {fixed(event['time'], 4)}<br>{date(event['time'])}"),
        (
            "time scale σ",
            f"{number(event.get('sigma_days'), 3)} d, {count(event.get('sigma_images'))} images",
        ),
        ("S/N", fixed(event.get("snr"), 1)),
        ("amplitude", with_error(event.get("amplitude"), event.get("amplitude_error"), data.units)),
    ]
    if curve is not None and curve.get("reference_flux") is not None and np.isfinite(curve["reference_flux"]):
        text = with_error(curve["reference_flux"], curve.get("reference_flux_error"), data.units)
        pairs.append(("flux in the reference", text))
    pairs += [
        ("PSF-likeness", fixed(event.get("psf_likeness"), 2)),
        ("supporting epochs", count(event.get("n_epochs"))),
        ("flags", event_words(event.get("flags"))),
    ]
    if match is not None:
        pairs += [
            ("true S/N", fixed(match.get("snr_true"), 1)),
            ("position error", f"{fixed(match.get('position_error'), 3)} pixel"),
        ]
        if match.get("time_error") is not None:
            pairs.append(("time − truth", f"{fixed(match['time_error'], 4, sign=True)} d"))
        if match.get("flux_ratio") is not None:
            pairs.append(("flux / truth", with_error(match["flux_ratio"], match.get("flux_ratio_error"))))
    return pairs


def listing(data: ReportData) -> str:
    """All events in a table."""
    rows = []
    for i, event in enumerate((data.events or [])[:LISTED]):
        rows.append(
            (
                str(i + 1),
                escape(str(event["object_id"])),
                fixed(event["snr"], 1),
                fixed(event["x"], 1),
                fixed(event["y"], 1),
                fixed(event.get("ra"), 5),
                fixed(event.get("dec"), 5),
                fixed(event["time"], 3),
                number(event.get("sigma_days"), 2),
                number(event.get("amplitude"), 3),
                fixed(event.get("psf_likeness"), 2),
                count(event.get("n_epochs")),
                event_words(event.get("flags")),
            )
        )
    head = (
        "",
        "event",
        "S/N",
        "x",
        "y",
        "RA",
        "Dec",
        "MJD",
        "σ (d)",
        f"amplitude ({data.units})",
        "PSF",
        "epochs",
        "flags",
    )
    left = max(len(data.events or []) - LISTED, 0)
    more = f"<p>and {left} more: <code>survey events</code> lists all.</p>" if left else ""
    body = table(head, rows, left=(1, 12))
    return f"<details><summary>Table of {len(rows)} events</summary>{body}{more}</details>"
