"""Gram matrices of moved samples by the correlation theorem, for large kernels.

For one block, with kernel pixels a = (r, c) counted from the far corner so that R_a(i, j) = R(i + r, j + c),
``G[a, a'] = sum_ij g_a(i, j) R(i + r', j + c')`` with ``g_a = w R_a``, any weights w: a correlation along i,
which for all r' at once is a product of transforms, summed over j for every c'. Of c and c' only c <= c' are
computed, the others follow from symmetry. A transform of some 40 to 70 numbers is a matrix product here: BLAS
does it faster than a library of fast transforms. Sums over blocks, each times the polynomials' products held
over it, are made of transforms; only their end is transformed back.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from survey.kernels._sfft_sums import add_products

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
_GROUPS = 8  # of columns c: each computes the c' from its first on
_WAITING_BYTES = 32 << 20  # transforms that wait to be added


def groups_of(kx: int) -> list[tuple[int, int]]:
    """First and last columns c of each group."""
    step = -(-kx // _GROUPS)
    return [(c, min(c + step, kx)) for c in range(0, kx, step)]


class FourierGram:
    """Sum over blocks of Gram matrices times products of polynomials.

    Parameters
    ----------
    image : array (y, x)
        With the border of `ShiftedSamples`: image[y0, x0] is the first sample of the block at (y0, x0) for
        the kernel's far corner.
    kernel_shape : (int, int)
    side : int
        Of the blocks.
    products : int
        How many products of polynomials there are.
    dtype : float32 or float64
        Of the transforms; sums over blocks are float64.
    """

    def __init__(
        self, image: Floats, kernel_shape: tuple[int, int], side: int, products: int, dtype: DTypeLike
    ) -> None:
        self.image, self.kernel_shape, self.side = np.asarray(image, dtype), kernel_shape, side
        ky, kx = kernel_shape
        self.size = side + ky - 1
        half = self.size // 2 + 1
        angle = 2 * np.pi / self.size * (np.outer(np.arange(half), np.arange(self.size)) % self.size)
        # real and imaginary part of the transform, one below the other for every frequency
        both = np.stack([np.cos(angle), -np.sin(angle)], axis=1).reshape(2 * half, self.size)
        self.transform = both.astype(dtype)
        self._back = angle[:, :ky]
        self.groups = groups_of(kx)
        largest = max(ky * (d - c) * 2 * (kx - c) for c, d in self.groups) * half
        self._waiting = np.empty((max(_WAITING_BYTES // (8 * largest), 4), largest))
        self.totals = [np.zeros((products, half * ky * (d - c) * 2 * (kx - c))) for c, d in self.groups]

    def add(self, corners: NDArray[np.int64], weights: Floats, products: Array) -> None:
        """Add blocks, their weights (n, side, side) and products of polynomials (n, products)."""
        step = len(self._waiting)
        for first in range(0, len(corners), step):
            part = slice(first, first + step)
            self._add(corners[part], weights[part], products[part])

    def _add(self, corners: NDArray[np.int64], weights: Floats, products: Array) -> None:
        side, kx, half = self.side, self.kernel_shape[1], len(self._back)
        windows = [self.image[y : y + self.size, x : x + side + kx - 1] for y, x in corners]
        right = np.stack([self._right(window) for window in windows])
        for (first, last), total in zip(self.groups, self.totals, strict=True):
            waiting = self._waiting.ravel()[: len(corners) * total.shape[1]].reshape(len(corners), -1)
            for k, window in enumerate(windows):
                moved = sliding_window_view(window, (side, side))[:, first:last]
                weighted = (moved * weights[k]).reshape(-1, side, side)
                left = np.matmul(self.transform[:, :side], weighted)
                left = left.reshape(-1, half, 2 * side).transpose(1, 0, 2)
                waiting[k] = np.matmul(left, right[k, :, :, 2 * first :]).ravel()
            add_products(total, products, waiting)

    def _right(self, window: Floats) -> Floats:
        """The transform of R(i + r', j + c'), conjugated factors in place: (half, (2, j), (c', 2))."""
        kx, side, half = self.kernel_shape[1], self.side, len(self._back)
        lines = (self.transform @ window).reshape(half, 2, -1)
        moved = sliding_window_view(lines, kx, axis=2)
        out = np.empty((half, 2, side, kx, 2), lines.dtype)
        out[:, 0, :, :, 0], out[:, 0, :, :, 1] = moved[:, 0], moved[:, 1]
        out[:, 1, :, :, 0], out[:, 1, :, :, 1] = moved[:, 1], -moved[:, 0]
        return out.reshape(half, 2 * side, 2 * kx)

    def grams(self) -> Array:
        """The sums (products, n, n), all of them; samples in [y, x] order."""
        ky, kx = self.kernel_shape
        n, half = ky * kx, len(self._back)
        twice = np.full(half, 2.0)
        twice[0] = 1
        if self.size % 2 == 0:
            twice[-1] = 1
        cosine, sine = (f(self._back).T * twice / self.size for f in (np.cos, np.sin))
        out = np.empty((len(self.totals[0]), ky, kx, ky, kx))
        for (first, last), total in zip(self.groups, self.totals, strict=True):
            shape = (half, ky, last - first, kx - first, 2)
            for k, one in enumerate(total):
                parts = one.reshape(shape)
                found = np.tensordot(cosine, parts[..., 0], 1) - np.tensordot(sine, parts[..., 1], 1)
                for c in range(first, last):
                    pairs = found[:, :, c - first, c - first :]  # (r', r, c')
                    out[k, :, c, :, c:] = pairs.transpose(1, 0, 2)
                    out[k, :, c:, :, c] = pairs.transpose(0, 2, 1)
        return out.reshape(-1, n, n)[:, ::-1, ::-1]
