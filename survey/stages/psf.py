"""The field's effective PSF: from a file, or from bright stars of the oversampled reference.

The reference is continuous in the sub-pixel phase and nearly free of noise, so that a few phases of each
star's stamp sample the PSF finely (Anderson & King 2000, PASP 112, 1360, on single exposures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from survey.config import Config, ConfigError
from survey.io.store import Field
from survey.kernels.psf import EffectivePSF, build_epsf, from_oversampled
from survey.kernels.reference import ReferenceFit
from survey.stages.protocol import Stage, Unit, tile_units

# The stamp's rim holds the local sky.
RIM = 2
# A neighbour brighter than this share of the star spoils it.
NEIGHBOUR_LIMIT = 0.4


class PsfError(ValueError):
    """No PSF can be made."""


@dataclass
class Stars:
    """Reference coefficients (n, side, side, ky, kx) around stars, and their errors (n, side, side)."""

    coefficients: NDArray[np.float32]
    error: NDArray[np.float32]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    peak: NDArray[np.float64]


@dataclass
class TileReference:
    """Reference of a tile's core with a margin."""

    unit: Unit
    coefficients: NDArray[np.float64]
    n_used: NDArray[np.int16]
    error: NDArray[np.float64]
    inner: tuple[slice, slice]
    origin: tuple[int, int]
    n_tiles: int


def side(config: Config) -> int:
    """Edge of a star's stamp in pixels."""
    return config.psf.size + 2 * RIM


def read(field: Field, unit: Unit, config: Config) -> TileReference:
    """Reference coefficients of the core and half a stamp around it."""
    assert unit.tile is not None
    margin = side(config) // 2
    window = unit.tile.window(margin, field.shape)
    if config.psf.file is not None:
        empty = np.zeros((0, 0, 1, 1))
        return TileReference(
            unit, empty, np.zeros((0, 0), np.int16), empty[..., 0, 0], (slice(0), slice(0)), (0, 0), 1
        )
    coefficients = np.asarray(field.array("reference", "coefficients")[window], np.float64)
    n_used = np.asarray(field.array("reference", "n_used")[window])
    group = f"difference/{config.method}"
    # One epoch's error stands for the reference's: it sets the weight of a star's wings, no more.
    error = np.asarray(field.array(group, "error")[(slice(0, 1), *window)], np.float64)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        error = error * np.sqrt(config.reference.n_basis**2 / np.maximum(n_used, 1))
    origin = (window[0].start, window[1].start)
    tile = unit.tile
    return TileReference(unit, coefficients, n_used, error, tile.inner(margin), origin, len(field.tiles))


