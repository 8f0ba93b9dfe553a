"""Peaks of the matched filter's S/N in (time, y, x): thresholds, local maxima, one record an event.

The order of work for a field cut into tiles: `find_peaks` on every tile's core; `merge_peaks` once on the
list of the whole field, which it sorts first, so that the answer does not depend on the cutting; then
`survey.kernels.candidates.measure_candidate` for each that is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from scipy.stats import norm

from survey.kernels._subpixel import SubpixelFilter
from survey.kernels.matched_filter import EventBank, ScaleMap

PEAK_DTYPE = np.dtype(
    [
        ("y", "i8"),
        ("x", "i8"),
        ("offset_y", "f8"),
        ("offset_x", "f8"),
        ("time", "f8"),
        ("temporal_sigma", "f8"),
        ("scale", "i4"),
        ("snr", "f8"),
    ]
)
"""Peak: pixel on the reference grid and the place in it to a quarter pixel; centre and scale in the bank's
unit of time; index of the scale in the bank; S/N at that place."""

Peaks = NDArray[np.void]

# A local maximum is one against its 26 neighbours, so the S/N one pixel around a core must be known.
NEIGHBOURHOOD = 1


def search_halo(stamp_size: int) -> int:
    """Pixels around a tile's core with which `find_peaks` gives exactly the whole image's peaks.

    Half the filter's stamp, for the S/N, and one for the neighbours of a maximum. The same halo holds what
    `measure_candidate` reads around a peak of the core.
    """
    return stamp_size // 2 + NEIGHBOURHOOD


def threshold_for(false_alarms: float, n_independent: float) -> float:
    """Threshold on abs(S/N) that unit Gaussian noise exceeds `false_alarms` times in so many trials.

    Both signs count: ``2 n Q(u) = false_alarms``.

    Raises
    ------
    ValueError
        If one of them is not positive, or more alarms than trials are asked for.

    Examples
    --------
    >>> round(threshold_for(1.0, 1e6), 2)
    4.89
    """
    if not 0 < false_alarms < n_independent:
        raise ValueError(
            f"false_alarms {false_alarms} must be positive and below the {n_independent:g} trials"
        )
    return float(norm.isf(false_alarms / (2 * n_independent)))


def independent_trials(
    threshold: float, t0: NDArray[np.float64], sigma: float, n_pixels: float, curvature: float = 0.0
) -> float:
    """Independent trials in (time, y, x) that have as many maxima above a threshold as the S/N has.

    By Rice's formula a smooth S/N of correlation ``1 - lambda d**2 / 2`` exceeds u anew
    ``sqrt(lambda / 2 pi) u`` times as often per unit length as a single Gaussian draw does. In time
    ``lambda = 1 / (2 sigma**2)``, and never more than one trial a centre; within a pixel, whose S/N is
    searched at places between the centres, `curvature` per axis and never less than one trial. Noise gives
    0.6 to 1.0 of the maxima counted so (FWHM 1.1-2.5 px): thresholds err to the safe side by 0.1 at most.
    """
    step = threshold / np.sqrt(2 * np.pi)
    places = n_pixels * max(1.0, step**2 * curvature)
    if len(t0) < 2:
        return float(places)
    # A gap without centres adds no more than one trial.
    return float(places * (1 + np.minimum(np.diff(t0) * step / (np.sqrt(2) * sigma), 1.0).sum()))


def search_thresholds(bank: EventBank, n_pixels: float, false_alarms: float = 1.0) -> tuple[float, ...]:
    """Threshold for each scale of a bank, such that noise gives `false_alarms` in the whole search.

    Parameters
    ----------
    bank : EventBank
    n_pixels : float
        Pixels of the whole field, not of a tile.
    false_alarms : float
        Expected number over all scales, shared equally between them.

    Examples
    --------
    >>> from survey.kernels.matched_filter import event_bank
    >>> bank = event_bank([2, 16], *np.zeros((2, 96)), spatial_sigma=0.5, n_basis=0)
    >>> [round(u, 1) for u in search_thresholds(bank, 1e6)]
    [6.2, 5.8]
    """
    share = false_alarms / len(bank.temporal_sigma)

    def solve(t0: NDArray[np.float64], sigma: float) -> float:
        def excess(u: float) -> float:
            trials = independent_trials(u, t0, sigma, n_pixels, bank.subpixel.curvature)
            return float(np.log(2 * trials) + norm.logsf(u) - np.log(share))

        if excess(0.1) <= 0:
            return 0.1
        return float(brentq(excess, 0.1, 37.0))

    return tuple(solve(t0, sigma) for t0, sigma in zip(bank.t0, bank.temporal_sigma, strict=True))


def find_peaks(
    scale_map: ScaleMap,
    threshold: float,
    *,
    scale: int = 0,
    core: tuple[slice, slice] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> Peaks:
    """Local maxima of abs(S/N) whose S/N within the pixel is over a threshold, in a tile's core.

    Parameters
    ----------
    scale_map : ScaleMap
        Core and halo of one tile (`search_halo`). With its `subpixel` filter the S/N is the highest of the
        places within the pixel; else that of its centre.
    threshold : float
        From `search_thresholds`.
    scale : int
        Index of the scale in the bank, kept in the record.
    core : tuple of slice, optional
        Rows and columns of the array whose peaks are wanted; default all.
    origin : tuple of int
        Reference pixel (y, x) of the array's [0, 0].

    Returns
    -------
    structured array (n,) of `PEAK_DTYPE`
        Higher than the 26 neighbours of the same sign in (t0, y, x); of equal neighbours the first in that
        order counts.
    """
    snr, subpixel = scale_map.snr, scale_map.subpixel
    rows, columns = core if core is not None else (slice(None), slice(None))
    y0, y1, _ = rows.indices(snr.shape[1])
    x0, x1, _ = columns.indices(snr.shape[2])
    least = threshold if subpixel is None else threshold * subpixel.coarse
    j, y, x = _local_maxima(snr, np.float32(least), y0, y1, x0, x1).T
    peaks = np.zeros(len(j), PEAK_DTYPE)
    peaks["y"], peaks["x"] = y + origin[0], x + origin[1]
    peaks["time"], peaks["temporal_sigma"] = scale_map.t0[j], scale_map.temporal_sigma
    peaks["scale"], peaks["snr"] = scale, snr[j, y, x]
    if subpixel is not None:
        for i in range(len(peaks)):
            _refine(peaks[i : i + 1], snr[j[i]], y[i], x[i], subpixel)
        peaks = peaks[np.abs(peaks["snr"]) >= threshold]
    return peaks


def _refine(peak: Peaks, snr: NDArray[np.float32], y: int, x: int, subpixel: SubpixelFilter) -> None:
    """Give a peak the best place in its pixel and the S/N there, if its neighbours are known."""
    if not (0 < y < snr.shape[0] - 1 and 0 < x < snr.shape[1] - 1):
        return
    around = snr[y - 1 : y + 2, x - 1 : x + 2].astype(float)
    if not np.isfinite(around).all():
        return
    # Sums in a fixed order: a matrix product may round by the number of its rows.
    values = np.sign(around[1, 1]) * (subpixel.weights * around).sum(axis=(1, 2))
    best = int(np.argmax(values))
    if values[best] > abs(around[1, 1]):
        peak["offset_y"], peak["offset_x"] = subpixel.offsets[best]
        peak["snr"] = np.sign(around[1, 1]) * values[best]


def merge_peaks(
    peaks: Peaks | Sequence[Peaks], *, radius: float = 2.0, reach: float = 2.0, lobe: float = 0.7
) -> Peaks:
    """One record an event: the strongest peak stands for its neighbours in place, time and scale.

    Parameters
    ----------
    peaks : structured array, or sequence of them
        The whole field's peaks of all scales, in any order.
    radius : float
        Distance in px within which peaks may be one event.
    reach : float
        A weaker peak belongs to a stronger one when their times differ by at most ``reach`` times the sum of
        their scales.
    lobe : float
        A strong event pulls its own reference, which shows as peaks of the other sign at other times: a
        peak within `radius` of the other sign and below this fraction of a stronger one's S/N is dropped
        whatever its time.

    Returns
    -------
    structured array
        By abs(S/N), highest first; ties by scale, time, y, x.
    """
    table = peaks if isinstance(peaks, np.ndarray) else np.concatenate([np.empty(0, PEAK_DTYPE), *peaks])
    keys = (table["x"], table["y"], table["time"], table["scale"], -np.abs(table["snr"]))
    table = table[np.lexsort(keys)]
    if not len(table):
        return table
    places = np.column_stack([table["y"] + table["offset_y"], table["x"] + table["offset_x"]])
    tree = cKDTree(places)
    alive = np.ones(len(table), bool)
    for i in range(len(table)):
        if not alive[i]:
            continue
        near = np.array(tree.query_ball_point(places[i], radius + 1e-9))
        near = near[near > i]
        if not len(near):
            continue
        other, this = table[near], table[i]
        distance = np.abs(other["time"] - this["time"])
        same = distance <= reach * (other["temporal_sigma"] + this["temporal_sigma"])
        opposite = (other["snr"] * this["snr"] < 0) & (np.abs(other["snr"]) < lobe * abs(this["snr"]))
        alive[near[same | opposite]] = False
    return table[alive]


@njit(cache=True, nogil=True)
def _local_maxima(snr, threshold, y0, y1, x0, x1):
    n, ny, nx = snr.shape
    found = []
    for j in range(n):
        for y in range(y0, y1):
            for x in range(x0, x1):
                value = snr[j, y, x]
                if not abs(value) >= threshold:
                    continue
                sign = np.float32(1) if value > 0 else np.float32(-1)
                height = sign * value
                highest = True
                for b in range(max(j - 1, 0), min(j + 2, n)):
                    for v in range(max(y - 1, 0), min(y + 2, ny)):
                        for u in range(max(x - 1, 0), min(x + 2, nx)):
                            neighbour = sign * snr[b, v, u]
                            earlier = (b < j) or (b == j and (v < y or (v == y and u < x)))
                            if neighbour > height or (earlier and neighbour == height):
                                highest = False
                if highest:
                    found.append((j, y, x))
    out = np.empty((len(found), 3), np.int64)
    for i in range(len(found)):
        out[i, 0], out[i, 1], out[i, 2] = found[i]
    return out
