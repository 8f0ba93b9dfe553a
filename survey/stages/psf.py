"""The field's effective PSF: from a file, a Gaussian, or from bright stars of the oversampled reference.

The reference is continuous in the sub-pixel phase and nearly free of noise, so that a few phases of each
star's stamp sample the PSF finely (Anderson & King 2000, PASP 112, 1360, on single exposures).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from survey.config import Config
from survey.io.psf_files import psf_file_identity, read_psf_file
from survey.io.store import Field
from survey.kernels.psf import EffectivePSF, build_epsf, gaussian_epsf
from survey.kernels.reference import ReferenceFit
from survey.stages.protocol import Stage, Unit, tile_units

# The stamp's rim holds the local sky.
RIM = 2
# A neighbour brighter than this share of the star spoils it.
NEIGHBOUR_LIMIT = 0.4
# With fewer stars without rivals, others are taken too.
ENOUGH_STARS = 10
CANDIDATE_FIELDS = ("y", "x", "peak", "alone")


class PsfError(ValueError):
    """No PSF can be made."""


@dataclass
class Candidates:
    """Bright stars of a tile: reference pixels, light of their peaks, whether no neighbour rivals them."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    peak: NDArray[np.float64]
    alone: NDArray[np.bool_]


@dataclass
class Stars:
    """Reference coefficients (n, side, side, ky, kx) around stars, and the error of a sample there (n,)."""

    coefficients: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass
class TileReference:
    """Reference of a tile's core with a margin."""

    coefficients: NDArray[np.float64]
    inner: tuple[slice, slice]
    origin: tuple[int, int]


def side(config: Config) -> int:
    """Edge of a star's stamp in pixels."""
    return config.psf.size + 2 * RIM


def read(field: Field, unit: Unit, config: Config) -> TileReference | None:
    """Reference coefficients of the core and half a stamp around it; nothing where the PSF is given."""
    assert unit.tile is not None
    if config.psf.given:
        return None
    margin = side(config) // 2
    window = unit.tile.window(margin, field.shape)
    coefficients = np.asarray(field.array("reference", "coefficients")[window], np.float64)
    return TileReference(coefficients, unit.tile.inner(margin), (window[0].start, window[1].start))


def partial(data: TileReference | None, config: Config) -> Candidates:
    """The tile's brightest stars that no edge or bad pixel spoils: those without rivals, and a few with."""
    none = Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    if data is None:
        return none
    image = _as_fit(data.coefficients, config.reference.extension).evaluate(np.zeros(1), np.zeros(1))[0]
    light = np.where(np.isfinite(image), image, -np.inf)
    half = side(config) // 2
    allowed = np.zeros(image.shape, bool)
    allowed[data.inner] = True
    allowed[:half] = allowed[-half:] = False
    allowed[:, :half] = allowed[:, -half:] = False
    y, x = np.nonzero((light == maximum_filter(light, 5)) & np.isfinite(image) & allowed)
    order = np.argsort(-light[y, x], kind="stable")
    alone: list[int] = []
    crowded: list[int] = []
    for i in order[: 20 * config.psf.max_stars]:
        stamp = image[y[i] - half : y[i] + half + 1, x[i] - half : x[i] + half + 1]
        if not _is_whole(stamp, half):
            continue
        (alone if _is_alone(stamp, half) else crowded).append(int(i))
        if len(alone) == config.psf.max_stars:
            break
    chosen = [*alone, *crowded[:ENOUGH_STARS]]
    if not chosen:
        return none
    return Candidates(
        y[chosen] + data.origin[0],
        x[chosen] + data.origin[1],
        light[y[chosen], x[chosen]],
        np.arange(len(chosen)) < len(alone),
    )


def combine(partials: list[Candidates], config: Config) -> NDArray[np.int64]:
    """Pixels (n, 2) as (y, x) of the field's brightest candidates, the same however tiles were cut."""
    y, x, peak, alone = (np.concatenate([getattr(p, name) for p in partials]) for name in CANDIDATE_FIELDS)
    order = np.lexsort((x, y, -peak, ~alone))
    # Neighbours can be fitted along, so a star with a rival is better than none.
    wanted = min(max(int(alone.sum()), ENOUGH_STARS), config.psf.max_stars)
    return np.column_stack([y, x])[order][:wanted]


