"""Pictures of the field: reference, a frame and its difference, the search's map."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from survey.kernels.reference import ReferenceFit
from survey.report import stretch
from survey.report.data import (
    ReportData,
    around,
    blocks,
    calibrated_frame,
    difference,
    native_reference,
    reference_fit,
)
from survey.report.markup import date, figure, fixed, missing, number, section, table
from survey.report.panels import GREY, MARK, SCORE, SIGNED, WIDE, Picture, compass, image_panel, mark
from survey.tiles import Window

# Largest edge of a map in the page; a larger field is shown smaller.
MAP_EDGE = 512
# Edge of the window of the frame and its difference, and of the one where the oversampled reference shows.
FRAME_EDGE = 128
FINE_EDGE, FINE_FACTOR = 24, 5
# Events tried for a place without bad pixels.
LOOKED_AT = 12


def pictures(data: ReportData) -> str:
    """The section of pictures."""
    body = [reference_figures(data), frame_figures(data), search_figure(data)]
    return section("pictures", "The field", "".join(body))


# -- reference ------------------------------------------------------------------------------------


def reference_map(data: ReportData) -> tuple[Picture, int] | None:
    """The native reference of the whole field, and how many times smaller it is."""
    if not data.field.has("reference", "coefficients"):
        return None
    factor = shrink(data.field.shape)
    ny, nx = (-(-n // factor) for n in data.field.shape)
    image = np.full((ny, nx), np.nan, np.float32)
    for window in blocks(data.field.shape, piece(data, factor)):
        native = native_reference(data, window)
        if native is not None:
            image[smaller(window, factor)] = stretch.reduce(native, factor)
    return (image, factor) if np.isfinite(image).any() else None


def shrink(shape: tuple[int, int]) -> int:
    """Factor by which a field is made smaller to fit the page."""
    return max(1, -(-max(shape) // MAP_EDGE))


def piece(data: ReportData, factor: int) -> int:
    """Edge of what is read at once: about a tile, a whole number of the map's pixels."""
    return factor * max(1, data.field.tile_size // factor)


def smaller(window: Window, factor: int) -> Window:
    """A window of the field on the map."""
    rows, columns = (slice(s.start // factor, -(-s.stop // factor)) for s in window)
    return rows, columns


def reference_figures(data: ReportData) -> str:
    """Native reference of the field, and a window native and oversampled."""
    found = reference_map(data)
    if found is None:
        return missing(
            "No reference yet: the differences have not been made. <code>survey run</code> makes both."
        )
    image, factor = found
    window = fine_window(data, image, factor)
    norm = stretch.asinh_norm(image)
    y0, x0 = window[0].start, window[1].start
    height, width = (s.stop - s.start for s in window)

    def frame_it(axes: Axes) -> None:
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), width, height, fill=False, ec=MARK, lw=1.2))
        compass(axes, data)

    shown = "" if factor == 1 else f" Shown {factor} times smaller."
    whole = image_panel(
        image,
        norm,
        GREY,
        data.units,
        "Native reference image of the whole field",
        scale=factor,
        decorate=frame_it,
    )
    parts = [
        figure(whole, f"<b>Reference</b>, one sample a pixel.{shown} The frame marks the window beside.")
    ]
    fit = reference_fit(data, window)
    if fit is not None:
        parts += fine_figures(data, fit, (y0, x0))
    return f'<div class="grid">{"".join(parts)}</div>'


def fine_figures(data: ReportData, fit: ReferenceFit, origin: tuple[int, int]) -> list[str]:
    """A window of the reference as it is sampled, and as the dithers resolve it."""
    native = fit.evaluate(np.zeros(1), np.zeros(1))[0]
    fine = fit.oversample(FINE_FACTOR)
    norm = stretch.asinh_norm(fine)
    coarse = image_panel(native, norm, GREY, data.units, "Window of the native reference", origin=origin)
    # The fine image's first sample is centred inside the first pixel; corners coincide.
    smooth = image_panel(
        fine, norm, GREY, data.units, "The same window of the oversampled reference",
        origin=origin, scale=1 / FINE_FACTOR,
    )  # fmt: skip
    return [
        figure(coarse, "<b>Native</b>: a window as the detector samples it."),
        figure(smooth, f"<b>Oversampled</b> × {FINE_FACTOR}: the same window, evaluated between the pixels."),
    ]


def fine_window(data: ReportData, image: Picture, factor: int) -> Window:
    """Where the gain in resolution shows: at the best event without holes about it, else in the middle."""
    for event in (data.events or [])[:LOOKED_AT]:
        window = around(data.field.shape, event["y"], event["x"], FINE_EDGE)
        if np.isfinite(image[smaller(window, factor)]).all():
            return window
    y, x = (n / 2 for n in data.field.shape)
    return around(data.field.shape, y, x, FINE_EDGE)


# -- a frame and its difference -------------------------------------------------------------------


