"""Images with axes, colour bars and marks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from survey.io.sky_positions import pixels_to_sky, sky_to_pixels
from survey.report.data import ReportData
from survey.report.markup import number
from survey.report.theme import colormap, new_figure, to_svg

GREY, SCORE, SIGNED = "gray", "inferno", "RdBu_r"
MARK = "#3ce0ff"
PANEL, WIDE = 430, 600

Picture = NDArray[Any]


def image_panel(
    image: Picture,
    norm: Normalize,
    cmap: str,
    label: str,
    alt: str,
    *,
    origin: tuple[float, float] = (0, 0),
    scale: float = 1.0,
    decorate: Any = None,
    width: int = PANEL,
) -> str:
    """An image [y, x] with axes in field pixels and a colour bar.

    Parameters
    ----------
    origin : tuple of float
        Field pixel (y, x) whose lower left corner is the image's.
    scale : float
        Field pixels in one of the image's.
    decorate : callable, optional
        Draws on the axes.
    """
    ny, nx = image.shape
    aspect = min(max(ny / nx, 0.4), 1.6)
    fig = new_figure(width, 40 + (width - 105) * aspect)
    axes = fig.add_subplot()
    y0, x0 = origin[0] - 0.5, origin[1] - 0.5
    extent = (x0, x0 + nx * scale, y0, y0 + ny * scale)
    shown = axes.imshow(
        np.ma.masked_invalid(image),
        origin="lower",
        extent=extent,
        norm=norm,
        cmap=colormap(cmap),
        interpolation="none",
        aspect="equal" if 0.4 <= ny / nx <= 1.6 else "auto",
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("x (pixel)")
    axes.set_ylabel("y (pixel)")
    colour_bar(fig, shown, axes, norm, label)
    if decorate is not None:
        decorate(axes)
        axes.set_xlim(extent[:2])
        axes.set_ylim(extent[2:])
    return to_svg(fig, alt)


def colour_bar(fig: Figure, shown: Any, axes: Axes, norm: Normalize, label: str) -> None:
    """The colour bar, with few and round numbers where the stretch is asinh."""
    bar = fig.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=28)
    bar.set_label(label)
    bar.outline.set_linewidth(0.6)
    if isinstance(norm, AsinhNorm):
        bar.ax.yaxis.set_major_locator(FixedLocator(asinh_ticks(norm)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(lambda value, _: number(value, 2))


def asinh_ticks(norm: Normalize, least: float = 0.09) -> list[float]:
    """Round values of an asinh range, no two nearer than a share of the bar."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    decade = np.floor(np.log10(max(abs(low), abs(high))))
    steps = [m * 10.0 ** (decade - d) for d in range(4) for m in (5, 2, 1)]
    ticks = [0.0] if low <= 0 <= high else []
    for step in steps:
        for value in (step, -step):
            place = float(norm(value))
            if low <= value <= high and all(abs(place - float(norm(t))) >= least for t in ticks):
                ticks.append(value)
    return sorted(ticks)


def compass(axes: Axes, data: ReportData) -> None:
    """North and east, where the sky is known."""
    wcs = data.wcs()
    if wcs is None:
        return
    height, width = data.field.shape
    y, x = 0.12 * height, 0.88 * width
    ra, dec = (v[0] for v in pixels_to_sky(wcs, x, y))
    step = 1e-4
    for name, there in (("N", (ra, dec + step)), ("E", (ra + step / np.cos(np.radians(dec)), dec))):
        tip = np.ravel(sky_to_pixels(wcs, *there))
        way = tip - (x, y)
        if not np.isfinite(way).all() or not way.any():
            return
        way *= 0.09 * min(height, width) / np.hypot(*way)
        axes.annotate(
            "", (x + way[0], y + way[1]), (x, y), arrowprops={"arrowstyle": "->", "color": MARK, "lw": 1.3}
        )
        axes.text(
            x + 1.35 * way[0],
            y + 1.35 * way[1],
            name,
            color=MARK,
            ha="center",
            va="center",
            fontsize=11,
            path_effects=[withStroke(linewidth=2.5, foreground="#000000")],
        )


def mark(axes: Axes, event: dict[str, Any], rank: int | None, shape: tuple[int, ...]) -> None:
    """A circle about an event, dashed where it is fainter than its reference, and its number."""
    radius = max(4.0, 0.018 * max(shape))
    style = "--" if (event.get("snr") or 0) < 0 else "-"
    circle = Circle((event["x"], event["y"]), radius, fill=False, ec=MARK, lw=1.6, ls=style)
    circle.set_path_effects([withStroke(linewidth=3.2, foreground="#000000")])
    axes.add_patch(circle)
    if rank is None:
        return
    circle.set_url(f"#event-{rank}")
    # Numbers stay inside the picture.
    left = event["x"] > 0.93 * axes.get_xlim()[1]
    below = event["y"] > 0.95 * axes.get_ylim()[1]
    text = axes.text(
        event["x"] + (-1 if left else 1) * 1.1 * radius,
        event["y"] + (-1 if below else 1) * 0.8 * radius,
        str(rank),
        color=MARK,
        fontsize=10,
        ha="right" if left else "left",
        va="top" if below else "bottom",
        clip_on=True,
        path_effects=[withStroke(linewidth=2.2, foreground="#000000")],
    )
    text.set_url(f"#event-{rank}")
