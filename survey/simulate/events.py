"""Sources that change: point-lens microlensing, periodic variables, and the truth about them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

TRUTH_DTYPE = np.dtype(
    [
        ("id", "i4"),
        ("kind", "U12"),
        ("x", "f8"),
        ("y", "f8"),
        ("magnitude", "f8"),
        ("flux", "f8"),
        ("u0", "f8"),
        ("tE", "f8"),
        ("t0", "f8"),
        ("period", "f8"),
        ("amplitude", "f8"),
        ("vx", "f8"),
        ("vy", "f8"),
        ("peak_difference_flux", "f8"),
        ("duration", "f8"),
        ("snr", "f8"),
    ]
)

# Fourier series of a fundamental-mode RR Lyrae star, in magnitudes: a steep rise and a slow decline.
_RR_AMPLITUDES = np.array([1.0, 0.48, 0.34, 0.21, 0.12])
_RR_PHASES = np.array([0.0, 2.4, 5.0, 1.5, 4.4])


def magnification(u: ArrayLike) -> Array:
    """Point-lens magnification at separation u in Einstein radii (Paczynski 1986, ApJ 304, 1, eq. 5).

    Examples
    --------
    >>> float(magnification(1.0).round(4))
    1.3416
    """
    u = np.asarray(u, float)
    return (u**2 + 2) / (u * np.sqrt(u**2 + 4))


def microlensing(time: ArrayLike, u0: float, t_einstein: float, t0: float) -> Array:
    """Magnification at each time of a lens passing on a straight line."""
    tau = (np.asarray(time, float) - t0) / t_einstein
    return magnification(np.hypot(u0, tau))


def half_width(u0: ArrayLike) -> Array:
    """Full duration at half of the peak excess, A - 1 = (A(u0) - 1) / 2, in Einstein times."""
    a = 1 + (magnification(u0) - 1) / 2
    return 2 * np.sqrt(2 * a / np.sqrt(a**2 - 1) - 2 - np.asarray(u0, float) ** 2)


def rr_lyrae(phase: ArrayLike) -> Array:
    """Shape of an RR Lyrae-like light curve with zero mean and unit peak-to-peak range."""
    grid = np.linspace(0, 1, 512, endpoint=False)

    def series(p: Array) -> Array:
        harmonics = np.arange(1, len(_RR_AMPLITUDES) + 1)
        # Minus: the series is one of magnitudes.
        return -np.sin(2 * np.pi * p[..., None] * harmonics + _RR_PHASES) @ _RR_AMPLITUDES

    return series(np.asarray(phase, float)) / np.ptp(series(grid))


def relative_light_curve(source: Any, time: ArrayLike) -> Array:
    """Flux change of a truth row relative to its baseline flux, at each time.

    Zero at the baseline: A - 1 for microlensing; for a variable, its oscillation about the mean; for
    a moving body, always.
    """
    time = np.asarray(time, float)
    if source["kind"] == "microlensing":
        return microlensing(time, source["u0"], source["tE"], source["t0"]) - 1
    if source["kind"] == "moving":
        return np.zeros_like(time)
    phase = (time - source["t0"]) / source["period"]
    if source["kind"] == "rrlyrae":
        return source["amplitude"] * rr_lyrae(phase)
    if source["kind"] == "sinusoid":
        return source["amplitude"] * np.sin(2 * np.pi * phase)
    raise ValueError(f"unknown kind of source {source['kind']!r}")


def draw_microlensing(
    rng: np.random.Generator, time: Array, durations: tuple[float, float], cadence: float
) -> dict[str, float]:
    """One lens, its duration (frames at half peak) and impact parameter log-uniform, its peak in the span."""
    u0 = float(np.exp(rng.uniform(np.log(0.05), np.log(1.2))))
    duration = float(np.exp(rng.uniform(*np.log(durations)))) * cadence
    t0 = time[0] + (time[-1] - time[0]) * float(rng.uniform(0.1, 0.9))
    return {"u0": u0, "tE": duration / float(half_width(u0)), "t0": t0, "duration": duration}


def draw_variable(rng: np.random.Generator, time: Array, cadence: float) -> dict[str, float]:
    """One periodic variable: period from a few frames to the span, amplitude 5 to 50 per cent."""
    longest = max(6.0, 0.8 * (time[-1] - time[0]) / cadence)
    period = float(np.exp(rng.uniform(np.log(5.0), np.log(longest)))) * cadence
    amplitude = float(np.exp(rng.uniform(np.log(0.05), np.log(0.5))))
    t0 = time[0] + float(rng.random()) * period
    return {"period": period, "amplitude": amplitude, "t0": t0, "duration": np.nan}


def draw_moving(rng: np.random.Generator, time: Array, cadence: float) -> dict[str, float]:
    """One moving body: 0.1 to 3 pixels a frame in any direction, velocities in pixels a day."""
    speed = float(np.exp(rng.uniform(np.log(0.1), np.log(3.0)))) / cadence
    angle = float(rng.uniform(0, 2 * np.pi))
    t0 = time[0] + (time[-1] - time[0]) * float(rng.uniform(0.1, 0.9))
    return {"vx": speed * np.cos(angle), "vy": speed * np.sin(angle), "t0": t0}


def expected_snr(
    change: Array, flux: float, stamp: Array, level: Array, gain: float, read_noise: float
) -> float:
    """S/N of a known light curve in all frames, its baseline being measured in the same frames.

    Parameters
    ----------
    change : array (time,)
        Relative flux change (`relative_light_curve`).
    flux : float
        Baseline flux of the source.
    stamp, level : arrays (y, x)
        PSF at the source and the flux of everything else.
    gain, read_noise : float
        Electrons per unit of flux; electrons.
    """
    own = flux * (1 + change)[:, None, None] * stamp
    variance = np.maximum(level + own, 0) / gain + (read_noise / gain) ** 2
    weight = np.sum(stamp**2 / variance, axis=(1, 2))
    signal = flux * change
    power = np.sum(weight * signal**2) - np.sum(weight * signal) ** 2 / np.sum(weight)
    return float(np.sqrt(max(power, 0.0)))
