"""The PSF of each frame, from its own stars: what an object looks like in a difference of two seeings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.pair_flux import stamps_at
from survey.kernels.psf import EffectivePSF, build_epsf, gaussian_epsf
from survey.kernels.stars import StarFlag, find_stars
from survey.stages.calibrated import CalibratedTile, calibrated_frames
from survey.stages.nn2_cutouts import Cutouts, pair_grid, read_cutouts
from survey.stages.protocol import Outlook, Output, Stage, Unit
from survey.stages.readable import read_readable

# What a run holds while it writes them, and where they lie: of images alone, so that all methods share them.
FOLDER = "frame_psf"
KEPT_BY = "oversampled"
# Frames a unit holds, and the edge of the field's middle in which their stars are looked for.
BLOCK = 8
EDGE = 513
MAX_STARS = 30
MIN_STARS = 5
# FWHM within which a frame's PSF is looked at: beyond, a single frame's stars drown in noise.
REACH = 2.2
OVERSAMPLING = 2
Places = NDArray[np.float64]
# A frame that tells stars from galaxies has at least this share of the median frame's flux scale.
CLEAR = 0.7
# Below this FWHM in pixels frames are undersampled, and a frame's stars do not give its PSF.
SAMPLED = 2.0
# Logarithm of the widths' ratio up to which a source is a star.
SAME_WIDTH = 0.12


@dataclass
class Block:
    """Middles of a block of frames and of the frame that tells stars from galaxies.

    ``fwhm`` are the widths that the frames' table knows, ``stars`` (n, 2) reference positions (y, x),
    ``unread`` tiles that could not be read: their stars tell nothing.
    """

    cutouts: Cutouts
    fwhm: NDArray[np.float64]
    stars: Places
    unread: list[str]


def own_psfs(config: Config, field_psf: EffectivePSF) -> bool:
    """Whether the frames that zogy and hotpants subtract have PSFs of their own, or all the field's."""
    wanted = config.subtraction.psf
    return wanted == "frames" or (wanted == "auto" and field_psf.fwhm >= SAMPLED)


def units(field: Field, config: Config, sharp: int | None = None) -> list[Unit]:
    """One unit a block of epochs; its items are the first, the end, and the frame that shows the stars.

    That is the sharpest, where none is given.
    """
    frames = calibrated_frames(field)
    n, sharp = frames.sizes["time"], sharpest(frames) if sharp is None else sharp
    return [Unit(unit_name(k), items=(k, min(k + BLOCK, n), sharp)) for k in range(0, n, BLOCK)]


def sharpest(frames: xr.Dataset) -> int:
    """The sharpest frame among those that no cloud dims."""
    scale, fwhm = frames["scale"].values, frames["psf_fwhm"].values
    usable = (frames["flags"].values == 0) & (scale > CLEAR * np.nanmedian(scale))
    fwhm = np.where(np.isfinite(fwhm) & (fwhm > 0), fwhm, np.inf)
    return int(np.argmin(np.where(usable, fwhm, np.inf if usable.any() else fwhm)))


def unit_name(epoch: int) -> str:
    """Name of the unit that an epoch belongs to."""
    return f"epochs-{epoch // BLOCK:05d}"