def partial(data: TileReference, config: Config) -> Stars:
    """The tile's brightest stars that no neighbour, edge or bad pixel spoils."""
    edge = side(config)
    empty = Stars(
        np.zeros((0, edge, edge, 1, 1), np.float32),
        np.zeros((0, edge, edge), np.float32),
        *(np.zeros(0),) * 3,
    )
    if data.coefficients.size == 0:
        return empty
    fit = _as_fit(data.coefficients, config.reference.extension)
    image = fit.evaluate(np.zeros(1), np.zeros(1))[0]
    if not np.isfinite(image).any():
        return empty
    sky = np.nanpercentile(image, 20)
    light = np.where(np.isfinite(image), image - sky, -np.inf)
    peaks = (light == maximum_filter(light, 5)) & np.isfinite(image)
    allowed = np.zeros(image.shape, bool)
    allowed[data.inner] = True
    half = edge // 2
    allowed[:half] = allowed[-half:] = False
    allowed[:, :half] = allowed[:, -half:] = False
    y, x = np.nonzero(peaks & allowed)
    order = np.argsort(-light[y, x], kind="stable")
    wanted = max(6, -(-4 * config.psf.max_stars // data.n_tiles))
    chosen = []
    for i in order[: 20 * wanted]:
        cut = (slice(y[i] - half, y[i] + half + 1), slice(x[i] - half, x[i] + half + 1))
        if _is_alone(light[cut], half):
            chosen.append(i)
        if len(chosen) == wanted:
            break
    if not chosen:
        return empty
    cuts = [(slice(y[i] - half, y[i] + half + 1), slice(x[i] - half, x[i] + half + 1)) for i in chosen]
    error = np.stack([data.error[cut] for cut in cuts])
    return Stars(
        np.stack([data.coefficients[cut] for cut in cuts]).astype(np.float32),
        np.where(np.isfinite(error), error, np.nanmedian(data.error)).astype(np.float32),
        y[chosen].astype(np.float64) + data.origin[0],
        x[chosen].astype(np.float64) + data.origin[1],
        light[y[chosen], x[chosen]],
    )


def _as_fit(coefficients: NDArray[Any], extension: float) -> ReferenceFit:
    valid = np.any(coefficients != 0, axis=(-2, -1))
    return ReferenceFit(coefficients, np.zeros(valid.shape, int), np.zeros(valid.shape), valid, extension)


def _is_alone(stamp: NDArray[np.float64], half: int) -> bool:
    """Whether all of a star's inner pixels are good and none further out rivals it."""
    radius = np.hypot(*np.indices(stamp.shape) - half)
    if not np.isfinite(stamp[radius <= half / 2]).all():
        return False
    outside = stamp[(radius > 2.5) & np.isfinite(stamp)]
    return bool(outside.size and outside.max() < NEIGHBOUR_LIMIT * stamp[half, half])


def combine(partials: list[Stars], config: Config) -> EffectivePSF:
    """The PSF of the file named in the settings, or of the brightest stars of all tiles.

    Raises
    ------
    PsfError
        If there are too few stars.
    """
    settings = config.psf
    if settings.file is not None:
        return read_psf_file(settings.file, settings.oversampling, settings.pixel_integrated)
    peak = np.concatenate([p.peak for p in partials])
    if len(peak) < 5:
        raise PsfError(
            f"only {len(peak)} unspoilt stars for the PSF, 5 are needed; give one: [psf] file = 'psf.fits'"
        )
    keep = np.sort(np.argsort(-peak, kind="stable")[: settings.max_stars])
    filled = [p for p in partials if len(p.peak)]
    coefficients = np.concatenate([p.coefficients for p in filled])[keep].astype(np.float64)
    error = np.concatenate([p.error for p in filled])[keep].astype(np.float64)
    n, edge = len(keep), side(config)
    fit = _as_fit(coefficients.reshape(n * edge, edge, *coefficients.shape[3:]), config.reference.extension)
    # As many phases an axis as polynomials hold exactly what the reference knows.
    phases = config.reference.n_basis
    steps = (np.arange(phases) + 0.5) / phases - 0.5
    phase_y, phase_x = (p.ravel() for p in np.meshgrid(steps, steps, indexing="ij"))
    stamps = fit.evaluate(phase_y, phase_x).reshape(phases**2 * n, edge, edge)
    return build_epsf(
        stamps,
        np.tile(error, (phases**2, 1, 1)),
        ~np.isfinite(stamps),
        np.repeat(-phase_y, n),
        np.repeat(-phase_x, n),
        star=np.tile(np.arange(n), phases**2),
        oversampling=settings.oversampling,
        size=settings.size,
    )


def read_psf_file(path: str, oversampling: int, pixel_integrated: bool) -> EffectivePSF:
    """PSF of a FITS image: the first plane with pixels.

    Raises
    ------
    ConfigError
        If the file cannot be used.
    """
    try:
        with fits.open(path) as hdul:
            image = next(hdu.data for hdu in hdul if hdu.data is not None and hdu.data.ndim == 2)
    except (OSError, StopIteration) as error:
        raise ConfigError(f"{path}: no PSF image can be read from it ({error}); see [psf] file") from None
    return from_oversampled(np.asarray(image, float), oversampling, pixel_integrated)


def save(field: Field, psf: EffectivePSF) -> None:
    """Write the group ``psf``."""
    arrays = psf.to_arrays()
    table = xr.Dataset({k: ([f"{k}_{i}" for i in range(np.ndim(v))], v) for k, v in arrays.items()})
    table.attrs["fwhm"] = float(psf.fwhm)
    field.write_table("psf", table)


def load(field: Field) -> EffectivePSF:
    """Read the group ``psf``."""
    table = field.table("psf")
    return EffectivePSF.from_arrays({str(k): v.values for k, v in table.data_vars.items()})


STAGE = Stage("psf", 1, lambda config: config.psf, tile_units, read, partial, combine)
