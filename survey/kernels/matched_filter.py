"""Matched filters in (time, y, x): calibrated S/N of events on difference cubes.

An event is a temporal profile (a Gaussian) times the PSF at each sample's phase, s = T_k P(p - p0 + phase).
For a difference that comes from a linear reference the statistic is that of a joint fit of reference and
event, s' W r / sqrt(s' W (I - H) s) with the in-sample residuals r (DESIGN 2.6). Written with the
leave-one-out difference d and its error e it needs no leverage: W r = d / e**2 and the diagonal of W (I - H)
is 1 / e**2, both exactly, whatever a pixel's masks and weights. So

    S/N = sum T sum P d/e**2 / sqrt(ratio(t0, sigma) sum T**2 sum P**2/e**2),

where the ratio, near 1 for short events, holds the off-diagonal part (`retained_variance`): one number per
time scale and centre, made once for a field by `event_bank`. The spatial sums serve all time scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._event_model import retained_variance, temporal_profile
from survey.kernels._psf_pass import PSFModel, drop_spikes, psf_model, psf_pass, stamp_size
from survey.kernels._subpixel import SubpixelFilter, subpixel_filter
from survey.kernels._temporal_pass import temporal_pass

Array = NDArray[np.float64]


# Event centres taken at a time: a matrix of all centres and epochs would be gigabytes at 7,000 epochs.
PASS_BLOCK = 128
BANK_BLOCK = 1024


@dataclass(frozen=True)
class EventBank:
    """Time scales, the centres tried for each, and what the reference leaves of them.

    Attributes
    ----------
    time : array (time,)
        Times of the samples, in the unit of `temporal_sigma`.
    temporal_sigma : tuple of float
    t0 : tuple of array (n_t0,)
        Centres of the profiles, ascending, per scale.
    ratio : tuple of array (n_t0,)
        Variance relative to independent leave-one-out residuals (`retained_variance`); NaN where the
        reference absorbs such an event.
    subpixel : SubpixelFilter
        For the S/N between pixel centres (`survey.kernels.peaks.find_peaks`).
    """

    time: Array
    temporal_sigma: tuple[float, ...]
    t0: tuple[Array, ...]
    ratio: tuple[Array, ...]
    subpixel: SubpixelFilter


@dataclass(frozen=True)
class ScaleMap:
    """S/N of one time scale: `snr` (n_t0, y, x) float32 at the centres `t0`; NaN where nothing is known.

    `subpixel` gives the S/N between pixel centres from it.
    """

    temporal_sigma: float
    t0: Array
    snr: NDArray[np.float32]
    subpixel: SubpixelFilter | None = None


def event_centers(time: Array, sigma: float, step: float | None) -> Array:
    """Centres to try: every sample's time (`step` None), or steps of ``step * sigma`` near samples."""
    if step is None:
        return np.asarray(time, float)
    ordered = np.sort(time)
    cadence = float(np.median(np.diff(ordered))) if len(ordered) > 1 else 1.0
    spacing = max(step * sigma, cadence)
    centers = ordered[0] + spacing * np.arange(int((ordered[-1] - ordered[0]) / spacing + 1e-9) + 1)
    after = np.searchsorted(ordered, centers)
    distance = np.minimum(
        np.abs(ordered[np.maximum(after - 1, 0)] - centers),
        np.abs(ordered[np.minimum(after, len(ordered) - 1)] - centers),
    )
    return centers[distance <= max(sigma, cadence)]


