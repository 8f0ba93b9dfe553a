"""Scale, sky and offset of every frame against the reference of all: the one barrier before differences.

Stars of a crowded, undersampled frame give its scale to a percent; the reference gives it to 1e-4. With the
leave-one-out difference D and the reference R at a frame's phases, ``D = ds R + db + dy R_y + dx R_x`` is
linear in the corrections (Albrow 2025, section 3.4, for the offsets alone), and tiles only add sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.reference import ReferenceFit, difference_images
from survey.stages.calibrated import REFINED, CalibratedTile, psf_widths, read_calibrated
from survey.stages.frame_psf import SAMPLED
from survey.stages.protocol import Outlook, Stage, Unit
from survey.tiles import Tile

# More pixels add nothing: some ten thousand samples a frame fix four numbers. Windows of this edge, so many
# an axis, spread over the field whatever its tiles.
EDGE = 96
WINDOWS = 3
# Error of the model as a share of the flux: keeps a few bright stars from deciding alone.
MODEL_ERROR = 3e-3
# Below this many samples a frame's corrections are left at zero.
MIN_SAMPLES = 200
# Largest offset believed in, pixels: beyond, the linear model is none.
MAX_OFFSET = 0.3
# Well-sampled frames whose FWHM differ by more are no images of one reference: light that seeing moves out of
# the stars' cores would be taken for scale (up to 15 %, where apertures are right to 2).
STEADY = 1.1


@dataclass
class Sums:
    """Normal equations of every frame: ``matrix`` (time, 4, 4), ``vector`` (time, 4), ``count`` (time,)."""

    matrix: NDArray[np.float64]
    vector: NDArray[np.float64]
    count: NDArray[np.int64]


@dataclass
class LaterSamples:
    """Samples of later frames, and the coefficients of the reference before them."""

    samples: CalibratedTile
    coefficients: NDArray[np.float64]


def units(field: Field, config: Config, start: int = 0) -> list[Unit]:
    """Windows spread evenly over the field, for the frames from ``start`` on."""
    rows, columns = (_spread(size) for size in field.shape)
    windows = [
        Tile(i, y0, y1, x0, x1)
        for i, ((y0, y1), (x0, x1)) in enumerate((r, c) for r in rows for c in columns)
    ]
    return [Unit(f"window-{w.index}", w, (start,)) for w in windows]


def _spread(size: int) -> list[tuple[int, int]]:
    edge = min(EDGE, size)
    n = min(WINDOWS, -(-size // edge))
    centers = (np.arange(n) + 0.5) * size / n
    starts = np.clip(np.rint(centers - edge / 2).astype(int), 0, size - edge)
    return [(int(start), int(start) + edge) for start in starts]


def read(field: Field, unit: Unit, config: Config) -> CalibratedTile:
    """Calibrated samples of the window."""
    assert unit.tile is not None
    return read_calibrated(field, unit.tile.core)


def partial(data: CalibratedTile, config: Config) -> Sums:
    """Sums of one tile."""
    settings = config.reference
    flagged = np.broadcast_to((data.flags != 0)[:, None, None], data.flux.shape)
    result = difference_images(
        data.flux,
        data.error,
        data.mask,
        data.phase_y,
        data.phase_x,
        n_basis=settings.n_basis,
        extension=settings.extension,
        iterations=2,
        clip=settings.clip,
        min_images=settings.needed_images,
        fit_mask=flagged,
    )
    sums = _no_sums(len(data.time))
    for k in range(len(data.time)):
        good = ~result.mask[k]
        if data.flags[k] == 0:
            good &= ~result.fit_mask[k]
        phase = (data.phase_y[k : k + 1], data.phase_x[k : k + 1])
        _add(sums, k, result.reference, phase, (result.flux[k], result.error[k], good))
    return sums


def _no_sums(n_time: int) -> Sums:
    return Sums(np.zeros((n_time, 4, 4)), np.zeros((n_time, 4)), np.zeros(n_time, np.int64))


def _add(
    sums: Sums,
    k: int,
    reference: ReferenceFit,
    phase: tuple[NDArray[np.float64], NDArray[np.float64]],
    difference: tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]],
) -> None:
    """Normal equations of frame k from its difference: flux, error and which samples count."""
    model = reference.evaluate(*phase)[0]
    slope_y, slope_x = (g[0] for g in reference.gradient(*phase))
    flux, error, good = difference
    good = good & np.isfinite(model)
    design = np.stack([model[good], np.ones(int(good.sum())), slope_y[good], slope_x[good]])
    weight = 1.0 / (error[good].astype(np.float64) ** 2 + (MODEL_ERROR * model[good]) ** 2)
    sums.matrix[k] = (design * weight) @ design.T
    sums.vector[k] = (design * weight) @ flux[good].astype(np.float64)
    sums.count[k] = good.sum()


def read_later(field: Field, unit: Unit, config: Config) -> LaterSamples:
    """Calibrated samples of the window from the unit's first epoch on, and the reference there."""
    assert unit.tile is not None
    (start,) = unit.items
    coefficients = np.asarray(field.array("reference", "coefficients")[unit.tile.core], np.float64)
    return LaterSamples(read_calibrated(field, unit.tile.core, start=start), coefficients)


