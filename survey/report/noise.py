"""The histogram of difference / error against the unit Gaussian."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.stats import norm

from survey.report.data import ReportData
from survey.report.markup import figure, fixed, missing, number, section, table
from survey.report.panels import asinh_ticks
from survey.report.residuals import EDGES, FAINT, STAR, Residuals
from survey.report.theme import BLUE, GREEN, INK, MUTED, ORANGE, light_grid, new_figure, to_svg


def noise(data: ReportData, residuals: Residuals | None) -> str:
    """The section on the residuals."""
    title = "Do the errors tell the truth?"
    if residuals is None:
        return section("noise", title, missing("No differences yet."))
    lead = (
        "Difference / error of every sample in the fit. If the error bars are right, it is a Gaussian of "
        "mean 0 and width 1, on sky and on stars alike."
    )
    share = residuals.pixels / residuals.all_pixels
    drawn = "all pixels" if share == 1 else f"tiles drawn at random, {100 * share:.0f} % of the pixels"
    caption = (
        f"{residuals.of().n / 1e6:.1f} million samples of {drawn}. Dashed: the unit Gaussian. Dotted: "
        f"{residuals.kept_out.sum():,} samples kept out of the fit (outliers, events, "
        "flagged frames). The outermost bins hold all beyond."
    )
    body = figure(histogram(residuals), caption)
    if np.isfinite(residuals.flux).all():
        words = "<b>Width and mean by brightness</b>: each class of pixels by its flux in the reference."
        body += figure(by_brightness(data, residuals), words)
    body += moments_table(data, residuals)
    return section("noise", title, f'<div class="grid wide">{body}</div>', lead)


def histogram(residuals: Residuals) -> str:
    """Counts on a logarithmic axis."""
    fig = new_figure(560, 330)
    axes = fig.add_subplot()
    light_grid(axes)
    centers = (EDGES[1:] + EDGES[:-1]) / 2
    width = EDGES[1] - EDGES[0]
    for counts, colour, name in (
        (residuals.histogram.sum(axis=0), INK, "all"),
        (residuals.histogram[FAINT].sum(axis=0), BLUE, "faint pixels"),
        (residuals.histogram[STAR].sum(axis=0), ORANGE, "star pixels"),
    ):
        if counts.sum():
            axes.stairs(np.maximum(counts, 0.3), EDGES, color=colour, lw=1.5, label=name)
            axes.plot(
                centers, counts.sum() * width * norm.pdf(centers), "--", color=colour, lw=0.9, alpha=0.8
            )
    if residuals.kept_out.sum():
        axes.stairs(
            np.maximum(residuals.kept_out, 0.3),
            EDGES,
            color=MUTED,
            ls=":",
            lw=1.3,
            label="kept out of the fit",
        )
    axes.set_yscale("log")
    axes.set_ylim(0.7, 4 * residuals.histogram.sum(axis=0).max())
    axes.set_xlim(EDGES[0], EDGES[-1])
    axes.yaxis.set_major_formatter(_power)
    axes.set_xlabel("difference / error (σ)")
    axes.set_ylabel(f"samples per {width:.1f} σ")
    axes.legend(loc="upper right", handlelength=1.4)
    return to_svg(fig, "Histogram of difference over error with unit Gaussians")


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _power(value: float, _: object = None) -> str:
    exponent = round(np.log10(value)) if value > 0 else 0
    return "1" if exponent == 0 else "10" + str(exponent).translate(_SUPERSCRIPT)


def by_brightness(data: ReportData, residuals: Residuals) -> str:
    """Width and mean of difference / error against the reference's flux."""
    fig = new_figure(560, 330)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
    n = np.array([max(m.n, 1.0) for m in residuals.moments])
    width = np.array([m.std for m in residuals.moments])
    mean = np.array([m.mean for m in residuals.moments])
    for axes, values, error, level, room in (
        (upper, width, 1 / np.sqrt(2 * n), 1.0, 0.02),
        (lower, mean, 1 / np.sqrt(n), 0.0, 0.005),
    ):
        light_grid(axes)
        axes.axhspan(level - room, level + room, color=GREEN, alpha=0.25, lw=0)
        axes.axhline(level, color=MUTED, lw=0.8)
        axes.errorbar(residuals.flux, values, error, fmt="o-", ms=4.5, color=BLUE, lw=1, mec="none")
    linear = max(float(residuals.flux[1] - residuals.flux[0]), 1e-12)
    lower.set_xscale("asinh", linear_width=linear)
    ticks = asinh_ticks(AsinhNorm(linear, float(residuals.flux[0]), float(residuals.flux[-1])))
    lower.xaxis.set_major_locator(FixedLocator(ticks))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.xaxis.set_major_formatter(lambda value, _: number(value, 2))
    upper.set_ylabel("width (σ)")
    lower.set_ylabel("mean (σ)")
    lower.set_xlabel(f"flux of the pixel in the reference ({data.units})")
    return to_svg(fig, "Width and mean of difference over error by brightness")


def moments_table(data: ReportData, residuals: Residuals) -> str:
    """Mean and width of faint pixels, stars and all."""
    low, high = residuals.limits[FAINT.stop - 1], residuals.limits[STAR.start - 1]
    rows = []
    for name, classes in (
        ("all", slice(None)),
        (f"faint (below {number(low)} {data.units})", FAINT),
        (f"stars (above {number(high)} {data.units})", STAR),
    ):
        moments = residuals.of(classes)
        if moments.n:
            error = 1 / np.sqrt(2 * moments.n)
            width = f"{fixed(moments.std, 4)} ± {fixed(error, 4)}"
            rows.append((name, f"{moments.n / 1e6:.2f}", fixed(moments.mean, 4, sign=True), width))
    words = (
        "<p>Faint and star pixels: the fainter half and the brightest 5 % in the reference. Samples beyond "
        "the clip are not in these figures. Bands in the figure: ± 0.02 in width, ± 0.005 in mean.</p>"
    )
    return f"<div>{table(('pixels', '10⁶ samples', 'mean (σ)', 'width (σ)'), rows)}{words}</div>"