def event_bank(
    temporal_sigma: Sequence[float],
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    *,
    psf: PSFModel | None = None,
    spatial_sigma: float | None = None,
    time: ArrayLike | None = None,
    frame_weight: ArrayLike | None = None,
    n_basis: int = 5,
    extension: float = 1.2,
    step: float | None = 0.5,
    size: int | None = None,
) -> EventBank:
    """Prepare a search once for a field; the result is small and serves every tile.

    Parameters
    ----------
    temporal_sigma : sequence of float
        Time scales, in images, or in the unit of `time` where that is given.
    phase_y, phase_x : array (time,) or (time, n)
        Phases of the frames in pixels; with rotation at n places of the field (16 are enough), over which
        the ratio is averaged.
    psf, spatial_sigma
        As in `matched_filter`.
    time : array (time,), optional
        Times of the samples, any spacing; default 0, 1, 2, ...
    frame_weight : array (time,), optional
        Relative inverse variance of the frames, 0 for a frame left out; default equal.
    n_basis, extension
        Of the reference; ``n_basis=0`` where the difference has no linear reference per pixel.
    step : float or None
        Spacing of the centres in units of sigma (never below the cadence); an event midway keeps
        exp(-step**2 / 16) of its S/N, 98.4 % at 0.5. None: a centre at every sample.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> bank = event_bank([2, 16], *rng.uniform(-0.5, 0.5, (2, 96)), spatial_sigma=0.5)
    >>> [len(t0) for t0 in bank.t0], bool(bank.ratio[0].mean() > 0.9 > 0.6 > bank.ratio[1].mean())
    ([96, 12], True)
    """
    model = psf_model(psf, spatial_sigma)
    py, px = (np.asarray(p, float) for p in (phase_y, phase_x))
    n_time = len(py)
    t = np.arange(n_time, dtype=float) if time is None else np.asarray(time, float)
    v = np.ones(n_time) if frame_weight is None else np.asarray(frame_weight, float)
    scales = tuple(float(s) for s in temporal_sigma)
    if not scales or min(scales) <= 0:
        raise ValueError(f"temporal_sigma must be positive, got {list(temporal_sigma)}")
    if t.shape != (n_time,) or v.shape != (n_time,):
        raise ValueError(
            f"time {t.shape} and frame_weight {v.shape} must have one entry per frame ({n_time})"
        )
    py, px = py.reshape(n_time, -1), px.reshape(n_time, -1)
    centers = tuple(event_centers(t, s, step) for s in scales)
    blocks = [(s, c[b]) for s, c in zip(scales, centers, strict=True) for b in _blocks(len(c), BANK_BLOCK)]
    ratio = np.concatenate(
        [
            np.mean(
                [
                    retained_variance(
                        model,
                        py[:, i],
                        px[:, i],
                        temporal_profile(t, c, s),
                        v,
                        n_basis=n_basis,
                        extension=extension,
                        size=size,
                    )
                    for i in range(py.shape[1])
                ],
                axis=0,
            )
            for s, c in blocks
        ]
    )
    edges = np.cumsum([len(c) for c in centers])[:-1]
    subpixel = subpixel_filter(model, stamp_size(model, size))
    return EventBank(t, scales, centers, tuple(np.split(ratio, edges)), subpixel)


