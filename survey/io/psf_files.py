"""PSFs that others made, as effective PSFs: one for the field, or on a grid of positions."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from survey.config import ConfigError
from survey.io.psfex import PsfexError, PsfexPSF, read_psfex
from survey.kernels.psf import EffectivePSF, from_oversampled

Array = NDArray[np.float64]

# Positions an axis at which a polynomial PSF is taken; bilinear between them.
NODES = 5
_NUMBER = r"[-+0-9.eE]+"


def read_psf_file(path: str | Path, oversampling: int, pixel_integrated: bool) -> EffectivePSF:
    """The PSF of a file, in any of four forms.

    * a FITS image (n, n): one PSF;
    * a cube (planes, n, n) whose header names each plane's position as ``DET_YX0 = '(y, x)'`` …, and
      ``OVERSAMP``: the library files of STPSF that photutils reads too;
    * a FITS image (grid_y, grid_x, n, n) with the extensions ``GRID_Y`` and ``GRID_X``;
    * a PSFEx model (``.psf``), which knows its sampling and holds the pixel.

    Parameters
    ----------
    oversampling : int
        Samples a pixel, where the file does not say.
    pixel_integrated : bool
        Whether an image's values are a pixel's response already.

    Raises
    ------
    ConfigError
        If the file cannot be used.
    """
    try:
        with fits.open(path, memmap=False) as hdul:
            if any("PSF_MASK" in getattr(hdu, "columns", fits.ColDefs([])).names for hdu in hdul[1:]):
                return _from_psfex(read_psfex(path), oversampling)
            index, image = next(
                (i, np.asarray(hdu.data, float))
                for i, hdu in enumerate(hdul)
                if hdu.is_image and hdu.data is not None and hdu.data.ndim in (2, 3, 4)
            )
            header = hdul[index].header
            oversampling = int(header.get("OVERSAMP", oversampling))
            if image.ndim == 2:
                return from_oversampled(image, oversampling, pixel_integrated)
            image, grid_y, grid_x = _library(image, header) if image.ndim == 3 else _grid(image, hdul)
            return from_oversampled(image, oversampling, pixel_integrated, grid_y, grid_x)
    except StopIteration:
        raise ConfigError(f"{path}: holds no image of a PSF; see [psf] file") from None
    except (OSError, ValueError, KeyError, PsfexError) as error:
        raise ConfigError(f"{path}: no PSF can be read from it ({error}); see [psf] file") from None


def psf_file_identity(path: str | Path) -> str:
    """Hash of a PSF file's content.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; see [psf] file")
    status = Path(path).stat()
    return _content(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _content(path: str, mtime: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _library(planes: Array, header: Any) -> tuple[Array, Array, Array]:
    """Planes with a position each, put on their grid."""
    places = []
    for k in range(len(planes)):
        text = str(header.get(f"DET_YX{k}", ""))
        numbers = re.fullmatch(rf"\(?\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)?", text)
        if numbers is None:
            raise ValueError(
                f"plane {k} of {len(planes)} has no position: DET_YX{k} = {text!r}, not '(y, x)'"
            )
        places.append((float(numbers[1]), float(numbers[2])))
    y, x = (np.unique(values) for values in zip(*places, strict=True))
    if len(set(places)) != len(places) or len(places) != y.size * x.size:
        raise ValueError(f"its {len(places)} positions are no grid of {y.size} rows and {x.size} columns")
    order = [places.index((a, b)) for a in y for b in x]
    return planes[order].reshape(y.size, x.size, *planes.shape[1:]), y, x


def _grid(image: Array, hdul: Any) -> tuple[Array, Array, Array]:
    found = {
        hdu.name: np.asarray(hdu.data, float).ravel() for hdu in hdul if hdu.name in ("GRID_Y", "GRID_X")
    }
    if len(found) < 2:
        raise ValueError("a four-dimensional PSF takes the extensions GRID_Y and GRID_X")
    return image, found["GRID_Y"], found["GRID_X"]


def _from_psfex(model: PsfexPSF, oversampling: int) -> EffectivePSF:
    """A polynomial PSF taken on a grid over the stars it was fitted to."""
    half = model.sampling * (min(model.components.shape[1:]) - 1) / 2
    steps = int(half * oversampling)
    at = np.arange(-steps, steps + 1) / (oversampling * model.sampling)
    rows, columns = (at + (n - 1) / 2 for n in model.components.shape[1:])
    mesh = np.meshgrid(rows, columns, indexing="ij")
    share = np.linspace(-0.5, 0.5, NODES) if model.degree else np.zeros(1)
    x, y = (zero - 1 + scale * share for zero, scale in zip(model.zero, model.scale, strict=True))
    samples = [[map_coordinates(model.fine(b, a), mesh, order=3) for a in x] for b in y]
    return from_oversampled(np.array(samples), oversampling, True, y, x)
