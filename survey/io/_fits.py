"""Frames in FITS files: plain, gzip, bzip2 or fpack."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io import times
from survey.io._frame import (
    FrameError,
    FrameHeader,
    FrameSource,
    Planes,
    bare_name,
    cutout_window,
    fingerprint,
    nearest,
    resolve_bits,
)

SCIENCE_NAMES = ("SCI", "SCIENCE", "IMAGE")
ERROR_NAMES = {
    "ERR": "sigma",
    "ERROR": "sigma",
    "UNCERT": "sigma",
    "UNCERTAINTY": "sigma",
    "SIGMA": "sigma",
    "RMS": "sigma",
    "VAR": "variance",
    "VARIANCE": "variance",
    "IVAR": "inverse-variance",
    "INVVAR": "inverse-variance",
}
DQ_NAMES = ("DQ", "DATA_QUALITY", "MASK", "FLAGS", "BPM")
CARDS = (
    *("OBJECT", "TELESCOP", "INSTRUME", "OBSERVAT", "DATE-OBS", "LST-OBS", "AIRMASS", "SEEING"),
    *("RA", "DEC", "RA_OBJ", "DEC_OBJ", "RA_TARG", "DEC_TARG", "OBJCTRA", "OBJCTDEC"),
    *("IM_SCALE", "PIXSCALE", "SECPIX", "LATITUDE", "LONGITUD", "SITELAT", "SITELONG"),
    *("OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z", "OBSGEO-B", "OBSGEO-L", "OBSGEO-H"),
    *("KEPLERID", "TICID", "CAMPAIGN", "SECTOR"),
)

BROKEN = (OSError, EOFError, ValueError, TypeError, zlib.error, VerifyError, KeyError, IndexError)


@contextlib.contextmanager
def open_fits(path: str | Path) -> Iterator[fits.HDUList]:
    """Open a FITS file with unscaled images, all its headers read and found whole.

    Raises
    ------
    FrameError
        If there is no such file, it is not FITS, or it is shorter than its headers say.
    """
    try:
        with times.quiet(AstropyWarning):
            hdul = fits.open(path, do_not_scale_image_data=True, memmap=False)
            len(hdul)
    except FileNotFoundError:
        raise FrameError(path, "no such file") from None
    except BROKEN as error:
        raise FrameError(path, _not_fits(path, error), "fetch the file again or leave it out") from None
    with hdul:
        _check_whole(path, hdul)
        yield hdul


def _not_fits(path: str | Path, error: Exception) -> str:
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    if size == 0:
        return "the file is empty" if Path(path).is_file() else "not a file"
    with Path(path).open("rb") as stream:
        packed = stream.read(3) in (b"BZh", b"\x1f\x8b\x08")
    if packed or isinstance(error, EOFError | zlib.error):
        return f"truncated or damaged compressed file of {size} bytes ({_first_line(error)})"
    return f"not a FITS file ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _check_whole(path: str | Path, hdul: fits.HDUList) -> None:
    with Path(path).open("rb") as stream:
        if stream.read(6) != b"SIMPLE":  # compressed as a whole: its end shows when the pixels are read
            return
    size = Path(path).stat().st_size
    for hdu_index in range(len(hdul)):
        info = hdul.fileinfo(hdu_index)
        end = info["datLoc"] + info["datSpan"]
        # the last block need not be padded with zeros to 2880 bytes
        if end - 2880 >= size and info["datSpan"]:
            raise FrameError(
                path,
                f"truncated: extension {hdu_index} ends at byte {end}, the file at {size}",
                "fetch the file again or leave it out",
            )


def is_image(hdu: Any) -> bool:
    """Whether an extension holds an image of two or more axes."""
    return bool(hdu.is_image and len(hdu.shape) >= 2 and 0 not in hdu.shape)


def extension_names(hdul: fits.HDUList) -> list[str]:
    """Names of the image extensions, numbers for those without."""
    return [hdul[i].name or str(i) for i in range(len(hdul)) if is_image(hdul[i])]


def find_extensions(hdul: fits.HDUList, wanted: str | int) -> list[int]:
    """Numbers of the image extensions of this number, name, ``"NAME,version"``, or ``"all"``."""
    images = [i for i in range(len(hdul)) if is_image(hdul[i])]
    if isinstance(wanted, int) or wanted.lstrip("-").isdigit():
        number = int(wanted) % len(hdul) if abs(int(wanted)) <= len(hdul) else -1
        return [number] if number in images else []
    if wanted.lower() == "all":
        return images
    name, _, version = wanted.partition(",")
    found = [i for i in images if hdul[i].name.upper() == name.strip().upper()]
    return [i for i in found if hdul[i].ver == int(version)] if version.strip().isdigit() else found


def science_extensions(path: str | Path, hdul: fits.HDUList, settings: InputSettings) -> list[int]:
    """Numbers of the image extensions that are frames.

    Raises
    ------
    FrameError
        If there is none, with the nearest known name.
    """
    if settings.science != "auto":
        if found := find_extensions(hdul, settings.science):
            return found
        hint = nearest(str(settings.science), extension_names(hdul))
        raise FrameError(path, f"no image extension {settings.science!r}", f"{hint} Set [input] science")
    for name in SCIENCE_NAMES:
        if found := find_extensions(hdul, name):
            return found
    companions = {*ERROR_NAMES, *DQ_NAMES}
    images = [i for i in find_extensions(hdul, "all") if hdul[i].name.upper() not in companions]
    if not images:
        names = ", ".join(f"{i} {hdul[i].name or type(hdul[i]).__name__}" for i in range(len(hdul)))
        raise FrameError(path, f"no image in the file (extensions: {names})", "set [input] science")
    return images[:1]


@dataclass(frozen=True)
class Layout:
    """Which extensions make one frame."""

    science: int
    error: int | None
    error_kind: str
    dq: int | None
    shape: tuple[int, int]


def find_layout(path: str | Path, hdul: fits.HDUList, science: int, settings: InputSettings) -> Layout:
    """Science extension with its error and DQ planes; checks dimensions and shapes."""
    shape = image_shape(path, hdul, science)
    error, kind = None, "sigma"
    if settings.error is not None:
        error = _companion(path, hdul, science, settings.error, tuple(ERROR_NAMES), "error")
    if error is not None:
        by_name = ERROR_NAMES.get(hdul[error].name.upper(), "sigma")
        kind = by_name if settings.error_kind == "auto" else settings.error_kind
    dq = None
    if settings.dq is not None:
        dq = _companion(path, hdul, science, settings.dq, DQ_NAMES, "dq")
    for role, index in (("error", error), ("dq", dq)):
        if index is not None and image_shape(path, hdul, index) != shape:
            raise FrameError(
                path,
                f"{role} extension {hdul[index].name or index} is {image_shape(path, hdul, index)} px, "
                f"the image {shape}",
                f"set [input] {role} to the right extension, or to 'none'",
            )
    if dq is not None and int(hdul[dq].header["BITPIX"]) < 0:
        raise FrameError(path, f"dq extension {hdul[dq].name or dq} holds no integers", "set [input] dq")
    return Layout(science, error, kind, dq, shape)


def image_shape(path: str | Path, hdul: fits.HDUList, index: int) -> tuple[int, int]:
    """(y, x) of an image; leading axes of length one are allowed.

    Raises
    ------
    FrameError
        If it has more dimensions than two.
    """
    shape = hdul[index].shape
    if len(shape) < 2 or any(n != 1 for n in shape[:-2]):
        raise FrameError(
            path,
            f"extension {hdul[index].name or index} has shape {tuple(shape)}, not (y, x)",
            "set [input] science to a two-dimensional image, or split the cube",
        )
    return int(shape[-2]), int(shape[-1])


def _companion(
    path: str | Path, hdul: fits.HDUList, science: int, wanted: str | int, names: Sequence[str], role: str
) -> int | None:
    if isinstance(wanted, str) and wanted.lower() == "none":
        return None
    if wanted != "auto":
        found = find_extensions(hdul, wanted)
        if not found:
            hint = nearest(str(wanted), extension_names(hdul))
            raise FrameError(path, f"no {role} extension {wanted!r}", f"{hint} Set [input] {role}, or 'none'")
        return _same_version(hdul, found, science)
    for name in names:
        found = [i for i in find_extensions(hdul, name) if i != science]
        if found:
            return _same_version(hdul, found, science)
    return None


def _same_version(hdul: fits.HDUList, found: list[int], science: int) -> int:
    same = [i for i in found if hdul[i].ver == hdul[science].ver]
    return (same or found)[0]


def read_image(path: str | Path, hdul: fits.HDUList, index: int, window: tuple[int, ...]) -> NDArray[Any]:
    """Window (y0, y1, x0, x1) of an image in physical values, BLANK as NaN, as float64.

    Images are opened unscaled, because astropy's own scaling loses BLANK in unsigned integers.
    """
    hdu = hdul[index]
    y0, y1, x0, x1 = window
    lead = (0,) * (len(hdu.shape) - 2)
    try:
        raw = hdu.section[(*lead, slice(y0, y1), slice(x0, x1))]
    except BROKEN as error:
        raise FrameError(
            path,
            f"extension {hdu.name or index} cannot be read: truncated or damaged ({_first_line(error)})",
            "fetch the file again or leave it out",
        ) from None
    values = np.asarray(raw).astype(np.float64)
    blank = hdu.header.get("BLANK") if np.asarray(raw).dtype.kind in "iu" else None
    bad = None if blank is None else np.asarray(raw) == int(blank)
    scale, zero = float(hdu.header.get("BSCALE", 1.0)), float(hdu.header.get("BZERO", 0.0))
    if scale != 1.0 or zero != 0.0:
        values = values * scale + zero
    if bad is not None:
        values[bad] = np.nan
    return values


def to_sigma(values: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """1-sigma errors from a plane of this kind; what is not positive becomes NaN."""
    positive = np.where(values > 0, values, np.nan)
    if kind == "sigma":
        return positive
    return np.sqrt(positive if kind == "variance" else 1.0 / positive)


def read_planes(
    path: str | Path, hdul: fits.HDUList, layout: Layout, settings: InputSettings, rows: tuple[int, int]
) -> Planes:
    """Pixels of a band of rows of one frame (rows within the cutout)."""
    window = cutout_window(path, layout.shape, settings, rows)
    error = dq = None
    if layout.error is not None:
        error = to_sigma(read_image(path, hdul, layout.error, window), layout.error_kind)
    if layout.dq is not None:
        dq = _to_bits(path, hdul, layout.dq, read_image(path, hdul, layout.dq, window))
    bits = resolve_bits(path, settings, 0xFFFFFFFF, {})
    if layout.dq is not None and settings.bad_bits is not None:
        _check_bits(path, hdul, layout.dq, bits)
    return Planes(read_image(path, hdul, layout.science, window), error, dq, bits)


def _to_bits(
    path: str | Path, hdul: fits.HDUList, index: int, values: NDArray[np.float64]
) -> NDArray[np.uint32]:
    width = abs(int(hdul[index].header["BITPIX"]))
    whole = np.nan_to_num(values, nan=0.0)
    if whole.size and whole.max() > 0xFFFFFFFF:
        name = hdul[index].name or index
        raise FrameError(path, f"dq extension {name} has bits above 32", "set [input] dq = 'none'")
    return (whole.astype(np.int64) & ((1 << min(width, 32)) - 1)).astype(np.uint32)


def _check_bits(path: str | Path, hdul: fits.HDUList, index: int, bits: int) -> None:
    width = min(abs(int(hdul[index].header["BITPIX"])), 32)
    unknown = [bit for bit in range(width, 32) if bits >> bit & 1]
    if unknown:
        raise FrameError(
            path,
            f"bad_bits {bits} has bit {unknown[0]} ({1 << unknown[0]}), which the {width}-bit dq extension "
            f"{hdul[index].name or index} cannot hold",
            "set [input] bad_bits to the sum of the bits that mean bad",
        )


class Cards:
    """Header cards of an extension, then of the primary header."""

    def __init__(self, *headers: fits.Header) -> None:
        self.headers = headers

    def get(self, name: str) -> Any:
        """Value of a card, None where it is missing, blank or undefined."""
        for header in self.headers:
            value = header.get(name)
            if isinstance(value, fits.card.Undefined) or value is None or str(value).strip() == "":
                continue
            return value
        return None

    def first(self, names: Sequence[str]) -> tuple[str, Any]:
        """First card of a list that has a value; ("", None) if none has."""
        for name in names:
            value = self.get(name)
            if value is not None:
                return name, value
        return "", None

    def number(self, path: str | Path, names: Sequence[str], key: str) -> float | None:
        """First card of a list, as a finite number."""
        name, value = self.first(names)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise FrameError(path, f"{name} = {value!r} is no number", _set_keyword(key)) from None
        return number if np.isfinite(number) else None

    def kept(self) -> dict[str, Any]:
        """The cards worth keeping, as plain values."""
        found = {name: self.get(name) for name in CARDS}
        return {name: value for name, value in found.items() if isinstance(value, str | int | float)}


def _set_keyword(key: str) -> str:
    return f"set [input.keywords] {key} = ['NAME'] to the right keyword, or [] for none"


def make_header(
    path: str | Path, hdul: fits.HDUList, layout: Layout, index: int, many: bool, settings: InputSettings
) -> FrameHeader:
    """Header of one frame of an open file."""
    hdu = hdul[layout.science]
    cards = Cards(hdu.header) if layout.science == 0 else Cards(hdu.header, hdul[0].header)
    y0, y1, x0, x1 = cutout_window(path, layout.shape, settings)
    keys = settings.keywords
    exposure = settings.exposure
    if exposure is None:
        exposure = cards.number(path, keys.exposure, "exposure")
    time, scale, warnings = read_time(path, cards, settings, exposure)
    gain = settings.gain or cards.number(path, keys.gain, "gain")
    read_noise = settings.read_noise
    if read_noise is None:
        read_noise = cards.number(path, keys.read_noise, "read_noise")
    saturation = settings.saturation
    if saturation is None:
        saturation = cards.number(path, keys.saturation, "saturation")
    wcs = celestial_wcs(hdu.header, hdul)
    if layout.error is None and not (gain and gain > 0):
        warnings.append("no error extension and no gain: errors hold the sky's noise only; set [input] gain")
    return FrameHeader(
        source=FrameSource(str(path), index),
        frame_id=bare_name(path) + (f"#{index}" if many else ""),
        shape=(y1 - y0, x1 - x0),
        time=time,
        time_scale=scale,
        band=_text(cards.first(keys.band)[1]),
        detector=_text(cards.first(keys.detector)[1]),
        exposure=float("nan") if exposure is None else exposure,
        gain=gain if gain and gain > 0 else None,
        read_noise=read_noise,
        saturation=saturation,
        zero_point=cards.number(path, keys.zero_point, "zero_point"),
        units=_text(cards.first(keys.units)[1]),
        wcs_text=None if wcs is None else wcs_text(wcs[y0:y1, x0:x1]),
        origin=(y0, x0),
        fingerprint=f"{fingerprint(path)}#{index}",
        has_error=layout.error is not None,
        cards=cards.kept(),
        warnings=tuple(warnings),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def celestial_wcs(header: fits.Header, hdul: fits.HDUList | None = None) -> WCS | None:
    """The sky coordinates of a header, None where it has none."""
    if not any(key in header for key in ("CTYPE1", "CTYPE2")):
        return None
    lookup = any(key in header for key in ("CPDIS1", "CPDIS2", "D2IMDIS1", "D2IMDIS2"))
    try:
        with times.quiet(AstropyWarning):
            wcs = WCS(header, fobj=hdul if lookup else None)
            return wcs.celestial if wcs.has_celestial else None
    except (ValueError, KeyError, OSError):
        return None


def wcs_text(wcs: WCS) -> str:
    """FITS header text of a WCS, distortion polynomials included."""
    with times.quiet(AstropyWarning):
        return str(wcs.to_header(relax=True).tostring(padding=False, endcard=False))


def read_time(
    path: str | Path, cards: Cards, settings: InputSettings, exposure: float | None
) -> tuple[float, str, list[str]]:
    """MJD at mid-exposure, its scale, and warnings.

    Raises
    ------
    FrameError
        If no keyword gives a time, it cannot be read, or the exposure is missing where it is needed.
    """
    name, value = cards.first(settings.keywords.time)
    tried = ", ".join(settings.keywords.time) or "none"
    if value is None:
        raise FrameError(
            path, f"no time in the header (tried {tried})", "set [input.keywords] time = ['KEYWORD']"
        )
    way_out = "set [input.keywords] time, [input] time_format or date_keyword"
    try:
        if settings.date_keyword:
            date = cards.get(settings.date_keyword)
            if date is None:
                reason = f"no {settings.date_keyword} in the header for the date of {name} = {value!r}"
                raise FrameError(path, reason, "set [input] date_keyword")
            mjd = times.combine_date_and_clock(str(date), value, settings.day_starts)
        else:
            mjd = times.value_to_mjd(value, settings.time_format)
    except ValueError as error:
        if isinstance(error, FrameError):
            raise
        reason = f"{name} = {value!r} is no time ({_first_line(error)})"
        raise FrameError(path, reason, way_out) from None
    reference = settings.time_reference
    if reference != "middle" and (exposure is None or not exposure >= 0):
        tried = ", ".join(settings.keywords.exposure) or "none"
        raise FrameError(
            path,
            f"no exposure time for the middle of the exposure (tried {tried})",
            "set [input.keywords] exposure or [input] exposure, or time_reference = 'middle'",
        )
    warnings = [] if settings.date_keyword else _cross_check(cards, name, mjd)
    mjd = times.mid_exposure(mjd + settings.time_offset_days, exposure or 0.0, reference)
    return mjd, _scale(path, cards, settings), warnings


def _scale(path: str | Path, cards: Cards, settings: InputSettings) -> str:
    if settings.time_scale != "auto":
        return settings.time_scale
    text = _text(cards.get("TIMESYS")).lower().split(" ")[0].split("(")[0]
    return text if text in times.SCALES else "utc"


def _cross_check(cards: Cards, name: str, mjd: float) -> list[str]:
    """Warn where DATE-OBS, read with its offset from UT, tells another time than the keyword used."""
    date = cards.get("DATE-OBS")
    if name == "DATE-OBS" or not isinstance(date, str) or ":" not in date:
        return []
    try:
        other = times.iso_to_mjd(date)
    except ValueError:
        return []
    seconds = abs(other - mjd) * times.SECONDS_A_DAY
    if seconds <= 1.0:
        return []
    return [f"{name} and DATE-OBS = {date} differ; {name} is used: see [input.keywords] time"]
