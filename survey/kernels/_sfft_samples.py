"""Template samples R(p - a + phase(p)) that a delta-basis kernel combines, one block of pixels at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import spline_filter

from survey.kernels._inner import inner
from survey.kernels.legendre import design_matrix
from survey.kernels.reference import ReferenceFit

Array = NDArray[np.float64]
# A continuous template: (phase_y, phase_x), scalars or (y, x), -> its value at (y + phase_y, x + phase_x).
TemplateFunction = Callable[[ArrayLike, ArrayLike], ArrayLike]
_WIDEST = 32


def block_side(shape: tuple[int, int]) -> int:
    """Side of the blocks of pixels over which the kernel's polynomials are held: a small part of the field.

    It depends on the field alone, never on a tile, so that matrix products have one width and the same bits.
    """
    return next((side for side in (32, 16) if 24 * side <= min(shape)), 8)


class Samples(Protocol):
    """What the ways to sample a template offer."""

    def fill(self, y0: int, x0: int, out: NDArray[np.floating]) -> None:
        """Write the samples (n_kernel, side**2) of the block at (y0, x0); zero outside the image."""


class ShiftedSamples:
    """R(p - a) of an image on the same pixels, for a over the kernel's pixels in [y, x] order."""

    def __init__(self, template: NDArray[np.floating], kernel_shape: tuple[int, int]) -> None:
        self._kernel_shape = kernel_shape
        hy, hx = kernel_shape[0] // 2, kernel_shape[1] // 2
        self.padded = np.pad(template, ((hy, hy + _WIDEST), (hx, hx + _WIDEST)))

    def fill(self, y0: int, x0: int, out: NDArray[np.floating]) -> None:
        """Samples of a block."""
        ky, kx = self._kernel_shape
        _shifted_block(self.padded, y0, x0, ky, kx, out)


class SplineSamples:
    """R(p - a + phase(p)) of a well-sampled image by its cubic spline, whose coefficients may be given."""

    def __init__(
        self,
        template: NDArray[np.floating],
        kernel_shape: tuple[int, int],
        phase_y: ArrayLike,
        phase_x: ArrayLike,
        coefficients: Array | None = None,
    ) -> None:
        self._kernel_shape, self._shape = kernel_shape, template.shape
        reach = max(kernel_shape) // 2 + 3
        self._reach = reach
        if coefficients is None:
            coefficients = spline_filter(template.astype(float), 3, mode="mirror")
        self._coefficients = np.pad(coefficients, (reach, reach), mode="reflect")
        self._phase_y = np.ascontiguousarray(np.broadcast_to(phase_y, template.shape), float)
        self._phase_x = np.ascontiguousarray(np.broadcast_to(phase_x, template.shape), float)

    def fill(self, y0: int, x0: int, out: NDArray[np.floating]) -> None:
        """Samples of a block."""
        _spline_block(
            self._coefficients,
            self._phase_y,
            self._phase_x,
            y0,
            x0,
            self._reach,
            _blocked(out, self._kernel_shape),
        )


class ReferenceSamples:
    """R(p - a + phase(p)) of an oversampled reference: pixel p - a evaluated at the phase of p."""

    def __init__(
        self, reference: ReferenceFit, kernel_shape: tuple[int, int], phase_y: ArrayLike, phase_x: ArrayLike
    ) -> None:
        shape, n = reference.valid.shape, reference.n_basis
        self._kernel_shape = kernel_shape
        self.invalid = ~reference.valid
        coefficients = np.where(self.invalid[:, :, None, None], 0.0, reference.coefficients)
        self._coefficients = np.ascontiguousarray(coefficients.reshape(*shape, n * n), float)
        py, px = (np.broadcast_to(np.asarray(phase, float), shape) for phase in (phase_y, phase_x))
        self._basis = design_matrix(py, px, n, reference.extension)

    def subtract(self, level: float) -> None:
        """Take a pedestal away, which is all in the constant term."""
        self._coefficients[..., 0] -= np.where(self.invalid, 0.0, level)

    def fill(self, y0: int, x0: int, out: NDArray[np.floating]) -> None:
        """Samples of a block."""
        _reference_block(self._coefficients, self._basis, y0, x0, _blocked(out, self._kernel_shape))


class StoredSamples:
    """Samples given as an array (n_kernel, y, x)."""

    def __init__(self, samples: NDArray[np.floating]) -> None:
        self._samples = samples

    def fill(self, y0: int, x0: int, out: NDArray[np.floating]) -> None:
        """Samples of a block."""
        side = int(np.sqrt(out.shape[1]))
        part = self._samples[:, y0 : y0 + side, x0 : x0 + side]
        block = out.reshape(len(part), side, side)
        block[:] = 0
        block[:, : part.shape[1], : part.shape[2]] = part


