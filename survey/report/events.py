"""The best events: cutouts, light curve, numbers."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from survey.kernels.candidates import EventFlag
from survey.kernels.reference import ReferenceFit
from survey.report import stretch
from survey.report.data import ReportData, Row, around, difference, reference_fit
from survey.report.light_curves import curve_caption, light_curve
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
from survey.report.panels import GREY, SCORE
from survey.report.pictures import nearest_frame
from survey.report.theme import (
    picture_uri,
)
from survey.stages.calibrated import read_calibrated

CUTOUT = 25
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
    if event.get("kind") == "variable":
        head += ' <span class="tag">variable</span>'
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
        ("time scale σ", time_scale(data, event)),
        ("S/N", fixed(event.get("snr"), 1)),
        *_peak(data, event),
    ]
    if curve is not None and curve.get("reference_flux") is not None and np.isfinite(curve["reference_flux"]):
        text = with_error(curve["reference_flux"], curve.get("reference_flux_error"), data.units)
        pairs.append(("flux in the reference", text))
    pairs += [
        ("PSF-likeness", _likeness(event)),
        ("supporting epochs", count(event.get("n_epochs"))),
        *_optional(event),
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


def _peak(data: ReportData, event: Row) -> list[tuple[str, str]]:
    """Highest flux by the light curve, else what the search's own filter says."""
    pairs = [("kind", f"{event.get('kind', 'event')}, {count(event.get('n_peaks', 1))} peaks")]
    if event.get("peak_flux") is not None and np.isfinite(event["peak_flux"]):
        text = with_error(event["peak_flux"], event.get("peak_flux_error"), data.units)
        return [*pairs, ("peak flux", text)]
    text = with_error(event.get("amplitude"), event.get("amplitude_error"), data.units)
    return [*pairs, ("amplitude of the filter", text)]


def _likeness(event: Row) -> str:
    text = fixed(event.get("psf_likeness"), 3)
    chi2 = event.get("psf_chi2")
    return text if chi2 is None else f"{text}, χ² per degree {fixed(chi2, 2)}"


def _optional(event: Row) -> list[tuple[str, str]]:
    """What a search may or may not have measured."""
    pairs = []
    if event.get("snr_without_best") is not None:
        pairs.append(("S/N without best epoch", fixed(event["snr_without_best"], 1)))
    if event.get("drift") is not None:
        pairs.append(("drift", f"{with_error(event['drift'], event.get('drift_error'))} pixel"))
    return pairs


def time_scale(data: ReportData, event: Row) -> str:
    """An event's time scale in days, and in images where the search counted those."""
    text = f"{number(event.get('sigma_days'), 3)} d"
    in_images = data.config.get("detect", {}).get("unit", "images") == "images"
    images = event.get("sigma_images", event.get("temporal_sigma") if in_images else None)
    return text + (f", {count(images)} images" if images is not None else "")


def listing(data: ReportData) -> str:
    """All events in a table."""
    rows = []
    for i, event in enumerate((data.events or [])[:LISTED]):
        rows.append(
            (
                str(i + 1),
                escape(str(event["object_id"])),
                escape(str(event.get("kind", "event"))),
                fixed(event["snr"], 1),
                fixed(event["x"], 1),
                fixed(event["y"], 1),
                fixed(event.get("ra"), 5),
                fixed(event.get("dec"), 5),
                fixed(event["time"], 3),
                number(event.get("sigma_days"), 2),
                number(event.get("peak_flux"), 3),
                fixed(event.get("psf_likeness"), 2),
                count(event.get("n_epochs")),
                event_words(event.get("flags")),
            )
        )
    head = (
        "",
        "event",
        "kind",
        "S/N",
        "x",
        "y",
        "RA",
        "Dec",
        "MJD",
        "σ (d)",
        f"peak flux ({data.units})",
        "PSF",
        "epochs",
        "flags",
    )
    left = max(len(data.events or []) - LISTED, 0)
    more = f"<p>and {left} more: <code>survey events</code> lists all.</p>" if left else ""
    body = table(head, rows, left=(1, 2, 13))
    return f"<details><summary>Table of {len(rows)} events</summary>{body}{more}</details>"
