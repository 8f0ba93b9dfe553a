"""How the report's figures are drawn: SVG that takes its colours and font from the page."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

# Colours that no figure needs stand for the page's own, so that one drawing serves light and dark.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
BLUE, ORANGE, GREEN, RED = "#010206", "#010207", "#010208", "#010209"
PAPER = "#01020a"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
    PAPER: "var(--panel)",
}
NO_DATA = "#84777a"

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "survey",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
}

_numbers = itertools.count()


@contextmanager
def drawing() -> Iterator[None]:
    """Settings of matplotlib under which all figures of a report are drawn."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this many CSS pixels, outside any global state."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def colormap(name: str) -> Colormap:
    """A colour map that shows what is not known in a grey of its own."""
    return colormaps[name].with_extremes(bad=NO_DATA)


def light_grid(axes: Axes) -> None:
    """Faint lines behind the data."""
    axes.grid(True, linewidth=0.7)
    axes.set_axisbelow(True)


def to_svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG in the page's colours, with an alternative text.

    Identifiers are made unique, so that many figures live in one page.
    """
    stream = io.StringIO()
    empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", metadata=empty)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"font: ((?:[a-z0-9]+ )*[0-9.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = _unique(text, f"f{next(_numbers)}-")
    width, height = (round(float(v)) for v in figure.get_size_inches() * 72)
    head = (
        f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    text = re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", _smaller, text)
    return re.sub(r"\n\s*", "\n", text)


def _unique(text: str, prefix: str) -> str:
    known = set(re.findall(r'\bid="([^"]+)"', text))
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', text)

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}{prefix}{match[2]}" if match[2] in known else match[0]

    return re.sub(r'(url\(#|href="#)([^")]+)', rename, text)


def _smaller(match: re.Match[str]) -> str:
    """A picture of a colour map has no more than its 256 colours: a third of the bytes."""
    raw = base64.b64decode(re.sub(r"\s", "", match[1]))
    with Image.open(io.BytesIO(raw)) as picture:
        return png_uri(picture.convert("RGB"))


def png_uri(picture: Image.Image) -> str:
    """A picture as a data URI with a palette of 256 colours."""
    stream = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def picture_uri(image: NDArray[Any], norm: Normalize, cmap: str) -> str:
    """An image [y, x] as a data URI, y upward, one pixel a sample."""
    colours = colormap(cmap)(norm(np.ma.masked_invalid(image)), bytes=True)
    return png_uri(Image.fromarray(np.ascontiguousarray(colours[::-1, :, :3])))
