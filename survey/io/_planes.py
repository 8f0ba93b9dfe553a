"""From a file's planes to a `Frame`: the mask, the error where there is none, saturated pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io._frame import (
    DQ_BAD_ERROR,
    DQ_NO_DATA,
    DQ_SATURATED,
    DQ_UNCALIBRATED,
    Frame,
    FrameError,
    FrameHeader,
    Planes,
)
from survey.kernels.background import Background, clipped_statistics, measure_background, noise_model
from survey.kernels.masks import grow_square

Window = tuple[int, int]
SAMPLED_PIXELS = 1 << 22
_STRIP = 64
_UNUSABLE = DQ_SATURATED | DQ_NO_DATA | DQ_UNCALIBRATED
_NEGATIVE = 0.01  # more pixels than this below -3 read noises: the sky was subtracted


def build_frame(
    header: FrameHeader,
    read: Callable[[Window], Planes],
    settings: InputSettings,
    rows: Window | None,
    noise: Callable[[], Background | None],
) -> Frame:
    """Read the rows wanted (all for None) and make a frame of them.

    `read` gives the planes of a band of rows; more rows than asked are read where saturated areas grow.
    `noise` gives the measured sky of the whole frame, None where gain and read noise say all.
    """
    ny = header.shape[0]
    y0, y1 = rows or (0, ny)
    grow = settings.grow_saturated
    top, bottom = max(y0 - grow, 0), min(y1 + grow, ny)
    planes = read((top, bottom))
    core = slice(y0 - top, y1 - top)
    dq = _bits(header, planes, grow, settings.minimum)[core]
    flux = planes.flux[core]
    bad = (dq & np.uint32(planes.bad_bits | _UNUSABLE)) != 0
    if planes.error is None:
        photons, flat = (None if p is None else p[core] for p in (planes.photons, planes.flat))
        error, source = make_error(header, flux, settings, noise, photons, flat)
    else:
        error, source = planes.error[core], "plane"
    if planes.pattern_error is not None:
        # the scatter of a frame's own sky holds the usual share of it already
        known = planes.usual_error**2 if source == "measured" else 0.0
        error = np.sqrt(np.maximum(error**2 + planes.pattern_error[core] ** 2 - known, 0.25 * error**2))
    usable = np.isfinite(error) & (error > 0)
    dq[~usable] |= np.uint32(DQ_BAD_ERROR)
    mask = bad | ~usable
    if rows is None and mask.all():
        raise FrameError(header.source.path, _why_all_bad(dq, planes), "leave the frame out")
    return Frame(
        flux=np.ascontiguousarray(flux),
        error=np.where(usable, error, np.float32(np.nan)),
        mask=mask,
        dq=dq,
        rows=(y0, y1),
        time=header.time,
        band=header.band,
        detector=header.detector,
        metadata={**header.metadata(), "error_source": source},
    )


def _bits(header: FrameHeader, planes: Planes, grow: int, minimum: float | None) -> NDArray[np.uint32]:
    dq = np.zeros(planes.flux.shape, np.uint32) if planes.dq is None else planes.dq.copy()
    counts = planes.flux if planes.counts is None else planes.counts
    no_data = ~np.isfinite(counts)
    if planes.outside is not None:
        no_data |= planes.outside
    if minimum is not None:
        no_data |= counts < minimum
    saturated = (dq & np.uint32(planes.saturated_bits)) != 0
    if header.saturation is not None:
        saturated |= counts >= header.saturation
    if saturated.any():
        saturated = grow_square(saturated, grow)
    dq[no_data] |= np.uint32(DQ_NO_DATA)
    dq[saturated] |= np.uint32(DQ_SATURATED)
    if planes.uncalibrated is not None:
        dq[planes.uncalibrated] |= np.uint32(DQ_UNCALIBRATED)
    return dq


def _why_all_bad(dq: NDArray[np.uint32], planes: Planes) -> str:
    if not np.isfinite(planes.flux).any():
        return "every pixel is NaN"
    for bit, words in (
        (DQ_NO_DATA, "has no value"),
        (DQ_SATURATED, "is saturated"),
        (DQ_UNCALIBRATED, "has no calibration in [input] bias, dark, flat or pattern"),
    ):
        if (dq & np.uint32(bit)).all():
            return f"every pixel {words}"
    if (dq & np.uint32(DQ_BAD_ERROR)).all():
        return "every pixel has a zero, negative or missing error"
    return "every pixel is masked (NaN, saturated, bad error, or bits of [input] bad_bits)"


def make_error(
    header: FrameHeader,
    flux: NDArray[np.float32],
    settings: InputSettings,
    noise: Callable[[], Background | None],
    photons: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], str]:
    """1-sigma error where the file gives none, and where it came from: ``"model"`` or ``"measured"``.

    The model is ``sqrt((read_noise / gain)^2 + max(flux, 0) / gain)``; measured is the scatter of the
    sky in the frame, and the photon noise of what stands above it where the gain is known. Of calibrated
    frames the model takes the counts less bias, ``photons``, and divides by the ``flat``.
    """
    gain, read_noise = header.gain, header.read_noise
    if settings.noise == "model" and (gain is None or read_noise is None):
        missing = "gain" if gain is None else "read_noise"
        raise FrameError(
            header.source.path,
            f"no {missing} for the noise model",
            f"set [input] {missing}, or [input.keywords] {missing}, or [input] noise = 'measured'",
        )
    background = noise()
    if background is None:
        assert gain is not None
        error = _in_blocks(flux if photons is None else photons, 0.0, gain, read_noise)
        return error if flat is None else error / flat, "model"
    if not background.rms > 0:
        raise FrameError(
            header.source.path,
            f"the sky's measured noise is {background.rms}: more than half the pixels have one value",
            "set [input] gain and read_noise with noise = 'model', or name an error extension",
        )
    if gain is None:
        return np.full(flux.shape, background.rms, np.float32), "measured"
    return _in_blocks(flux, background, gain, read_noise), "measured"


def _in_blocks(
    flux: NDArray[np.float32], background: Background | float, gain: float, read_noise: float | None
) -> NDArray[np.float32]:
    """`noise_model`, whose float64 copies would else be several times the frame."""
    error = np.empty(flux.shape, np.float32)
    for y in range(0, len(flux), _STRIP):
        error[y : y + _STRIP] = noise_model(flux[y : y + _STRIP], background, gain, read_noise)
    return error


def measure_sky(
    header: FrameHeader, read: Callable[[Window], Planes], settings: InputSettings
) -> Background | None:
    """The sky of a frame as measured, or None where gain and read noise describe it.

    Big frames are sampled in strips of rows, so that the result does not depend on the rows read later.
    In mode ``"auto"`` the model stands unless more than 1 % of the pixels lie more than 3 read noises
    below zero: then the sky was subtracted and its noise is not in the values.
    """
    gain, read_noise = header.gain, header.read_noise
    if settings.noise == "model":
        return None
    image, mask = _sample(header, read)
    if settings.noise == "auto" and gain is not None and read_noise is not None:
        good = image[~mask]
        if len(good) and np.mean(good < -3.0 * max(read_noise / gain, 1e-30)) <= _NEGATIVE:
            return None
    try:
        return measure_background(image, mask)
    except ValueError:
        level, rms = clipped_statistics(image[~mask])
        if not np.isfinite(level):
            reason = "every pixel is NaN" if not np.isfinite(image).any() else "too few good pixels"
            raise FrameError(header.source.path, reason, "leave the frame out") from None
        return Background(level, rms, rms, np.array([level]), header.shape, 1)


def _sample(
    header: FrameHeader, read: Callable[[Window], Planes]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    ny, nx = header.shape
    n_strips = max(SAMPLED_PIXELS // (nx * _STRIP), 1)
    if ny * nx <= SAMPLED_PIXELS or n_strips * _STRIP >= ny:
        windows = [(0, ny)]
    else:
        starts = np.linspace(0, ny - _STRIP, n_strips).astype(int)
        windows = [(int(start), int(start) + _STRIP) for start in starts]
    images, masks = [], []
    for window in windows:
        planes = read(window)
        bits = _bits(header, planes, 0, None) & np.uint32(planes.bad_bits | _UNUSABLE)
        images.append(planes.flux)
        masks.append(bits != 0)
    return np.concatenate(images), np.concatenate(masks)
