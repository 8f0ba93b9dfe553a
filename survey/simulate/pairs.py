"""Pairs of images for subtraction: the same stars in two seeings, with transients whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from survey.kernels.pixelmap import PixelMap, nearest_pixels

Array = NDArray[np.float64]
_BETA = 4.0  # Moffat index: wings as in a good atmosphere
_REACH = 8.0  # stars are drawn to this many FWHM


@dataclass(frozen=True)
class ImagePair:
    """An image and its template, all arrays (y, x) on the template's grid.

    Attributes
    ----------
    image, template : array
        Counts, pedestals and noise included.
    mask, template_mask : bool array
        Saturated, or not covered.
    error, template_error : array
        True 1-sigma noise.
    noiseless : array
        The image's expected counts, without transients.
    gain, template_gain : float
        Electrons per count.
    phase_y, phase_x : array or None
        Where the image was placed by nearest pixel: pixel p was taken at p + phase(p).
    stars : array (n, 3)
        y, x, flux in the image.
    transients : array (n, 4)
        y, x, flux in the image (negative: faded), and its S/N with the image's own noise.
    image_fwhm : callable (y, x) -> array
        Full width at half maximum of the image's PSF.
    template_fwhm : float
    """

    image: Array
    template: Array
    mask: NDArray[np.bool_]
    template_mask: NDArray[np.bool_]
    error: Array
    template_error: Array
    noiseless: Array
    gain: float
    template_gain: float
    phase_y: Array | None
    phase_x: Array | None
    stars: Array
    transients: Array
    image_fwhm: Callable[[ArrayLike, ArrayLike], Array]
    template_fwhm: float

    def image_psf(self, y: float, x: float, half: int = 10) -> Array:
        """PSF of the image at a position, on the pixels around the nearest one; sum over the plane 1."""
        cy, cx = round(y), round(x)
        dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        dy, dx = dy + cy - y, dx + cx - x
        if self.phase_y is not None and self.phase_x is not None:
            window = (slice(cy - half, cy + half + 1), slice(cx - half, cx + half + 1))
            dy, dx = dy + self.phase_y[window], dx + self.phase_x[window]
        return moffat(dy, dx, self.image_fwhm(y, x))

    def template_psf(self, half: int = 10) -> Array:
        """PSF of the template, centred on a pixel."""
        dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        return moffat(dy, dx, self.template_fwhm)


def moffat(dy: ArrayLike, dx: ArrayLike, fwhm: ArrayLike) -> Array:
    """Moffat profile of index 4 and volume 1, sampled (the pixel's width is part of the FWHM)."""
    dy, dx, fwhm = np.asarray(dy, float), np.asarray(dx, float), np.asarray(fwhm, float)
    alpha2 = fwhm**2 / (4 * (2 ** (1 / _BETA) - 1))
    return np.asarray((_BETA - 1) / (np.pi * alpha2) * (1 + (dy**2 + dx**2) / alpha2) ** -_BETA)


def simulate_pair(
    shape: tuple[int, int] = (1024, 1024),
    *,
    seed: int = 0,
    n_stars: int = 3000,
    n_transients: int = 50,
    image_fwhm: tuple[float, float] = (2.8, 4.2),
    template_fwhm: float = 2.5,
    flux_scale: float = 0.8,
    rotation: float = 0.0,
    sky: tuple[float, float] = (300.0, 150.0),
    gain: float = 2.0,
    template_gain: float = 10.0,
    read_noise: float = 5.0,
    saturation: float = 50000.0,
    snr: tuple[float, float] = (5.0, 50.0),
) -> ImagePair:
    """Draw a pair.

    Parameters
    ----------
    image_fwhm : (float, float)
        The image's PSF at the top left and at the bottom right, pixels; it varies linearly and a little
        quadratically between.
    template_fwhm : float
        Pixels, constant.
    flux_scale : float
        Image flux per template flux.
    rotation : float
        Degrees by which the detector of the image is rotated; it is then placed by nearest pixel.
    sky : (float, float)
        Level of the image (it has a gradient of a tenth besides) and of the template, counts.
    gain, template_gain : float
        Electrons per count; read noise is in electrons.
    snr : (float, float)
        Transients' S/N is uniform in this range, their signs are mixed.

    Examples
    --------
    >>> pair = simulate_pair((64, 64), n_stars=20, n_transients=2)
    >>> pair.image.shape, len(pair.transients)
    ((64, 64), 2)
    """
    rng = np.random.default_rng(seed)
    ny, nx = shape
    low, high = image_fwhm

    def fwhm_at(y: ArrayLike, x: ArrayLike) -> Array:
        t = np.clip(np.asarray(y, float) / (2 * ny) + np.asarray(x, float) / (2 * nx), 0, 1)
        return np.asarray(low + (high - low) * (0.7 * t + 0.3 * t**2))

    margin = 12
    stars = np.stack(
        [
            rng.uniform(-margin, ny + margin, n_stars),
            rng.uniform(-margin, nx + margin, n_stars),
            150.0 * 10 ** (3.5 * rng.uniform(0, 1, n_stars) ** 2),
        ],
        axis=1,
    )
    y, x = np.indices(shape, dtype=float)
    placed, mask = _placed(rotation, shape)
    dy, dx = placed if placed is not None else (np.zeros(shape), np.zeros(shape))
    tilt = 1 + 0.1 * (x / nx - y / ny)
    noiseless = sky[0] * tilt
    _draw(noiseless, dy, dx, stars, fwhm_at(stars[:, 0], stars[:, 1]))
    template_stars = stars.copy()
    template_stars[:, 2] /= flux_scale
    template = np.full(shape, sky[1])
    zero = np.zeros(shape)
    _draw(template, zero, zero, template_stars, np.full(n_stars, template_fwhm))
    variance = noiseless / gain + (read_noise / gain) ** 2
    transients = _transients(rng, shape, n_transients, fwhm_at, variance, snr)
    image = noiseless.copy()
    _draw(image, dy, dx, transients[:, :3], fwhm_at(transients[:, 0], transients[:, 1]))
    error = np.sqrt(np.maximum(image, 0) / gain + (read_noise / gain) ** 2)
    template_error = np.sqrt(template / template_gain + (read_noise / template_gain) ** 2)
    saturated, template_saturated = image > saturation, template > saturation
    image = np.minimum(image + error * rng.normal(size=shape), saturation)
    template = np.minimum(template + template_error * rng.normal(size=shape), saturation)
    phase_y, phase_x = (dy, dx) if placed is not None else (None, None)
    return ImagePair(
        image, template, mask | saturated, template_saturated, error, template_error, noiseless, gain,
        template_gain, phase_y, phase_x, stars, transients, fwhm_at, template_fwhm,
    )  # fmt: skip


def _placed(rotation: float, shape: tuple[int, int]) -> tuple[tuple[Array, Array] | None, NDArray[np.bool_]]:
    """Phases of an image placed by nearest pixel, and the pixels it does not cover."""
    if rotation == 0:
        return None, np.zeros(shape, bool)
    ny, nx = shape
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    turn = PixelMap(
        np.array([[(nx - 1) / 2, c, -s], [(ny - 1) / 2, s, c]]), ((nx - 1) / 2, (ny - 1) / 2), 1.0
    )
    jy, jx, phase_y, phase_x = nearest_pixels(turn, (0, ny), (0, nx), shape)
    outside = (jy < 0) | (jy >= ny) | (jx < 0) | (jx >= nx)
    return (np.asarray(phase_y, float), np.asarray(phase_x, float)), outside


def _transients(
    rng: np.random.Generator,
    shape: tuple[int, int],
    count: int,
    fwhm_at: Callable[[ArrayLike, ArrayLike], Array],
    variance: Array,
    snr: tuple[float, float],
) -> Array:
    """Positions, fluxes and S/N; at least 20 pixels from the edge and from each other."""
    found: list[tuple[float, float, float, float]] = []
    half = 8
    grid = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    for _ in range(200 * count):
        if len(found) == count:
            break
        y, x = rng.uniform(20, shape[0] - 20), rng.uniform(20, shape[1] - 20)
        if any(np.hypot(y - f[0], x - f[1]) < 20 for f in found):
            continue
        cy, cx = round(y), round(x)
        psf = moffat(grid[0] + cy - y, grid[1] + cx - x, fwhm_at(y, x))
        near = variance[cy - half : cy + half + 1, cx - half : cx + half + 1]
        wanted = rng.uniform(*snr)
        sign = rng.choice([-1.0, 1.0])
        found.append((y, x, float(sign * wanted / np.sqrt((psf**2 / near).sum())), float(sign * wanted)))
    return np.array(found).reshape(-1, 4)


def draw_stars(image: Array, stars: Array, fwhm: float) -> None:
    """Add Moffat stars (n, 3), rows y, x, flux, of one FWHM in pixels to an image."""
    zero = np.zeros(image.shape)
    _draw(image, zero, zero, stars, np.full(len(stars), float(fwhm)))


def _draw(image: Array, phase_y: Array, phase_x: Array, stars: Array, fwhm: Array) -> None:
    _add_stars(image, phase_y, phase_x, np.ascontiguousarray(stars[:, :3]), fwhm, _BETA, _REACH)


@njit(cache=True, nogil=True)
def _add_stars(image, phase_y, phase_x, stars, fwhm, beta, reach):
    """Add Moffat stars sampled at each pixel plus its phase."""
    for k in range(len(stars)):
        ys, xs, flux = stars[k]
        alpha2 = fwhm[k] ** 2 / (4 * (2 ** (1 / beta) - 1))
        height = flux * (beta - 1) / (np.pi * alpha2)
        size = reach * fwhm[k]
        for i in range(max(0, int(ys - size)), min(image.shape[0], int(ys + size) + 1)):
            for j in range(max(0, int(xs - size)), min(image.shape[1], int(xs + size) + 1)):
                dy, dx = i + phase_y[i, j] - ys, j + phase_x[i, j] - xs
                image[i, j] += height * (1 + (dy * dy + dx * dx) / alpha2) ** -beta
