"""NN2's light curves and how far they scatter beside those of every single template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from survey.kernels.nn2_templates import TemplateComparison
from survey.report.data import ReportData, Row
from survey.report.markup import figure, fixed, number, section, table
from survey.report.theme import BLUE, INK, MUTED, ORANGE, light_grid, new_figure, to_svg
from survey.stages.nn2_compare import NoPairsError, compare_with_templates
from survey.stages.nn2_curves import row_blocks

# Objects whose light curves are drawn: those that vary most.
SHOWN = 4


def nn2(data: ReportData) -> str:
    """The section on all pairs of frames; nothing where NN2 was not run."""
    seen = Seen()
    try:
        found, epochs = compare_with_templates(seen.passing(row_blocks(data.field, data.method)))
    except NoPairsError:
        return ""
    names = [seen.frames[k] for k in epochs]
    lead = (
        f"{seen.count} objects, {len(epochs)} frames, {len(seen.pairs)} differences. Scatter is about a "
        "constant, so that what varies scatters with any template; NN2 is better where its ratio is below 1."
    )
    shown = seen.most
    parts = [figure(scatter_figure(found), "<b>Scatter</b> with each frame as the template. Line: NN2.")]
    parts += [
        figure(curve_figure(row, data), f"<b>{escape(str(row['object_id']))}</b>: \u03c7\u00b2 of the pairs "
               f"{number(row['chi2'])} for {row['dof']} degrees of freedom.")
        for row in shown
    ]  # fmt: skip
    return section(
        "nn2",
        "All pairs of frames",
        comparison_table(found, names) + f'<div class="grid">{"".join(parts)}</div>',
        lead,
    )


@dataclass
class Seen:
    """What of all light curves is shown, kept while they pass a block at a time.

    Attributes
    ----------
    count : int
        Light curves with pairs.
    pairs : set of (template, image)
    frames : list of str
        Names of the field's frames.
    most : list of rows
        Those that vary most, the first most of all.
    """

    count: int = 0
    pairs: set[tuple[int, int]] = field(default_factory=set)
    frames: list[str] = field(default_factory=list)
    most: list[Row] = field(default_factory=list)

    def passing(self, blocks: Iterable[list[Row]]) -> Iterator[list[Row]]:
        """The blocks again, of light curves that have pairs."""
        for block in blocks:
            rows = [row for row in block if row["pair_flux"]]
            for row in rows:
                self.frames = row["frame_id"]
                self.pairs.update(zip(row["pair_template"], row["pair_image"], strict=True))
            self.count += len(rows)
            self.most = sorted([*self.most, *rows], key=lambda row: -variability(row))[:SHOWN]
            yield rows


def variability(row: Row) -> float:
    """Mean squared flux in units of its error."""
    flux, error = (np.asarray(row[name], float) for name in ("flux", "error"))
    good = np.isfinite(flux) & np.isfinite(error)
    return float(np.mean((flux[good] / error[good]) ** 2)) if good.any() else 0.0


def comparison_table(found: TemplateComparison, names: list[str]) -> str:
    """A row a template."""
    head = ("template", "median scatter", "NN2 / template", "objects better with NN2", "K-S", "probability")
    body = [
        (
            escape(name),
            number(row["median_rms"], 4),
            fixed(row["ratio"], 3),
            f"{100 * row['better']:.0f} %",
            fixed(row["ks_statistic"], 3),
            number(row["ks_probability"], 2),
        )
        for name, row in zip(names, found.rows(), strict=True)
    ]
    pooled = float(np.nanmedian(found.nn2_rms))
    return table(head, [*body, ("<b>NN2</b>", number(pooled, 4), "", "", "", "")])


def scatter_figure(found: TemplateComparison) -> str:
    """Median scatter with every template, and NN2's."""
    fig = new_figure(480, 330)
    axes = fig.add_subplot()
    light_grid(axes)
    number_of = np.arange(1, len(found.median_rms) + 1)
    axes.plot(number_of, found.median_rms, "o", ms=6, color=BLUE, mec="none")
    axes.axhline(float(np.nanmedian(found.nn2_rms)), color=ORANGE, lw=1.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("template")
    axes.set_ylabel("median scatter")
    return to_svg(fig, "Scatter with every template and with NN2")


def curve_figure(row: dict[str, Any], data: ReportData) -> str:
    """An object's light curve."""
    fig = new_figure(480, 300)
    axes = fig.add_subplot()
    time, flux, error = (np.asarray(row[name], float) for name in ("time", "flux", "error"))
    good = np.isfinite(flux) & np.isfinite(error)
    light_grid(axes)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.errorbar(
        time[good] - data.time_origin, flux[good], error[good], fmt="o", ms=4, color=INK, elinewidth=0.9
    )
    axes.set_xlabel(f"MJD \u2212 {data.time_origin}")
    axes.set_ylabel(f"flux ({data.units})")
    return to_svg(fig, f"NN2 light curve of {row['object_id']}")
