"""Images of the NN2 paper's sixteen observations: its seeing and zero points, with supernovae in their hosts.

Stars and galaxies are point sources, a galaxy a cloud of them, so that images of two seeings differ by a
convolution and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.simulate.nn2 import SEEING, TIME, ZERO_POINT, ramp
from survey.simulate.pairs import draw_stars

Array = NDArray[np.float64]

PIXEL = 0.2  # arcsec
# Counts of flux 1 (25 mag) at zero point 30.3, and sky noise in counts a pixel: an image noise of 0.22.
COUNTS = 10 ** (0.4 * 5.3)
SKY_NOISE = 4.6
SKY_LEVEL = 400.0
GAIN = 5.0
CENTER = (69.5, -1.5)
_DAYS = 60.0
_POINTS = 40


@dataclass(frozen=True)
class SimulatedImages:
    """What was drawn.

    Attributes
    ----------
    paths : list of Path
        One frame an observation.
    time : array (N,)
    ra, dec : array (n,)
        Supernovae, degrees.
    flux : array (n, N)
        True fluxes in counts of the first frame.
    stars : array (m, 3)
        ra, dec, flux of constant stars, likewise.
    """

    paths: list[Path]
    time: Array
    ra: Array
    dec: Array
    flux: Array
    stars: Array


def simulate_nn2_images(
    directory: str | os.PathLike[str],
    *,
    size: int = 320,
    n_stars: int = 120,
    spacing: int = 48,
    observations: Sequence[int] | None = None,
    rotation: float = 0.0,
    seed: int = 0,
) -> SimulatedImages:
    """Draw and write the frames.

    Parameters
    ----------
    directory : path
    size : int
        Edge in pixels of 0.2 arcsec.
    n_stars : int
    spacing : int
        Pixels between the supernovae of the grid; each lies in a galaxy.
    observations : sequence of int, optional
        Numbers from 0 in the paper's Table 1; all by default.
    rotation : float
        Degrees by which frames are turned against the first, at most.
    seed : int
    """
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(TIME)) if observations is None else np.asarray(observations)
    time, seeing, zero_point = TIME[chosen], SEEING[chosen], ZERO_POINT[chosen]
    stars = np.column_stack(
        [rng.uniform(-10, size + 10, (n_stars, 2)), COUNTS * 10 ** (2.2 * rng.uniform(0, 1, n_stars))]
    )
    grid = np.arange(spacing // 2 + 8, size - spacing // 2, spacing)
    gy, gx = (a.ravel() + rng.uniform(-4, 4, a.size) for a in np.meshgrid(grid, grid, indexing="ij"))
    hosts = [_galaxy(rng, y, x) for y, x in zip(gy, gx, strict=True)]
    y, x = gy + rng.normal(0, 2, gy.size), gx + rng.normal(0, 2, gx.size)
    peak = rng.uniform(TIME[0] - _DAYS, TIME[-1] + _DAYS, gy.size)
    flux = COUNTS * ramp(time, peak, 10 ** (-0.4 * rng.uniform(-3.0, 0.0, gy.size)), _DAYS)
    scale = 10 ** (0.4 * (zero_point - 30.3))
    constant = np.concatenate([stars, *hosts])
    paths = []
    for k in range(len(time)):
        turn, shift = _pose(rng, rotation, first=k == 0)
        sources = np.concatenate([constant, np.column_stack([y, x, flux[:, k]])])
        placed = sources.copy()
        placed[:, :2] = (sources[:, :2] - size / 2) @ turn.T + size / 2 + shift
        placed[:, 2] *= scale[k]
        image = np.full((size, size), SKY_LEVEL)
        draw_stars(image, placed, seeing[k] / PIXEL)
        error = np.sqrt(SKY_NOISE**2 + (image - SKY_LEVEL) / GAIN)
        image += error * rng.normal(size=image.shape)
        header = _header(time[k], zero_point[k], size, turn, shift)
        paths.append(_write(Path(directory) / f"obs_{chosen[k] + 1:02d}.fits", image, error, header))
    wcs = WCS(_header(time[0], zero_point[0], size, np.eye(2), np.zeros(2)))
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    star_ra, star_dec = wcs.wcs_pix2world(stars[:, 1], stars[:, 0], 0)
    return SimulatedImages(
        paths, time, ra, dec, flux * scale[0], np.column_stack([star_ra, star_dec, stars[:, 2] * scale[0]])
    )


def _galaxy(rng: np.random.Generator, y: float, x: float) -> Array:
    """An exponential disk of 20 to 23 mag as points (n, 3)."""
    radius = rng.gamma(2.0, rng.uniform(1.0, 3.0), _POINTS)
    angle, tilt = rng.uniform(0, 2 * np.pi, _POINTS), rng.uniform(0.4, 1.0)
    flux = COUNTS * 10 ** (-0.4 * rng.uniform(-5, -2)) * rng.dirichlet(np.full(_POINTS, 4.0))
    return np.column_stack([y + tilt * radius * np.sin(angle), x + radius * np.cos(angle), flux])


def _pose(rng: np.random.Generator, rotation: float, *, first: bool) -> tuple[Array, Array]:
    """Rotation matrix and shift (y, x) of a frame."""
    angle = np.radians(rotation * rng.uniform(-1, 1))
    shift = rng.uniform(-3, 3, 2)
    if first:
        angle, shift = 0.0, np.zeros(2)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]]), shift


def _header(time: float, zero_point: float, size: int, turn: Array, shift: Array) -> fits.Header:
    """Header with a tangent-plane WCS whose tangent point is the field's middle."""
    header = fits.Header()
    to_sky = np.diag([-1.0, 1.0]) * PIXEL / 3600 @ np.linalg.inv(turn[::-1, ::-1])
    cards: dict[str, Any] = {
        "DATE-OBS": Time(time, format="mjd").isot, "MJD-OBS": time, "TIMESYS": "UTC",
        "EXPTIME": 0.0, "FILTER": "I", "DETECTOR": "simulated",
        "GAIN": GAIN, "BUNIT": "count", "PHOTZPT": zero_point, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
        "CRPIX1": size / 2 + shift[1] + 1, "CRPIX2": size / 2 + shift[0] + 1,
        "CRVAL1": CENTER[0], "CRVAL2": CENTER[1], "RADESYS": "ICRS",
    }  # fmt: skip
    header.update(cards)
    header["CD1_1"], header["CD1_2"] = to_sky[0]
    header["CD2_1"], header["CD2_2"] = to_sky[1]
    return header


def _write(path: Path, image: Array, error: Array, header: fits.Header) -> Path:
    science = fits.ImageHDU(image.astype(np.float32), header, name="SCI")
    noise = fits.ImageHDU(error.astype(np.float32), name="ERR")
    fits.HDUList([fits.PrimaryHDU(), science, noise]).writeto(path, overwrite=True)
    return path