def read(field: Field, unit: Unit, config: Config) -> Block:
    """The middle of the field in every frame of the block, and the stars in it."""
    frames = calibrated_frames(field)
    first, end, sharp = unit.items
    epochs = np.arange(first, end)
    middle = (field.shape[0] // 2, field.shape[1] // 2)
    size = 2 * (min(EDGE, *field.shape) // 2) + 1
    grid, unread = pair_grid(field), set()

    def reader(*args: Any, **options: Any) -> CalibratedTile:
        tile, lost = read_readable(*args, **options)
        unread.update(lost)
        return tile

    shown = read_cutouts(field, frames, np.array([sharp]), middle, size, grid, reader)
    cutouts = read_cutouts(field, frames, epochs, middle, size, grid, reader)
    return Block(cutouts, frames["psf_fwhm"].values[epochs], find_places(shown), sorted(unread))


def find_places(shown: Cutouts) -> Places:
    """Reference positions (n, 2) of what looks like a star in a frame, brightest first."""
    y, x = star_places(shown.flux[0], shown.error[0], shown.mask[0]).T
    x, y = shown.maps[0].inverse(x + shown.corner[0, 1], y + shown.corner[0, 0])
    return np.column_stack([y, x])


def star_places(flux: NDArray[Any], error: NDArray[Any], mask: NDArray[np.bool_]) -> Places:
    """Pixels (n, 2) as (y, x) of what looks like a star in an image, brightest first."""
    if mask.mean() > 0.9:
        return np.zeros((0, 2))
    found = find_stars(flux, error, mask, threshold=20, max_stars=8 * MAX_STARS)
    # A neighbour's light is fitted along; a star at the edge or saturated is none.
    stars = found.select((found.flags & ~int(StarFlag.BLENDED)) == 0)
    stars = stars.select(point_like(stars.fwhm))
    return np.column_stack([stars.y, stars.x])


def point_like(widths: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which widths are those of stars: stars share one, while galaxies and blends are wide in many ways."""
    if len(widths) < MIN_STARS:
        return np.ones(len(widths), bool)
    left = np.sort(np.log(widths))
    # The densest half of what is left, again and again, until few are left: the mode.
    while len(left) > MIN_STARS:
        half = (len(left) + 1) // 2
        start = int(np.argmin(left[half - 1 :] - left[: len(left) - half + 1]))
        left = left[start : start + half]
    return np.abs(np.log(widths) - left.mean()) < SAME_WIDTH


def apply(data: Block, state: None, config: Config) -> Output:
    """PSFs of the block's frames as a table."""
    rows: list[dict[str, Any]] = []
    cuts = data.cutouts
    for k, epoch in enumerate(cuts.epochs):
        places = np.array([cuts.place(k, y, x) for y, x in data.stars]).reshape(-1, 2)
        psf, stars = psf_of_stars(cuts.flux[k], cuts.error[k], cuts.mask[k], data.fwhm[k], places)
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
    if data.unread:
        payload["unread"] = data.unread
    return Output(tables={FOLDER: pa.Table.from_pylist(rows)}, payload=payload)


def psf_of_stars(
    flux: NDArray[Any],
    error: NDArray[Any],
    mask: NDArray[np.bool_],
    fwhm: float,
    places: Places,
    reach_fwhm: float = REACH,
) -> tuple[EffectivePSF, int]:
    """Effective PSF of a frame from its stars at places (n, 2), and how many; a Gaussian and 0 where few.

    It ends ``reach_fwhm`` FWHM from its middle.
    """
    known = float(fwhm) if np.isfinite(fwhm) and fwhm > 0 else 2.5
    size = 2 * int(np.clip(np.ceil(reach_fwhm * known), 4, 15)) + 1
    reach = (size + 4) // 2
    y, x = places.T
    inside = (np.minimum(y, x) > reach) & (np.maximum(y, x) < flux.shape[0] - 1 - reach)
    row, column = (np.where(inside, np.rint(v), 0).astype(int) for v in (y, x))
    y, x = (v[np.flatnonzero(inside & ~mask[row, column])[:MAX_STARS]] for v in (y, x))
    if len(y) < MIN_STARS:
        return gaussian_epsf(known), 0
    try:
        psf = build_epsf(
            stamps_at(flux, y, x, reach, np.nan),
            stamps_at(error, y, x, reach, np.inf),
            stamps_at(mask, y, x, reach, True),
            y - np.rint(y),
            x - np.rint(x),
            oversampling=OVERSAMPLING,
            size=size,
            neighbours=6,
            tolerance=2e-3,
        )
    except ValueError:  # too few of the stars can be used
        return gaussian_epsf(known), 0
    return psf, len(y)


def load(field: Field, epochs: NDArray[np.int64], *, partly: bool = False) -> dict[int, EffectivePSF]:
    """PSFs of epochs; with ``partly`` of those that have one."""
    found = {}
    for name in sorted({unit_name(int(k)) for k in epochs}):
        path = field.path / FOLDER / f"{KEPT_BY}.parts" / f"{name}.parquet"
        if partly and not path.exists():
            continue
        for row in read_parquet(path).to_pylist():
            samples = np.array(row["samples"]).reshape(row["side"], row["side"])
            psf = EffectivePSF(samples, row["oversampling"])
            # Measuring it takes longer than subtracting a pair.
            psf.__dict__["fwhm"] = row["fwhm"]
            found[row["epoch"]] = psf
    return {int(k): found[int(k)] for k in epochs if not partly or int(k) in found}


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Bytes of the middles of a block and one more, and of thirty planes in which stars are looked for."""
    return float(EDGE**2 * (17 * (BLOCK + 1) + 8 * 30))


STAGE = Stage(
    "frame_psf", 2, lambda config: {"edge": EDGE, "stars": MAX_STARS}, units, read, apply=apply, memory=memory
)
