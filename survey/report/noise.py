"""The histogram of difference / error against the unit Gaussian."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from survey.report.data import ReportData
from survey.report.markup import figure, fixed, missing, section, table
from survey.report.residuals import EDGES, Residuals
from survey.report.theme import BLUE, INK, MUTED, ORANGE, light_grid, new_figure, to_svg


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
        f"{residuals.every.n / 1e6:.1f} million samples of {drawn}. Dashed: the unit Gaussian. Dotted: "
        f"{residuals.kept_out.sum():,} samples kept out of the fit (outliers, events, "
        "flagged frames). The outermost bins hold all beyond."
    )
    body = figure(histogram(residuals), caption) + moments_table(data, residuals)
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
        (residuals.histogram[0], BLUE, "faint pixels"),
        (residuals.histogram[2], ORANGE, "star pixels"),
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


def moments_table(data: ReportData, residuals: Residuals) -> str:
    """Mean and width by brightness."""
    low, high = (fixed(v, 2) for v in residuals.limits)
    names = {
        "faint": f"faint (below {low} {data.units})",
        "middle": "between",
        "star": f"stars (above {high} {data.units})",
    }
    rows = []
    for name, moments in (("all", residuals.every), *residuals.moments.items()):
        if moments.n:
            error = 1 / np.sqrt(2 * moments.n)
            rows.append(
                (
                    names.get(name, "all"),
                    f"{moments.n / 1e6:.2f}",
                    fixed(moments.mean, 4, sign=True),
                    f"{fixed(moments.std, 4)} ± {fixed(error, 4)}",
                )
            )
    words = (
        "<p>Faint and star pixels: the fainter half and the brightest 5 % in the reference. Samples beyond "
        "the clip are not in these figures.</p>"
    )
    return f"<div>{table(('pixels', '10⁶ samples', 'mean (σ)', 'width (σ)'), rows)}{words}</div>"