def partial_later(data: LaterSamples, config: Config) -> Sums:
    """Sums of one tile's later frames: the reference does not hold them."""
    samples, valid = data.samples, np.any(data.coefficients != 0, axis=(2, 3))
    reference = ReferenceFit(
        data.coefficients,
        np.zeros(valid.shape, int),
        np.zeros(valid.shape),
        valid,
        config.reference.extension,
    )
    sums = _no_sums(len(samples.time))
    for k in range(len(samples.time)):
        phase = (samples.phase_y[k : k + 1], samples.phase_x[k : k + 1])
        model = reference.evaluate(*phase)[0]
        residual = samples.flux[k] - model
        noise = np.hypot(samples.error[k], MODEL_ERROR * np.nan_to_num(model))
        good = ~samples.mask[k] & np.isfinite(model)
        if good.any():
            # Outliers by the frame's own scatter: its calibration is what is looked for.
            middle = np.median((residual / noise)[good])
            spread = 1.4826 * np.median(np.abs((residual / noise)[good] - middle))
            good &= np.abs(residual / noise - middle) < config.reference.clip * max(float(spread), 1.0)
        _add(sums, k, reference, phase, (residual, samples.error[k], good))
    return sums


def one_psf(frames: xr.Dataset) -> bool:
    """Whether frames are alike enough for their scales to be refined against one reference."""
    narrow, broad = psf_widths(frames)
    return not (narrow >= SAMPLED and broad > STEADY * narrow)


def combine(
    partials: list[Sums], config: Config, *, gauge: bool = True, scale: bool = True
) -> NDArray[np.float64]:
    """Corrections (time, 4) of scale (relative), sky (reference flux) and offset (y, x pixels).

    With ``gauge`` the mean offset is taken out: the reference of these frames moves with it. Without
    ``scale`` that stays as it is.
    """
    matrix = np.sum([p.matrix for p in partials], axis=0)
    vector = np.sum([p.vector for p in partials], axis=0)
    count = np.sum([p.count for p in partials], axis=0)
    used = [0, 1, 2, 3] if config.registration.refine_offsets else [0, 1]
    if config.calibrate.scale == "unit" or not scale:
        used.remove(0)
    if config.calibrate.background == "none":
        used.remove(1)
    correction = np.zeros_like(vector)
    for k in np.flatnonzero(count >= MIN_SAMPLES) if used else ():
        correction[k, used] = np.linalg.solve(matrix[k][used][:, used], vector[k, used])
    correction[:, 2:] = np.clip(correction[:, 2:], -MAX_OFFSET, MAX_OFFSET)
    # The reference moves with the mean offset: only differences between frames are known.
    if gauge and (count >= MIN_SAMPLES).any():
        correction[:, 2:] -= correction[count >= MIN_SAMPLES, 2:].mean(axis=0)
    return correction


def corrected(frames: xr.Dataset, correction: NDArray[np.float64], reference: int) -> xr.Dataset:
    """The table of frames with corrections applied; the reference frame's scale stays 1."""
    frames = frames.copy(deep=True)
    scale = frames["scale"].values
    frames["background"].values[:, 0] += scale * correction[:, 1]
    scale = scale * (1 + correction[:, 0])
    frames["scale"].values[:] = scale / scale[reference]
    # A sample now said to lie at p + phase + d: the map takes p + d to where it took p before.
    # A translation's terms are written about (0, 0) with scale 1: moving its centre moves it as well.
    frames["map_center"].values[:, 0] += correction[:, 3]
    frames["map_center"].values[:, 1] += correction[:, 2]
    return frames


# Measured (tests/benchmarks/test_memory.py), bytes: a sample of the window and one pixel around, what a phase
# of its own adds, and whatever the window.
BYTES = {"sample": 28, "phase": 20, "least": 14e6}


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of one window."""
    assert unit.tile is not None
    each = BYTES["sample"] + (BYTES["phase"] if outlook.own_phases else 0)
    return each * outlook.samples(unit.tile, 1) + BYTES["least"]


def joined(old: xr.Dataset, frames: xr.Dataset, known: int) -> xr.Dataset:
    """The table of frames with the refined calibration of the first ``known`` of them."""
    frames = frames.copy(deep=True)
    for name in REFINED:
        frames[name].values[:known, ...] = np.nan
        values = old[name].values
        frames[name].values[(slice(0, known), *(slice(0, n) for n in values.shape[1:]))] = values
    return frames


def corrected_later(frames: xr.Dataset, correction: NDArray[np.float64], known: int) -> xr.Dataset:
    """The table with corrections (time, 4) applied to the frames from ``known`` on."""
    frames = frames.copy(deep=True)
    later = slice(known, None)
    frames["background"].values[later, 0] += frames["scale"].values[later] * correction[:, 1]
    frames["scale"].values[later] *= 1 + correction[:, 0]
    frames["map_center"].values[later, 0] += correction[:, 3]
    frames["map_center"].values[later, 1] += correction[:, 2]
    return frames


def _settings(config: Config) -> list[object]:
    return [
        config.reference.model_dump(exclude={"keep_sums"}),
        # Registrations by two rounds of it, however far frames were off, are made anew.
        "until settled" if config.registration.refine_offsets else False,
        config.calibrate.model_dump(),
    ]


STAGE = Stage(
    "refine",
    2,
    _settings,
    units,
    read,
    partial,
    combine,
    memory=memory,
)
LATER = Stage("refine_later", 2, _settings, units, read_later, partial_later, combine, memory=memory)
