"""Which frames make one field: bands, shapes, duplicates, names and the order in time."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from survey.config import InputSettings
from survey.io._frame import FrameHeader, FrameSource
from survey.io._mosaic import join_cadences

_SAME_TIME = 1e-3 / 86400.0  # a millisecond, in days


class FrameSetError(ValueError):
    """Frames that cannot be one field; the message says what to set."""


class Rejected(NamedTuple):
    """A frame left out: which, why, and of what kind.

    `kind` is ``"bad"``, ``"duplicate"``, ``"shape"``, or ``"filtered"`` where the settings or quality
    bits asked for it (no reason to stop a strict run).
    """

    source: FrameSource
    reason: str
    kind: str = "bad"


@dataclass
class FileScan:
    """Headers of the frames of one file, and those left out."""

    headers: list[FrameHeader] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


class Scan(NamedTuple):
    """Headers of a field's frames in order of time, those left out, and what a person should know."""

    headers: list[FrameHeader]
    rejected: list[Rejected]
    warnings: list[str]


def combine_scans(
    scans: Iterable[FileScan], settings: InputSettings, known: Sequence[FrameHeader] = ()
) -> Scan:
    """Decide which frames make one field. Pure; the order of the files decides which duplicate stays.

    Parameters
    ----------
    scans : iterable of FileScan
        From `survey.io.frames.scan_file`, in the order of the files.
    settings : InputSettings
    known : sequence of FrameHeader
        Frames the field holds already (appending); those found must fit them.

    Raises
    ------
    FrameSetError
        If the frames are of several bands or detectors.
    """
    headers: list[FrameHeader] = []
    rejected: list[Rejected] = []
    for scan in scans:
        headers += scan.headers
        rejected += scan.rejected
    for name in ("band", "detector"):
        _only_one(name, [*known, *headers])
    for check in (_one_scale, _joined, _one_shape, _same_planes):
        headers, left_out = check(headers, known)
        rejected += left_out
    headers, there = _new(headers, known)
    headers, left_out = _without_duplicates(headers, settings, known)
    rejected += left_out
    warnings = _collect_warnings(headers)
    if there:
        warnings.insert(0, f"{there} frames are in the field already")
    headers = sorted(_unique_names(headers, known), key=lambda h: (h.time, h.detector, h.frame_id))
    return Scan(headers, rejected, warnings)


def _only_one(name: str, headers: Sequence[FrameHeader]) -> None:
    """Refuse frames of several bands or detectors."""
    found = Counter(getattr(header, name) for header in headers)
    if len(found) > 1:
        listed = ", ".join(f"{value or '(none)'!r} ({n} frames)" for value, n in sorted(found.items()))
        first = min(value for value in found if value)
        raise FrameSetError(
            f"frames of {len(found)} {name}s: {listed}; a field holds one: set [input] {name} = {first!r}, "
            f"or [input.keywords] {name} = [] if the keyword means something else"
        )


def _majority(
    headers: list[FrameHeader], known: Sequence[FrameHeader], name: str
) -> tuple[object, int, list[FrameHeader], list[FrameHeader]]:
    votes = Counter(getattr(header, name) for header in (known or headers))
    if not votes:
        return None, 0, headers, []
    winner, n = max(votes.items(), key=lambda item: item[1])
    same = [header for header in headers if getattr(header, name) == winner]
    return winner, n, same, [header for header in headers if getattr(header, name) != winner]


def _one_shape(
    headers: list[FrameHeader], known: Sequence[FrameHeader]
) -> tuple[list[FrameHeader], list[Rejected]]:
    shape, n, same, others = _majority(headers, known, "shape")
    return same, [
        Rejected(
            h.source, f"{Path(h.source.path).name}: shape {h.shape} px, but {n} frames have {shape}", "shape"
        )
        for h in others
    ]


def _same_planes(
    headers: list[FrameHeader], known: Sequence[FrameHeader]
) -> tuple[list[FrameHeader], list[Rejected]]:
    """Without frames that lack a plane which most have: the end of a file may be missing without a trace."""
    rejected = []
    for role in ("error", "dq"):
        having = [getattr(h, f"has_{role}") for h in known or headers]
        if not any(having) or 2 * sum(having) < len(having):
            continue
        for h in headers:
            if not getattr(h, f"has_{role}"):
                reason = (
                    f"{Path(h.source.path).name}: no {role} extension, but {sum(having)} frames have one; "
                    f"fetch the file again, or set [input] {role} = 'none'"
                )
                rejected.append(Rejected(h.source, reason))
        headers = [h for h in headers if getattr(h, f"has_{role}")]
    return headers, rejected