def frame_figures(data: ReportData) -> str:
    """One frame, its difference in the same stretch, and the difference in sigma."""
    frames = data.frames
    if frames is None:
        return missing("No frames have been ingested.")
    k, event = chosen_frame(data)
    y, x = (event["y"], event["x"]) if event else (n / 2 for n in data.field.shape)
    window = around(data.field.shape, y, x, FRAME_EDGE)
    flux = calibrated_frame(data, k, window)
    if not np.isfinite(flux).any():
        return missing("The chosen frame has no good sample in this window.")
    found = difference(data, k, window)
    norm = stretch.asinh_norm(flux, noise=None if found is None else float(np.nanmedian(found[1])))
    origin = (window[0].start, window[1].start)

    def circle(axes: Axes) -> None:
        if event:
            mark(axes, event, 1, flux.shape)

    name, when = str(frames["frame_id"].values[k]), frames["time"].values[k]
    at = ", near the peak of event <a href='#event-1'>1</a> (circled)" if event else ""
    size = "" if flux.shape == data.field.shape else f" {flux.shape[1]} × {flux.shape[0]} pixels of it."
    parts = [
        figure(
            image_panel(flux, norm, GREY, data.units, f"Frame {name}", origin=origin, decorate=circle),
            f"<b>Frame</b> {name}, {date(when)}{at}.{size}",
        )
    ]
    if found is None:
        parts.append(missing("No difference of this frame yet."))
        return f'<div class="grid">{"".join(parts)}</div>'
    residual, error = found
    scaled = residual / error
    parts += [
        figure(
            image_panel(
                residual,
                norm,
                GREY,
                data.units,
                f"Difference of frame {name}",
                origin=origin,
                decorate=circle,
            ),
            "<b>Difference</b>, frame minus reference, in the frame's stretch.",
        ),
        figure(
            image_panel(
                scaled,
                Normalize(-5, 5),
                SIGNED,
                "difference / error (σ)",
                f"Difference over error of frame {name}",
                origin=origin,
                decorate=circle,
            ),
            "<b>Difference / error</b>: noise should look the same on sky and on stars.",
        ),
    ]
    return f'<div class="grid">{"".join(parts)}</div>'


def chosen_frame(data: ReportData) -> tuple[int, dict[str, Any] | None]:
    """The frame nearest to the best event's peak, else the reference frame."""
    assert data.frames is not None
    time, flags = data.frames["time"].values, data.frames["flags"].values
    if data.events:
        return nearest_frame(time, flags, data.events[0]["time"]), data.events[0]
    names = [str(name) for name in data.frames["frame_id"].values]
    reference = str(data.field.attrs.get("reference_frame", ""))
    return (names.index(reference) if reference in names else len(names) // 2), None


def nearest_frame(time: NDArray[Any], flags: NDArray[Any], when: float) -> int:
    """The unflagged frame nearest in time; any where all are flagged."""
    distance = np.abs(time - when)
    usable = flags == 0
    return int(np.argmin(np.where(usable, distance, np.inf) if usable.any() else distance))


# -- the search -----------------------------------------------------------------------------------


def search_map(data: ReportData) -> tuple[Picture, int] | None:
    """The search's largest |S/N| of every pixel, and how many times smaller the map is."""
    group = f"search/{data.method}"
    if not data.field.has(group, "significance"):
        return None
    factor = shrink(data.field.shape)
    ny, nx = (-(-n // factor) for n in data.field.shape)
    image = np.full((ny, nx), np.nan, np.float32)
    for window in blocks(data.field.shape, piece(data, factor)):
        snr = np.asarray(data.field.array(group, "significance")[window], float)
        scale = np.asarray(data.field.array(group, "scale_index")[window])
        snr[scale < 0] = np.nan
        image[smaller(window, factor)] = np.abs(stretch.reduce(snr, factor, extreme=True))
    return (image, factor) if np.isfinite(image).any() else None


def search_figure(data: ReportData) -> str:
    """The map of the search with the events on it, and the largest S/N of every time scale."""
    found = search_map(data)
    if found is None:
        return missing("The field has not been searched for events yet.")
    image, factor = found
    known = image[np.isfinite(image)]
    low, high = np.percentile(known, 1), max(float(np.percentile(known, 99.9)), 12.0)
    shown = int(data.config.get("report", {}).get("events", 12))

    def circles(axes: Axes) -> None:
        for i, event in enumerate(data.events or []):
            mark(axes, event, i + 1 if i < shown else None, data.field.shape)

    svg = image_panel(
        image, Normalize(float(low), min(high, 25.0)), SCORE, "largest |S/N| in time", "Map of the search",
        scale=factor, decorate=circles, width=WIDE,
    )  # fmt: skip
    count = len(data.events or [])
    words = "<b>Search</b>: the largest |S/N| of each pixel over all times and time scales. "
    words += f"{count} event{'s' if count != 1 else ''} circled" if count else "No event in it"
    if count > shown:
        words += f", the first {shown} numbered"
    words += f". Median {fixed(np.median(known), 1)}, highest {number(known.max(), 3)}."
    return f'<div class="grid wide">{figure(svg, words)}{short_list(data, shown)}</div>'


def short_list(data: ReportData, shown: int) -> str:
    """The numbered events in a few words, beside the map that shows them."""
    rows = [
        (
            f'<a href="#event-{i + 1}">{i + 1}</a>',
            fixed(event.get("snr"), 1),
            fixed(event.get("x"), 1),
            fixed(event.get("y"), 1),
            date(event.get("time")),
            number(event.get("sigma_days"), 2),
            number(event.get("peak_flux"), 3),
        )
        for i, event in enumerate((data.events or [])[:shown])
    ]
    if not rows:
        return ""
    when, peak = f"peak ({data.time_scale})", f"peak flux ({data.units})"
    return table(("event", "S/N", "x", "y", when, "σ (d)", peak), rows, left=(0, 4))
