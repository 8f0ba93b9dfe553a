"""Sky background of a frame and the noise of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

from survey.kernels.pixelmap import n_terms, polynomial_terms

Array = NDArray[np.float64]

_MAD_TO_SIGMA = 1.482602218505602
_MIN_PIXELS = 20  # fewer good pixels than this say nothing about a mesh's sky


@dataclass(frozen=True)
class Background:
    """Sky of one image: a level, its pixel noise and a polynomial surface.

    Parameters
    ----------
    level : float
        Sky at the middle of the image, in image units.
    rms : float
        1-sigma noise of a sky pixel.
    level_error : float
        1-sigma error of `level` from the scatter of the meshes about the surface.
    coefficients : array (n_terms,)
        Terms as in `survey.kernels.pixelmap.polynomial_terms` of x and y on [-1, 1].
    shape : tuple of int
        (y, x) shape of the image.
    n_meshes : int
        Meshes that entered the fit.
    """

    level: float
    rms: float
    level_error: float
    coefficients: Array
    shape: tuple[int, int]
    n_meshes: int

    @property
    def order(self) -> int:
        """Total degree of the surface."""
        return next(order for order in range(3) if n_terms(order) == len(self.coefficients))

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Sky at pixel positions; any shape."""
        u, v = _normalised(x, y, self.shape)
        return np.asarray(np.tensordot(self.coefficients, polynomial_terms(u, v, self.order), axes=1))

    def surface(self) -> Array:
        """Sky of the whole image (y, x)."""
        y, x = np.arange(self.shape[0])[:, None], np.arange(self.shape[1])
        u, v = _normalised(x, y, self.shape)
        order = self.order
        out = np.zeros(self.shape)
        for j in range(order + 1):
            line = sum(self.coefficients[n_terms(i + j - 1) + j] * u**i for i in range(order + 1 - j))
            out += line * v**j
        return out


def _normalised(x: ArrayLike, y: ArrayLike, shape: tuple[int, int]) -> tuple[Array, Array]:
    ny, nx = shape
    return (
        2 * np.asarray(x, float) / max(nx - 1, 1) - 1,
        2 * np.asarray(y, float) / max(ny - 1, 1) - 1,
    )


def clipped_statistics(values: ArrayLike, clip: float = 3.0, iterations: int = 8) -> tuple[float, float]:
    """Sky level and noise of pixels that hold stars as well.

    The noise comes from the pixels below the level alone, because stars only add light; pixels more
    than `clip` of it away are dropped until nothing changes. The level is then the mode, 2.5 median -
    1.5 mean, as in SExtractor, unless the distribution stays too skewed for that formula.

    Returns
    -------
    level, rms : float
        NaN where there are too few values.

    Examples
    --------
    >>> sky = np.random.default_rng(1).normal(100.0, 3.0, 4000)
    >>> sky[:400] += 500.0
    >>> level, rms = clipped_statistics(sky)
    >>> round(level), round(rms)
    (100, 3)
    """
    values = _without_ties(np.sort(np.asarray(values, float), axis=None))
    if len(values) < _MIN_PIXELS:
        return float("nan"), float("nan")
    # A Gaussian cut at +- clip sigma has this variance: without it every pass would cut deeper.
    cut_variance = 1 - 2 * clip * np.exp(-(clip**2) / 2) / np.sqrt(2 * np.pi) / erf(clip / np.sqrt(2))
    rms = 0.0
    for iteration in range(iterations):
        level = _middle(values)
        below = values[: np.searchsorted(values, level, side="right")] - level
        rms = float(np.sqrt(below @ below / len(below)))
        rms /= np.sqrt(cut_variance) if iteration else 1.0
        low, high = np.searchsorted(values, [level - clip * rms, level + clip * rms])
        if high - low == len(values) or high - low < _MIN_PIXELS:
            break
        values = values[low:high]
    mean, median = float(values.mean()), _middle(values)
    if mean - median < 0.3 * rms:
        return 2.5 * median - 1.5 * mean, rms
    return median, rms


