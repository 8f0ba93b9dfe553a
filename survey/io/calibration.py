"""From counts as read to calibrated ones: bias, dark and flat files, and the field's own pattern."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io import _fits
from survey.io._fits_header import Cards
from survey.io._frame import FrameError, FrameHeader, Planes, fingerprint
from survey.kernels.pattern import Pattern

Image = NDArray[np.float32]
Window = tuple[int, int]

# Exposures within this share of each other are the same.
SAME_EXPOSURE = 0.01
# A pixel below this share of the flat's median sees nothing.
DARKEST = 0.05
KINDS = ("bias", "dark", "flat")


def calibrate(
    planes: Planes, header: FrameHeader, settings: InputSettings, rows: Window, pattern: Pattern | None
) -> Planes:
    """Calibrated planes of a band of rows, ``(counts - bias - dark) / flat - pattern``.

    A dark is scaled to the frame's exposure where both are known, a flat divided by its median.

    Raises
    ------
    FrameError
        Naming the file that cannot be used, and why.
    """
    files = {kind: getattr(settings, kind) for kind in _given(settings)}
    if not files and pattern is None:
        return planes
    planes.counts = planes.flux
    flux = planes.flux.astype(np.float32)
    bad = np.zeros(flux.shape, bool)
    band = slice(*rows)
    if "bias" in files:
        flux -= _of_frame(files["bias"], header, settings)[0][band]
    if "bias" in files or "dark" not in files:
        planes.photons = flux.copy()
    if "dark" in files:
        dark, exposure = _of_frame(files["dark"], header, settings)
        flux -= dark[band] * np.float32(_dark_scale(files["dark"], exposure, header, "bias" in files))
    if planes.photons is None:  # a dark that holds the bias
        planes.photons = flux.copy()
    if "flat" in files:
        flat = _of_frame(files["flat"], header, settings, flat=True)[0][band]
        bad |= ~(flat > DARKEST)
        planes.flat = np.where(bad, np.float32(1), flat)
        flux /= planes.flat
        planes.error = None if planes.error is None else planes.error / planes.flat
    # Whatever NaN a file brings: raw counts that were good are no longer.
    bad |= np.isfinite(planes.counts) & ~np.isfinite(flux)
    if pattern is not None:
        _check_pattern(pattern, header)
        flux -= pattern.flux[band]
        bad |= pattern.mask[band]
        planes.pattern_error, planes.usual_error = pattern.error[band], pattern.usual
    planes.flux, planes.uncalibrated = flux, bad
    return planes


def check_calibration(settings: InputSettings, identity: Sequence[str], field: str) -> None:
    """See that the calibration files are those that a field's frames were calibrated with.

    Raises
    ------
    FrameError
        If one is missing or has changed.
    """
    for kind, now in zip(_given(settings), calibration_identity(settings), strict=True):
        if now not in identity:
            raise FrameError(
                str(getattr(settings, kind)),
                f"is not the {kind} that the frames of {field} were calibrated with",
                "put that back, or make another field",
            )


def _given(settings: InputSettings) -> list[str]:
    return [kind for kind in KINDS if getattr(settings, kind) is not None]


def calibration_identity(settings: InputSettings) -> list[str]:
    """Hashes of the calibration files' contents, in the order bias, dark, flat; none where none is given.

    Raises
    ------
    FrameError
        If one of them is not there.
    """
    found = []
    for kind in _given(settings):
        path = getattr(settings, kind)
        if not Path(path).is_file():
            raise FrameError(path, "no such file", f"set [input] {kind}")
        found.append(f"{kind} {fingerprint(path)}")
    return found


def _of_frame(
    path: str, header: FrameHeader, settings: InputSettings, *, flat: bool = False
) -> tuple[Image, float | None]:
    """A calibration image on the frame's pixels and its exposure: as large as the frame, or before cutout."""
    if not Path(path).is_file():
        raise FrameError(path, "no such file", "set [input] bias, dark and flat")
    status = Path(path).stat()
    keywords = tuple(settings.keywords.exposure)
    image, exposure = _read(path, status.st_mtime_ns, status.st_size, keywords, flat)
    if image.shape != header.shape and settings.cutout is not None:
        y0, y1, x0, x1 = settings.cutout
        image = image[y0:y1, x0:x1]
    if image.shape != header.shape:
        raise FrameError(
            path,
            f"is {image.shape[0]} x {image.shape[1]} px, the frame {Path(header.source.path).name} "
            f"{header.shape[0]} x {header.shape[1]}",
            "give a calibration image of the frames' size, or of the detector before [input] cutout",
        )
    return image, exposure


@lru_cache(maxsize=6)
def _read(
    path: str, mtime: int, size: int, keywords: tuple[str, ...], flat: bool
) -> tuple[Image, float | None]:
    """The first image of a FITS file, and its exposure in seconds; kept, as every frame asks for it.

    A flat is divided by its median.
    """
    with _fits.open_fits(path) as hdul:
        for index, hdu in enumerate(hdul):
            if _fits.is_image(hdu) and len(hdu.shape) == 2:
                exposure = Cards(hdu.header, hdul[0].header).number(path, keywords, "exposure")
                image = _fits.read_image(path, hdul, index, (0, hdu.shape[0], 0, hdu.shape[1]))
                return image / np.float32(_flat_level(path, image) if flat else 1), exposure
    raise FrameError(path, "holds no image", "give a FITS file with a two-dimensional one")


def _dark_scale(path: str, exposure: float | None, header: FrameHeader, biased: bool) -> float:
    """By what a dark is multiplied to be that of the frame's exposure."""
    if exposure is None or not exposure > 0 or not header.exposure > 0:
        return 1.0
    ratio = header.exposure / exposure
    if abs(ratio - 1) <= SAME_EXPOSURE:
        return 1.0
    if not biased:
        raise FrameError(
            path,
            f"is a dark of {exposure:g} s, {Path(header.source.path).name} was exposed for "
            f"{header.exposure:g} s, and it holds the bias, which does not grow with the exposure",
            "give [input] bias, and the dark without it",
        )
    return ratio


def _flat_level(path: str, flat: Image) -> float:
    level = float(np.nanmedian(flat)) if np.isfinite(flat).any() else np.nan
    if not level > 0:
        raise FrameError(path, f"a flat's median must be positive, it is {level:g}", "set [input] flat")
    return level


def _check_pattern(pattern: Pattern, header: FrameHeader) -> None:
    if pattern.flux.shape != header.shape:
        size, own = (f"{s[0]} x {s[1]} px" for s in (pattern.flux.shape, header.shape))
        raise FrameError(header.source.path, f"is {own}, the field's pattern {size}", "leave the frame out")
    if abs(header.exposure - pattern.exposure) > SAME_EXPOSURE * pattern.exposure:
        raise FrameError(
            header.source.path,
            f"exposed for {header.exposure:g} s; the field's pattern is that of {pattern.exposure:g} s",
            "leave the frame out, or calibrate with [input] bias and dark in the place of pattern",
        )
