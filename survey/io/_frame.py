"""What a frame is, before anything is known of the file it comes from."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io.times import quiet

DQ_SATURATED = 1 << 26
"""Bit set in `Frame.dq` where a pixel is saturated or close to one that is."""
DQ_NO_DATA = 1 << 27
"""Bit set in `Frame.dq` where there is no value: NaN, BLANK, outside the aperture."""
DQ_UNCALIBRATED = 1 << 28
"""Bit set in `Frame.dq` where calibration leaves no value: unstable, blind, without bias, dark or flat."""
DQ_BAD_ERROR = 1 << 29
"""Bit set in `Frame.dq` where the error is zero, negative or not finite."""

SUFFIXES = (".fits", ".fit", ".fts", ".asdf")
COMPRESSIONS = (".gz", ".fz", ".bz2")
_SAMPLE = 8192
_METADATA = (
    *("frame_id", "exposure", "gain", "read_noise", "saturation", "zero_point", "units", "time_scale"),
    *("origin", "fingerprint", "cards", "warnings", "wcs_text"),
)


class FrameError(ValueError):
    """A frame that cannot be used: which file, why, and the way out.

    `kind` is ``"bad"``, ``"duplicate"``, ``"shape"``, or ``"filtered"`` where the settings or the
    mission's quality bits ask to leave it out.
    """

    def __init__(self, path: str | Path, reason: str, way_out: str = "", kind: str = "bad") -> None:
        self.path, self.reason, self.way_out, self.kind = str(path), reason, way_out, kind
        super().__init__(f"{Path(path).name}: {reason}" + (f"; {way_out}" if way_out else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.way_out, self.kind)


@dataclass(frozen=True, order=True)
class FrameSource:
    """One frame: a file, and which of its frames."""

    path: str
    index: int = 0


class Part(NamedTuple):
    """A file's share of a frame joined of several: which of its frames, and its place on the detector."""

    path: str
    frame: int
    origin: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True)
