"""What a peak of the search is: exact significance, place, shape, supporting epochs, flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._event_fit import EventStamp, as_phases
from survey.kernels._event_model import temporal_profile
from survey.kernels._psf_pass import PSFModel, psf_model, stamp_size

Array = NDArray[np.float64]

# Without its best epoch an event of sigma >= 2 images keeps over 70 % of its S/N; a cosmic ray keeps none.
_LEFT_WITHOUT_BEST = 0.4
_LEAST_WITHOUT_BEST = 3.0
# A half's position is believed to differ when it does so by this many sigma and by this many px.
_DRIFT_SIGMA, _DRIFT_PX = 4.0, 0.2
# A point source's stamp correlates with the PSF below 0.8 only when it is faint, and then its chi2 is fair:
# the PSF may be wrong by this fraction of the source, and noise leaves chi2 within 5 sigma of 1.
_LEAST_CORRELATION, _POINT_CORRELATION = 0.5, 0.8
_PSF_ERROR, _CHI2_SIGMA = 0.3, 5.0
_LEAST_COVERAGE = 0.7


class EventFlag(IntFlag):
    """Reasons to look twice at a candidate."""

    NONE = 0
    EDGE = 1  # the stamp leaves the image, or many of its samples are bad
    SATURATED_NEIGHBOUR = 2
    SINGLE_EPOCH = 4  # one epoch makes the detection: a cosmic ray, a satellite
    MOVING = 8  # its place drifts between the first and the second half
    UNLIKE_PSF = 16


@dataclass(frozen=True)
class Significance:
    """A joint fit of reference and event: signal to noise, amplitude and its 1-sigma error."""

    snr: float
    amplitude: float
    amplitude_error: float


@dataclass(frozen=True)
class Candidate:
    """A measured peak.

    Attributes
    ----------
    y, x, position_error : float
        Place on the reference grid (px) and its 1-sigma error per axis.
    time, temporal_sigma : float
        Centre and scale, in the unit of the times given.
    snr, amplitude, amplitude_error : float
        Of the joint fit at that place and time; amplitude is flux at the profile's maximum.
    psf_correlation : float
        Between the stamp's pixels and the PSF's response, each in units of its noise; 1 for a point source.
    psf_chi2 : float
        Chi2 of the stamp's pixels against the PSF per degree of freedom, with their full covariance.
    n_epochs : int
        Epochs within 2 sigma whose own PSF S/N has the event's sign and is over 1.5.
    snr_without_best : float
        S/N of the same event when its best epoch is left out.
    drift, drift_error : float
        Distance (px) between the places of the first and the second half; NaN where unmeasurable.
    flags : EventFlag
    """

    y: float
    x: float
    position_error: float
    time: float
    temporal_sigma: float
    snr: float
    amplitude: float
    amplitude_error: float
    psf_correlation: float
    psf_chi2: float
    n_epochs: int
    snr_without_best: float
    drift: float
    drift_error: float
    flags: EventFlag


def exact_significance(
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    y: float,
    x: float,
    t0: float,
    temporal_sigma: float,
    psf: PSFModel | None = None,
    spatial_sigma: float | None = None,
    phase_y: ArrayLike | None = None,
    phase_x: ArrayLike | None = None,
    time: ArrayLike | None = None,
    leverage: NDArray[np.floating] | None = None,
    fit_mask: NDArray[np.bool_] | None = None,
    others: Sequence[tuple[float, float]] = (),
    n_basis: int = 5,
    extension: float = 1.2,
    size: int | None = None,
) -> Significance:
    """S/N and amplitude of one event with the true weights, masks and phases of its samples.

    Parameters
    ----------
    flux, error, mask : array (time, y, x)
        Leave-one-out difference, its 1-sigma error, True = bad.
    y, x : float
        Place of the source.
    t0, temporal_sigma : float
        Gaussian profile, in the unit of `time`.
    psf, spatial_sigma, phase_y, phase_x, time, n_basis, extension, size
        As in `survey.kernels.matched_filter.matched_filter`.
    leverage, fit_mask : array (time, y, x), optional
        As in `survey.kernels.reference.Difference`. An event whose samples are in `fit_mask` is measured
        against the reference of the others.
    others : sequence of (t0, temporal_sigma)
        Further events of the same place, fitted together with this one.

    Notes
    -----
    The filter is the search's, sum s r / sigma**2; its variance and its response to the event follow the
    data's way through the reference fit, extension rows included (`_event_model`).
    """
    py, px = as_phases(phase_y, phase_x, len(flux))
    model = psf_model(psf, spatial_sigma)
    iy, ix = int(np.rint(y)), int(np.rint(x))
    stamp = EventStamp(
        flux, error, mask, py, px, iy, ix, stamp_size(model, size),
        leverage=leverage, fit_mask=fit_mask, n_basis=n_basis, extension=extension,
    )  # fmt: skip
    t = _times(time, len(flux))
    shape = stamp.psf(model, y - iy, x - ix)
    events = [(t0, temporal_sigma), *others]
    profiles = np.concatenate([_profile(t, np.array([c]), s) for c, s in events])
    amplitude, covariance = stamp.solve(profiles[:, :, None, None] * shape)
    return _significance(amplitude[0], covariance[0, 0])


def measure_candidate(
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    y: float,
    x: float,
    t0: float,
    temporal_sigma: float,
    psf: PSFModel | None = None,
    spatial_sigma: float | None = None,
    phase_y: ArrayLike | None = None,
    phase_x: ArrayLike | None = None,
    time: ArrayLike | None = None,
    leverage: NDArray[np.floating] | None = None,
    fit_mask: NDArray[np.bool_] | None = None,
    saturated: NDArray[np.bool_] | None = None,
    n_basis: int = 5,
    extension: float = 1.2,
    size: int | None = None,
) -> Candidate:
    """Measure a peak of the search at its pixel: refined time and place, shape, support, flags.

    Parameters
    ----------
    y, x, t0, temporal_sigma : float
        The peak, in pixels of the array given.
    saturated : bool array (y, x) or (time, y, x), optional
        Saturated pixels, for the flag.
    others
        All other arguments as in `exact_significance`.
    """
    py, px = as_phases(phase_y, phase_x, len(flux))
    model = psf_model(psf, spatial_sigma)
    iy, ix = int(np.rint(y)), int(np.rint(x))
    side = stamp_size(model, size)
    stamp = EventStamp(
        flux, error, mask, py, px, iy, ix, side,
        leverage=leverage, fit_mask=fit_mask, n_basis=n_basis, extension=extension,
    )  # fmt: skip
    t = _times(time, len(flux))
    t0 = _best_time(stamp, stamp.psf(model), t, t0, temporal_sigma)
    profile = _profile(t, np.array(t0), temporal_sigma)
    d_y, d_x, place_error = _locate(stamp, model, profile)
    shape = stamp.psf(model, d_y, d_x)
    amplitude, covariance = stamp.solve((profile[:, None, None] * shape)[None])
    fit = _significance(amplitude[0], covariance[0, 0])
    without, n_epochs = _support(stamp, shape, profile, t, t0, temporal_sigma, fit.snr)
    correlation, chi2 = _likeness(stamp, profile[:, None, None] * shape)
    drift, drift_error = _drift(stamp, model, profile, t, t0, (d_y, d_x))
    flags = EventFlag.NONE
    near = np.abs(t - t0) <= 2 * temporal_sigma
    coverage = stamp.good[near][:, stamp.inside].mean() if near.any() else 0.0
    if not stamp.complete or coverage < _LEAST_COVERAGE:
        flags |= EventFlag.EDGE
    if saturated is not None and _near_saturated(saturated, iy, ix, side // 2 + 1):
        flags |= EventFlag.SATURATED_NEIGHBOUR
    if without < max(_LEFT_WITHOUT_BEST * abs(fit.snr), _LEAST_WITHOUT_BEST):
        flags |= EventFlag.SINGLE_EPOCH
    if drift > max(_DRIFT_SIGMA * drift_error, _DRIFT_PX):
        flags |= EventFlag.MOVING
    if _unlike_psf(correlation, chi2, fit.snr, side**2 - 1):
        flags |= EventFlag.UNLIKE_PSF
    return Candidate(
        y=iy + d_y, x=ix + d_x, position_error=place_error, time=t0, temporal_sigma=temporal_sigma,
        snr=fit.snr, amplitude=fit.amplitude, amplitude_error=fit.amplitude_error,
        psf_correlation=correlation, psf_chi2=chi2, n_epochs=n_epochs,
        snr_without_best=float(np.sign(fit.snr) * without),
        drift=drift, drift_error=drift_error, flags=flags,
    )  # fmt: skip


def _times(time: ArrayLike | None, n_time: int) -> Array:
    return np.arange(n_time, dtype=float) if time is None else np.asarray(time, float)


def _profile(t: Array, t0: Array, sigma: float) -> Array:
    """`temporal_profile` without tails below rounding.

    Where all samples near an event are bad, its far tails are all that is left: squares of 1e-110, whose
    inverses overflow. No such sample supports an event.
    """
    profile = temporal_profile(t, t0, sigma)
    return np.where(profile > np.finfo(float).eps, profile, 0.0)


def _significance(amplitude: float, variance: float) -> Significance:
    error = float(np.sqrt(variance))
    return Significance(float(amplitude / error) if error > 0 else 0.0, float(amplitude), error)


def _scan(stamp: EventStamp, templates: Array) -> Array:
    """S/N (n,) of templates, each alone; 0 where nothing supports one."""
    sums, u = stamp.apply(templates)
    variance = np.einsum("akyx,kyx,akyx->a", u, stamp.variance, u)
    return np.where(variance > 0, sums / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)


def _best_time(stamp: EventStamp, shape: Array, t: Array, t0: float, sigma: float) -> float:
    """Centre of the highest S/N within half a sigma, by a parabola through three trials."""
    step = 0.5 * sigma
    centers = t0 + step * np.array([-1.0, 0.0, 1.0])
    profiles = _profile(t, centers, sigma)
    low, mid, high = np.abs(_scan(stamp, profiles[:, :, None, None] * shape))
    curvature = low - 2 * mid + high
    if curvature >= 0:
        return float(t0)
    return float(t0 + step * np.clip(0.5 * (low - high) / curvature, -1, 1))


def _locate(
    stamp: EventStamp,
    model: PSFModel,
    profile: Array,
    start: tuple[float, float] = (0.0, 0.0),
    steps: int = 4,
) -> tuple[float, float, float]:
    """Offset from the centre pixel, by Gauss-Newton on flux and place together, and its error per axis."""
    (y, x), delta = start, 0.05
    error = np.nan
    for _ in range(steps):
        shape = stamp.psf(model, y, x)
        slope_y = (stamp.psf(model, y + delta, x) - stamp.psf(model, y - delta, x)) / (2 * delta)
        slope_x = (stamp.psf(model, y, x + delta) - stamp.psf(model, y, x - delta)) / (2 * delta)
        templates = np.stack([shape, slope_y, slope_x]) * profile[:, None, None]
        amplitude, covariance = stamp.solve(templates)
        if amplitude[0] == 0 or not np.isfinite(amplitude).all():
            return start[0], start[1], np.nan
        error = float(np.sqrt(max(covariance[1, 1] + covariance[2, 2], 0) / 2) / abs(amplitude[0]))
        step = np.clip(amplitude[1:] / amplitude[0], -0.3, 0.3)
        # A source further off than this would have peaked in the next pixel.
        y, x = (float(np.clip(a, -1, 1)) for a in (y + step[0], x + step[1]))
        if np.abs(step).max() < 0.01:
            break
    return y, x, error


def _support(
    stamp: EventStamp, shape: Array, profile: Array, t: Array, t0: float, sigma: float, snr: float
) -> tuple[float, int]:
    """S/N without the best epoch, counted in the event's sign, and the number of supporting epochs."""
    sign = np.sign(snr)
    signal = np.einsum("kyx,kyx,kyx->k", shape, stamp.weight, stamp.flux) * sign
    weight = np.einsum("kyx,kyx->k", shape**2, stamp.weight)
    own = np.divide(signal, np.sqrt(weight), out=np.zeros_like(signal), where=weight > 0)
    n_epochs = int(np.count_nonzero((np.abs(t - t0) <= 2 * sigma) & (own > 1.5)))
    rest = profile.copy()
    rest[np.argmax(profile * signal)] = 0.0
    return float(sign * _scan(stamp, (rest[:, None, None] * shape)[None])[0]), n_epochs


