"""Frames in, whatever file they come from.

`find_frames` lists them, `scan_file` reads the headers of one file (cheap, pure, one task a file),
`combine_scans` decides which frames make a field, `read_frame` reads pixels, and calibrates them where bias,
dark, flat or the field's pattern are given.

Examples
--------
>>> from survey.config import InputSettings
>>> find_frames(["no_such_night/*.fits"], InputSettings())
Traceback (most recent call last):
...
survey.io._frame.FrameError: *.fits: no frame matches no_such_night/*.fits; no directory no_such_night
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from survey.config import InputSettings
from survey.io import _asdf, _cubes, _fits, _mosaic, _target_pixels
from survey.io._find import find_files
from survey.io._formats import count_frames, header_of, headers_of
from survey.io._frame import (
    DQ_BAD_ERROR,
    DQ_NO_DATA,
    DQ_SATURATED,
    DQ_UNCALIBRATED,
    Frame,
    FrameError,
    FrameHeader,
    FrameSource,
    Part,
    Planes,
    parse_wcs,
    wanted,
)
from survey.io._planes import build_frame, measure_sky
from survey.io._scan import FileScan, FrameSetError, Rejected, Scan, combine_scans
from survey.io.calibration import calibrate, calibration_identity
from survey.kernels.background import Background
from survey.kernels.pattern import Pattern

__all__ = [
    "DQ_BAD_ERROR",
    "DQ_NO_DATA",
    "DQ_SATURATED",
    "DQ_UNCALIBRATED",
    "FileScan",
    "Frame",
    "FrameError",
    "FrameHeader",
    "FrameSetError",
    "FrameSource",
    "Part",
    "Rejected",
    "Scan",
    "combine_scans",
    "find_files",
    "find_frames",
    "parse_wcs",
    "read_frame",
    "read_frames",
    "read_header",
    "scan",
    "scan_file",
]


def find_frames(patterns: Sequence[str | Path], settings: InputSettings | None = None) -> list[FrameSource]:
    """All frames of the files that match: one a file, or one a cadence or science extension.

    Files that cannot be opened are listed as one frame; reading it says why. For many files use
    `find_files` and one `scan_file` a task.

    Raises
    ------
    FrameError
        If a pattern matches nothing.
    """
    settings = settings or InputSettings()
    return [
        FrameSource(path, index)
        for path in find_files(patterns)
        for index in range(count_frames(path, settings))
    ]


def read_header(source: FrameSource | str | Path, settings: InputSettings | None = None) -> FrameHeader:
    """What a frame is, without its pixels.

    Raises
    ------
    FrameError
        With the file, the reason and the way out; of kind ``"filtered"`` for another band or detector
        than asked for, and for cadences with bad quality bits.
    """
    source, settings = _source(source), settings or InputSettings()
    path, index = source.path, source.index
    header = header_of(path, index, settings)
    return wanted(header, settings)


def _source(source: FrameSource | str | Path) -> FrameSource:
    return FrameSource(str(source), 0) if isinstance(source, str | Path) else source


def read_frame(
    source: FrameSource | FrameHeader | str | Path,
    settings: InputSettings | None = None,
    rows: tuple[int, int] | None = None,
    pattern: Pattern | None = None,
) -> Frame:
    """Read one frame, or a band of its rows.

    Parameters
    ----------
    source : FrameSource, FrameHeader or path
        A header that was read already is not read again.
    settings : InputSettings
    rows : (y0, y1), optional
        Rows of the frame (after the cutout) to read. Plain and tile-compressed FITS are read in part;
        values are the same as those of the whole frame, except that a frame without any good pixel is
        refused only when read whole.
    pattern : Pattern, optional
        What the detector adds to every frame, to be taken off.

    Returns
    -------
    Frame

    Raises
    ------
    FrameError
        With the file, the reason and the way out.
    """
    settings = settings or InputSettings()
    header = source if isinstance(source, FrameHeader) else read_header(source, settings)

    with _Reader(header, settings, pattern) as read:

        def noise() -> Background | None:
            if rows is None:
                return measure_sky(header, read, settings)
            changed = Path(header.source.path).stat().st_mtime_ns
            files = tuple(calibration_identity(settings))
            return _sky(header, changed, settings.model_dump_json(), pattern, files)

        return build_frame(header, read, settings, rows, noise)


class _Reader:
    """Context that gives ``read(rows) -> Planes`` of one frame, with its file open meanwhile."""

    def __init__(self, header: FrameHeader, settings: InputSettings, pattern: Pattern | None) -> None:
        self.header, self.settings, self.pattern = header, settings, pattern
        self.path, self.index = header.source.path, header.source.index
        self.last_rows: tuple[int, int] | None = None

    def __enter__(self) -> _Reader:
        with contextlib.ExitStack() as stack:
            if self.header.file_format == "asdf":
                self.file = stack.enter_context(_asdf.open_roman(self.path))
            elif self.header.file_format == "fits":
                self.file = stack.enter_context(_fits.open_fits(self.path))
                science = _fits.science_extensions(self.path, self.file, self.settings)
                self.layout = _fits.find_layout(self.path, self.file, science[self.index], self.settings)
            elif self.header.file_format == "cube":
                self.file = stack.enter_context(_fits.open_fits(self.path))
                self.layout = _cubes.layout(self.path, self.file, self.settings)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def __call__(self, rows: tuple[int, int]) -> Planes:
        if rows != self.last_rows:  # the sky and the frame itself often ask for the same
            planes = self._read(rows)
            self.last_rows = rows
            self.last = calibrate(planes, self.header, self.settings, rows, self.pattern)
        return self.last

    def _read(self, rows: tuple[int, int]) -> Planes:
        if self.header.file_format == "asdf":
            return _asdf.planes_of(self.path, self.file, self.settings, rows)
        if self.header.parts:
            return _mosaic.read_planes(self.header, self.settings, rows)
        if self.header.file_format == "target-pixels":
            return _target_pixels.read_planes(self.path, self.index, self.settings, rows)
        plane = self.index if self.header.file_format == "cube" else 0
        return _fits.read_planes(self.path, self.file, self.layout, self.settings, rows, plane)


def read_frames(
    sources: Iterable[FrameSource | FrameHeader | str | Path], settings: InputSettings | None = None
) -> Iterator[Frame]:
    """Frames one after the other; never more than one in memory here."""
    for source in sources:
        yield read_frame(source, settings)


def scan_file(path: str | Path, settings: InputSettings | None = None) -> FileScan:
    """Headers of all frames of one file, and those left out with the reason. Never raises `FrameError`."""
    path, settings = str(path), settings or InputSettings()
    result = FileScan()
    for index, found in enumerate(headers_of(path, settings)):
        try:
            if isinstance(found, FrameError):
                raise found
            result.headers.append(wanted(found, settings))
        except FrameError as error:
            result.rejected.append(Rejected(FrameSource(path, index), str(error), error.kind))
    return result


def scan(
    files: Iterable[str | Path | FrameSource],
    settings: InputSettings | None = None,
    known: Sequence[FrameHeader] = (),
) -> Scan:
    """Headers of all frames that make one field, in order of time, and those left out.

    The serial form of `scan_file` and `combine_scans`. A `FrameSource` asks for that frame alone.

    Raises
    ------
    FrameSetError
        If the frames are of several bands or detectors.
    """
    settings = settings or InputSettings()
    asked: dict[str, set[int] | None] = {}
    for item in files:
        source = _source(item)
        if isinstance(item, str | Path):
            asked[source.path] = None
        elif asked.setdefault(source.path, set()) is not None:
            asked[source.path].add(source.index)  # type: ignore[union-attr]
    scans = [_only(scan_file(path, settings), indices) for path, indices in asked.items()]
    return combine_scans(scans, settings, known)


def _only(found: FileScan, indices: set[int] | None) -> FileScan:
    if indices is None:
        return found
    return FileScan(
        [header for header in found.headers if header.source.index in indices],
        [rejected for rejected in found.rejected if rejected.source.index in indices],
    )


@lru_cache(maxsize=1024)
def _sky(
    header: FrameHeader, mtime: int, settings_json: str, pattern: Pattern | None, files: tuple[str, ...]
) -> Background | None:
    """The sky of a frame read in bands of rows, measured once for each content of calibration ``files``."""
    settings = InputSettings.model_validate_json(settings_json)
    with _Reader(header, settings, pattern) as read:
        return measure_sky(header, read, settings)
