"""What range of an image is shown, and a large image made small."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.visualization import ZScaleInterval
from matplotlib.colors import AsinhNorm, Normalize
from numpy.typing import NDArray

Image = NDArray[Any]


def reduce(image: Image, factor: int, *, extreme: bool = False) -> Image:
    """An image `factor` times smaller: means of blocks, or their value of largest modulus.

    Examples
    --------
    >>> reduce(np.array([[1.0, 3.0], [np.nan, -5.0]]), 2, extreme=True)
    array([[-5.]])
    """
    if factor == 1:
        return image
    ny, nx = image.shape
    pad = ((0, -ny % factor), (0, -nx % factor))
    padded = np.pad(np.asarray(image, float), pad, constant_values=np.nan)
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    split = padded.reshape(rows, factor, columns, factor).swapaxes(1, 2)
    blocks = split.reshape(rows, columns, factor * factor)
    if extreme:
        at = np.where(np.isfinite(blocks), np.abs(blocks), -1.0).argmax(axis=2)
        return np.take_along_axis(blocks, at[..., None], axis=2)[..., 0]
    known = np.isfinite(blocks)
    count = known.sum(axis=2)
    total = np.where(known, blocks, 0.0).sum(axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def asinh_norm(image: Image, *, noise: float | None = None) -> Normalize:
    """Zscale's range for the faint, asinh above it for the bright; with `noise`, zero and noise show too."""
    known = np.asarray(image, float)[np.isfinite(image)]
    if known.size < 2 or known.min() == known.max():
        return Normalize(0, 1)
    low, high = ZScaleInterval().get_limits(known)
    low = max(low, float(np.percentile(known, 0.5)))
    top = max(float(np.percentile(known, 99.8)), high)
    width = max(float(np.percentile(known, 50)) - low, (top - low) / 500, 1e-12)
    if noise is not None and np.isfinite(noise) and noise > 0:
        low, width = min(low, -10 * noise), 5 * noise
    return AsinhNorm(linear_width=width, vmin=low, vmax=top)


def symmetric_norm(image: Image, *, least: float = 0.0) -> Normalize:
    """A linear range about zero that holds nearly all of the image."""
    known = np.abs(np.asarray(image, float)[np.isfinite(image)])
    limit = max(float(np.percentile(known, 99.5)) if known.size else 1.0, least, 1e-12)
    return Normalize(-limit, limit)
