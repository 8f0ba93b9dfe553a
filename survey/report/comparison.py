"""The demo's verdict: found events against the truth."""

from __future__ import annotations

import numpy as np

from survey.report.data import ReportData, Row
from survey.report.markup import count, figure, finite, fixed, number, section, table, with_error
from survey.report.theme import BLUE, GREEN, GRID, INK, RED, light_grid, new_figure, to_svg


def comparison(data: ReportData) -> str:
    """The section on the truth; nothing where none is known."""
    found = data.comparison
    if not found or not found.get("rows"):
        return ""
    summary = found.get("summary", {})
    lead = (
        f"{summary.get('events_found', 0)} of {summary.get('events_true', 0)} true events found, "
        f"{summary.get('others_found', 0)} of {summary.get('others_true', 0)} other changing sources, "
        f"{summary.get('false_alarms', 0)} false alarms."
    )
    if finite(summary.get("median_offset_x")):
        x, y = (fixed(summary[f"median_offset_{axis}"], 3, sign=True) for axis in "xy")
        lead += f" Median offset of the found places: {x}, {y} pixel in x, y."
    if finite(summary.get("flux_ratio")):
        ratio = with_error(summary["flux_ratio"], summary["flux_ratio_error"])
        lead += f" Mean flux over true flux: {ratio} (χ² per degree {fixed(summary['flux_ratio_chi2'], 2)})."
    parts = [
        figure(
            snr_figure(found["rows"]),
            "<b>S/N</b> found against S/N of the known light curve. Crosses: missed.",
        )
    ]
    if any(finite(row.get("flux_ratio")) for row in found["rows"]):
        words = "<b>Flux</b> measured over true flux; the band is ± 2 %."
        parts.append(figure(ratio_figure(found["rows"]), words))
    body = f'<div class="grid small">{"".join(parts)}</div>{truth_table(data, found["rows"])}'
    if found.get("completeness"):
        body += completeness(found["completeness"])
    if found.get("false_alarms"):
        body += alarms(data, found["false_alarms"])
    return section("truth", "Against the truth", body, lead)


def snr_figure(rows: list[Row]) -> str:
    """S/N found against true, both logarithmic."""
    fig = new_figure(400, 330)
    axes = fig.add_subplot()
    light_grid(axes)
    true = [row["snr_true"] for row in rows if finite(row.get("snr_true")) and row["snr_true"] > 0]
    if not true:
        true = [1.0, 10.0]
    seen = [abs(row["snr"]) for row in rows if finite(row.get("snr")) and row["snr"]]
    low, high = min(true + seen) / 1.5, max(true + seen) * 1.5
    axes.plot([low, high], [low, high], color=GRID, lw=1.5)
    for kinds, colour, name in ((("microlensing",), BLUE, "events"), (None, GREEN, "other sources")):
        mine = [r for r in rows if (r["kind"] in kinds if kinds else r["kind"] != "microlensing")]
        mine = [r for r in mine if finite(r.get("snr_true")) and r["snr_true"] > 0]
        hit = [r for r in mine if r["found"]]
        axes.plot(
            [r["snr_true"] for r in hit],
            [abs(r["snr"]) for r in hit],
            "o",
            ms=6,
            color=colour,
            mec="none",
            label=name,
        )
        missed = [r["snr_true"] for r in mine if not r["found"]]
        axes.plot(missed, [low * 1.12] * len(missed), "x", ms=7, color=RED, mew=1.6)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number(value, 2))
        axis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel("true S/N")
    axes.set_ylabel("S/N found")
    axes.legend(loc="upper left")
    return to_svg(fig, "S/N found against true S/N")


def ratio_figure(rows: list[Row]) -> str:
    """Measured over true flux of found events."""
    mine = [r for r in rows if finite(r.get("flux_ratio")) and finite(r.get("flux_ratio_error"))]
    fig = new_figure(400, 330)
    axes = fig.add_subplot()
    light_grid(axes)
    axes.axhspan(0.98, 1.02, color=GREEN, alpha=0.25, lw=0)
    axes.axhline(1, color=INK, lw=0.8)
    snr, ratio, error = (
        np.array([r[name] for r in mine], float) for name in ("snr", "flux_ratio", "flux_ratio_error")
    )
    axes.errorbar(np.abs(snr), ratio, error, fmt="o", ms=5, color=BLUE, mec="none", elinewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: number(value, 2))
    axes.xaxis.set_minor_formatter(lambda value, _: number(value, 2) if str(value)[0] in "25" else "")
    axes.set_xlabel("S/N found")
    axes.set_ylabel("flux measured / true")
    return to_svg(fig, "Ratio of measured to true flux")


def truth_table(data: ReportData, rows: list[Row]) -> str:
    """Every true source and what became of it."""
    ranks = {event["object_id"]: i + 1 for i, event in enumerate(data.events or [])}
    shown = int(data.config.get("report", {}).get("events", 12))
    body = []
    for row in sorted(rows, key=lambda r: -(r.get("snr_true") or 0)):
        rank = ranks.get(row.get("object_id"), 0)
        name = f'<a href="#event-{rank}">{rank}</a>' if 0 < rank <= shown else (str(rank) if rank else "")
        verdict = (
            '<span class="tag true">found</span>' if row["found"] else '<span class="tag false">missed</span>'
        )
        body.append(
            (
                row["kind"],
                verdict,
                name,
                fixed(row["x"], 1),
                fixed(row["y"], 1),
                fixed(row.get("snr_true"), 1),
                fixed(row.get("snr"), 1),
                fixed(row.get("position_error"), 3),
                fixed(row.get("time_error"), 4, sign=True),
                number(row.get("amplitude_true"), 3),
                with_error(row.get("peak_ratio"), row.get("peak_ratio_error")),
                with_error(row.get("flux_ratio"), row.get("flux_ratio_error")),
            )
        )
    head = (
        "source", "", "event", "x", "y", "true S/N", "S/N", "position error (pixel)", "time error (d)",
        f"true peak ({data.units})", "peak / true", "flux / true",
    )  # fmt: skip
    words = (
        "<p>Peak is the maximum of a profile of free width fitted to the light curve; flux is the "
        "least-squares factor of the true light curve in the measured one. "
        "Errors are the light curve's own, without the reference's.</p>"
    )
    return table(head, body, left=(0, 1)) + words


def completeness(rows: list[Row]) -> str:
    """Share of the true events found, by S/N."""
    body = []
    for row in rows:
        low = count(row["low"])
        span = f"over {low}" if row.get("high") is None else f"{low} – {count(row['high'])}"
        share = f"{100 * row['found'] / row['true']:.0f} %"
        body.append((span, str(row["true"]), str(row["found"]), share))
    return "<h3>Completeness</h3>" + table(("true S/N", "events", "found", "share"), body)


def alarms(data: ReportData, rows: list[Row]) -> str:
    """Events that no true source explains."""
    body = [
        (
            str(r.get("object_id", "")),
            fixed(r.get("snr"), 1),
            fixed(r.get("x"), 1),
            fixed(r.get("y"), 1),
            fixed(r.get("time"), 3),
        )
        for r in rows[:40]
    ]
    return "<h3>False alarms</h3>" + table(("event", "S/N", "x", "y", "MJD"), body)