def _blocked(out: NDArray[np.floating], kernel_shape: tuple[int, int]) -> NDArray[np.floating]:
    """The same memory as (ky, kx, side, side), emptied."""
    side = int(np.sqrt(out.shape[1]))
    out[:] = 0
    return out.reshape(*kernel_shape, side, side)


@njit(cache=True, nogil=True)
def _shifted_block(padded, y0, x0, ky, kx, out):
    """Copies of the padded image, moved by every kernel pixel; padding makes them zero outside."""
    side = int(np.sqrt(out.shape[1]))
    for r in range(ky):
        for c in range(kx):
            a = (ky - 1 - r) * kx + kx - 1 - c
            for i in range(side):
                y = y0 + i + r
                for j in range(side):
                    out[a, i * side + j] = padded[y, x0 + j + c]


@njit(cache=True, nogil=True)
def _spline_block(coefficients, phase_y, phase_x, y0, x0, reach, out):
    """Tensor-product cubic B-spline at p - a + phase(p); weights are shared by all a of one pixel."""
    ky, kx, size = out.shape[0], out.shape[1], out.shape[2]
    hy, hx = ky // 2, kx // 2
    wy, wx = np.empty(4), np.empty(4)
    along = np.empty((ky + 6, kx))
    for i in range(min(size, phase_y.shape[0] - y0)):
        for j in range(min(size, phase_y.shape[1] - x0)):
            py, px = phase_y[y0 + i, x0 + j], phase_x[y0 + i, x0 + j]
            if not (abs(py) <= 2.0 and abs(px) <= 2.0):
                continue
            iy, ix = int(np.floor(py)), int(np.floor(px))
            _weights(py - iy, wy)
            _weights(px - ix, wx)
            top = y0 + i + iy - hy - 1 + reach
            left = x0 + j + ix - hx - 1 + reach
            for r in range(ky + 3):
                for c in range(kx):
                    s = 0.0
                    for t in range(4):
                        s += wx[t] * coefficients[top + r, left + c + t]
                    along[r, c] = s
            for r in range(ky):
                for c in range(kx):
                    s = 0.0
                    for t in range(4):
                        s += wy[t] * along[r + t, c]
                    out[ky - 1 - r, kx - 1 - c, i, j] = s


@njit(cache=True, nogil=True)
def _reference_block(coefficients, basis, y0, x0, out):
    """Coefficients of pixel p - a times the basis at the phase of p; zero outside the image."""
    ky, kx, size = out.shape[0], out.shape[1], out.shape[2]
    ny, nx, n = coefficients.shape
    for i in range(min(size, ny - y0)):
        for j in range(min(size, nx - x0)):
            b = basis[y0 + i, x0 + j]
            for r in range(ky):
                y = y0 + i - (r - ky // 2)
                if y < 0 or y >= ny:
                    continue
                for c in range(kx):
                    x = x0 + j - (c - kx // 2)
                    if x < 0 or x >= nx:
                        continue
                    s = 0.0
                    for t in range(n):
                        s += coefficients[y, x, t] * b[t]
                    out[r, c, i, j] = s


@inner()
def _weights(t, w):
    """Cubic B-spline weights at fraction t between the second and the third node."""
    w[0] = (1 - t) ** 3 / 6
    w[1] = (3 * t**3 - 6 * t**2 + 4) / 6
    w[2] = (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
    w[3] = t**3 / 6


def _moved(image: Array, dy: int, dx: int) -> Array:
    """out[p] = image[p + (dy, dx)], the edge repeated."""
    y = np.clip(np.arange(image.shape[0]) + dy, 0, image.shape[0] - 1)
    x = np.clip(np.arange(image.shape[1]) + dx, 0, image.shape[1] - 1)
    return image[np.ix_(y, x)]


def sample_function(
    function: TemplateFunction, kernel_shape: tuple[int, int], phase_y: ArrayLike, phase_x: ArrayLike
) -> Array:
    """Samples (n_kernel, y, x) of a continuous template: pixel p - a evaluated at the phase of p."""
    py, px = np.asarray(phase_y, float), np.asarray(phase_x, float)
    hy, hx = kernel_shape[0] // 2, kernel_shape[1] // 2
    samples = []
    for ay in range(-hy, hy + 1):
        for ax in range(-hx, hx + 1):
            value = np.asarray(function(_moved(py, ay, ax), _moved(px, ay, ax)), float)
            samples.append(_moved(value, -ay, -ax))
    return np.stack(samples)
