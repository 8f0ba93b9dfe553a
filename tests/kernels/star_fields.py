"""A small generator of star fields for the tests of finding, matching and photometry."""

import numpy as np
from scipy.special import ndtr


def render(shape, x, y, flux, fwhm, radius=12):
    """Stars as Gaussians integrated over the pixel."""
    sigma = fwhm / 2.3548200450309493
    image = np.zeros(shape)
    ny, nx = shape
    for xs, ys, f in zip(x, y, flux, strict=True):
        x0, x1 = max(int(xs) - radius, 0), min(int(xs) + radius + 2, nx)
        y0, y1 = max(int(ys) - radius, 0), min(int(ys) + radius + 2, ny)
        if x0 >= x1 or y0 >= y1:
            continue
        tx, ty = np.arange(x0, x1) - xs, np.arange(y0, y1) - ys
        px = ndtr((tx + 0.5) / sigma) - ndtr((tx - 0.5) / sigma)
        py = ndtr((ty + 0.5) / sigma) - ndtr((ty - 0.5) / sigma)
        image[y0:y1, x0:x1] += f * py[:, None] * px
    return image


def star_field(rng, shape, n, faintest=300.0, slope=1.0):
    """Positions and fluxes with a power-law luminosity function."""
    ny, nx = shape
    return (
        rng.uniform(-0.5, nx - 0.5, n),
        rng.uniform(-0.5, ny - 0.5, n),
        faintest * rng.uniform(0.002, 1.0, n) ** (-1 / slope),
    )