def _middle(values: Array) -> float:
    """Median of sorted values."""
    n = len(values)
    return float(values[n // 2]) if n % 2 else float(values[n // 2 - 1] + values[n // 2]) / 2


def _without_ties(values: Array) -> Array:
    """Sorted values with ties spread evenly over the step of the digitisation.

    A sky whose noise is about one count has its median and its scatter in whole counts otherwise.
    """
    distinct = np.count_nonzero(np.diff(values)) + 1
    if distinct < 2 or distinct > 0.5 * len(values):
        return values
    unique, first, counts = np.unique(values, return_index=True, return_counts=True)
    step = float(np.diff(unique).min())
    if step < 1e-6 * float(np.ptp(unique)):
        return values
    rank = np.arange(len(values)) - np.repeat(first, counts)
    return np.asarray(values + step * ((rank + 0.5) / np.repeat(counts, counts) - 0.5))


def measure_background(
    image: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    order: int = 0,
    mesh: int = 64,
    clip: float = 3.0,
) -> Background:
    """Sky level, noise and low-order surface from sigma-clipped meshes.

    Parameters
    ----------
    image : array (y, x)
    mask : bool array (y, x), optional
        True = bad. Pixels that are not finite are bad too.
    order : {0, 1, 2}
        Degree of the surface; 0 is a constant.
    mesh : int
        Side of a mesh in pixels.
    clip : float
        Clipping limit in sigma, for the pixels of a mesh and for the meshes.

    Returns
    -------
    Background

    Raises
    ------
    ValueError
        If the order is not 0, 1 or 2 or no mesh has enough good pixels.

    Notes
    -----
    Where stars overlap everywhere (half a star a pixel) no sky pixel is free of them; the level is then
    the most common brightness, which lies above the true sky.

    Examples
    --------
    >>> sky = measure_background(np.random.default_rng(1).normal(350.0, 1.5, (128, 128)))
    >>> round(sky.level), round(sky.rms, 1)
    (350, 1.5)
    """
    if order not in (0, 1, 2):
        raise ValueError(f"background order {order} is not 0, 1 or 2")
    image = np.asarray(image, float)
    good = np.isfinite(image) if mask is None else np.isfinite(image) & ~np.asarray(mask, bool)
    x, y, level, rms = _mesh_statistics(image, good, mesh, clip)
    while order and len(level) < 2 * n_terms(order):
        order -= 1
    if len(level) == 0:
        raise ValueError(f"no background mesh of {mesh} px with {_MIN_PIXELS} good pixels: all is masked")
    u, v = _normalised(x, y, image.shape)
    coefficients, used = _fit_surface(polynomial_terms(u, v, order).T, level, clip)
    ny, nx = image.shape
    scatter = level - polynomial_terms(u, v, order).T @ coefficients
    centre = float(polynomial_terms(0.0, 0.0, order) @ coefficients)
    return Background(
        level=centre,
        rms=float(np.median(rms[used])),
        level_error=float(np.std(scatter[used]) / np.sqrt(max(used.sum() - len(coefficients), 1))),
        coefficients=coefficients,
        shape=(ny, nx),
        n_meshes=int(used.sum()),
    )


def _mesh_statistics(
    image: Array, good: NDArray[np.bool_], mesh: int, clip: float
) -> tuple[Array, Array, Array, Array]:
    rows = []
    ny, nx = image.shape
    y_edges = np.linspace(0, ny, max(round(ny / mesh), 1) + 1).astype(int)
    x_edges = np.linspace(0, nx, max(round(nx / mesh), 1) + 1).astype(int)
    for y0, y1 in pairwise(y_edges):
        for x0, x1 in pairwise(x_edges):
            window = (slice(y0, y1), slice(x0, x1))
            level, rms = clipped_statistics(image[window][good[window]], clip)
            if np.isfinite(level):
                rows.append(((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, level, rms))
    table = np.array(rows, float).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _fit_surface(design: Array, level: Array, clip: float) -> tuple[Array, NDArray[np.bool_]]:
    used = np.ones(len(level), bool)
    coefficients: Array = np.zeros(design.shape[1])
    for _ in range(10):
        if design.shape[1] == 1:
            coefficients = np.array([np.median(level[used])])
        else:
            coefficients = np.asarray(np.linalg.lstsq(design[used], level[used], rcond=None)[0], float)
        residual = level - design @ coefficients
        sigma = _MAD_TO_SIGMA * np.median(np.abs(residual[used]))
        keep = np.abs(residual) <= clip * sigma + 1e-9 * np.abs(level)
        if np.array_equal(keep, used) or keep.sum() < 2 * design.shape[1]:
            break
        used = keep
    return coefficients, used


def noise_model(
    image: ArrayLike,
    background: ArrayLike | Background,
    gain: float,
    read_noise: float | None = None,
) -> Array:
    """1-sigma error of every pixel where a camera gives none (METHODS 4).

    ``sqrt(rms^2 + max(image - background, 0) / gain)``: the noise of the sky as measured, plus the
    photon noise of what stands above it.

    Parameters
    ----------
    image : array (y, x)
    background : Background, float or array (y, x)
        A `Background` brings its own measured noise. With a plain level, the sky's noise is
        ``sqrt(read_noise^2 / gain^2 + max(level, 0) / gain)``: then the level must hold sky only, no bias.
    gain : float
        Electrons per image unit.
    read_noise : float, optional
        Electrons; needed with a plain level, and a floor otherwise.

    Returns
    -------
    error : array (y, x)
        NaN where the image is not finite.

    Raises
    ------
    ValueError
        If the gain is not positive or a plain level comes without read noise.

    Examples
    --------
    >>> noise_model(np.array([[100.0, 164.0]]), 100.0, gain=4.0, read_noise=10.0).round(2)
    array([[5.59, 6.87]])
    """
    if not gain > 0:
        raise ValueError(f"gain {gain} is not positive")
    image = np.asarray(image, float)
    floor = 0.0 if read_noise is None else (read_noise / gain) ** 2
    if isinstance(background, Background):
        level = background.surface() if background.order else np.asarray(background.level)
        sky_variance = np.asarray(max(background.rms**2, floor))
    else:
        if read_noise is None:
            raise ValueError("a plain background level needs read_noise; or pass a measured Background")
        level = np.asarray(background, float)
        sky_variance = floor + np.maximum(level, 0.0) / gain
    return np.asarray(np.sqrt(sky_variance + np.maximum(image - level, 0.0) / gain))
