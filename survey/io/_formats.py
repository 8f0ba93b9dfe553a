"""What kind of file holds frames, how many, and their headers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from survey.config import InputSettings
from survey.io import _asdf, _cubes, _fits, _fits_header, _target_pixels
from survey.io._frame import FrameError, FrameHeader


def header_of(path: str, index: int, settings: InputSettings) -> FrameHeader:
    """Header of one frame of a file."""
    kind = format_of(path, settings)
    if kind == "asdf":
        return _asdf.make_header(path, settings)
    if kind == "target-pixels":
        return _target_pixels.make_header(path, index, settings)
    if kind == "cube":
        return _plane_header(path, index, settings)
    with _fits.open_fits(path) as hdul:
        return _frame_header(path, hdul, index, settings)


def count_frames(path: str, settings: InputSettings) -> int:
    """Number of frames in a file; 1 where it cannot be opened."""
    if _is_asdf(path):
        return 1
    try:
        with _fits.open_fits(path) as hdul:
            table = _target_pixels.pixel_table(hdul)
            if table is not None:
                return int(hdul[table].header["NAXIS2"])
            planes = _cubes.planes_of(path, hdul, settings)
            return planes if planes > 1 else len(_fits.science_extensions(path, hdul, settings))
    except FrameError:
        return 1


def _is_asdf(path: str | Path) -> bool:
    return str(path).lower().endswith(".asdf")


def _plane_header(path: str, index: int, settings: InputSettings) -> FrameHeader:
    with _fits.open_fits(path) as hdul:
        found = _cubes.make_headers(path, hdul, settings)
    if not 0 <= index < len(found):
        raise FrameError(path, f"no plane {index}: the cube has {len(found)}")
    header = found[index]
    if isinstance(header, FrameError):
        raise header
    return header


def format_of(path: str, settings: InputSettings) -> str:
    """Of a file: ``"asdf"``, ``"target-pixels"``, ``"cube"`` or ``"fits"``."""
    if _is_asdf(path):
        return "asdf"
    if not Path(path).is_file():
        raise FrameError(path, "no such file")
    status = Path(path).stat()
    return _fits_format(path, status.st_mtime_ns, status.st_size, settings.model_dump_json())


@lru_cache(maxsize=4096)
def _fits_format(path: str, mtime: int, size: int, settings_json: str) -> str:
    """Kept, because one compressed file may be asked for each of thousands of cadences."""
    settings = InputSettings.model_validate_json(settings_json)
    with _fits.open_fits(path) as hdul:
        if _target_pixels.pixel_table(hdul) is not None:
            return "target-pixels"
        return "cube" if _cubes.planes_of(path, hdul, settings) > 1 else "fits"


def _frame_header(path: str, hdul: _fits.fits.HDUList, index: int, settings: InputSettings) -> FrameHeader:
    science = _fits.science_extensions(path, hdul, settings)
    if not 0 <= index < len(science):
        raise FrameError(path, f"no frame {index}: the file has {len(science)}")
    layout = _fits.find_layout(path, hdul, science[index], settings)
    return _fits_header.make_header(path, hdul, layout, index, len(science) > 1, settings)


def headers_of(path: str, settings: InputSettings) -> list[FrameHeader | FrameError]:
    """Headers of all frames of a file, or why one is none."""
    try:
        if _is_asdf(path):
            return [_asdf.make_header(path, settings)]
        with _fits.open_fits(path) as hdul:
            if _target_pixels.pixel_table(hdul) is None:
                if _cubes.planes_of(path, hdul, settings) > 1:
                    return _cubes.make_headers(path, hdul, settings)
                return _extension_headers(path, hdul, settings)
        return _target_pixels.make_headers(path, settings)
    except FrameError as error:
        return [error]


def _extension_headers(
    path: str, hdul: _fits.fits.HDUList, settings: InputSettings
) -> list[FrameHeader | FrameError]:
    found: list[FrameHeader | FrameError] = []
    for index in range(len(_fits.science_extensions(path, hdul, settings))):
        try:
            found.append(_frame_header(path, hdul, index, settings))
        except FrameError as error:
            found.append(error)
    return found
