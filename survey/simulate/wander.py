"""Frames of a detector under a wandering pointing: the mock data of the CPM paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FWHM_TO_SIGMA = 1 / 2.354820045
# Where a star's tail is cut: exp(-r^2 / 2) of it is 1e-8.
_TAIL = 6.1


@dataclass(frozen=True)
class Wander:
    """Frames and the truth that they were made of.

    Attributes
    ----------
    flux, error : arrays (time, y, x)
    mask : bool array (time, y, x)
    clean : array (time, y, x)
        Flux without noise.
    variable : tuple of float (y, x)
        Where the variable star is in the mean frame.
    signal : array (time,)
        The variable's flux about its mean.
    signal_image : array (time, y, x)
        What the variable's changes add to the frames.
    shift_y, shift_x, angle : arrays (time,)
        Pointing in pixels and degrees.
    """

    flux: Array
    error: Array
    mask: NDArray[np.bool_]
    clean: Array
    variable: tuple[float, float]
    signal: Array
    signal_image: Array
    shift_y: Array
    shift_x: Array
    angle: Array


def simulate_wander(
    kind: Literal["space", "ground"] = "space",
    *,
    shape: tuple[int, int] = (80, 80),
    n_frames: int = 1000,
    n_stars: int = 400,
    seed: int = 1,
    pointing: float = 1.0,
    rotation: float = 0.5,
    fwhm: float = 2.5,
    fwhm_range: tuple[float, float] = (2.0, 3.0),
    flat_error: float = 0.01,
    noise: float = 1e-4,
    slope: float = 0.3,
    magnitudes: float = 6.0,
    amplitude: float = 0.1,
    period: float = 97.0,
) -> Wander:
    """Mock data of Wang et al. 2017, section 3: affine pointing, Gaussian PRF, flat-field errors, noise.

    Pointing is drawn for every frame: shifts from U(0, pointing) pixels along both axes, angle about the
    frame's centre from U(0, rotation) degrees. Stars' fluxes follow N(m) ~ 10^(slope m), standing in for
    the paper's catalogue; the unit of flux is the median pixel of the mean frame, so that ``noise`` is
    what the paper draws in its relative differences.

    Parameters
    ----------
    kind : {"space", "ground"}
        Round PRF of one width, or PRF whose widths along two axes are drawn from U(fwhm_range) and whose
        angle from U(0, pi) in every frame.
    shape : tuple of int
        (y, x) pixels.
    n_frames : int
        Frame k is the same whatever the number of frames.
    n_stars : int
        Stars within ``shape``; as dense around it, as far as pointing and PRF reach.
    flat_error, noise : float
        Relative error of each pixel's sensitivity; standard deviation of the noise.
    magnitudes : float
        Range between the brightest and the faintest star.
    amplitude, period : float
        The variable's sinusoid: relative to its mean flux, in frames. It is the star of about the
        brightness of the 30th brightest that lies nearest to the centre.

    References
    ----------
    Wang et al. 2017, eqs. 5-8.

    Examples
    --------
    >>> mock = simulate_wander(shape=(24, 24), n_frames=5, n_stars=40)
    >>> mock.flux.shape, round(float(np.median(mock.clean.mean(0))), 6)
    ((5, 24, 24), 1.0)
    """
    if kind not in ("space", "ground"):
        raise ValueError(f"kind must be 'space' or 'ground', not {kind!r}")
    ny, nx = shape
    rng = np.random.default_rng([seed, 0])
    reach = 0.5 * np.hypot(ny, nx) * np.radians(rotation)
    border = pointing + reach + 2 * max(fwhm, *fwhm_range)
    count = round(n_stars * (ny + 2 * border) * (nx + 2 * border) / (ny * nx))
    star_y = rng.uniform(-border - 0.5, ny + border - 0.5, count)
    star_x = rng.uniform(-border - 0.5, nx + border - 0.5, count)
    magnitude = np.log10(1 + rng.random(count) * (10 ** (slope * magnitudes) - 1)) / slope
    star_flux = 10 ** (-0.4 * magnitude)
    flat = rng.normal(1, flat_error, shape)
    clean, unit = np.empty((n_frames, ny, nx)), np.empty((n_frames, ny, nx))
    which = _variable_star(star_y, star_x, star_flux, shape, n_stars)
    pose = np.empty((n_frames, 3))
    grains = np.empty_like(clean)
    for k in range(n_frames):
        draw = np.random.default_rng([seed, 1, k])
        shift_y, shift_x = draw.uniform(0, pointing, 2)
        angle = draw.uniform(0, rotation)
        widths, turn = (fwhm, fwhm), 0.0
        if kind == "ground":
            fx, fy = draw.uniform(*fwhm_range, 2)
            widths, turn = (fx, fy), draw.uniform(0, np.pi)
        pose[k] = shift_y, shift_x, angle
        y, x = _moved(star_y, star_x, shape, *pose[k])
        clean[k] = flat * _render(y, x, star_flux, widths, turn, shape)
        unit[k] = flat * _render(y[[which]], x[[which]], star_flux[[which]], widths, turn, shape)
        grains[k] = draw.normal(size=shape)
    signal = amplitude * np.sin(2 * np.pi * np.arange(n_frames) / period)
    scale = 1 / np.median(clean.mean(0))
    signal_image = scale * unit * signal[:, None, None]
    clean = scale * clean + signal_image
    mean_pose = pose.mean(0)
    at = _moved(star_y[[which]], star_x[[which]], shape, *mean_pose)
    return Wander(
        flux=clean + noise * grains,
        error=np.full(clean.shape, noise),
        mask=np.zeros(clean.shape, bool),
        clean=clean,
        variable=(float(at[0][0]), float(at[1][0])),
        signal=signal * scale * star_flux[which],
        signal_image=signal_image,
        shift_y=pose[:, 0],
        shift_x=pose[:, 1],
        angle=pose[:, 2],
    )


def _variable_star(y: Array, x: Array, flux: Array, shape: tuple[int, int], n_stars: int) -> int:
    """Of the stars between a tenth and a twentieth from the top, the one nearest to the centre."""
    order = np.argsort(-flux)
    middle = order[len(flux) // 20 : max(len(flux) // 10, len(flux) // 20 + 1)]
    return int(middle[np.argmin(np.hypot(y[middle] - shape[0] / 2, x[middle] - shape[1] / 2))])


def _moved(
    y: Array, x: Array, shape: tuple[int, int], shift_y: float, shift_x: float, angle: float
) -> tuple[Array, Array]:
    """Positions turned about the centre and shifted (eq. 5)."""
    cy, cx = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return cy - s * (x - cx) + c * (y - cy) + shift_y, cx + c * (x - cx) + s * (y - cy) + shift_x


def _render(
    y: Array, x: Array, flux: Array, widths: tuple[float, float], turn: float, shape: tuple[int, int]
) -> Array:
    """Sum of Gaussians of unit sum at pixel centres (eqs. 6-8)."""
    sx, sy = (width * FWHM_TO_SIGMA for width in widths)
    c, s = np.cos(turn), np.sin(turn)
    axx, ayy = c**2 / sx**2 + s**2 / sy**2, s**2 / sx**2 + c**2 / sy**2
    axy = s * c * (1 / sy**2 - 1 / sx**2)
    half = int(np.ceil(_TAIL * max(sx, sy)))
    steps = np.arange(-half, half + 1)
    rows, columns = np.rint(y).astype(int)[:, None] + steps, np.rint(x).astype(int)[:, None] + steps
    dy, dx = (rows - y[:, None])[:, :, None], (columns - x[:, None])[:, None, :]
    values = flux[:, None, None] / (2 * np.pi * sx * sy)
    values = values * np.exp(-0.5 * (axx * dx**2 + ayy * dy**2 + 2 * axy * dx * dy))
    inside = ((rows >= 0) & (rows < shape[0]))[:, :, None] & ((columns >= 0) & (columns < shape[1]))[
        :, None, :
    ]
    where = (rows[:, :, None] * shape[1] + columns[:, None, :])[inside]
    summed = np.bincount(where, values[inside], shape[0] * shape[1])
    return np.asarray(summed, float).reshape(shape)
