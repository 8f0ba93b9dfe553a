"""The temporal half of the matched filter: banded sums over epochs, one time scale at a time.

Written as loops and not as matrix products: the profile matrix is banded, and single-precision BLAS rounds a
pixel differently by its place within the block (seen with OpenBLAS 0.3.31), so that tiles would not agree.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

# Profiles are cut at 4 sigma and their squares at the same height, where 6e-5 of the sum is left out.
TEMPORAL_REACH = 4.0
# Pixels per block: 96 epochs of both sums stay in the L2 cache. No bit depends on it.
_BLOCK = 1024


def temporal_pass(
    signal: Float32, weight: Float32, profiles: Array, offsets: Array, ratio: Array
) -> NDArray[np.float32]:
    """S/N (n_t0, y, x) from the spatial sums (time, y, x).

    Parameters
    ----------
    signal, weight : float32 array (time, y, x)
        From `psf_pass`, frames in order of time.
    profiles : array (n_t0, time)
        Height of the event at each frame.
    offsets : array (n_t0, time)
        Distance of each frame from the centre in sigma.
    ratio : array (n_t0,)
        What the variance is multiplied by.
    """
    n_time, ny, nx = signal.shape
    snr = np.empty((len(profiles), ny * nx), np.float32)
    distance = np.abs(offsets)
    _banded(
        signal.reshape(n_time, -1),
        weight.reshape(n_time, -1),
        profiles.astype(np.float32),
        (profiles**2 * ratio[:, None]).astype(np.float32),
        _window(distance <= TEMPORAL_REACH),
        _window(distance <= TEMPORAL_REACH / np.sqrt(2)),
        snr,
    )
    return snr.reshape(-1, ny, nx)


def _window(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and one past the last True of each row; shape (n, 2)."""
    n = inside.shape[1]
    first = np.where(inside.any(axis=1), inside.argmax(axis=1), 0)
    last = np.where(inside.any(axis=1), n - inside[:, ::-1].argmax(axis=1), 0)
    return np.stack([first, last], axis=1)


@njit(cache=True, nogil=True)
def _add(out, source, coefficients, first, last, start, stop):
    """``out = sum_k coefficients[k] source[k, start:stop]`` for k in [first, last)."""
    n = stop - start
    for x in range(n):
        out[x] = np.float32(0)
    k = first
    while k + 4 <= last:
        r0, r1 = source[k, start:stop], source[k + 1, start:stop]
        r2, r3 = source[k + 2, start:stop], source[k + 3, start:stop]
        c0, c1 = coefficients[k], coefficients[k + 1]
        c2, c3 = coefficients[k + 2], coefficients[k + 3]
        for x in range(n):
            out[x] += (c0 * r0[x] + c1 * r1[x]) + (c2 * r2[x] + c3 * r3[x])
        k += 4
    while k < last:
        r = source[k, start:stop]
        c = coefficients[k]
        for x in range(n):
            out[x] += c * r[x]
        k += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _banded(signal, weight, profiles, squares, window, square_window, snr):
    n_pixels = signal.shape[1]
    numerator = np.empty(_BLOCK, np.float32)
    variance = np.empty(_BLOCK, np.float32)
    for start in range(0, n_pixels, _BLOCK):
        stop = min(start + _BLOCK, n_pixels)
        for j in range(profiles.shape[0]):
            _add(numerator, signal, profiles[j], window[j, 0], window[j, 1], start, stop)
            _add(variance, weight, squares[j], square_window[j, 0], square_window[j, 1], start, stop)
            row = snr[j, start:stop]
            for x in range(stop - start):
                row[x] = numerator[x] / np.sqrt(variance[x])
