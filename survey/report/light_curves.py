"""Figures of light curves of events."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from survey.report.data import Row
from survey.report.markup import number
from survey.report.theme import BLUE, GREEN, INK, MUTED, ORANGE, RED, light_grid, new_figure, to_svg
from survey.report.truth import excess
from survey.stages.object_stamp import FLAG_BAD_PIXEL, FLAG_FRAME, FLAG_KEPT_OUT_OF_FIT, FLAG_NO_DATA

# A light curve longer than this many time scales gets a second panel about its event.
LONG, CLOSE = 30.0, 6.0


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