class FrameHeader:
    """All that is known of a frame before its pixels are read. Small; travels between processes.

    Parameters
    ----------
    source : FrameSource
    frame_id : str
        Name of the file without suffix, and ``#n`` where the file holds several frames.
    shape : (y, x)
        Of the pixels that `survey.io.frames.read_frame` returns, after the cutout.
    time : float
        MJD at mid-exposure, in `time_scale`.
    exposure : float
        Seconds; NaN where unknown.
    gain, read_noise, saturation, zero_point : float or None
        Electrons per unit, electrons, units, magnitudes.
    wcs_text : str or None
        FITS header text of the WCS of the returned pixels.
    origin : (y, x)
        Detector position of the first returned pixel, as far as the file and the cutout say.
    fingerprint : str
        Short hash of the file's content (sampled) and the frame's place in it.
    file_format : {"fits", "target-pixels", "asdf"}
    has_error : bool
        Whether the file brings an error plane,
    has_dq : bool
        and one of quality bits (FITS images only).
    cards : dict
        Header cards worth keeping.
    warnings : tuple of str
    parts : tuple of Part
        Of a frame joined of several files; its other pixels were not collected.
    """

    source: FrameSource
    frame_id: str
    shape: tuple[int, int]
    time: float
    time_scale: str
    band: str
    detector: str
    exposure: float
    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    zero_point: float | None = None
    units: str = ""
    wcs_text: str | None = None
    origin: tuple[int, int] = (0, 0)
    fingerprint: str = ""
    file_format: str = "fits"
    has_error: bool = False
    has_dq: bool = False
    cards: dict[str, Any] = field(default_factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def has_wcs(self) -> bool:
        """Whether the frame brings a celestial WCS."""
        return self.wcs_text is not None

    @property
    def wcs(self) -> WCS | None:
        """The WCS of the returned pixels."""
        return None if self.wcs_text is None else parse_wcs(self.wcs_text)

    def metadata(self) -> dict[str, Any]:
        """The plain values as a dict, for `Frame.metadata`."""
        values = {name: getattr(self, name) for name in _METADATA}
        return {"path": self.source.path, "index": self.source.index, **values}


@dataclass
class Frame:
    """One exposure of one detector in one band.

    Parameters
    ----------
    flux, error : float32 array (y, x)
        In `metadata["units"]`; error is 1-sigma, NaN where there is none.
    mask : bool array (y, x)
        True = bad.
    dq : uint32 array (y, x)
        The file's bits, and `DQ_SATURATED`, `DQ_NO_DATA`, `DQ_UNCALIBRATED`, `DQ_BAD_ERROR`.
    rows : tuple of int
        Rows [start, stop) of the frame's pixels that are held here.
    time : float
        MJD at mid-exposure, in `metadata["time_scale"]`.
    band, detector : str
    metadata : dict
        frame_id, path, index, exposure [s], gain [electrons per unit], read_noise [electrons], saturation,
        zero_point, units, time_scale, origin, fingerprint, cards, warnings, wcs_text, error_source.
    """

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    mask: NDArray[np.bool_]
    dq: NDArray[np.uint32]
    rows: tuple[int, int]
    time: float
    band: str
    detector: str
    metadata: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x)."""
        ny, nx = self.flux.shape
        return ny, nx

    @cached_property
    def wcs(self) -> WCS | None:
        """WCS of the pixels held here; None where the file has none. Made when asked for: it takes 7 ms."""
        text = self.metadata["wcs_text"]
        return None if text is None else parse_wcs(text)[slice(*self.rows), :]


@dataclass
class Planes:
    """Pixels as a file gives them: values in float32, error as 1-sigma or none, bits or none.

    Calibration puts its values in the place of ``flux`` and keeps what limits and errors are taken from:
    ``counts`` as read, ``photons`` (counts less bias), ``flat``, the ``pattern_error`` of each pixel and
    the ``usual_error`` of most, and which pixels are ``uncalibrated``.
    """

    flux: NDArray[np.float32]
    error: NDArray[np.float32] | None
    dq: NDArray[np.uint32] | None
    bad_bits: int = 0xFFFFFFFF
    outside: NDArray[np.bool_] | None = None
    saturated_bits: int = 0
    counts: NDArray[np.float32] | None = None
    photons: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None
    pattern_error: NDArray[np.float32] | None = None
    usual_error: float = 0.0
    uncalibrated: NDArray[np.bool_] | None = None


def parse_wcs(text: str) -> WCS:
    """WCS of a FITS header text."""
    with quiet(FITSFixedWarning):
        return WCS(Header.fromstring(text))


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the known name nearest to a wrong one, or all of them."""
    names = [str(k) for k in known]
    lower = {k.lower(): k for k in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean {lower[near[0]]!r}?"
    return f"known: {', '.join(names)}" if names else "there is none"


def bare_name(path: str | Path) -> str:
    """File name without its frame suffixes.

    Examples
    --------
    >>> bare_name("night1/HATP-32171220013343.fits.fz")
    'HATP-32171220013343'
    """
    name = Path(path).name
    for endings in (COMPRESSIONS, SUFFIXES):
        for ending in endings:
            if name.lower().endswith(ending):
                name = name[: -len(ending)]
                break
    return name


def fingerprint(path: str | Path) -> str:
    """Hash of a file's size and of samples of its content; copies have the same."""
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for part in range(8):
            stream.seek(max(size - _SAMPLE, 0) * part // 7)
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def cutout_window(
    path: str | Path, full: tuple[int, int], settings: InputSettings, rows: tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """Window (y0, y1, x0, x1) of the file's pixels: the cutout, and of it the rows wanted."""
    ny, nx = full
    y0, y1, x0, x1 = settings.cutout or (0, ny, 0, nx)
    if not (0 <= y0 < y1 <= ny and 0 <= x0 < x1 <= nx):
        raise FrameError(
            path,
            f"cutout {[y0, y1, x0, x1]} does not lie in the image of {ny} x {nx} px",
            "set [input] cutout = [y0, y1, x0, x1] with 0 <= y0 < y1 <= height, 0 <= x0 < x1 <= width",
        )
    if rows is not None:
        if not 0 <= rows[0] < rows[1] <= y1 - y0:
            raise FrameError(path, f"rows {list(rows)} do not lie in the {y1 - y0} rows of the frame")
        y0, y1 = y0 + rows[0], y0 + rows[1]
    return y0, y1, x0, x1


def wanted(header: FrameHeader, settings: InputSettings) -> FrameHeader:
    """The header itself if band and detector are those asked for.

    Raises
    ------
    FrameError
        Of kind ``"filtered"`` if not.
    """
    for key in ("band", "detector"):
        asked, found = getattr(settings, key), getattr(header, key)
        if asked is not None and not matches(found, asked):
            raise FrameError(header.source.path, f"{key} {found!r} is not {asked!r}", kind="filtered")
    return header


def matches(value: str, asked: str) -> bool:
    """Whether a band or detector is the one asked for: the whole value, or its first word.

    Examples
    --------
    >>> matches("i DECam SDSS c0003 7835.0 1470.0", "i"), matches("i2", "i")
    (True, False)
    """
    value, asked = value.strip().lower(), asked.strip().lower()
    return value == asked or value.split(" ")[0] == asked


def resolve_bits(path: str | Path, settings: InputSettings, default: int, names: dict[str, int]) -> int:
    """Bits that mean bad, from the settings' sum, values or names."""
    chosen = settings.bad_bits
    if chosen is None:
        return default
    total = 0
    for item in chosen if isinstance(chosen, list) else [chosen]:
        if isinstance(item, str):
            upper = {name.upper(): bit for name, bit in names.items()}
            if item.upper() not in upper:
                hint = nearest(item, names) if names else "this format has no names for bits: give numbers"
                raise FrameError(path, f"unknown bit {item!r} in [input] bad_bits", hint)
            total |= upper[item.upper()]
        elif 0 <= item <= 0xFFFFFFFF:
            total |= item
        else:
            raise FrameError(path, f"bad_bits {item} is not within 32 bits", "set [input] bad_bits")
    return total
