"""Difference methods side by side, where a field was searched with more than one."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

from survey.report.data import ReportData, Row, load
from survey.report.markup import duration, figure, fixed, number, section, table
from survey.report.residuals import FAINT, STAR, Residuals, accumulate
from survey.report.theme import BLUE, GREEN, GRID, MUTED, ORANGE, RED, light_grid, new_figure, to_svg
from survey.report.truth import compare_with_truth
from survey.stages.methods import METHODS

# Samples looked at for each of the other methods: enough for a width to 1e-3.
BUDGET = 4_000_000
# Pixels within which two methods' events are one source.
RADIUS = 2.0
# Sources whose light curves are drawn.
SHOWN = 3
COLOURS = (BLUE, ORANGE, GREEN, RED)


@dataclass
class Entry:
    """A method and what became of it in this field."""

    data: ReportData
    residuals: Residuals | None

    @property
    def name(self) -> str:
        """Of the method."""
        return self.data.method


def methods(data: ReportData, residuals: Residuals | None) -> str:
    """The section that compares the methods; nothing where there is only one."""
    others = [
        name for name in METHODS
        if name != data.method and data.field.has(f"difference/{name}", "flux")
        and data.field.events_path(name).exists()
    ]  # fmt: skip
    if not others or data.events is None:
        return ""
    entries = [Entry(data, residuals)]
    for name in others:
        other = load(data.field.path, name)
        other.truth = data.truth
        entries.append(Entry(other, accumulate(other, budget=BUDGET)))
    shared = matched(entries)
    parts = [figure(snr_figure(entries, shared), f"<b>S/N</b> against that of {escape(data.method)}.")]
    parts += [
        figure(curves_figure(entries, row), f"<b>{escape(str(row[0]['object_id']))}</b>: {place(row[0])}")
        for row in shared[:SHOWN]
        if row[0] is not None
    ]
    lead = "What each method made of the same frames. Events within two pixels are one source."
    body = summary(entries, shared) + f'<div class="grid">{"".join(parts)}</div>'
    return section("methods", "Methods side by side", body, lead)


def matched(entries: list[Entry]) -> list[list[Row | None]]:
    """Sources: the event of each method there, None where it has none. What most methods saw comes first."""
    rows: list[list[Row | None]] = []
    for i, entry in enumerate(entries):
        for event in entry.data.events or []:
            home = next((row for row in rows if row[i] is None and near(row, event)), None)
            if home is None:
                home = [None] * len(entries)
                rows.append(home)
            home[i] = event

    def rank(row: list[Row | None]) -> tuple[int, float]:
        seen = [abs(event["snr"]) for event in row if event is not None]
        return -len(seen), -max(seen)

    return sorted(rows, key=rank)


def near(row: list[Row | None], event: Row) -> bool:
    """Whether a source lies where an event does."""
    first = next(e for e in row if e is not None)
    return float(np.hypot(first["x"] - event["x"], first["y"] - event["y"])) <= RADIUS


def place(event: Row) -> str:
    """An event's place in words."""
    return f"x {fixed(event['x'], 1)}, y {fixed(event['y'], 1)}"


def summary(entries: list[Entry], shared: list[list[Row | None]]) -> str:
    """A row a method."""
    known = any(entry.data.truth for entry in entries)
    head = ["method", "events", "shared", "S/N, median", "width, faint", "width, stars"]
    head += ["found", "false alarms"] if known else []
    body = []
    for i, entry in enumerate(entries):
        events = entry.data.events or []
        alike = sum(1 for row in shared if row[i] is not None and sum(e is not None for e in row) > 1)
        snr = [abs(event["snr"]) for event in events]
        r = entry.residuals
        row = [
            f"<b>{escape(entry.name)}</b>: {escape(METHODS[entry.name].words)}",
            str(len(events)),
            str(alike),
            fixed(np.median(snr), 1) if snr else "–",
            fixed(r.of(FAINT).std, 3) if r else "–",
            fixed(r.of(STAR).std, 3) if r else "–",
        ]
        if known:
            found = compare_with_truth(events, entry.data.truth)["summary"]
            total = found["events_true"] + found["others_true"]
            row += [
                f"{found['events_found'] + found['others_found']} of {total}",
                str(found["false_alarms"]),
            ]
        body.append([*row, duration(seconds(entry.data))])
    words = (
        "<p>Width: of difference / error of the samples in the fit, in the fainter half of the pixels and in "
        "the brightest twentieth; 1 where the errors are right. Time: reading, computing and writing of the "
        "method's own stage, added over the workers.</p>"
    )
    return table([*head, "time"], body) + words


def seconds(data: ReportData) -> float:
    """What the method's stage took, all units and runs together; NaN where nothing is recorded."""
    stages = [
        stage
        for run in data.runs
        for name, stage in (run.get("stages") or {}).items()
        if name.split(" ")[0] == data.method
    ]
    parts = ("read", "compute", "write")
    return sum(stage.get(part, 0.0) for stage in stages for part in parts) if stages else float("nan")


def snr_figure(entries: list[Entry], shared: list[list[Row | None]]) -> str:
    """S/N of the other methods against the first one's; what only one found lies on the lower edge."""
    fig = new_figure(400, 330)
    axes = fig.add_subplot()
    light_grid(axes)
    every = [abs(e["snr"]) for row in shared for e in row if e is not None] or [5.0, 50.0]
    low, high = min(every) / 1.6, max(every) * 1.4
    axes.plot([low, high], [low, high], color=GRID, lw=1.5)
    for i, entry in enumerate(entries[1:], start=1):
        pairs = [
            tuple(low * 1.1 if event is None else abs(event["snr"]) for event in (row[0], row[i]))
            for row in shared
            if row[0] or row[i]
        ]
        x, y = np.array(pairs).T if pairs else (np.zeros(0), np.zeros(0))
        axes.plot(x, y, "o", ms=5, color=COLOURS[i % len(COLOURS)], mec="none", label=entry.name)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number(value, 2))
        axis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel(f"S/N, {entries[0].name}")
    axes.set_ylabel("S/N, others")
    axes.legend(loc="upper left")
    return to_svg(fig, "S/N of events by method")


def curves_figure(entries: list[Entry], row: list[Row | None]) -> str:
    """Light curves of one source by every method that has one, one above the other."""
    known = [
        (i, entry, entry.data.curves[event["object_id"]])
        for i, (entry, event) in enumerate(zip(entries, row, strict=True))
        if event is not None and event["object_id"] in entry.data.curves
    ]
    fig = new_figure(480, 120 * max(len(known), 1) + 60)
    panels = np.atleast_1d(fig.subplots(max(len(known), 1), 1, sharex=True, squeeze=True))
    origin = entries[0].data.time_origin
    for axes, (i, entry, curve) in zip(panels, known, strict=False):
        time, flux, error = (np.asarray(curve[name], float) for name in ("time", "flux", "error"))
        light_grid(axes)
        axes.axhline(0, color=MUTED, lw=0.8)
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(time - origin, flux, error, fmt="o", ms=2.6, color=colour, mec="none", elinewidth=0.7)
        good = np.isfinite(flux) & np.isfinite(error)
        if good.any():
            axes.set_ylim(
                *np.percentile(flux[good], [0.5, 99.5]) + np.array([-4, 4]) * np.median(error[good])
            )
        axes.set_title(entry.name, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(4))
    panels[-1].set_xlabel(f"MJD − {origin}")
    fig.supylabel(f"difference flux ({entries[0].data.units})", fontsize=11)
    return to_svg(fig, "Light curves by method")