def matched_filter_bank(
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    bank: EventBank,
    *,
    psf: PSFModel | None = None,
    spatial_sigma: float | None = None,
    size: int | None = None,
    spike: float | None = 6.0,
) -> Iterator[ScaleMap]:
    """S/N of events of every scale of a bank, one scale at a time.

    Parameters
    ----------
    flux, error : array (time, y, x)
        Leave-one-out difference and its 1-sigma error, which includes the reference's.
    mask : bool array (time, y, x)
        True = bad. Samples that are not finite, or whose error is not positive, are left out too.
    phase_y, phase_x : array (time,) or (time, y, x)
        Phases in pixels.
    bank : EventBank
        From `event_bank`.
    psf : object with ``evaluate(offset_y, offset_x, size)``, optional
        Pixel-integrated PSF; else a Gaussian of `spatial_sigma` px.
    size : int, optional
        Odd side of the stamp; default out to 1.5 FWHM. Results are those of the whole image from
        ``size // 2`` px inside the array.
    spike : float or None
        Epochs whose PSF S/N is beyond this while neither neighbour in time reaches half of it are left
        out there: a cosmic ray is no event. None keeps them.

    Yields
    ------
    ScaleMap
        In the bank's order. Both signs: fading sources have negative S/N.

    Notes
    -----
    Memory: two float32 cubes of the input's shape and one scale's map, (8 + 4 n_t0 / n_time) bytes a sample.
    """
    shape = flux.shape
    if flux.ndim != 3 or error.shape != shape or mask.shape != shape:
        raise ValueError(f"flux {shape}, error {error.shape} and mask {mask.shape} must be one (time, y, x)")
    if len(bank.time) != shape[0]:
        raise ValueError(f"the bank was made for {len(bank.time)} frames, the cube has {shape[0]}")
    py, px = (np.asarray(p, float) for p in (phase_y, phase_x))
    if py.shape not in (shape, shape[:1]) or px.shape != py.shape:
        raise ValueError(f"phases {py.shape}, {px.shape} must be ({shape[0]},) or {shape}")
    model = psf_model(psf, spatial_sigma)
    signal, weight = psf_pass(flux, error, mask, model, py, px, stamp_size(model, size))
    order = np.argsort(bank.time, kind="stable")
    if np.any(np.diff(order) != 1):
        signal, weight = signal[order], weight[order]
    if spike is not None:
        drop_spikes(signal, weight, spike)
    time = bank.time[order]
    for sigma, t0, ratio in zip(bank.temporal_sigma, bank.t0, bank.ratio, strict=True):
        snr = np.empty((len(t0), *shape[1:]), np.float32)
        for block in _blocks(len(t0), PASS_BLOCK):
            profiles = temporal_profile(time, t0[block], sigma)
            offsets = (time - t0[block, None]) / sigma
            snr[block] = temporal_pass(signal, weight, profiles, offsets, ratio[block])
        yield ScaleMap(sigma, t0, snr, bank.subpixel)


def _blocks(count: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def matched_filter(
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    temporal_sigma: float,
    psf: PSFModel | None = None,
    spatial_sigma: float | None = None,
    phase_y: ArrayLike | None = None,
    phase_x: ArrayLike | None = None,
    time: ArrayLike | None = None,
    frame_weight: ArrayLike | None = None,
    n_basis: int = 5,
    extension: float = 1.2,
    size: int | None = None,
    spike: float | None = None,
    bank: EventBank | None = None,
) -> NDArray[np.float32]:
    """S/N of an event of one time scale centred on every sample's time and every pixel.

    Parameters
    ----------
    flux, error, mask, psf, spatial_sigma, size, spike
        As in `matched_filter_bank`.
    temporal_sigma : float
        Gaussian sigma of the event, in images, or in the unit of `time` where that is given.
    phase_y, phase_x : array (time,) or (time, y, x), optional
        Phases in pixels; default 0.
    time, frame_weight, n_basis, extension
        As in `event_bank`.
    bank : EventBank, optional
        Made beforehand for this scale (its first is used); else made here, from at most 16 places of the
        array when phases are per pixel.

    Returns
    -------
    array (time, y, x) float32
        Unit variance on noise; NaN where no sample, or no reference, supports a value. Time in the
        bank's order of centres (that of the samples unless a bank is given).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=(60, 32, 32))
    >>> snr = matched_filter(noise, np.ones_like(noise), noise > 9, temporal_sigma=3.0, spatial_sigma=0.6,
    ...                      n_basis=0)
    >>> bool(abs(snr.std() - 1) < 0.05)
    True
    """
    py = np.zeros(len(flux)) if phase_y is None else np.asarray(phase_y, float)
    px = np.zeros(len(flux)) if phase_x is None else np.asarray(phase_x, float)
    if bank is None:
        places = (py, px)
        if py.ndim == 3:
            rows, columns = (np.linspace(0, n - 1, 6).astype(int)[1:-1] for n in py.shape[1:])
            places = (py[:, rows][:, :, columns], px[:, rows][:, :, columns])
        bank = event_bank(
            [temporal_sigma],
            *places,
            psf=psf,
            spatial_sigma=spatial_sigma,
            time=time,
            frame_weight=frame_weight,
            n_basis=n_basis,
            extension=extension,
            step=None,
            size=size,
        )
    maps = matched_filter_bank(
        flux, error, mask, py, px, bank, psf=psf, spatial_sigma=spatial_sigma, size=size, spike=spike
    )
    return next(maps).snr
