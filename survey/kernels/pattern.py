"""What a detector adds to every frame alike, measured from frames that drift over it.

A star moves over the detector from frame to frame, a hot pixel does not. With the sky taken off and stars
left out, what the series of one detector pixel has in common is the detector's own. Only structure finer than
the sky's mesh is told: what is smoother cannot be told from sky.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sep
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, median_filter

Image = NDArray[np.float32]

# Edge of the sky's meshes, pixels; a pattern is what is finer.
MESH = 32
# Stars: smoothed by this many pixels, above so many sigma of the smoothed sky, and grown by so many pixels.
SMOOTH = 1.2
STAR_SIGMA = 3.0
GROW = 4
# Samples about the median that count, in sigma, and how many a pixel needs.
CLIP = 4.0
MIN_SAMPLES = 5
# What is a star in more than this share of the frames is none.
FIXED = 0.9
# A pixel whose series scatters more than this many times what others do is unstable.
UNSTABLE = 3.0


@dataclass(frozen=True, eq=False)
class Pattern:
    """What every frame holds at the same place of the detector.

    Parameters
    ----------
    flux : float32 array (y, x)
        In counts of a frame; its mean over `MESH` pixels is zero. Zero where it could not be measured.
    error : float32 array (y, x)
        1-sigma error of flux; of a pixel that scatters more than others also its excess scatter.
    mask : bool array (y, x)
        True = unstable, or never seen without a star: of no use in any frame.
    exposure : float
        Of the frames that it is the pattern of, seconds; NaN where unknown.
    key : str
        What it was made of; patterns of one key are equal.
    """

    flux: Image
    error: Image
    mask: NDArray[np.bool_]
    exposure: float = float("nan")
    key: str = ""

    def __hash__(self) -> int:
        return hash(self.key) if self.key else id(self)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Pattern) and bool(self.key) and self.key == other.key)

    @cached_property
    def usual(self) -> float:
        """Error of most pixels: it is in the scatter of a frame's sky, once the pattern is taken off."""
        known = self.error[self.error > 0]
        return float(np.median(known)) if known.size else 0.0


def sky_residual(
    image: NDArray[Any],
    mask: NDArray[np.bool_],
    pattern: Image | None = None,
    fixed: NDArray[np.bool_] | None = None,
) -> tuple[Image, float]:
    """A frame less its sky, NaN in stars and bad pixels, and the scatter of its sky.

    Parameters
    ----------
    image : array (y, x)
    mask : bool array (y, x)
        True = bad.
    pattern : array (y, x), optional
        As far as it is known: taken off before stars are looked for. Without it a lone pixel is no star.
    fixed : bool array (y, x), optional
        What looks like a star in every frame, and is none.
    """
    flat = np.ascontiguousarray(image, np.float32)
    flat = np.where(mask, 0, flat if pattern is None else flat - pattern)
    residual = flat - _sky(flat, mask)
    residual[mask] = 0
    smooth = gaussian_filter(median_filter(residual, 3) if pattern is None else residual, SMOOTH)
    level = np.median(smooth[~mask])
    spread = 1.4826 * np.median(np.abs(smooth[~mask] - level))
    left_out = mask | maximum_filter(smooth > level + STAR_SIGMA * spread, 2 * GROW + 1)
    if left_out.all():
        return np.full(flat.shape, np.nan, np.float32), np.nan
    residual = image - _sky(flat, left_out)
    good = residual[~left_out] if pattern is None else (residual - pattern)[~left_out]
    residual[left_out if fixed is None else mask | (left_out & ~fixed)] = np.nan
    return residual.astype(np.float32), float(1.4826 * np.median(np.abs(good - np.median(good))))


def looks_fixed(residuals: Image, seen: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels (y, x) that were taken for a star in nearly all of the ``seen`` frames that show them at all.

    Stars drift on; a cluster of hot pixels stays.
    """
    kept = np.isfinite(residuals).sum(axis=2)
    return (kept <= (1 - FIXED) * seen) & (seen >= MIN_SAMPLES)


def _sky(image: Image, mask: NDArray[np.bool_]) -> Image:
    found = sep.Background(image, mask=mask, bw=MESH, bh=MESH, fw=3, fh=3)
    return np.asarray(found.back(), np.float32)


def fixed_pattern(residuals: Image, noise: NDArray[np.floating]) -> Pattern:
    """What the frames' residuals have in common at each pixel.

    Parameters
    ----------
    residuals : float32 array (y, x, frame)
        From `sky_residual`; sorted in place.
    noise : array (frame,)
        Scatter of each frame's sky.

    Notes
    -----
    The mean of the samples within `CLIP` sigma of their median, sigma from the median absolute deviation
    and no less than the frames' own noise. Its error is that of the mean; a pixel's scatter beyond that of
    most pixels, by more than its own uncertainty allows, is added to it, because each single frame has it.
    """
    typical = float(np.nanmedian(noise)) if np.isfinite(noise).any() else 0.0
    mean, scatter, count = (np.zeros(residuals.shape[:2], np.float32) for _ in range(3))
    _clipped(residuals, np.float32(typical), np.float32(CLIP), mean, scatter, count)
    known = count >= MIN_SAMPLES
    if not known.any():
        nothing = np.zeros(mean.shape, np.float32)
        return Pattern(nothing, nothing.copy(), np.ones(mean.shape, bool))
    usual = float(np.median(scatter[known]))
    mean = np.where(known, mean, 0)
    mean -= _sky(np.ascontiguousarray(mean), ~known)
    # of the scatter from so many samples: 1.17 / sqrt(2 n)
    doubt = usual * 1.17 / np.sqrt(2 * np.maximum(count, 1))
    excess = np.where(scatter > usual + 4 * doubt, np.sqrt(np.maximum(scatter**2 - usual**2, 0)), 0)
    error = np.hypot(np.maximum(scatter, usual) / np.sqrt(np.maximum(count, 1)), excess)
    return Pattern(
        np.where(known, mean, 0).astype(np.float32),
        np.where(known, error, 0).astype(np.float32),
        ~known | (scatter > UNSTABLE * usual),
    )


@njit(cache=True, nogil=True)
def _clipped(residuals, floor, clip, mean, scatter, count):
    """Clipped mean, robust scatter and number of finite samples of every pixel's series."""
    for y in range(residuals.shape[0]):
        for x in range(residuals.shape[1]):
            series = np.sort(residuals[y, x])  # NaN last
            n = len(series)
            while n > 0 and not np.isfinite(series[n - 1]):
                n -= 1
            count[y, x] = n
            if n == 0:
                continue
            middle = series[n // 2] if n % 2 else (series[n // 2 - 1] + series[n // 2]) / 2
            away = np.sort(np.abs(series[:n] - middle))
            scatter[y, x] = 1.4826 * (away[n // 2] if n % 2 else (away[n // 2 - 1] + away[n // 2]) / 2)
            reach = clip * max(scatter[y, x], floor)
            total, used = 0.0, 0
            for k in range(n):
                if abs(series[k] - middle) <= reach:
                    total += series[k]
                    used += 1
            mean[y, x] = total / used
