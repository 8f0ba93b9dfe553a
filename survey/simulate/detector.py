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


@dataclass(frozen=True)
class Exposure:
    """One frame as the detector and a pipeline deliver it, all (y, x).

    Attributes
    ----------
    flux : array
        Calibrated counts, the sky included.
    error : array
        1-sigma error as a pipeline knows it: Poisson noise of the *observed* counts and read noise.
    true_error : array
        Standard deviation of the noise that was added, from the expected counts.
    dq : uint32 array
        `DO_NOT_USE` with one of `SATURATED`, `JUMP_DET`, `DEAD`, `HOT`; 0 = good.
    noiseless : array
        Expected flux of the sky and the stars.
    cosmic_rays : bool array
        Pixels touched by a cosmic ray, flagged or not.
    """

    flux: Array
    error: Array
    true_error: Array
    dq: NDArray[np.uint32]
    noiseless: Array
    cosmic_rays: NDArray[np.bool_]


def expose(scene: Scene, k: int, border: int = 0) -> Exposure:
    """Render frame k of a scene: a pure function, so frames may be made in any order and place.

    Parameters
    ----------
    border : int
        Pixels added around the detector.
    """
    s, gain = scene.settings, scene.gain
    noiseless = scene.noiseless(k, border)
    rng = scene.rng(NOISE, k)
    electrons = noiseless * gain
    dq = np.zeros(noiseless.shape, np.uint32)
    _apply_response(scene, electrons, dq, border)
    counts = rng.poisson(electrons).astype(float)
    hit = np.zeros(noiseless.shape, bool)
    if s.cosmic_rays > 0:
        hit = _add_cosmic_rays(scene, k, counts, dq)
    counts += s.read_noise * rng.standard_normal(counts.shape)
    if s.saturation is not None:
        full = counts >= s.saturation * gain
        counts[full] = s.saturation * gain
        dq[full] |= SATURATED | DO_NOT_USE
    error = np.sqrt(np.maximum(counts, 0) + s.read_noise**2) / gain
    true_error = np.sqrt(electrons + s.read_noise**2) / gain
    return Exposure(counts / gain, error, true_error, dq, noiseless, hit)


def _apply_response(scene: Scene, electrons: Array, dq: NDArray[np.uint32], border: int) -> None:
    """Flat-field errors and bad pixels, the same in every frame; in place."""
    s = scene.settings
    rng = scene.rng(DETECTOR, border)
    if s.flat_error > 0:
        electrons *= np.maximum(1 + s.flat_error * rng.standard_normal(electrons.shape), 0)
    if s.bad_pixels > 0:
        n = rng.binomial(electrons.size, s.bad_pixels)
        places = rng.choice(electrons.size, n, replace=False)
        dead, hot = places[: n // 2], places[n // 2 :]
        electrons.flat[dead] = 0
        electrons.flat[hot] += rng.lognormal(np.log(2e4), 1.0, len(hot))
        dq.flat[dead] |= np.uint32(DEAD | DO_NOT_USE)
        dq.flat[hot] |= np.uint32(HOT | DO_NOT_USE)


def _add_cosmic_rays(scene: Scene, k: int, counts: Array, dq: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Straight tracks of a few pixels, each in one frame alone; returns the pixels touched."""
    s = scene.settings
    rng = scene.rng(COSMIC, k)
    hit = np.zeros(counts.shape, bool)
    n = rng.poisson(s.cosmic_rays * counts.size)
    for _ in range(n):
        y, x = rng.uniform(-0.5, np.array(counts.shape) - 0.5)
        length, angle = 0.5 + rng.exponential(1.5), rng.uniform(0, 2 * np.pi)
        charge = rng.lognormal(np.log(1500), 0.8)
        flagged = rng.random() < s.cosmic_rays_flagged
        steps = np.linspace(0, length, max(2, int(8 * length)))
        iy = np.rint(y + steps * np.sin(angle)).astype(int)
        ix = np.rint(x + steps * np.cos(angle)).astype(int)
        inside = (iy >= 0) & (iy < counts.shape[0]) & (ix >= 0) & (ix < counts.shape[1])
        iy, ix = iy[inside], ix[inside]
        # The charge is given per pixel of track, so a long track is not fainter.
        np.add.at(counts, (iy, ix), charge * max(length, 1.0) / len(steps))
        hit[iy, ix] = True
        if flagged:
            dq[iy, ix] |= np.uint32(JUMP_DET | DO_NOT_USE)
    return hit
