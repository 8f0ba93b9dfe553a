"""Which pixels vary: the map of variables of a method that makes one."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm

from survey.report import stretch
from survey.report.data import ReportData, blocks
from survey.report.markup import figure, fixed, number, section
from survey.report.panels import SCORE, WIDE, image_panel
from survey.report.pictures import piece, shrink, smaller


def variables(data: ReportData) -> str:
    """Which pixels vary, as the paper on prediction shows it; nothing for other methods."""
    group = f"variability/{data.method}"
    if not data.field.has(group, "deviation"):
        return ""
    factor = shrink(data.field.shape)
    image = np.full([-(-n // factor) for n in data.field.shape], np.nan, np.float32)
    for window in blocks(data.field.shape, piece(data, factor)):
        found = np.asarray(data.field.array(group, "deviation")[window], float)
        found[found == 0] = np.nan
        image[smaller(window, factor)] = stretch.reduce(found, factor, extreme=True)
    known = image[np.isfinite(image)]
    if not len(known):
        return ""
    high = max(float(np.percentile(known, 99)), 3.0)
    svg = image_panel(
        image, LogNorm(0.7, high), SCORE, "mean |difference| / photon error", "Map of variables",
        scale=factor, width=WIDE,
    )  # fmt: skip
    words = (
        "<b>Variables</b>: mean |difference| / photon error of each pixel; pure noise gives 0.8. "
        f"Median {fixed(np.median(known), 2)}, highest {number(known.max(), 3)}."
    )
    return section("variables", "Variables", f'<div class="grid wide">{figure(svg, words)}</div>')
