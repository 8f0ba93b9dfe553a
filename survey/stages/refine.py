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
from survey.kernels.reference import difference_images
from survey.stages.calibrated import CalibratedTile, read_calibrated
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


@dataclass
class Sums:
    """Normal equations of every frame: ``matrix`` (time, 4, 4), ``vector`` (time, 4), ``count`` (time,)."""

    matrix: NDArray[np.float64]
    vector: NDArray[np.float64]
    count: NDArray[np.int64]


def units(field: Field, config: Config) -> list[Unit]:
    """Windows spread evenly over the field."""
    rows, columns = (_spread(size) for size in field.shape)
    windows = [
        Tile(i, y0, y1, x0, x1)
        for i, ((y0, y1), (x0, x1)) in enumerate((r, c) for r in rows for c in columns)
    ]
    return [Unit(f"window-{w.index}", w) for w in windows]


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
    n_time = len(data.time)
    sums = Sums(np.zeros((n_time, 4, 4)), np.zeros((n_time, 4)), np.zeros(n_time, np.int64))
    for k in range(n_time):
        phase = (data.phase_y[k : k + 1], data.phase_x[k : k + 1])
        model = result.reference.evaluate(*phase)[0]
        slope_y, slope_x = (g[0] for g in result.reference.gradient(*phase))
        good = ~result.mask[k] & np.isfinite(model)
        if data.flags[k] == 0:
            good &= ~result.fit_mask[k]
        design = np.stack([model[good], np.ones(int(good.sum())), slope_y[good], slope_x[good]])
        residual = result.flux[k][good].astype(np.float64)
        weight = 1.0 / (result.error[k][good].astype(np.float64) ** 2 + (MODEL_ERROR * model[good]) ** 2)
        sums.matrix[k] = (design * weight) @ design.T
        sums.vector[k] = (design * weight) @ residual
        sums.count[k] = good.sum()
    return sums


def combine(partials: list[Sums], config: Config) -> NDArray[np.float64]:
    """Corrections (time, 4) of scale (relative), sky (reference flux) and offset (y, x pixels)."""
    matrix = np.sum([p.matrix for p in partials], axis=0)
    vector = np.sum([p.vector for p in partials], axis=0)
    count = np.sum([p.count for p in partials], axis=0)
    used = [0, 1, 2, 3] if config.registration.refine_offsets else [0, 1]
    if config.calibrate.scale == "unit":
        used.remove(0)
    if config.calibrate.background == "none":
        used.remove(1)
    correction = np.zeros_like(vector)
    for k in np.flatnonzero(count >= MIN_SAMPLES) if used else ():
        correction[k, used] = np.linalg.solve(matrix[k][used][:, used], vector[k, used])
    correction[:, 2:] = np.clip(correction[:, 2:], -MAX_OFFSET, MAX_OFFSET)
    # The reference moves with the mean offset: only differences between frames are known.
    correction[:, 2:] -= (
        correction[count >= MIN_SAMPLES, 2:].mean(axis=0) if (count >= MIN_SAMPLES).any() else 0
    )
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


STAGE = Stage(
    "refine",
    1,
    lambda config: [
        config.reference.model_dump(),
        config.registration.refine_offsets,
        config.calibrate.model_dump(),
    ],
    units,
    read,
    partial,
    combine,
    memory=memory,
)
