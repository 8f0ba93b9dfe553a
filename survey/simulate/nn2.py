"""The simulation of the NN2 paper: supernovae in the sixteen observations of field f0438.

Barris et al. 2005, AJ 130, 2272, section 3 and Table 1. The images are not public; image and subtraction
noise here are a mix of seeing and zero points that gives the paper's scatter (METHODS, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Table 1: MJD, seeing in arcsec, zero point, median RMS with this image as the template, and median of NN2's
# RMS over it.
TABLE_1 = np.array(
    [
        (52164.57, 0.75, 30.48, 0.441, 0.951),
        (52176.49, 0.72, 30.05, 0.432, 0.963),
        (52191.50, 0.71, 30.12, 0.427, 0.970),
        (52198.56, 0.59, 27.63, 0.810, 0.625),
        (52204.59, 0.63, 30.46, 0.424, 0.973),
        (52225.39, 0.62, 30.17, 0.445, 0.960),
        (52231.38, 0.51, 30.46, 0.455, 0.944),
        (52232.35, 0.68, 30.21, 0.419, 0.970),
        (52236.34, 0.94, 30.36, 0.440, 0.938),
        (52252.35, 0.83, 30.59, 0.429, 0.957),
        (52263.38, 1.14, 30.33, 0.515, 0.839),
        (52283.39, 0.68, 30.51, 0.460, 0.946),
        (52288.23, 0.84, 30.65, 0.438, 0.941),
        (52289.39, 0.93, 30.27, 0.448, 0.936),
        (52323.35, 0.97, 30.23, 0.468, 0.908),
        (52369.25, 0.58, 29.58, 0.432, 0.943),
    ]
)
TIME, SEEING, ZERO_POINT, PAPER_RMS, PAPER_RATIO = TABLE_1.T
PAPER_NN2_RMS = 0.422
N_OBJECTS = 1775
# Table 2: K-S statistic and probability, all templates pooled, three bins of magnitude from bright to faint,
# and every template by itself.
PAPER_KS_ALL = (0.0769, 4.7430e-09)
PAPER_KS_BINS = ((482, 0.0809, 4.9083e-03), (617, 0.0897, 1.5707e-04), (676, 0.1330, 2.5150e-10))
PAPER_KS = np.array(
    [
        (0.0524, 1.4698e-02), (0.0462, 4.3869e-02), (0.0411, 9.6888e-02), (0.3977, 1.0e-30),
        (0.0445, 5.7717e-02), (0.0608, 2.6510e-03), (0.0845, 5.6244e-06), (0.0332, 2.7611e-01),
        (0.0518, 1.6326e-02), (0.0417, 8.9127e-02), (0.1639, 2.5672e-21), (0.0794, 2.4901e-05),
        (0.0575, 5.4234e-03), (0.0710, 2.4226e-04), (0.0885, 1.6592e-06), (0.0541, 1.0650e-02),
    ]
)  # fmt: skip

# The mix: image noise of an observation of ZP 30.3 and 0.7" seeing, subtraction noise as a part of it that
# grows with the difference of the two seeings squared, and how much both differ from place to place.
IMAGE_NOISE = 0.22
SUBTRACTION_PART = 0.21
SEEING_TERM = 2.6
PLACE_SCATTER = 0.4
# Days from no flux to the peak: a type Ia supernova at redshift 0.5, as a straight line.
RAMP = 40.0


@dataclass(frozen=True)
class SimulatedPairs:
    """Pairwise differences of simulated supernovae.

    Attributes
    ----------
    time : array (N,)
        MJD.
    flux : array (objects, N)
        True flux.
    magnitude : array (objects,)
        Peak magnitude; flux 1 is magnitude 25.
    difference, error : array (objects, N, N)
        ``difference[..., i, j] = V_j - V_i`` with noise, antisymmetric, and its true 1-sigma error.
    image_error : array (objects, N)
    subtraction_error : array (objects, N, N)
        The error's two parts.
    """

    time: Array
    flux: Array
    magnitude: Array
    difference: Array
    error: Array
    image_error: Array
    subtraction_error: Array


def image_noise(seeing: Array, zero_point: Array) -> Array:
    """Flux error of each observation, in the unit of Table 1's RMS."""
    return IMAGE_NOISE * 10 ** (-0.4 * 0.97 * (zero_point - 30.3)) * seeing / 0.7


def subtraction_noise(seeing: Array, error: Array) -> Array:
    """Flux error (N, N) that the subtraction of each pair adds; 0 on the diagonal."""
    mismatch = 1 + SEEING_TERM**2 * (seeing[:, None] ** 2 - seeing**2) ** 2
    noise = SUBTRACTION_PART * np.sqrt((error[:, None] ** 2 + error**2) * mismatch)
    np.fill_diagonal(noise, 0.0)
    return noise


def ramp(time: Array, peak_time: Array, peak: Array, days: float = RAMP) -> Array:
    """Fluxes (objects, N) that rise and fall in straight lines."""
    rise = 1 - np.abs(time - np.asarray(peak_time)[:, None]) / days
    return np.asarray(peak)[:, None] * np.clip(rise, 0, None)


def simulate_nn2(n_objects: int = N_OBJECTS, seed: int = 0) -> SimulatedPairs:
    """Differences of all pairs of the paper's sixteen observations for random supernovae.

    Examples
    --------
    >>> simulate_nn2(5).difference.shape
    (5, 16, 16)
    """
    rng = np.random.default_rng(seed)
    n = len(TIME)
    magnitude = rng.uniform(21.5, 25.5, n_objects)
    flux = ramp(
        TIME, rng.uniform(TIME[0] - RAMP, TIME[-1] + RAMP, n_objects), 10 ** (-0.4 * (magnitude - 25))
    )
    place = rng.lognormal(0.0, PLACE_SCATTER, n_objects)
    e = image_noise(SEEING, ZERO_POINT)
    s = subtraction_noise(SEEING, e)
    image_error, subtraction_error = place[:, None] * e, place[:, None, None] * s
    seen = flux + image_error * rng.normal(size=(n_objects, n))
    noise = np.triu(subtraction_error * rng.normal(size=(n_objects, n, n)), 1)
    difference = seen[:, None, :] - seen[:, :, None] + noise - noise.transpose(0, 2, 1)
    error = np.sqrt(image_error[:, None, :] ** 2 + image_error[:, :, None] ** 2 + subtraction_error**2)
    return SimulatedPairs(TIME, flux, magnitude, difference, error, image_error, subtraction_error)
