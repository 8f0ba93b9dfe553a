"""Flux ratio and shift between two images, from stars that each is made to show with the other's PSF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
_BRIGHT = 10.0  # pixels this many sigma above the sky in both images are used
_PSF_ERROR = 0.02  # of the flux: PSFs are never known better
_CLIP = 4.0
# Star pixels without which there is neither ratio nor shift.
FEWEST_PIXELS = 20
# Largest edge of a part of a tile with a shift of its own, star pixels without which it has none, and parts
# without which there is no scatter of shifts.
_EDGE, _ENOUGH, _FEWEST_PARTS = 96, 200, 5


@dataclass
class Match:
    """Normal equations of (ratio, ratio dy, ratio dx, sky) over star pixels of a part of a tile.

    ``correlation`` is the factor on the shift's variance of noise that neighbours share.
    """

    matrix: Array
    gradient: Array
    pixels: int
    correlation: float = 1.0

    def __add__(self, other: Match) -> Match:
        matrix, gradient = self.matrix + other.matrix, self.gradient + other.gradient
        most = max(self.correlation, other.correlation)
        return Match(matrix, gradient, self.pixels + other.pixels, most)


def noise_correlation(psf: Floats, other: Floats) -> float:
    """Factor on a shift's variance as convolving with PSFs (k, k) makes neighbours share noise."""
    side = 2 * max(*psf.shape, *other.shape)
    powers = [np.abs(np.fft.fft2(p, (side, side))) ** 2 for p in (psf, other)]
    k = np.fft.fftfreq(side)
    gradient = powers[0] * powers[1] * (k[:, None] ** 2 + k**2)
    return float(max((p * gradient).sum() / gradient.sum() / p.mean() for p in powers))


def match_parts(
    a: Floats,
    b: Floats,
    va: Floats,
    vb: Floats,
    good: NDArray[np.bool_],
    guess: Array | None,
    correlation: float = 1.0,
) -> list[Match]:
    """Sums of the parts of a tile, each of `match_sums`, which see how far shifts scatter."""
    found = []
    for y in _cuts(np.asarray(good.any(axis=1))):
        for x in _cuts(np.asarray(good.any(axis=0))):
            # a pixel more for the gradient
            rows, columns = (slice(max(part.start - 1, 0), part.stop + 1) for part in (y, x))
            own = np.zeros_like(good)
            own[y, x] = good[y, x]
            first, second, v1, v2 = (plane[rows, columns] for plane in (a, b, va, vb))
            sums = match_sums(first, second, v1, v2, own[rows, columns], guess)
            found.append(replace(sums, correlation=correlation))
    return found


def _cuts(used: NDArray[np.bool_]) -> Iterator[slice]:
    """Nearly equal parts of the extent of what is used."""
    index = np.flatnonzero(used)
    if len(index):
        first, last = int(index[0]), int(index[-1]) + 1
        edges = np.linspace(first, last, -(-(last - first) // _EDGE) + 1).astype(int)
        yield from map(slice, edges[:-1].tolist(), edges[1:].tolist())


def match_sums(
    a: Floats, b: Floats, va: Floats, vb: Floats, good: NDArray[np.bool_], guess: Array | None
) -> Match:
    """Sums over the star pixels of arrays.

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
    """Registration noise (dy, dx): robust scatter of parts' own shifts, less what their noise explains.

    Zero where fewer than five parts have 200 star pixels.
    """
    found = []
    for part in parts:
        if part.pixels >= _ENOUGH:
            try:
                _, moved, solution = solve_match(part, sky=sky)
            except ValueError:
                continue
            n = 4 if sky else 3
            scale = np.sqrt(np.maximum(np.diag(part.matrix)[:n], 1e-300))
            inverse = np.linalg.pinv(part.matrix[:n, :n] / np.outer(scale, scale))
            variance = (np.diag(inverse) / scale**2)[1:3] / solution[0] ** 2
            found.append((*moved, *(part.correlation * variance)))
    if len(found) < _FEWEST_PARTS:
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
