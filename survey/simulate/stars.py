"""Crowded star fields: luminosity function and catalogue in blocks, and their rendering into an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from survey.simulate.psf import STEPS, ProfileTable

Array = NDArray[np.float64]

# Catalogue cells: the stars of a cell depend on the seed and the cell alone, so a field of any size
# has the same stars where it overlaps another, and an image's 64 rows of a cell stay in cache.
BLOCK = 64

# Spawn keys must not be negative; cells left of and below the origin are.
_CELL_ORIGIN = 1 << 20


@dataclass(frozen=True)
class LuminosityFunction:
    """Number of stars per magnitude: a power law of flux, broken once.

    The defaults follow the Galactic bulge in a wide near-infrared band: steep along the giant branch
    and the turn-off, flat along the main sequence; with 0.63 stars/px of 0.11", 0.15 are brighter than 25.

    Parameters
    ----------
    bright, faint : float
        Limits in magnitudes.
    knee : float
        Magnitude of the break.
    slopes : tuple of float
        d log10(N) / dm on the bright and the faint side.
    """

    bright: float = 15.0
    faint: float = 28.5
    knee: float = 20.0
    slopes: tuple[float, float] = (0.30, 0.17)

    def magnitudes(self, uniform: Array) -> Array:
        """Magnitudes at cumulative fractions in [0, 1)."""
        a, b = (np.log(10) * s for s in self.slopes)
        knee = min(max(self.knee, self.bright), self.faint)
        n_bright = -np.expm1(a * (self.bright - knee)) / a
        n_faint = np.expm1(b * (self.faint - knee)) / b
        n = uniform * (n_bright + n_faint)
        on_bright = np.exp(a * (self.bright - knee)) + a * np.minimum(n, n_bright)
        on_faint = 1 + b * np.maximum(n - n_bright, 0)
        return knee + np.where(n < n_bright, np.log(on_bright) / a, np.log(on_faint) / b)


@dataclass(frozen=True)
class StarCatalog:
    """Stars in cells of `BLOCK` pixels, positions relative to the cell in single precision (1e-5 px).

    Attributes
    ----------
    corner : array (n_cells, 2)
        (y, x) of each cell's lower left corner on the reference grid.
    start : int array (n_cells + 1,)
        First star of each cell.
    offset : float32 array (n_stars, 2)
        (y, x) from the corner.
    flux : float32 array (n_stars,)
    """

    corner: Array
    start: NDArray[np.int64]
    offset: NDArray[np.float32]
    flux: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.flux)

    def positions(self) -> tuple[Array, Array]:
        """(y, x) of all stars on the reference grid."""
        corner = np.repeat(self.corner, np.diff(self.start), axis=0)
        return corner[:, 0] + self.offset[:, 0], corner[:, 1] + self.offset[:, 1]


def draw_stars(
    shape: tuple[int, int],
    margin: float,
    *,
    density: float,
    luminosity: LuminosityFunction,
    zero_point: float,
    seed: int,
    key: int,
) -> StarCatalog:
    """Uniformly scattered stars on an image of `shape` and a margin around it.

    Parameters
    ----------
    density : float
        Stars a pixel.
    zero_point : float
        Magnitude of a star of flux 1.
    seed, key : int
        Seed of the scene and spawn key of its stars.
    """
    low, high = -margin - 0.5, np.array(shape) + margin - 0.5
    first = int(np.floor(low / BLOCK))
    last = np.ceil(high / BLOCK).astype(int)
    corners, counts, offsets, fluxes = [], [], [], []
    for by in range(first, last[0]):
        for bx in range(first, last[1]):
            cell = np.random.SeedSequence(seed, spawn_key=(key, by + _CELL_ORIGIN, bx + _CELL_ORIGIN))
            rng = np.random.default_rng(cell)
            n = rng.poisson(density * BLOCK**2)
            offset = rng.random((n, 2)) * BLOCK
            flux = 10 ** (-0.4 * (luminosity.magnitudes(rng.random(n)) - zero_point))
            corner = np.array([by, bx], float) * BLOCK
            near = np.all((corner + offset > low) & (corner + offset < high), axis=1)
            corners.append(corner)
            counts.append(int(near.sum()))
            offsets.append(offset[near].astype(np.float32))
            fluxes.append(flux[near].astype(np.float32))
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return StarCatalog(np.array(corners), start, np.concatenate(offsets), np.concatenate(fluxes))


@njit(cache=True, nogil=True)
def _add_star(image, y, x, flux, rows, columns, u, v):
    """Add one star at detector position (y, x); pixels outside the image are left out."""
    rank, _, width = rows.shape
    radius = (width - 1) // 2
    iy, ix = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    y0, x0 = iy - radius, ix - radius
    if y0 + width <= 0 or x0 + width <= 0 or y0 >= image.shape[0] or x0 >= image.shape[1]:
        return
    sy, sx = (y - iy + 0.5) * STEPS, (x - ix + 0.5) * STEPS
    ky, kx = min(max(int(sy), 0), STEPS - 1), min(max(int(sx), 0), STEPS - 1)
    wy, wx = sy - ky, sx - kx
    j0, j1 = max(0, -x0), min(width, image.shape[1] - x0)
    i0, i1 = max(0, -y0), min(width, image.shape[0] - y0)
    for r in range(rank):
        for j in range(width):
            u[j] = flux * (rows[r, ky, j] * (1 - wy) + rows[r, ky + 1, j] * wy)
            v[j] = columns[r, kx, j] * (1 - wx) + columns[r, kx + 1, j] * wx
        for i in range(i0, i1):
            line = image[y0 + i]
            for j in range(j0, j1):
                line[x0 + j] += u[i] * v[j]


@njit(cache=True, nogil=True)
def _add_catalog(image, corner, start, offset, flux, affine, rows, columns):
    u, v = np.empty(rows.shape[2]), np.empty(rows.shape[2])
    for c in range(len(corner)):
        for i in range(start[c], start[c + 1]):
            ry, rx = corner[c, 0] + offset[i, 0], corner[c, 1] + offset[i, 1]
            y = affine[0, 0] + affine[0, 1] * ry + affine[0, 2] * rx
            x = affine[1, 0] + affine[1, 1] * ry + affine[1, 2] * rx
            _add_star(image, y, x, flux[i], rows, columns, u, v)


def add_catalog(image: Array, stars: StarCatalog, affine: Array, psf: ProfileTable) -> None:
    """Add all stars to `image` in place.

    Parameters
    ----------
    affine : array (2, 3)
        Detector (y, x) = ``affine @ (1, y, x)`` of the reference position.
    """
    _add_catalog(image, stars.corner, stars.start, stars.offset, stars.flux, affine, psf.rows, psf.columns)


def add_sources(image: Array, y: Array, x: Array, flux: Array, psf: ProfileTable) -> None:
    """Add point sources at detector positions to `image` in place."""
    corner, start = np.zeros((1, 2)), np.array([0, len(y)], np.int64)
    offset = np.column_stack([y, x]).astype(float).reshape(-1, 2)
    identity = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    flux = np.asarray(flux, float)
    _add_catalog(image, corner, start, offset, flux, identity, psf.rows, psf.columns)
