"""The PSF of each frame, from its own stars: what an object looks like in a difference of two seeings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.pair_flux import stamps_at
from survey.kernels.psf import EffectivePSF, build_epsf, gaussian_epsf
from survey.kernels.stars import StarFlag, find_stars
from survey.stages.calibrated import calibrated_frames
from survey.stages.nn2_cutouts import Cutouts, pair_grid, read_cutouts
from survey.stages.protocol import Output, Stage, Unit

FOLDER = "lightcurves/nn2/psf"
# Frames a unit holds, and the edge of the field's middle in which their stars are looked for.
BLOCK = 8
EDGE = 513
MAX_STARS = 30
MIN_STARS = 5
OVERSAMPLING = 2


@dataclass
class Block:
    """Middles of a block of frames, and the widths that the frames' table knows."""

    cutouts: Cutouts
    fwhm: NDArray[np.float64]


def units(field: Field, config: Config) -> list[Unit]:
    """One unit a block of epochs."""
    n = field.frames().sizes["time"]
    return [Unit(unit_name(first), items=(first, min(first + BLOCK, n))) for first in range(0, n, BLOCK)]


def unit_name(epoch: int) -> str:
    """Name of the unit that an epoch belongs to."""
    return f"epochs-{epoch // BLOCK:05d}"


def read(field: Field, unit: Unit, config: Config) -> Block:
    """The middle of the field in every frame of the block."""
    frames = calibrated_frames(field)
    epochs = np.arange(*unit.items)
    middle = (field.shape[0] // 2, field.shape[1] // 2)
    size = 2 * (min(EDGE, *field.shape) // 2) + 1
    cutouts = read_cutouts(field, frames, epochs, middle, size, pair_grid(field))
    return Block(cutouts, frames["psf_fwhm"].values[epochs])


def apply(data: Block, state: None, config: Config) -> Output:
    """PSFs of the block's frames as a table."""
    rows: list[dict[str, Any]] = []
    for k, epoch in enumerate(data.cutouts.epochs):
        psf, stars = frame_psf(
            data.cutouts.flux[k], data.cutouts.error[k], data.cutouts.mask[k], data.fwhm[k]
        )
        samples = psf.samples[0, 0]
        rows.append(
            {
                "epoch": int(epoch),
                "stars": stars,
                "fwhm": psf.fwhm,
                "oversampling": psf.oversampling,
                "side": samples.shape[0],
                "samples": samples.ravel().tolist(),
            }
        )
    payload = {"stars": [row["stars"] for row in rows], "fwhm": [row["fwhm"] for row in rows]}
    return Output(tables={FOLDER: pa.Table.from_pylist(rows)}, payload=payload)


def frame_psf(
    flux: NDArray[Any], error: NDArray[Any], mask: NDArray[np.bool_], fwhm: float
) -> tuple[EffectivePSF, int]:
    """Effective PSF of a frame from its stars, and how many; a Gaussian and 0 where they are few."""
    known = float(fwhm) if np.isfinite(fwhm) and fwhm > 0 else 2.5
    if mask.mean() > 0.9:
        return gaussian_epsf(known), 0
    found = find_stars(flux, error, mask, threshold=20, max_stars=4 * MAX_STARS)
    # A neighbour's light is fitted along; a star at the edge or saturated is none.
    stars = found.select((found.flags & ~int(StarFlag.BLENDED)) == 0)
    size = 2 * int(np.clip(np.ceil(2.2 * known), 4, 15)) + 1
    side = size + 4
    reach = side // 2
    inside = (np.minimum(stars.y, stars.x) > reach) & (
        np.maximum(stars.y, stars.x) < flux.shape[0] - 1 - reach
    )
    stars = stars.select(np.flatnonzero(inside)[:MAX_STARS])
    if len(stars) < MIN_STARS:
        return gaussian_epsf(known), 0
    try:
        psf = build_epsf(
            stamps_at(flux, stars.y, stars.x, reach, np.nan),
            stamps_at(error, stars.y, stars.x, reach, np.inf),
            stamps_at(mask, stars.y, stars.x, reach, True),
            stars.y - np.rint(stars.y),
            stars.x - np.rint(stars.x),
            oversampling=OVERSAMPLING,
            size=size,
            neighbours=6,
            tolerance=2e-3,
        )
    except ValueError:  # too few of the stars can be used
        return gaussian_epsf(known), 0
    return psf, len(stars)


def load(field: Field, config: Config, epochs: NDArray[np.int64]) -> dict[int, EffectivePSF]:
    """PSFs of epochs."""
    found = {}
    for name in sorted({unit_name(int(k)) for k in epochs}):
        path = field.path / FOLDER / f"{config.method}.parts" / f"{name}.parquet"
        for row in read_parquet(path).to_pylist():
            samples = np.array(row["samples"]).reshape(row["side"], row["side"])
            found[row["epoch"]] = EffectivePSF(samples, row["oversampling"])
    return {int(k): found[int(k)] for k in epochs}


STAGE = Stage("nn2_psf", 1, lambda config: {"edge": EDGE, "stars": MAX_STARS}, units, read, apply=apply)
