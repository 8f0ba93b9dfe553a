"""Flux ratio and shift between two images, from stars that each is made to show with the other's PSF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
_BRIGHT = 10.0  # pixels this many sigma above the sky in both images are used
_PSF_ERROR = 0.02  # of the flux: PSFs are never known better
_CLIP = 4.0
# Star pixels without which there is neither ratio nor shift.
FEWEST_PIXELS = 20
# Pixels without which a tile has no shift of its own, and tiles without which there is no scatter of shifts.
_ENOUGH, _FEWEST_TILES = 200, 5


@dataclass
class Match:
    """Normal equations of (ratio, ratio dy, ratio dx, sky) over star pixels of a tile."""

    matrix: Array
    gradient: Array
    pixels: int

    def __add__(self, other: Match) -> Match:
        return Match(self.matrix + other.matrix, self.gradient + other.gradient, self.pixels + other.pixels)


def match_sums(
    a: Floats, b: Floats, va: Floats, vb: Floats, good: NDArray[np.bool_], guess: Array | None
) -> Match:
    """Sums of a tile.

    Parameters
    ----------
    a, b : array (y, x)
        New image with the reference's PSF, and the other way round.
    va, vb : array (y, x)
        Their variances.
    good : bool array (y, x)
        Pixels that may be used.
    guess : array (4,), optional
        Solution before, from which outliers are judged.
    """
    use = good & (a > _BRIGHT * np.sqrt(va)) & (b > _BRIGHT * np.sqrt(vb))
    gy, gx = np.gradient(np.asarray(b, float))
    design: Array = np.stack([b[use], -gy[use], -gx[use], np.ones(int(use.sum()))]).astype(float)
    target: Array = a[use].astype(float)
    ratio = 0.0 if guess is None else float(guess[0])
    if guess is None and use.any():
        ratio = float(np.median(target / design[0]))
    variance = va[use] + ratio**2 * vb[use] + (_PSF_ERROR * target) ** 2
    if guess is not None:
        residual = target - guess @ design
        keep = residual**2 < _CLIP**2 * variance
        design, target, variance = design[:, keep], target[keep], variance[keep]
    weighted = design / variance
    return Match(weighted @ design.T, weighted @ target, design.shape[1])


def scatter(parts: Sequence[Match], *, sky: bool = True) -> tuple[float, float]:
    """Registration noise (dy, dx): robust scatter of tiles' own shifts, less what their noise explains."""
    found = []
    for part in parts:
        if part.pixels >= _ENOUGH:
            try:
                _, moved, solution = solve_match(part, sky=sky)
            except ValueError:
                continue
            variance = np.diag(np.linalg.pinv(part.matrix))[1:3] / solution[0] ** 2
            found.append((*moved, *variance))
    if len(found) < _FEWEST_TILES:
        return 0.0, 0.0
    table = np.array(found)
    spread = (1.4826 * np.median(np.abs(table[:, :2] - np.median(table[:, :2], axis=0)), axis=0)) ** 2
    excess = np.sqrt(np.maximum(spread - np.median(table[:, 2:], axis=0), 0))
    return float(excess[0]), float(excess[1])


def solve_match(match: Match, *, sky: bool = True) -> tuple[float, tuple[float, float], Array]:
    """Ratio, shift (dy, dx) and the raw solution.

    Parameters
    ----------
    sky : bool
        Whether the skies may differ. Where they are known, what PSFs do not hold of the wings must not pass
        for sky.

    Raises
    ------
    ValueError
        If there are too few star pixels, or they are not those of the same stars.
    """
    if match.pixels < FEWEST_PIXELS:
        raise ValueError(
            f"{match.pixels} star pixels are too few for flux ratio and shift; give flux_ratio and shift"
        )
    n = 4 if sky else 3
    scale = np.sqrt(np.maximum(np.diag(match.matrix)[:n], 1e-300))
    matrix = match.matrix[:n, :n] / np.outer(scale, scale) + 1e-12 * np.eye(n)
    solution: Array = np.zeros(4)
    solution[:n] = np.linalg.solve(matrix, match.gradient[:n] / scale) / scale
    ratio = float(solution[0])
    if not ratio > 0:
        raise ValueError(f"flux ratio {ratio:.3g}: the images do not show the same stars; check their WCS")
    return ratio, (float(solution[1]) / ratio, float(solution[2]) / ratio), solution