def read_stars(field: Field, places: NDArray[np.int64], config: Config) -> Stars:
    """Reference around the chosen stars."""
    if len(places) == 0:
        return Stars(np.zeros((0, side(config), side(config), 1, 1)), np.zeros(0))
    half = side(config) // 2
    error = field.array("difference/oversampled", "error")
    middle = error.shape[0] // 2
    coefficients, errors = [], []
    for y, x in places:
        cut = (slice(int(y) - half, int(y) + half + 1), slice(int(x) - half, int(x) + half + 1))
        coefficients.append(np.asarray(field.array("reference", "coefficients")[cut], np.float64))
        # One epoch's error stands for the reference's: it sets the weight of a star's wings, no more.
        sample = np.asarray(error[(slice(middle, middle + 1), *cut)], np.float64)
        errors.append(np.nanmedian(sample) if np.isfinite(sample).any() else np.nan)
    sigma = np.array(errors)
    return Stars(np.array(coefficients), np.where(np.isfinite(sigma), sigma, np.nanmedian(sigma)))


def build(stars: Stars, config: Config) -> EffectivePSF:
    """The PSF of the file named in the settings, or of the stars.

    Raises
    ------
    PsfError
        If there are too few stars.
    """
    settings = config.psf
    if settings.file is not None:
        return read_psf_file(settings.file, settings.oversampling, settings.pixel_integrated)
    if settings.fwhm is not None:
        return gaussian_epsf(settings.fwhm)
    n, edge = len(stars.error), side(config)
    if n < 5:
        raise PsfError(
            f"only {n} unspoilt stars for the PSF, 5 are needed; "
            "give one: [psf] file = 'psf.fits', or fwhm = 1.6 (pixels) for a Gaussian"
        )
    flat = stars.coefficients.reshape(n * edge, edge, *stars.coefficients.shape[3:])
    # As many phases an axis as polynomials hold exactly what the reference knows.
    phases = config.reference.n_basis
    steps = (np.arange(phases) + 0.5) / phases - 0.5
    phase_y, phase_x = (p.ravel() for p in np.meshgrid(steps, steps, indexing="ij"))
    stamps = _as_fit(flat, config.reference.extension).evaluate(phase_y, phase_x)
    stamps = stamps.reshape(phases**2 * n, edge, edge)
    return build_epsf(
        stamps,
        np.broadcast_to(np.tile(stars.error, phases**2)[:, None, None], stamps.shape),
        ~np.isfinite(stamps),
        np.repeat(-phase_y, n),
        np.repeat(-phase_x, n),
        star=np.tile(np.arange(n), phases**2),
        oversampling=settings.oversampling,
        size=settings.size,
        # The field's one PSF is built while the workers wait for it.
        threads=os.cpu_count() or 1,
    )


def _as_fit(coefficients: NDArray[Any], extension: float) -> ReferenceFit:
    valid = np.any(coefficients != 0, axis=(-2, -1))
    return ReferenceFit(coefficients, np.zeros(valid.shape, int), np.zeros(valid.shape), valid, extension)


def _is_whole(stamp: NDArray[np.float64], half: int) -> bool:
    """Whether all of a star's inner pixels are good."""
    radius = np.hypot(*np.indices(stamp.shape) - half)
    return bool(np.isfinite(stamp[radius <= half / 2]).all())


def _is_alone(stamp: NDArray[np.float64], half: int) -> bool:
    """Whether nothing further out rivals a star."""
    radius = np.hypot(*np.indices(stamp.shape) - half)
    outside = stamp[(radius > 2.5) & np.isfinite(stamp)]
    if not outside.size:
        return False
    sky = np.percentile(outside, 20)
    return bool(outside.max() - sky < NEIGHBOUR_LIMIT * (stamp[half, half] - sky))


def file_identity(field: Field, file: str) -> str:
    """Hash of the PSF file of the settings; where it is gone, of the one that the field's PSF is from.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    kept = field.table("psf").attrs if field.has_table("psf") else {}
    if not Path(file).is_file() and kept.get("file") == file:
        return str(kept["file_hash"])
    return psf_file_identity(file)


def save(field: Field, psf: EffectivePSF, file: str | None = None) -> None:
    """Write the group ``psf``, and which file it is from."""
    arrays = psf.to_arrays()
    table = xr.Dataset({k: ([f"{k}_{i}" for i in range(np.ndim(v))], v) for k, v in arrays.items()})
    table.attrs["fwhm"] = float(psf.fwhm)
    if file is not None:
        table.attrs |= {"file": file, "file_hash": psf_file_identity(file)}
    field.write_table("psf", table)


def load(field: Field) -> EffectivePSF:
    """Read the group ``psf``."""
    table = field.table("psf")
    return EffectivePSF.from_arrays({str(k): v.values for k, v in table.data_vars.items()})


STAGE = Stage("psf", 1, lambda config: config.psf, tile_units, read, partial, combine)
