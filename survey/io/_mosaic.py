"""Target pixel files of one detector, joined cadence by cadence into images over all their corners.

Files of several campaigns share the grid; a cadence is joined of the files of its own campaign. Pixels that
no file collected hold no data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from survey.config import InputSettings
from survey.io import _target_pixels
from survey.io._fits_header import wcs_text
from survey.io._frame import FrameHeader, FrameSource, Part, Planes, parse_wcs

# Source, reason and kind of what is left out.
Unused = tuple[FrameSource, str, str]
Box = tuple[int, int, int, int]


def join_cadences(
    headers: Sequence[FrameHeader], known: Sequence[FrameHeader] = ()
) -> tuple[list[FrameHeader], list[Unused]]:
    """Headers with the target pixels of each detector joined; others, and files of one corner, as they are.

    Parameters
    ----------
    headers : sequence of FrameHeader
        In the order of the files.
    known : sequence of FrameHeader
        Frames the field holds already, whose grid the new ones join.

    Returns
    -------
    headers : list of FrameHeader
    unused : list of (source, reason, kind)
        The same corner twice in one cadence, and files outside the grid that is known.
    """
    result = [h for h in headers if h.file_format != "target-pixels"]
    by_detector: dict[str, list[FrameHeader]] = {}
    for header in headers:
        if header.file_format == "target-pixels":
            by_detector.setdefault(header.detector, []).append(header)
    unused: list[Unused] = []
    for detector, found in by_detector.items():
        there = [h for h in known if h.detector == detector]
        if len({(h.origin, h.shape) for h in [*there, *found]}) == 1:
            result += found
            continue
        box = _box(there or found)
        inside: list[FrameHeader] = []
        for header in found:
            if _within(header, box):
                inside.append(header)
            else:
                reason = f"{header.frame_id} lies outside the field's pixels {box}: make a new field"
                unused.append((header.source, reason, "shape"))
        joined, twice = _join(inside, box)
        result += joined
        unused += twice
    return result, unused


def _box(headers: Sequence[FrameHeader]) -> Box:
    """Rows and columns (y0, y1, x0, x1) that the frames span."""
    y0, x0 = (min(h.origin[axis] for h in headers) for axis in (0, 1))
    y1, x1 = (max(h.origin[axis] + h.shape[axis] for h in headers) for axis in (0, 1))
    return y0, y1, x0, x1


def _within(header: FrameHeader, box: Box) -> bool:
    y0, x0 = header.origin
    return box[0] <= y0 and y0 + header.shape[0] <= box[1] and box[2] <= x0 and x0 + header.shape[1] <= box[3]


def _join(headers: Sequence[FrameHeader], box: Box) -> tuple[list[FrameHeader], list[Unused]]:
    cadences: dict[tuple[str, str], dict[Any, FrameHeader]] = {}
    first: dict[str, FrameHeader] = {}
    unused: list[Unused] = []
    for header in headers:
        stretch = str(header.cards.get("STRETCH", ""))
        first.setdefault(stretch, header)
        parts = cadences.setdefault((stretch, str(header.cards["CADENCE"])), {})
        twin = parts.setdefault((header.origin, header.shape), header)
        if twin is not header:
            reason = f"{header.frame_id}: the pixels of {twin.frame_id}, and the same cadence"
            unused.append((header.source, reason, "duplicate"))
    joined = [
        _joined(list(parts.values()), first[stretch], box, name)
        for (stretch, name), parts in cadences.items()
    ]
    return joined, unused


def _joined(parts: Sequence[FrameHeader], first: FrameHeader, box: Box, name: str) -> FrameHeader:
    """One frame; times of its parts, which differ by light travel, are averaged.

    All frames of a stretch take the WCS of its first file, or the files' small disagreement would look like
    a motion where one of them lacks a cadence.
    """
    y0, y1, x0, x1 = box
    stretch = str(first.cards.get("STRETCH", "")) or first.frame_id.partition("#")[0]
    shift = (first.origin[0] - y0, first.origin[1] - x0)
    digest = hashlib.sha256(" ".join(h.fingerprint for h in parts).encode()).hexdigest()[:16]
    return replace(
        parts[0],
        frame_id=f"{stretch} {first.detector}#{name}",
        shape=(y1 - y0, x1 - x0),
        origin=(y0, x0),
        time=float(np.mean([h.time for h in parts])),
        wcs_text=None if first.wcs_text is None else _moved(first.wcs_text, *shift),
        fingerprint=digest,
        has_error=all(h.has_error for h in parts),
        parts=tuple(Part(h.source.path, h.source.index, h.origin, h.shape) for h in parts),
    )


@lru_cache(maxsize=64)
def _moved(text: str, down: int, right: int) -> str:
    """WCS of an image that begins so many pixels earlier."""
    wcs = parse_wcs(text)
    wcs.wcs.crpix = np.add(wcs.wcs.crpix, (right, down))
    return wcs_text(wcs)


def read_planes(header: FrameHeader, settings: InputSettings, rows: tuple[int, int]) -> Planes:
    """Rows of a joined frame; pixels that no part holds are outside."""
    shape = (rows[1] - rows[0], header.shape[1])
    flux, error = (np.full(shape, np.nan, np.float32) for _ in range(2))
    dq, outside = np.zeros(shape, np.uint32), np.ones(shape, bool)
    bits = 0
    for part in header.parts:
        top, left = part.origin[0] - header.origin[0], part.origin[1] - header.origin[1]
        y0, y1 = max(top, rows[0]), min(top + part.shape[0], rows[1])
        if y0 >= y1:
            continue
        planes = _target_pixels.read_planes(part.path, part.frame, settings, (y0 - top, y1 - top))
        assert planes.dq is not None
        assert planes.outside is not None
        bits |= planes.bad_bits
        at = (slice(y0 - rows[0], y1 - rows[0]), slice(left, left + part.shape[1]))
        new = ~planes.outside & outside[at]
        flux[at][new], dq[at][new] = planes.flux[new], planes.dq[new]
        outside[at] &= planes.outside
        if planes.error is not None:
            error[at][new] = planes.error[new]
    return Planes(flux, error if header.has_error else None, dq, bits, outside)
