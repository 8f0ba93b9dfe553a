"""Pixels of FITS files: plain, gzip, bzip2 or fpack."""

from __future__ import annotations

import contextlib
import errno
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io import times
from survey.io._frame import (
    FrameError,
    Planes,
    cutout_window,
    nearest,
    resolve_bits,
)
from survey.io._whole import check_whole

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
_BLOCK = 256
# Errors of reading that say nothing of the file: the storage or this process has a bad moment.
PASSING = (errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
BROKEN = (OSError, EOFError, ValueError, TypeError, zlib.error, VerifyError, KeyError, IndexError)


def raise_passing(error: Exception) -> None:
    """Raise an error that says nothing of the file it struck; no frame is left out for it."""
    if isinstance(error, OSError) and error.errno in PASSING:
        raise error


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
        raise_passing(error)
        raise FrameError(path, _not_fits(path, error), "fetch the file again or leave it out") from None
    with hdul:
        check_whole(path, hdul)
        yield hdul


def _not_fits(path: str | Path, error: Exception) -> str:
    size = Path(path).stat().st_size if Path(path).is_file() else 0
    if size == 0:
        return "the file is empty" if Path(path).is_file() else "not a file"
    with Path(path).open("rb") as stream:
        packed = stream.read(3) in (b"BZh", b"\x1f\x8b\x08")
    if packed or isinstance(error, EOFError | zlib.error):
        return f"truncated or damaged compressed file of {size} bytes ({first_line(error)})"
    return f"not a FITS file ({first_line(error)})"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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


def find_layout(
    path: str | Path, hdul: fits.HDUList, science: int, settings: InputSettings, planes: int = 1
) -> Layout:
    """Science extension with its error and DQ planes; checks dimensions and shapes.

    Of a cube, with so many ``planes``, the others hold as many or one.
    """
    shape = image_shape(path, hdul, science, planes)
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
        if index is not None and image_shape(path, hdul, index, planes) != shape:
            raise FrameError(
                path,
                f"{role} extension {hdul[index].name or index} is {hdul[index].shape} px, the image {shape}",
                f"set [input] {role} to the right extension, or to 'none'",
            )
    if dq is not None and int(hdul[dq].header["BITPIX"]) < 0:
        raise FrameError(path, f"dq extension {hdul[dq].name or dq} holds no integers", "set [input] dq")
    return Layout(science, error, kind, dq, shape)


def image_shape(path: str | Path, hdul: fits.HDUList, index: int, planes: int = 1) -> tuple[int, int]:
    """(y, x) of an image; leading axes of length one, or ``planes``, are allowed.

    Raises
    ------
    FrameError
        If it has more dimensions than two.
    """
    shape = hdul[index].shape
    if len(shape) < 2 or any(n not in (1, planes) for n in shape[:-2]):
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


def read_raw(
    path: str | Path, hdul: fits.HDUList, index: int, window: tuple[int, ...], plane: int = 0
) -> NDArray[Any]:
    """Window (y0, y1, x0, x1) of an image, or of a plane of a cube, as it is stored.

    Images are opened unscaled, because astropy's own scaling loses BLANK in unsigned integers.
    """
    hdu = hdul[index]
    y0, y1, x0, x1 = window
    lead = (plane,) * (len(hdu.shape) - 2)
    try:
        return np.asarray(hdu.section[(*lead, slice(y0, y1), slice(x0, x1))])
    except BROKEN as error:
        raise_passing(error)
        raise FrameError(
            path,
            f"extension {hdu.name or index} cannot be read: truncated or damaged ({first_line(error)})",
            "fetch the file again or leave it out",
        ) from None


def _scaling(header: fits.Header) -> tuple[float, float]:
    return float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))


def read_image(
    path: str | Path, hdul: fits.HDUList, index: int, window: tuple[int, ...], plane: int = 0
) -> NDArray[np.float32]:
    """Window of an image in physical values, BLANK as NaN; rows in blocks, to bound memory."""
    raw, header = read_raw(path, hdul, index, window, plane), hdul[index].header
    scale, zero = _scaling(header)
    blank = header.get("BLANK") if raw.dtype.kind in "iu" else None
    values = np.empty(raw.shape, np.float32)
    with np.errstate(over="ignore"):
        for y in range(0, len(raw), _BLOCK):
            part = raw[y : y + _BLOCK]
            values[y : y + _BLOCK] = part if (scale, zero) == (1.0, 0.0) else part * scale + zero
    if blank is not None:
        values[raw == int(blank)] = np.nan
    return values


def to_sigma(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """1-sigma errors from a plane of this kind; what is not positive becomes NaN."""
    positive = np.where(values > 0, values, np.float32(np.nan))
    if kind == "sigma":
        return positive
    with np.errstate(over="ignore"):
        return np.sqrt(positive if kind == "variance" else np.float32(1.0) / positive)


def read_planes(
    path: str | Path,
    hdul: fits.HDUList,
    layout: Layout,
    settings: InputSettings,
    rows: tuple[int, int],
    plane: int = 0,
) -> Planes:
    """Pixels of a band of rows (within the cutout) of one frame, or of a plane of a cube."""
    window = cutout_window(path, layout.shape, settings, rows)
    error = dq = None
    if layout.error is not None:
        error = to_sigma(read_image(path, hdul, layout.error, window, plane), layout.error_kind)
    if layout.dq is not None:
        dq = read_bits(path, hdul, layout.dq, window, plane)
    bits = resolve_bits(path, settings, 0xFFFFFFFF, {})
    if layout.dq is not None and settings.bad_bits is not None:
        _check_bits(path, hdul, layout.dq, bits)
    return Planes(read_image(path, hdul, layout.science, window, plane), error, dq, bits)


def read_bits(
    path: str | Path, hdul: fits.HDUList, index: int, window: tuple[int, ...], plane: int = 0
) -> NDArray[np.uint32]:
    """Window of a quality plane; BLANK as no bit."""
    raw, header = read_raw(path, hdul, index, window, plane), hdul[index].header
    scale, zero = _scaling(header)
    width = abs(int(header["BITPIX"]))
    if (scale, zero) == (1.0, 0.0) and "BLANK" not in header and width <= 32:
        return (raw.astype(np.int32) & np.int32(-1 if width == 32 else (1 << width) - 1)).astype(np.uint32)
    bits = raw.astype(np.int64) * int(scale) + int(zero)
    if "BLANK" in header:
        bits[raw == int(header["BLANK"])] = 0
    if width == 64 and bits.size and bits.max() > 0xFFFFFFFF:
        name = hdul[index].name or index
        raise FrameError(path, f"dq extension {name} has bits above 32", "set [input] dq = 'none'")
    return (bits & ((1 << min(width, 32)) - 1)).astype(np.uint32)


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
