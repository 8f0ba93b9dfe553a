"""Do the differences scatter as their errors say? Sums over the cube, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from survey.report.data import ReportData, differences, native_reference
from survey.tiles import Tile

# Shares of the pixels, by flux in the reference, at which the classes of brightness end.
QUANTILES = (0.25, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
# Classes that count as faint and as stars: the fainter half, the brightest twentieth.
FAINT, STAR = slice(0, 2), slice(6, None)
EDGES = np.linspace(-8.0, 8.0, 161)
# Samples that give the width of a Gaussian to 1e-4; more would only cost time.
BUDGET = 40_000_000


@dataclass
class Moments:
    """Count, sum and sum of squares."""

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Mean, NaN of nothing."""
        return self.total / self.n if self.n else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation about the mean."""
        return float(np.sqrt(max(self.squares / self.n - self.mean**2, 0.0))) if self.n else float("nan")

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)


@dataclass
class Residuals:
    """Difference / error of the samples in the fit, by brightness and by frame.

    Parameters
    ----------
    histogram : int array (class, bin)
        Counts in `EDGES`, classes of brightness from faint to bright; what lies outside is in the first
        and last bin.
    kept_out : int array (bin)
        Good samples that the fit did not use: outliers, events, flagged frames.
    moments : list of Moments
        Of each class.
    flux : array (class,)
        Median reference flux of each class's pixels; NaN without a reference.
    limits : array (class - 1,)
        Reference flux that parts the classes.
    frame_mean, frame_std : array (time,)
    pixels, all_pixels : int
        Pixels looked at, and of the field.
    """

    histogram: NDArray[np.int64]
    kept_out: NDArray[np.int64]
    moments: list[Moments]
    flux: NDArray[np.float64]
    limits: NDArray[np.float64]
    frame_mean: NDArray[np.float64]
    frame_std: NDArray[np.float64]
    pixels: int
    all_pixels: int

    def of(self, classes: slice = slice(None)) -> Moments:
        """Moments of several classes together, by default of all."""
        return sum(self.moments[classes], Moments())


def chosen_tiles(data: ReportData, epochs: int, budget: int, seed: int) -> list[Tile]:
    """All tiles, or as many as the budget of samples allows, drawn by a fixed seed."""
    tiles = data.field.tiles
    allowed = max(1, int(budget // (epochs * tiles[0].shape[0] * tiles[0].shape[1])))
    if allowed >= len(tiles):
        return tiles
    drawn = np.random.default_rng(seed).permutation(len(tiles))[:allowed]
    return [tiles[i] for i in sorted(drawn)]


def accumulate(data: ReportData, *, budget: int = BUDGET, seed: int = 1) -> Residuals | None:
    """Statistics of difference / error; None where there is no difference yet."""
    group = f"difference/{data.method}"
    if not data.field.has(group, "flux"):
        return None
    shape = data.field.array(group, "flux").shape
    tiles = chosen_tiles(data, shape[0], budget, seed)
    references = [native_reference(data, tile.core) for tile in tiles]
    limits, flux = brightness(references)
    nbins = len(EDGES) - 1
    counts = np.zeros((len(flux) + 1, nbins), np.int64)
    sums = np.zeros((3, len(flux)))
    by_frame = np.zeros((3, shape[0]))
    step = max(data.field.time_block, 1)
    for tile, reference in zip(tiles, references, strict=True):
        kind = _classes(reference, limits, tile.shape)
        for start in range(0, shape[0], step):
            _add(data, tile, slice(start, min(start + step, shape[0])), kind, counts, sums, by_frame)
    if not counts.sum():
        return None
    moments = [Moments(*map(float, column)) for column in sums.T]
    n = np.where(by_frame[0] > 0, by_frame[0], np.nan)
    mean = by_frame[1] / n
    return Residuals(
        counts[:-1],
        counts[-1],
        moments,
        flux,
        limits,
        mean,
        np.sqrt(np.maximum(by_frame[2] / n - mean**2, 0)),
        sum(tile.shape[0] * tile.shape[1] for tile in tiles),
        shape[1] * shape[2],
    )


def brightness(
    references: list[NDArray[np.float64] | None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reference flux that parts the classes of brightness, and the median flux of each."""
    known = [r[np.isfinite(r)] for r in references if r is not None]
    if not sum(map(len, known)):
        return np.full(len(QUANTILES), np.nan), np.full(len(QUANTILES) + 1, np.nan)
    every = np.concatenate(known)
    edges = np.array([0, *QUANTILES, 1])
    return np.quantile(every, QUANTILES), np.quantile(every, (edges[1:] + edges[:-1]) / 2)


def _classes(
    reference: NDArray[np.float64] | None, limits: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.int64]:
    if reference is None or not np.isfinite(limits).all():
        return np.zeros(shape, np.int64)
    return np.searchsorted(limits, np.where(np.isfinite(reference), reference, -np.inf), side="right")


def _add(
    data: ReportData,
    tile: Tile,
    epochs: slice,
    kind: NDArray[np.int64],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    by_frame: NDArray[np.float64],
) -> None:
    """Add one block of samples to the sums."""
    names = ("flux", "error", "mask", "fit_mask")
    found = differences(data, epochs, tile.core, names)
    if found is None:
        return
    flux, error, mask, kept_out = (found[name] for name in names)
    good = ~mask & np.isfinite(flux) & (error > 0)
    scaled = np.divide(flux, error, out=np.zeros_like(flux), where=good)
    nbins = counts.shape[1]
    at = np.clip(((scaled - EDGES[0]) * (nbins / (EDGES[-1] - EDGES[0]))).astype(np.int64), 0, nbins - 1)
    out = good & kept_out
    counts[-1] += np.bincount(at[out], minlength=nbins)
    used = good & ~kept_out
    which = np.broadcast_to(kind, used.shape)[used]
    values = scaled[used].astype(np.float64)
    size = sums.shape[1]
    counts[:-1] += np.bincount(which * nbins + at[used], minlength=size * nbins).reshape(size, nbins)
    for row, weights in zip(sums, (None, values, values**2), strict=True):
        row += np.bincount(which, weights, minlength=size)
    by_frame[0, epochs] += used.sum(axis=(1, 2))
    scaled = np.where(used, scaled, 0).astype(np.float64)
    by_frame[1, epochs] += scaled.sum(axis=(1, 2))
    by_frame[2, epochs] += (scaled**2).sum(axis=(1, 2))