def _likeness(stamp: EventStamp, template: Array) -> tuple[float, float]:
    """Correlation and reduced chi2 of the stamp's pixels, each filtered alone, with the PSF's response."""
    sums, covariance, response = stamp.pixels(template)
    noise = np.sqrt(np.diag(covariance))
    known = noise > 1e-6 * noise.max(initial=0)
    if np.count_nonzero(known) < 3:
        return 0.0, np.nan
    scaled, expected = sums[known] / noise[known], response[known] / noise[known]
    correlation = float(scaled @ expected / np.sqrt((scaled @ scaled) * (expected @ expected)))
    inverse = np.linalg.pinv(covariance[np.ix_(known, known)] / np.outer(noise[known], noise[known]))
    amplitude = expected @ inverse @ scaled / (expected @ inverse @ expected)
    left = scaled - amplitude * expected
    return abs(correlation), float(left @ inverse @ left / (np.count_nonzero(known) - 1))


def _unlike_psf(correlation: float, chi2: float, snr: float, n_free: int) -> bool:
    """Whether a stamp's pixels do not look like a point source of that S/N."""
    limit = 1 + _CHI2_SIGMA * np.sqrt(2 / n_free) + (_PSF_ERROR * snr) ** 2 / n_free
    return bool(correlation < _LEAST_CORRELATION or (correlation < _POINT_CORRELATION and chi2 > limit))


def _drift(
    stamp: EventStamp, model: PSFModel, profile: Array, t: Array, t0: float, place: tuple[float, float]
) -> tuple[float, float]:
    """Distance in px between the places of the two halves, and its error."""
    first = _locate(stamp, model, np.where(t < t0, profile, 0.0), place, steps=2)
    second = _locate(stamp, model, np.where(t > t0, profile, 0.0), place, steps=2)
    error = float(np.hypot(first[2], second[2]))
    if not np.isfinite(error):
        return np.nan, np.nan
    return float(np.hypot(first[0] - second[0], first[1] - second[1])), error


def _near_saturated(saturated: NDArray[np.bool_], y: int, x: int, reach: int) -> bool:
    near = np.s_[..., max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    return bool(saturated[near].any())
