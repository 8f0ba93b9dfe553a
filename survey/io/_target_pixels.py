"""Kepler, K2 and TESS target pixel files: one frame a cadence."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io._fits import BROKEN, open_fits
from survey.io._fits_header import Cards, celestial_wcs, wcs_text
from survey.io._frame import (
    FrameError,
    FrameHeader,
    FrameSource,
    Planes,
    bare_name,
    cutout_window,
    fingerprint,
    resolve_bits,
)
from survey.io.times import SECONDS_A_DAY, mid_exposure

_COMMON = {"AttitudeTweak": 1, "SafeMode": 2, "CoarsePoint": 4, "EarthPoint": 8}
KEPLER_BITS = {
    **_COMMON,
    "ZeroCrossing": 16,
    "Desat": 32,
    "Argabrightening": 64,
    "ApertureCosmic": 128,
    "ManualExclude": 256,
    "SensitivityDropout": 1024,
    "ImpulsiveOutlier": 2048,
    "ArgabrighteningOnCCD": 4096,
    "CollateralCosmic": 8192,
    "DetectorAnomaly": 16384,
    "NoFinePoint": 32768,
    "NoData": 65536,
    "RollingBandInAperture": 131072,
    "RollingBandInMask": 262144,
    "PossibleThrusterFiring": 524288,
    "ThrusterFiring": 1048576,
}
TESS_BITS = {
    **_COMMON,
    "Argabrightening": 16,
    "Desat": 32,
    "ApertureCosmic": 64,
    "ManualExclude": 128,
    "Discontinuity": 256,
    "ImpulsiveOutlier": 512,
    "CollateralCosmic": 1024,
    "Straylight": 2048,
    "ScatteredLight": 4096,
    "PlanetSearchExclude": 8192,
    "BadCalibrationExclude": 16384,
    "InsufficientTargets": 32768,
}
# allowed by Wang et al. (2017) and others on K2: collateral cosmic rays and detector anomalies
KEPLER_BAD = 0xFFFFFFFF & ~(8192 | 16384)
TESS_BAD = 1 | 2 | 4 | 8 | 16 | 32 | 128 | 512 | 16384
# Files kept in memory: a frame joined of many asks each of them for one cadence after the other.
KEPT_BYTES = 512 * 2**20
# Seconds after which a file that nobody asked for is one of a field that is done with.
_IDLE = 600.0
_KEPT: dict[tuple[str, int, int], TargetPixels] = {}
_USED: dict[tuple[str, int, int], float] = {}
_LOCK = threading.Lock()
_COLLECTED = 1  # bit of the APERTURE extension: the pixel was downloaded


@dataclass(frozen=True)
class TargetPixels:
    """A target pixel file in memory; images (cadence, y, x)."""

    flux: NDArray[np.float32]
    error: NDArray[np.float32] | None
    time: NDArray[np.float64]
    quality: NDArray[np.int64]
    cadence: list[str]
    collected: NDArray[np.bool_]
    cards: Cards
    wcs: Any
    corner: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory that its images take."""
        return int(self.flux.nbytes) * (1 if self.error is None else 2)

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of a cadence."""
        return int(self.flux.shape[1]), int(self.flux.shape[2])

    @property
    def stretch(self) -> str:
        """Campaign, sector or quarter: within it the pointing is one."""
        name, value = self.cards.first(("CAMPAIGN", "SECTOR", "QUARTER"))
        return f"{name.lower()} {value}" if name else ""

    @property
    def is_tess(self) -> bool:
        """Whether the bits of QUALITY are those of TESS."""
        return str(self.cards.get("TELESCOP")).strip().upper() == "TESS"


def pixel_table(hdul: fits.HDUList) -> int | None:
    """Number of the extension with the cadences, None where the file holds no target pixels."""
    for index in range(1, len(hdul)):
        hdu = hdul[index]
        if isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU):
            names = {str(name).upper() for name in hdu.columns.names}
            if {"TIME", "FLUX", "QUALITY"} <= names and hdu.columns["FLUX"].dim:
                return index
    return None


def load(path: str | Path) -> TargetPixels:
    """Read a file whole; as many as fit are kept, so that cadences can be asked for one by one.

    Frames go round all files of a detector: where these do not fit, the first stay and the others take turns
    in what is left. Dropping the one longest unused would drop each file just before its turn.
    """
    status = Path(path).stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    with _LOCK:
        now = monotonic()
        found = _KEPT.get(key)
        if found is None:
            found = _load(str(path))
            for old in [k for k in _KEPT if now - _USED.get(k, now) > _IDLE]:
                del _KEPT[old]
            while _KEPT and sum(p.nbytes for p in _KEPT.values()) + found.nbytes > KEPT_BYTES:
                _KEPT.popitem()
            _KEPT[key] = found
        _USED[key] = now
        for gone in _USED.keys() - _KEPT.keys():
            del _USED[gone]
    return found


def _load(path: str) -> TargetPixels:
    with open_fits(path) as hdul:
        index = pixel_table(hdul)
        if index is None:
            raise FrameError(path, "no target pixels (a table with TIME, FLUX and QUALITY)")
        try:
            table = hdul[index].data
            flux = np.asarray(table["FLUX"]).astype(np.float32)
            has_error = "FLUX_ERR" in hdul[index].columns.names
            error = np.asarray(table["FLUX_ERR"]).astype(np.float32) if has_error else None
            time = np.asarray(table["TIME"]).astype(np.float64)
            if error is not None and not np.any(error > 0):
                error = None  # cutouts of full frames may bring a column of zeros
            quality = np.asarray(table["QUALITY"]).astype(np.int64)
            cadence = _cadence_names(table, time)
        except BROKEN as broken:
            reason = f"the pixels cannot be read: truncated or damaged ({broken})"
            raise FrameError(path, reason, "fetch the file again or leave it out") from None
        header = hdul[index].header.copy()
        cards = Cards(header, hdul[0].header.copy())
        collected, wcs = np.ones(flux.shape[1:], bool), None
        if "APERTURE" in hdul:
            aperture = hdul["APERTURE"]
            if aperture.shape == flux.shape[1:]:
                collected = (np.asarray(aperture.data) & _COLLECTED) != 0
            wcs = celestial_wcs(aperture.header)
        column = hdul[index].columns.names.index("FLUX") + 1
        corner = (int(header.get(f"2CRV{column}P", 0)), int(header.get(f"1CRV{column}P", 0)))
    return TargetPixels(flux, error, time, quality, cadence, collected, cards, wcs, corner)


def _cadence_names(table: fits.FITS_rec, time: NDArray[np.float64]) -> list[str]:
    """What cadences of other files of the same detector have in common with this file's.

    Barycentric times differ by seconds over a detector, so numbers come first. TESSCut leaves them 0 and
    names the full-frame image.
    """
    names = {name.upper() for name in table.columns.names}
    if "CADENCENO" in names:
        numbers = np.asarray(table["CADENCENO"])
        if numbers.ndim == 1 and len(np.unique(numbers)) == len(numbers):
            return [str(int(number)) for number in numbers]
    if "FFI_FILE" in names:
        return [str(name).strip() for name in table["FFI_FILE"]]
    return [f"{t:.6f}" for t in time]


def bad_bits(path: str | Path, pixels: TargetPixels, settings: InputSettings) -> int:
    """Bits of QUALITY that leave a cadence out."""
    names, default = (TESS_BITS, TESS_BAD) if pixels.is_tess else (KEPLER_BITS, KEPLER_BAD)
    return resolve_bits(path, settings, default, names)


def make_header(path: str | Path, index: int, settings: InputSettings) -> FrameHeader:
    """Header of one cadence.

    Raises
    ------
    FrameError
        If there is no such cadence, it has no time or no flux, or (kind ``"filtered"``) bad QUALITY bits.
    """
    pixels = load(path)
    common = _common(path, pixels, settings)
    return _cadence(path, pixels, index, common, settings)


def make_headers(path: str | Path, settings: InputSettings) -> list[FrameHeader | FrameError]:
    """Headers of all cadences, or why one is left out."""
    pixels = load(path)
    common = _common(path, pixels, settings)
    found: list[FrameHeader | FrameError] = []
    for index in range(len(pixels.time)):
        try:
            found.append(_cadence(path, pixels, index, common, settings))
        except FrameError as error:
            found.append(error)
    return found


def _common(path: str | Path, pixels: TargetPixels, settings: InputSettings) -> dict[str, Any]:
    cards = pixels.cards
    y0, y1, x0, x1 = cutout_window(path, pixels.shape, settings)
    frame_time = cards.get("INT_TIME") and cards.get("NUM_FRM")
    exposure = settings.exposure
    if exposure is None and frame_time:
        exposure = float(cards.get("INT_TIME")) * float(cards.get("NUM_FRM"))
    if exposure is None:
        exposure = float(cards.get("TIMEDEL") or np.nan) * SECONDS_A_DAY
    camera = cards.get("CAMERA")
    tess = pixels.is_tess
    return {
        "shape": (y1 - y0, x1 - x0),
        "time_scale": settings.time_scale
        if settings.time_scale != "auto"
        else str(cards.get("TIMESYS") or "TDB").strip().lower(),
        "band": str(cards.first(settings.keywords.band)[1] or ("TESS" if tess else "Kepler")).strip(),
        "detector": f"{camera}-{cards.get('CCD')}"
        if tess and camera is not None
        else str(cards.get("CHANNEL") or "").strip(),
        "exposure": exposure,
        "units": str(cards.get(f"TUNIT{_column(cards)}") or "e-/s").strip(),
        "saturation": settings.saturation,
        "wcs_text": None if pixels.wcs is None else wcs_text(pixels.wcs[y0:y1, x0:x1]),
        "origin": (pixels.corner[0] + y0, pixels.corner[1] + x0),
        "file_format": "target-pixels",
        "has_error": pixels.error is not None,
        "gain": settings.gain,
        "read_noise": settings.read_noise,
        "cards": {**cards.kept(), "BJDREF": _reference_day(cards), "STRETCH": pixels.stretch},
        "fingerprint": fingerprint(path),
    }


def _column(cards: Cards) -> int:
    header = cards.headers[0]
    return next((k for k in range(1, 100) if str(header.get(f"TTYPE{k}")).strip() == "FLUX"), 0)


def _reference_day(cards: Cards) -> float:
    return float(cards.get("BJDREFI") or 0) + float(cards.get("BJDREFF") or 0)


def _cadence(
    path: str | Path, pixels: TargetPixels, index: int, common: dict[str, Any], settings: InputSettings
) -> FrameHeader:
    if not 0 <= index < len(pixels.time):
        raise FrameError(path, f"no cadence {index}: the file has {len(pixels.time)}")
    bits = int(pixels.quality[index]) & bad_bits(path, pixels, settings)
    if bits:
        names = TESS_BITS if pixels.is_tess else KEPLER_BITS
        said = ", ".join(name for name, bit in names.items() if bits & bit) or f"bits {bits}"
        reason = f"cadence {index}: QUALITY {int(pixels.quality[index])} ({said})"
        raise FrameError(path, reason, kind="filtered")
    if not np.isfinite(pixels.time[index]):
        raise FrameError(path, f"cadence {index} has no time", kind="filtered")
    if not np.isfinite(pixels.flux[index][pixels.collected]).any():
        raise FrameError(path, f"cadence {index} is all NaN", kind="filtered")
    days = float(pixels.time[index]) + _reference_day(pixels.cards) - 2400000.5
    place = float(pixels.cards.get("TIMEPIXR") if pixels.cards.get("TIMEPIXR") is not None else 0.5)
    delta = float(pixels.cards.get("TIMEDEL") or 0.0)
    time = mid_exposure(days + (0.5 - place) * delta + settings.time_offset_days, 0.0, "middle")
    values = {
        **common,
        "fingerprint": f"{common['fingerprint']}#{index}",
        "cards": {**common["cards"], "CADENCE": pixels.cadence[index]},
    }
    return FrameHeader(
        source=FrameSource(str(path), index), frame_id=f"{bare_name(path)}#{index}", time=time, **values
    )


def read_planes(path: str | Path, index: int, settings: InputSettings, rows: tuple[int, int]) -> Planes:
    """Pixels of a band of rows of one cadence; QUALITY in every pixel's bits."""
    pixels = load(path)
    y0, y1, x0, x1 = cutout_window(path, pixels.shape, settings, rows)
    window = (slice(y0, y1), slice(x0, x1))
    flux = pixels.flux[index][window].copy()
    error = None if pixels.error is None else pixels.error[index][window].copy()
    quality = int(pixels.quality[index]) & 0xFFFFFFFF
    return Planes(
        flux=flux,
        error=error,
        dq=np.full(flux.shape, quality, np.uint32),
        bad_bits=bad_bits(path, pixels, settings),
        outside=~pixels.collected[window],
    )
