"""The detector's pattern: measured band by band from a sample of drifting frames, kept in the field."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config, settings_hash
from survey.io.calibration import SAME_EXPOSURE, calibration_identity
from survey.io.frames import FrameError, FrameHeader, read_frame
from survey.io.store import Field
from survey.kernels.pattern import MESH, MIN_SAMPLES, Pattern, fixed_pattern, looks_fixed, sky_residual
from survey.stages.calibrated import frame_map

VERSION = 2
UNIT = "pattern"
# Rows beyond a band that its sky is measured with.
MARGIN = 2 * MESH
# Bytes that a sample of a band takes: as read, its residual, its mask; and the share of a worker's budget.
SAMPLE_BYTES = 9
BAND_SHARE = 0.25
# Passes: stars are told from hot pixels by their size first, and with the pattern taken off then.
PASSES = 2
# Frames must wander over the detector by this many FWHM (rms), or a bright star is where it was in most.
LEAST_DRIFT = 8.0


def sampled(headers: Sequence[FrameHeader], config: Config) -> list[FrameHeader]:
    """The frames that the pattern is measured in: of the commonest exposure, evenly over the time."""
    exposures = np.array([h.exposure for h in headers])
    if np.isfinite(exposures).any():
        usual = np.nanmedian(exposures)
        headers = [h for h in headers if abs(h.exposure - usual) <= SAME_EXPOSURE * usual]
    count = min(config.input.pattern_frames, len(headers))
    return [headers[k] for k in np.linspace(0, len(headers) - 1, count).round().astype(int)]


def bands(headers: Sequence[FrameHeader], config: Config) -> list[tuple[int, int]]:
    """Bands of detector rows, each small enough for a worker's memory."""
    height, width = headers[0].shape
    held = config.grid.memory * 2**30 * BAND_SHARE / (SAMPLE_BYTES * len(headers) * width)
    rows = max(int(held) - 2 * MARGIN, MARGIN)
    return [(y, min(y + rows, height)) for y in range(0, height, rows)]


def measure_band(band: tuple[int, int], headers: Sequence[FrameHeader], config: Config) -> Pattern:
    """The pattern in a band of rows; frames that cannot be read are left to those who name them.

    Raises
    ------
    FrameError
        If fewer than `MIN_SAMPLES` frames can be read.
    """
    height, width = headers[0].shape
    low, high = max(band[0] - MARGIN, 0), min(band[1] + MARGIN, height)
    flux = np.empty((len(headers), high - low, width), np.float32)
    mask = np.empty(flux.shape, bool)
    count, reason = 0, FrameError(headers[0].source.path, f"is one of {len(headers)} frames")
    for header in headers:
        try:
            frame = read_frame(header, config.input, (low, high))
        except FrameError as error:
            reason = error
            continue
        if not frame.mask.all():
            flux[count], mask[count] = frame.flux, frame.mask
            count += 1
    if count < MIN_SAMPLES:
        raise FrameError(
            reason.path,
            f"{reason.reason}; {count} frames give no pattern of the detector, {MIN_SAMPLES} do",
            "leave [input] pattern out",
        )
    residuals = np.empty((high - low, width, count), np.float32)
    noise = np.empty(count)
    seen = (~mask[:count]).sum(axis=0)
    found: Pattern | None = None
    known = fixed = None
    for _ in range(PASSES):
        for k in range(count):
            residuals[..., k], noise[k] = sky_residual(flux[k], mask[k], known, fixed)
        fixed = looks_fixed(residuals, seen)
        found = fixed_pattern(residuals, noise)
        known = found.flux
    assert found is not None
    core = slice(band[0] - low, band[1] - low)
    return Pattern(found.flux[core], found.error[core], found.mask[core], headers[0].exposure)


def joined(parts: Sequence[Pattern], key: str = "") -> Pattern:
    """The whole detector's pattern of its bands."""
    planes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("flux", "error", "mask"))
    flux, error, mask = planes
    return Pattern(flux, error, mask, parts[0].exposure, key)


def measured_key(headers: Sequence[FrameHeader], config: Config) -> str:
    """What a measured pattern depends on: the frames, how they are read, how it is measured."""
    return settings_hash(
        VERSION,
        config.input,
        calibration_identity(config.input),
        [h.fingerprint for h in headers],
        bands(headers, config),
    )


def pattern_key(field: Field) -> str | None:
    """Key of the field's pattern; None where it has none."""
    record = field.ledger(UNIT).records.get(UNIT)
    return None if record is None else record.key


def stored_pattern(field: Field) -> Pattern:
    """The field's pattern; kept, as every block of images asks for it."""
    return _stored(str(field.path), pattern_key(field) or "")


@lru_cache(maxsize=1)
def _stored(path: str, key: str) -> Pattern:
    table = Field.open(path).table("pattern")
    planes = (table[name].values for name in ("flux", "error", "mask"))
    flux, error, mask = planes
    return Pattern(flux, error, mask.astype(bool), float(table.attrs["exposure"]), key)


def keep_pattern(field: Field, pattern: Pattern, key: str) -> None:
    """Put a measured pattern into the field, with its record."""
    ledger = field.ledger(UNIT)
    if ledger.has(UNIT, key):
        return
    ledger.invalidate([UNIT])
    image = ("y", "x")
    table = xr.Dataset(
        {"flux": (image, pattern.flux), "error": (image, pattern.error), "mask": (image, pattern.mask)},
        attrs={"exposure": pattern.exposure, "units": field.attrs["units"]},
    )
    field.write_table("pattern", table)
    hot = int((pattern.flux > 5 * np.maximum(pattern.error, pattern.usual)).sum())
    ledger.record(UNIT, key, {"hot": hot, "masked": int(pattern.mask.sum()), "error": pattern.usual})
    ledger.compact()


def drift(frames: xr.Dataset, shape: tuple[int, int]) -> float:
    """How far the field's middle wanders over the detector, rms over the frames, pixels."""
    middle = np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2])
    maps = (frame_map(frames, k) for k in range(frames.sizes["time"]))
    places: NDArray[np.float64] = np.array([np.ravel(m.evaluate(*middle)) for m in maps])
    return float(np.sqrt(places.var(axis=0).sum()))