def _one_scale(
    headers: list[FrameHeader], known: Sequence[FrameHeader]
) -> tuple[list[FrameHeader], list[Rejected]]:
    scale, n, same, others = _majority(headers, known, "time_scale")
    return same, [
        Rejected(
            h.source,
            f"{Path(h.source.path).name}: time scale {h.time_scale}, but {n} frames have {scale}; "
            "set [input] time_scale",
        )
        for h in others
    ]


def _joined(
    headers: list[FrameHeader], known: Sequence[FrameHeader]
) -> tuple[list[FrameHeader], list[Rejected]]:
    joined, unused = join_cadences(headers, known)
    return joined, [Rejected(source, reason, kind) for source, reason, kind in unused]


def _new(headers: list[FrameHeader], known: Sequence[FrameHeader]) -> tuple[list[FrameHeader], int]:
    """Frames that the field does not hold yet, and how many it does: the same files, unchanged."""
    there = {_content(header) for header in known if header.fingerprint}
    new = [header for header in headers if _content(header) not in there]
    return new, len(headers) - len(new)


def _content(header: FrameHeader) -> tuple[str, int, str]:
    return os.path.abspath(header.source.path), header.source.index, header.fingerprint


def _without_duplicates(
    headers: list[FrameHeader], settings: InputSettings, known: Sequence[FrameHeader]
) -> tuple[list[FrameHeader], list[Rejected]]:
    if settings.duplicates == "keep":
        return headers, []
    by_content = {h.fingerprint: h for h in known if h.fingerprint}
    by_time = {key: h for h in known for key in _time_keys(h)}
    kept: list[FrameHeader] = []
    rejected: list[Rejected] = []
    for header in headers:
        name = Path(header.source.path).name
        twin = by_content.get(header.fingerprint) if header.fingerprint else None
        reason = "same content"
        if twin is None and settings.duplicates == "time":
            twin = next((by_time[key] for key in _time_keys(header) if key in by_time), None)
            reason = f"same time (MJD {header.time:.6f}) and detector"
        if twin is not None:
            way_out = (
                "" if reason == "same content" else "; if they differ set [input] duplicates = 'content'"
            )
            text = f"{name}: duplicate of {Path(twin.source.path).name}, {reason}{way_out}"
            rejected.append(Rejected(header.source, text, "duplicate"))
            continue
        kept.append(header)
        by_content[header.fingerprint] = header
        by_time |= dict.fromkeys(_time_keys(header), header)
    return kept, rejected


def _time_keys(header: FrameHeader) -> list[tuple[int, str, tuple[int, int]]]:
    """Two neighbouring bins, so that times within a millisecond share at least one."""
    bins = {round(header.time / _SAME_TIME), int(header.time / _SAME_TIME)}
    return [(k, header.detector, header.origin) for k in sorted(bins)]


def _unique_names(headers: list[FrameHeader], known: Sequence[FrameHeader]) -> list[FrameHeader]:
    """Same file name in several directories: the directory's name goes before it, then a number."""
    taken = {header.frame_id for header in known}
    votes = Counter(header.frame_id for header in headers)
    named = []
    for header in headers:
        name = header.frame_id
        if votes[name] > 1 or name in taken:
            name = f"{Path(header.source.path).absolute().parent.name}/{name}"
        number, candidate = 2, name
        while candidate in taken:
            candidate, number = f"{name}~{number}", number + 1
        taken.add(candidate)
        named.append(header if candidate == header.frame_id else replace(header, frame_id=candidate))
    return named


def _collect_warnings(headers: list[FrameHeader]) -> list[str]:
    """Each warning once, with its count; and a night whose date does not change at midnight."""
    found: dict[str, list[str]] = {}
    for header in headers:
        for text in header.warnings:
            found.setdefault(_kind_of(text), []).append(text)
    warnings = [f"{len(texts)} of {len(headers)} frames: {texts[0]}" for texts in found.values()]
    in_file_order = sorted(headers, key=lambda header: header.source)
    for before, after in itertools.pairwise(in_file_order):
        if -1.01 < after.time - before.time < -0.9:
            warnings.append(
                f"time jumps back by a day from {before.frame_id} to {after.frame_id}: the date may not "
                "change at midnight; set [input] day_starts = 12"
            )
            break
    return warnings


def _kind_of(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())
