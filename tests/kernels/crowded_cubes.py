"""Small crowded cubes with known truth: Gaussian stars integrated over the pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf


@dataclass
class CrowdedCube:
    flux: np.ndarray
    error: np.ndarray
    mask: np.ndarray
    phase_y: np.ndarray
    phase_x: np.ndarray
    truth: np.ndarray
    sigma: np.ndarray

    @property
    def data(self):
        return self.flux, self.error, self.mask, self.phase_y, self.phase_x


def pixel_psf(d, fwhm):
    s = fwhm / 2.3548 * np.sqrt(2)
    return 0.5 * (erf((d + 0.5) / s) - erf((d - 0.5) / s))


def crowded_cube(
    n=48,
    n_time=96,
    *,
    seed=1,
    rotation=0.0,
    errors="counts",
    density=0.63,
    fwhm=1.1,
    sky=40.0,
    read_noise=5.0,
    brightest=3e5,
    shift=None,
):
    """Crowded field: star counts ~ flux^-2 from 100 up, electrons; phases uniform; `rotation` in degrees."""
    rng = np.random.default_rng(seed)
    margin = 4
    stars = int(density * (n + 2 * margin) ** 2)
    ys, xs = rng.uniform(-margin, n - 1 + margin, (2, stars))
    u = rng.random(stars)
    flux = 100.0 / (1 - u * (1 - 100.0 / brightest))
    phase = rng.uniform(-0.5, 0.5, (2, n_time))
    angle = np.deg2rad(rng.uniform(-rotation, rotation, n_time))
    phase_y, phase_x = (np.broadcast_to(p[:, None, None], (n_time, n, n)) for p in phase)
    if rotation:
        phase_y, phase_x = rotated_phases(phase, angle, n)
    truth = np.zeros((n_time, n, n))
    true_y, true_x = (phase_y, phase_x) if shift is None else (phase_y + shift[0], phase_x + shift[1])
    grid = np.arange(n)
    for k in range(n_time):
        if rotation:
            add_stars(truth[k], true_y[k], true_x[k], ys, xs, flux, fwhm)
        else:
            along_y = pixel_psf(grid[:, None] + true_y[k, 0, 0] - ys, fwhm)
            along_x = pixel_psf(grid[:, None] + true_x[k, 0, 0] - xs, fwhm)
            truth[k] = (along_y * flux) @ along_x.T
    if not rotation:
        phase_y, phase_x = phase
    return observe(truth, phase_y, phase_x, rng, errors=errors, sky=sky, read_noise=read_noise)


def observe(truth, phase_y, phase_x, rng, *, errors="counts", sky=40.0, read_noise=5.0):
    """A cube of that truth, its noise drawn anew."""
    observed = rng.poisson(truth + sky) - sky + rng.normal(0, read_noise, truth.shape)
    variance = {
        "counts": np.maximum(observed + sky, 0),
        "cut": sky + np.maximum(observed, 0),
        "true": truth + sky,
    }[errors]
    return CrowdedCube(
        observed, np.sqrt(read_noise**2 + variance), np.zeros(truth.shape, bool), phase_y, phase_x, truth,
        np.sqrt(read_noise**2 + sky + truth),
    )  # fmt: skip


def rotated_phases(phase, angle, n):
    """Phases of frames placed by nearest pixel after a shift and a rotation about the centre."""
    y, x = np.mgrid[0:n, 0:n] - (n - 1) / 2
    c, s = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    yd, xd = c * y - s * x + phase[0][:, None, None], s * y + c * x + phase[1][:, None, None]
    ry, rx = np.rint(yd) - yd, np.rint(xd) - xd
    return c * ry + s * rx, c * rx - s * ry


def add_stars(image, phase_y, phase_x, ys, xs, flux, fwhm, reach=5):
    """Add stars at reference positions to an image whose pixels were taken at these phases."""
    n = len(image)
    iy, ix = np.rint(ys).astype(int), np.rint(xs).astype(int)
    for oy in range(-reach, reach + 1):
        for ox in range(-reach, reach + 1):
            y, x = iy + oy, ix + ox
            inside = (y >= 0) & (y < n) & (x >= 0) & (x < n)
            y, x = y[inside], x[inside]
            along_y = pixel_psf(y + phase_y[y, x] - ys[inside], fwhm)
            along_x = pixel_psf(x + phase_x[y, x] - xs[inside], fwhm)
            np.add.at(image, (y, x), flux[inside] * along_y * along_x)
