"""The spatial half of the matched filter: every frame correlated with the PSF at its own phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

Float32 = NDArray[np.float32]

# Per-pixel phases are rounded to this many steps per pixel: at FWHM 1.1 px a star then meets a template
# at most 1/32 px off, which costs 0.1 % of its S/N, and one tap's table (17 x 17) stays in the L1 cache.
PHASE_STEPS = 16


class PSFModel(Protocol):
    """Anything that evaluates a pixel-integrated PSF on stamps (`survey.kernels.psf.EffectivePSF`)."""

    def evaluate(self, offset_y: ArrayLike, offset_x: ArrayLike, size: int) -> NDArray[np.float64]:
        """Stamps (n, size, size) of a unit star at the centre pixel plus an offset."""
        ...


@dataclass(frozen=True)
class GaussianPSF:
    """Round Gaussian of standard deviation `sigma` (px), integrated over the pixel."""

    sigma: float

    @property
    def fwhm(self) -> float:
        """Full width at half maximum before the pixel's integration, in px."""
        return 2.3548200450309493 * self.sigma

    def evaluate(self, offset_y: ArrayLike, offset_x: ArrayLike, size: int) -> NDArray[np.float64]:
        """Stamps (n, size, size) of a unit star at the centre pixel plus (offset_y, offset_x)."""
        rows, columns = (
            self._profile(np.atleast_1d(np.asarray(o, float)), size) for o in (offset_y, offset_x)
        )
        return rows[:, :, None] * columns[:, None, :]

    def _profile(self, offset: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        d = np.arange(size) - size // 2 - offset[:, None]
        root = np.sqrt(2.0) * self.sigma
        return 0.5 * (erf((d + 0.5) / root) - erf((d - 0.5) / root))


def psf_model(psf: PSFModel | None, spatial_sigma: float | None) -> PSFModel:
    """The PSF given, or the Gaussian that stands in for it."""
    if psf is not None:
        return psf
    if spatial_sigma is None or not spatial_sigma > 0:
        raise ValueError(f"give a psf, or spatial_sigma > 0 in px (got {spatial_sigma})")
    return GaussianPSF(float(spatial_sigma))


def stamp_size(psf: PSFModel, size: int | None) -> int:
    """Odd side of the filter's stamp: the one asked for, or out to 1.5 FWHM, at least 5."""
    if size is not None:
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and positive, got {size}")
        return size
    fwhm = float(getattr(psf, "fwhm", 1.0))
    return 2 * max(2, int(np.ceil(1.5 * fwhm))) + 1


def phase_stamps(psf: PSFModel, phase_y: ArrayLike, phase_x: ArrayLike, size: int) -> NDArray[np.float64]:
    """Response (n, size, size) of the pixels around a star that sits on a reference pixel's centre.

    A sample taken at phase (y, x) sees the star at minus that offset.
    """
    return np.asarray(psf.evaluate(-np.asarray(phase_y, float), -np.asarray(phase_x, float), size), float)


def psf_pass(
    flux: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: NDArray[np.bool_],
    psf: PSFModel,
    phase_y: NDArray[np.float64],
    phase_x: NDArray[np.float64],
    size: int,
) -> tuple[Float32, Float32]:
    """Sums over the stamp of ``P flux / error**2`` and ``P**2 / error**2``, each (time, y, x).

    Notes
    -----
    Fluxes and errors are divided by one power of two near the typical error, so that float32 holds
    any unit; S/N is not changed by it, to the last bit.
    """
    n_frames, ny, nx = flux.shape
    good = error[:: max(1, n_frames // 4), ::7, ::7]
    good = good[np.isfinite(good) & (good > 0)]
    unit = 2.0 ** np.round(np.log2(np.median(good))) if good.size else 1.0
    signal = np.zeros((n_frames, ny, nx), np.float32)
    weight = np.zeros((n_frames, ny, nx), np.float32)
    if phase_y.ndim == 1:
        kernels = phase_stamps(psf, phase_y, phase_x, size).astype(np.float32)
        _pass_shift(flux, error, mask, kernels, 1.0 / unit, signal, weight)
        return signal, weight
    nodes = np.arange(PHASE_STEPS + 1) / PHASE_STEPS - 0.5
    node_y, node_x = np.meshgrid(nodes, nodes, indexing="ij")
    table = phase_stamps(psf, node_y.ravel(), node_x.ravel(), size).astype(np.float32)
    table = np.ascontiguousarray(table.transpose(1, 2, 0))
    _pass_field(flux, error, mask, phase_y, phase_x, table, 1.0 / unit, signal, weight)
    return signal, weight


@njit(cache=True, nogil=True, error_model="numpy")
def _prepare(flux, error, mask, scale, radius, g, w):
    """One frame's flux / error**2 and 1 / error**2 into zero-padded buffers."""
    ny, nx = flux.shape
    top = np.float32(3e38)
    zero = np.float32(0)
    for y in range(ny):
        frow, erow, mrow = flux[y], error[y], mask[y]
        grow = g[y + radius, radius : radius + nx]
        wrow = w[y + radius, radius : radius + nx]
        for x in range(nx):
            e = np.float32(erow[x] * scale)
            f = np.float32(frow[x] * scale)
            inverse = np.float32(1) / (e * e)
            # Comparisons with NaN are false; & and not `and`, so that the loop becomes vector code.
            ok = (not mrow[x]) & (e > 0) & (inverse < top) & (inverse > 0) & (abs(f) < top)
            wrow[x] = inverse if ok else zero
            grow[x] = f * inverse if ok else zero


@njit(cache=True, nogil=True)
def _pass_shift(flux, error, mask, kernels, scale, signal, weight):
    n_frames, ny, nx = flux.shape
    size = kernels.shape[1]
    radius = size // 2
    g = np.zeros((ny + 2 * radius, nx + 2 * radius), np.float32)
    w = np.zeros((ny + 2 * radius, nx + 2 * radius), np.float32)
    for k in range(n_frames):
        _prepare(flux[k], error[k], mask[k], scale, radius, g, w)
        for y in range(ny):
            a = signal[k, y]
            b = weight[k, y]
            for dy in range(size):
                for dx in range(size):
                    # Slices, not [x + dx]: an index that might be negative is not vectorised.
                    grow = g[y + dy, dx : dx + nx]
                    wrow = w[y + dy, dx : dx + nx]
                    c = kernels[k, dy, dx]
                    c2 = c * c
                    for x in range(nx):
                        a[x] += c * grow[x]
                        b[x] += c2 * wrow[x]


@njit(cache=True, nogil=True)
def _pass_field(flux, error, mask, phase_y, phase_x, table, scale, signal, weight):
    n_frames, ny, nx = flux.shape
    size = table.shape[0]
    steps = PHASE_STEPS
    radius = size // 2
    g = np.zeros((ny + 2 * radius, nx + 2 * radius), np.float32)
    w = np.zeros((ny + 2 * radius, nx + 2 * radius), np.float32)
    node = np.zeros((ny + 2 * radius, nx + 2 * radius), np.uint32)
    for k in range(n_frames):
        _prepare(flux[k], error[k], mask[k], scale, radius, g, w)
        for y in range(ny):
            nrow = node[y + radius, radius : radius + nx]
            yrow, xrow = phase_y[k, y], phase_x[k, y]
            for x in range(nx):
                iy = int((yrow[x] + 0.5) * steps + 0.5)
                ix = int((xrow[x] + 0.5) * steps + 0.5)
                nrow[x] = min(max(iy, 0), steps) * (steps + 1) + min(max(ix, 0), steps)
        for y in range(ny):
            a = signal[k, y]
            b = weight[k, y]
            for dy in range(size):
                for dx in range(size):
                    grow = g[y + dy, dx : dx + nx]
                    wrow = w[y + dy, dx : dx + nx]
                    nrow = node[y + dy, dx : dx + nx]
                    tap = table[dy, dx]
                    for x in range(nx):
                        c = tap[nrow[x]]
                        a[x] += c * grow[x]
                        b[x] += c * c * wrow[x]


@njit(cache=True, nogil=True)
def drop_spikes(signal, weight, threshold):
    """Take out, in place, epochs that stand alone: cosmic rays, satellites, hot pixels of one frame.

    An epoch is a spike where its PSF S/N is beyond `threshold` and neither the good epoch before nor
    the one after reaches half of it with the same sign. Frames must be in order of time.
    Returns the number of samples taken out.
    """
    n_frames, ny, nx = signal.shape
    dropped = 0
    limit = np.float32(threshold * threshold)
    for y in range(ny):
        for k in range(n_frames):
            for x in range(nx):
                a = signal[k, y, x]
                b = weight[k, y, x]
                if not a * a > limit * b:
                    continue
                half = np.float32(0.5) * a / np.sqrt(b)
                alone = True
                for step in (-1, 1):
                    j = k + step
                    while 0 <= j < n_frames and not weight[j, y, x] > 0:
                        j += step
                    if 0 <= j < n_frames:
                        neighbour = signal[j, y, x] / np.sqrt(weight[j, y, x])
                        if neighbour * half > half * half:
                            alone = False
                if alone:
                    signal[k, y, x] = 0
                    weight[k, y, x] = 0
                    dropped += 1
    return dropped
