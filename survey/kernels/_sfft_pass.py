"""One pass over an image in blocks: model, noise, clipping and the normal sums of the matching kernel.

Within a block the polynomials are held at its centre, so that ``H = sum_blocks (P P^T) (x) G_block``, one
small Gram matrix a block; any mask and any weights enter it. The gradient is exact, which a second step turns
into an exact solution. All sums add over blocks, so those of tiles may be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk

from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_loops import block_terms, noise_sums, weigh_block
from survey.kernels._sfft_samples import Samples, block_side

Array = NDArray[np.float64]
_CHUNK = 32  # blocks summed in one product
_BRIGHT = 20.0  # pixels of stars this many sigma bright tell how well the model follows stars
_HALF_NORMAL_MEDIAN = 0.4549  # median of chi2 with one degree of freedom


@dataclass
class Scene:
    """What is fitted, all arrays (y, x); pedestals subtracted.

    Parameters
    ----------
    image : array
        0 where excluded.
    variance : array or float
        Of the image without the photons of stars, where ``photon`` brings those; inf where there is no data.
    excluded : bool array
        Pixels that stay out of the fit whatever they hold.
    template_variance : array, optional
        With a border of half a kernel and a block, as `pad_variance` makes it.
    photon : float
        1 / gain of the image: variance per unit of the model's own flux; 0 where ``variance`` has it all.
    origin : (int, int)
        (y, x) of the first pixel in the frame that the kernel's polynomials span.
    corrects : bool
        Take what the template's white noise adds to the normal equations out of them: noise in the regressor
        draws the kernel, and with it the flux scale, towards zero.
    noise_kept : float
        Share of that noise which stays at least: what is not white holds less of it in some modes.
    """

    image: NDArray[np.floating]
    variance: NDArray[np.floating]
    excluded: NDArray[np.bool_]
    template_variance: NDArray[np.floating] | None = None
    photon: float = 0.0
    origin: tuple[int, int] = (0, 0)
    corrects: bool = False
    noise_kept: float = 0.0


@dataclass
class Planes:
    """Images that a pass fills, all (y, x)."""

    convolved: NDArray[np.floating]
    variance: NDArray[np.floating]
    fit_mask: NDArray[np.bool_]


@dataclass
class Sums:
    """What a pass adds up; sums of tiles may be added in a fixed order.

    Attributes
    ----------
    matrix : array (m, m) or None
    gradient : array (m,)
        m = (n_kernel + 1) * n_poly, index (kernel pixel or background, polynomial).
    pixels, clipped : int
        In the fit, and left out as outliers.
    bright : array (n, 3)
        Of the brightest pixel of blocks that hold a bright star: residual, variance, model without sky.
    noise : array (n_kernel, n_poly, n_poly), optional
        What the template's noise adds to the matrix.
    """

    matrix: Array | None
    gradient: Array
    pixels: int
    clipped: int
    bright: Array
    noise: Array | None = None

    def __add__(self, other: Sums) -> Sums:
        matrix, noise = (
            None if mine is None or theirs is None else np.asarray(mine + theirs)
            for mine, theirs in ((self.matrix, other.matrix), (self.noise, other.noise))
        )
        return Sums(
            matrix,
            self.gradient + other.gradient,
            self.pixels + other.pixels,
            self.clipped + other.clipped,
            np.concatenate([self.bright, other.bright]),
            noise,
        )

    def corrected(self, kept: float, coefficients: Array | None) -> tuple[Array | None, Array]:
        """Matrix and gradient without the template's noise, but for a part of it that stays as a ridge."""
        if self.noise is None:
            return self.matrix, self.gradient
        n, nb = self.noise.shape[:2]
        out = (1 - kept) * self.noise
        gradient = self.gradient.copy()
        if coefficients is not None:
            gradient[: n * nb] += np.einsum("abc,ac->ab", out, coefficients[:-1]).ravel()
        if self.matrix is None:
            return None, gradient
        matrix = self.matrix.copy()
        blocks = matrix[: n * nb, : n * nb].reshape(n, nb, n, nb)
        index = np.arange(n)
        blocks[index, :, index, :] -= out
        return matrix, gradient

    def model_error(self) -> float:
        """Fraction of the model that counts as error so that bright stars' median chi2 is a normal's."""
        if len(self.bright) < 5:
            return 0.0
        residual, variance, flux = self.bright.T
        low, high = 0.0, 1.0
        if np.median(residual**2 / variance) <= _HALF_NORMAL_MEDIAN:
            return 0.0
        for _ in range(30):
            middle = (low + high) / 2
            chi2 = np.median(residual**2 / (variance + (middle * flux) ** 2))
            low, high = (middle, high) if chi2 > _HALF_NORMAL_MEDIAN else (low, middle)
        return high


