"""What the detector makes of a noiseless image: noise, saturation, cosmic rays, bad pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from survey.simulate.scene import COSMIC, DETECTOR, NOISE, Scene

Array = NDArray[np.float64]

# Data-quality bits, with the meanings that Roman and JWST pipelines give them.
DO_NOT_USE = 1
SATURATED = 2
JUMP_DET = 4
DEAD = 1024
HOT = 2048

# Rows that are exposed together: a frame needs no second copy of itself, and a strip stays in cache.
STRIP = 64


@dataclass(frozen=True)
class Exposure:
    """One frame as the detector and a pipeline deliver it, all (y, x).

    Attributes
    ----------
    flux : array
        Calibrated counts, the sky included.
    error : array
        1-sigma error as a pipeline knows it: Poisson noise of the *observed* counts and read noise.
    dq : uint32 array
        `DO_NOT_USE` with one of `SATURATED`, `JUMP_DET`, `DEAD`, `HOT`; 0 = good.
    noiseless : array
        Expected flux of the sky and the stars.
    cosmic_rays : bool array
        Pixels touched by a cosmic ray, flagged or not.
    """

    flux: Array
    error: Array
    dq: NDArray[np.uint32]
    noiseless: Array
    cosmic_rays: NDArray[np.bool_]


def expose(scene: Scene, k: int, border: int = 0, dtype: type[np.floating] = np.float64) -> Exposure:
    """Render frame k of a scene: a pure function, so frames may be made in any order and place.

    Parameters
    ----------
    border : int
        Pixels added around the detector.
    dtype : type
        Of flux and error.
    """
    noiseless = scene.noiseless(k, border)
    flux, error = np.empty(noiseless.shape, dtype), np.empty(noiseless.shape, dtype)
    dq = np.zeros(noiseless.shape, np.uint32)
    rng = scene.rng(NOISE, k)
    tracks = _draw_cosmic_rays(scene, k, noiseless.shape)
    for first in range(0, len(noiseless), STRIP):
        rows = slice(first, first + STRIP)
        electrons = _respond(scene, noiseless[rows], dq[rows], border, first // STRIP)
        electrons = rng.poisson(electrons).astype(float)
        tracks.add(electrons, dq[rows], first)
        electrons += scene.settings.read_noise * rng.standard_normal(electrons.shape)
        flux[rows], error[rows] = _read_out(scene, electrons, dq[rows])
    hit = np.zeros(noiseless.shape, bool)
    hit[tracks.y, tracks.x] = True
    return Exposure(flux, error, dq, noiseless, hit)


def true_error(scene: Scene, noiseless: Array) -> Array:
    """Standard deviation of the noise about a noiseless image, bad pixels and flat-field errors apart."""
    return np.sqrt(noiseless * scene.gain + scene.settings.read_noise**2) / scene.gain


def _read_out(scene: Scene, electrons: Array, dq: NDArray[np.uint32]) -> tuple[Array, Array]:
    """Clip at saturation; flux and the error that the observed counts suggest."""
    s, gain = scene.settings, scene.gain
    if s.saturation is not None:
        full = electrons >= s.saturation * gain
        electrons[full] = s.saturation * gain
        dq[full] |= SATURATED | DO_NOT_USE
    return electrons / gain, np.sqrt(np.maximum(electrons, 0) + s.read_noise**2) / gain


def _respond(scene: Scene, flux: Array, dq: NDArray[np.uint32], border: int, strip: int) -> Array:
    """Expected electrons of a strip: flat-field errors and bad pixels, the same in every frame."""
    s = scene.settings
    electrons = flux * scene.gain
    rng = scene.rng(DETECTOR, border, strip)
    if s.flat_error > 0:
        electrons *= np.maximum(1 + s.flat_error * rng.standard_normal(electrons.shape), 0)
    if s.bad_pixels > 0:
        places = rng.choice(electrons.size, rng.binomial(electrons.size, s.bad_pixels), replace=False)
        dead, hot = places[::2], places[1::2]
        y, x = np.unravel_index(dead, electrons.shape)
        electrons[y, x] = 0
        dq[y, x] |= np.uint32(DEAD | DO_NOT_USE)
        y, x = np.unravel_index(hot, electrons.shape)
        electrons[y, x] += rng.lognormal(np.log(2e4), 1.0, len(hot))
        dq[y, x] |= np.uint32(HOT | DO_NOT_USE)
    return electrons


@dataclass(frozen=True)
class _Tracks:
    """Pixels that cosmic rays of one frame touch: place, charge in electrons, whether flagged."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    charge: Array
    flagged: NDArray[np.bool_]

    def add(self, electrons: Array, dq: NDArray[np.uint32], first: int) -> None:
        """Add to a strip that begins at row `first`, in place."""
        here = (self.y >= first) & (self.y < first + len(electrons))
        y, x = self.y[here] - first, self.x[here]
        np.add.at(electrons, (y, x), self.charge[here])
        flagged = self.flagged[here]
        dq[y[flagged], x[flagged]] |= np.uint32(JUMP_DET | DO_NOT_USE)


def _draw_cosmic_rays(scene: Scene, k: int, shape: tuple[int, ...]) -> _Tracks:
    """Straight tracks of a few pixels, of some 1500 electrons a pixel, each in one frame alone."""
    s, rng = scene.settings, scene.rng(COSMIC, k)
    n = rng.poisson(s.cosmic_rays * shape[0] * shape[1])
    start = rng.uniform(-0.5, np.array(shape) - 0.5, (n, 2))
    length, angle = 0.5 + rng.exponential(1.5, n), rng.uniform(0, 2 * np.pi, n)
    charge = rng.lognormal(np.log(1500), 0.8, n)
    flagged = rng.random(n) < s.cosmic_rays_flagged
    # Each track is laid down in steps of at most an eighth of a pixel.
    steps = np.maximum(2, np.ceil(8 * length)).astype(int)
    which = np.repeat(np.arange(n), steps)
    along = (
        (np.arange(len(which)) - np.repeat(np.cumsum(steps) - steps, steps)) / steps[which] * length[which]
    )
    y = np.rint(start[which, 0] + along * np.sin(angle[which])).astype(np.int64)
    x = np.rint(start[which, 1] + along * np.cos(angle[which])).astype(np.int64)
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    deposit = (charge * np.maximum(length, 1) / steps)[which]
    return _Tracks(y[inside], x[inside], deposit[inside], flagged[which][inside])