def blocks_of(shape: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Corners of the blocks that cover an image, in fixed order."""
    return [(y, x) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


def pad_variance(variance: NDArray[np.floating], kernel_shape: tuple[int, int]) -> NDArray[np.floating]:
    """Template variance with the border that blocks at the edge look into."""
    hy, hx = kernel_shape[0] // 2, kernel_shape[1] // 2
    return np.pad(variance, ((hy, hy + 32), (hx, hx + 36)), mode="edge")


def sweep(
    model: KernelModel,
    samples: Samples,
    scene: Scene,
    coefficients: Array | None,
    *,
    clip: tuple[float, float] = (np.inf, 0.0),
    model_error: float = 0.0,
    gram: bool = True,
    corners: Sequence[tuple[int, int]] | None = None,
    planes: Planes | None = None,
    side: int | None = None,
) -> Sums:
    """Evaluate a kernel and sum the normal equations of the next one.

    Parameters
    ----------
    coefficients : array (n_kernel + 1, n_poly) or None
        Of the pass before; None: nothing is subtracted yet and nothing clipped.
    clip : (float, float)
        Pixels whose residual exceeds this many sigma leave the sums; sigma includes this fraction of the
        model.
    model_error : float
        Fraction of the model that counts as noise in the weights.
    gram : bool
        Whether the matrix is wanted.
    corners : sequence of (y, x), optional
        Blocks to visit; all by default.
    planes : Planes, optional
        Images to fill.
    side : int, optional
        Side of the blocks; from the polynomials' frame by default, so that tiles have their field's.
    """
    side = block_side(model.image_shape) if side is None else side
    height, width = scene.image.shape
    dtype = scene.image.dtype
    n, nb = model.n_kernel + 1, model.n_poly
    work = _Workspace(model, side, dtype, gram)
    syrk = ssyrk if dtype == np.float32 else dsyrk
    theta = None if coefficients is None else np.ascontiguousarray(coefficients.T, dtype)
    no_variance = np.zeros((1, 1), dtype)
    blank = np.zeros((1, 1), dtype)
    variance = no_variance if scene.template_variance is None else scene.template_variance
    out = (blank, blank, np.zeros((1, 1), bool)) if planes is None else _planes(planes)
    total = np.zeros((nb * nb, n * n)) if gram else None
    gradient = np.zeros((n, nb))
    noise = np.zeros((n - 1, nb, nb)) if scene.corrects else None
    counts, bright = np.zeros(2, np.int64), []
    for y0, x0 in blocks_of(scene.image.shape, side) if corners is None else corners:
        if planes is None and scene.excluded[y0 : y0 + side, x0 : x0 + side].all():
            continue
        samples.fill(y0, x0, work.rows[:-1])
        work.place(y0 + scene.origin[0], x0 + scene.origin[1])
        squared = work.square(coefficients, model.kernel_shape)
        if theta is not None:
            np.matmul(theta[:, :-1], work.rows[:-1], out=work.values)
        weigh_block(
            scene.image, scene.variance, scene.excluded, variance, squared, work.values,
            blank[0, :0] if theta is None else theta[:, -1], work.terms, y0, x0, scene.photon, clip[0],
            clip[1], model_error, _BRIGHT, gram, work.rows, work.right, work.weight, counts,
            work.peak, out[0], out[1], out[2],
        )  # fmt: skip
        if work.peak[2] > 0:
            bright.append(work.peak.copy())
        if planes is not None:
            continue
        gradient += work.rows @ work.right.T
        if noise is not None:
            noise_sums(variance, work.weight, y0, x0, height, width, work.noise)
            work.add_noise(noise)
        if total is not None:
            work.gather(y0 + scene.origin[0], x0 + scene.origin[1])
            work.add(total, syrk(1.0, work.rows.T, trans=1))
    if total is not None:
        work.flush(total)
    peaks = np.array(bright, float).reshape(-1, 3)
    return Sums(_matrix(total, n, nb), gradient.ravel(), int(counts[0]), int(counts[1]), peaks, noise)


def _planes(planes: Planes) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    return planes.convolved, planes.variance, planes.fit_mask


def _matrix(total: Array | None, n: int, nb: int) -> Array | None:
    """Sums over blocks (polynomial pairs, upper triangle of pixel pairs) as the whole symmetric matrix."""
    if total is None:
        return None
    grams = total.reshape(nb * nb, n, n)
    # the triangle is in BLAS's order: what is not above its diagonal is zero
    filled = grams + grams.transpose(0, 2, 1)
    index = np.arange(n)
    filled[:, index, index] /= 2
    return np.ascontiguousarray(
        filled.reshape(nb, nb, n, n).transpose(2, 0, 3, 1).reshape(n * nb, n * nb), float
    )


class _Workspace:
    """Buffers of one block, and the Gram matrices that wait to be added."""

    def __init__(self, model: KernelModel, side: int, dtype: np.dtype, gram: bool) -> None:
        n, nb = model.n_kernel + 1, model.n_poly
        self.model, self.side = model, side
        self.rows = np.zeros((n, side * side), dtype)
        self.values = np.zeros((nb, side * side), dtype)
        self.terms = np.zeros((nb, side * side), dtype)
        self.right = np.zeros((nb, side * side), dtype)
        self.weight = np.zeros(side * side, dtype)
        self.noise = np.zeros(model.kernel_shape)
        self.peak = np.zeros(3)
        self._central = np.zeros((nb, 1))
        self._at_light = np.zeros((nb, 1))
        ky, kx = model.kernel_shape
        self._squared = np.zeros((ky, -(-kx // 4) * 4), dtype)
        self._waiting = 0
        self._grams = np.zeros((_CHUNK if gram else 0, n * n))
        self._products = np.zeros((_CHUNK if gram else 0, nb * nb))

    def place(self, y0: int, x0: int) -> None:
        """Polynomials of the block at (y0, x0) of their frame, and at its centre."""
        ny, nx = self.model.image_shape
        order, half = self.model.order, (self.side - 1) / 2
        block_terms(order, y0, x0, self.side, 2 / max(ny - 1, 1), 2 / max(nx - 1, 1), self.terms)
        block_terms(order, y0 + half, x0 + half, 1, 2 / max(ny - 1, 1), 2 / max(nx - 1, 1), self._central)

    def gather(self, y0: int, x0: int) -> None:
        """Polynomials at the centroid of what the block weighs: where its brightest star is, if it has one.

        Held at the block's middle, the normal matrix of a few bright stars is so far from the true one that
        steps with exact gradients diverge.
        """
        light = np.einsum("ap,ap->p", self.rows, self.rows).reshape(self.side, self.side)
        rows, columns = light.sum(1, dtype=float), light.sum(0, dtype=float)
        whole = rows.sum()
        if not whole > 0:
            return
        index = np.arange(self.side)
        y, x = y0 + rows @ index / whole, x0 + columns @ index / whole
        ny, nx = self.model.image_shape
        block_terms(self.model.order, y, x, 1, 2 / max(ny - 1, 1), 2 / max(nx - 1, 1), self._at_light)

    def square(self, coefficients: Array | None, kernel_shape: tuple[int, int]) -> NDArray[np.floating]:
        """Square of the kernel at the block's centre, flipped, its rows padded to a multiple of four.

        Before the first fit: of a kernel that moves nothing.
        """
        if coefficients is None:
            self._squared[kernel_shape[0] // 2, kernel_shape[1] // 2] = 1
            return self._squared
        squared = ((coefficients[:-1] @ self._central[:, 0]) ** 2).reshape(kernel_shape)
        self._squared[:, : kernel_shape[1]] = squared[::-1, ::-1]
        return self._squared

    def add_noise(self, total: Array) -> None:
        """Add what the template's noise is in a block's normal matrix."""
        central = self._central[:, 0]
        total += self.noise.reshape(-1, 1, 1) * np.outer(central, central)

    def add(self, total: Array, gram: NDArray[np.floating]) -> None:
        """Add a block's Gram matrix."""
        self._grams[self._waiting] = gram.ravel()
        self._products[self._waiting] = np.outer(self._at_light, self._at_light).ravel()
        self._waiting += 1
        if self._waiting == _CHUNK:
            self.flush(total)

    def flush(self, total: Array) -> None:
        """Add what waits."""
        self._grams[self._waiting :] = 0
        self._products[self._waiting :] = 0
        total += self._products.T @ self._grams
        self._waiting = 0
