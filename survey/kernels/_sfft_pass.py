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

from survey.kernels._sfft_assembly import Assembly, choose
from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_fourier import FourierGram
from survey.kernels._sfft_loops import Filled, Found, Frame, Rows, Rules, Work, occupied, sweep_blocks
from survey.kernels._sfft_products import padded
from survey.kernels._sfft_samples import Samples, ShiftedSamples, block_side
from survey.kernels._sfft_sums import Sums, add_products, normal_matrix
from survey.kernels._simd import VECTOR_BYTES
from survey.kernels.pixelmap import n_terms

Array = NDArray[np.float64]
# Blocks summed in one product: this many, fewer where their Gram matrices would take more.
_CHUNK = 32
_WAITING_BYTES = 64 << 20
_BRIGHT = 20.0  # pixels of stars this many sigma bright tell how well the model follows stars


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
    assembly: Assembly = "auto",
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
    assembly : {'auto', 'blocks', 'fft'}
        How the matrix is summed: by products of samples, by transforms, or by what takes less time.
    """
    side = block_side(model.image_shape) if side is None else side
    blocks = np.array(blocks_of(scene.image.shape, side) if corners is None else corners, np.int64)
    blocks = blocks.reshape(-1, 2)
    if planes is None:
        blocks = blocks[occupied(np.ascontiguousarray(scene.excluded), blocks, side)]
    assembly = choose(assembly, model, samples, side, scene.image.dtype)
    work = _Workspace(model, samples, scene, side, assembly if gram else None)
    by_y, by_x = (2 / max(size - 1, 1) for size in model.image_shape)
    rules = Rules(
        model.order, by_y, by_x, scene.origin[0], scene.origin[1], side, scene.photon, clip[0], clip[1],
        model_error, _BRIGHT, known=coefficients is not None, noisy=scene.template_variance is not None,
        corrects=scene.corrects, gram=gram, tiles=assembly == "blocks",
        filling=planes is not None,
    )  # fmt: skip
    work.set(coefficients, planes)
    bright = []
    for first in range(0, len(blocks), work.chunk):
        part = blocks[first : first + work.chunk]
        work.visit(part, rules)
        peaks = work.found.peaks[: len(part)]
        bright.append(peaks[peaks[:, 2] > 0])
        if gram:
            work.add(part)
    found = work.found
    matrix = normal_matrix(work.grams(), work.edges, model.order) if gram else None
    noise = found.noise if scene.corrects else None
    peaks = np.concatenate([np.zeros((0, 3)), *bright])
    return Sums(matrix, found.gradient.ravel(), int(found.counts[0]), int(found.counts[1]), peaks, noise)


class _Workspace:
    """What the loops over blocks read and fill, and the Gram matrices that wait to be added."""

    def __init__(
        self, model: KernelModel, samples: Samples, scene: Scene, side: int, assembly: Assembly | None
    ) -> None:
        self.model, self.samples, self.dtype = model, samples, scene.image.dtype
        excluded = np.ascontiguousarray(scene.excluded)
        self.frame = Frame(self._as(scene.image), self._as(scene.variance), excluded)
        width = max(side, VECTOR_BYTES // self.dtype.itemsize)
        self.noise = self._moving(scene.template_variance)
        self.rows = (
            self._moving(samples.padded) if isinstance(samples, ShiftedSamples) else self._filled(side)
        )
        self._work(side, width)
        n, nb, products = model.n_kernel, model.n_poly, n_terms(2 * model.order)
        tiles = assembly == "blocks"
        self.chunk = int(np.clip(_WAITING_BYTES // (8 * n * n), 1, _CHUNK)) if tiles else _CHUNK
        self.edges = np.zeros((products, n + 1))
        self.total = np.zeros((products, n * n)) if tiles else None
        self.fourier = (
            FourierGram(samples.padded, model.kernel_shape, side, products, self.dtype)
            if assembly == "fft" and isinstance(samples, ShiftedSamples)
            else None
        )
        chunk = self.chunk
        self.found = Found(
            np.zeros((n + 1, nb)), np.zeros((n, nb, nb)), np.zeros(2, np.int64),
            np.zeros((chunk if tiles else 1, n, n)), np.zeros((chunk, n + 1)), np.zeros((chunk, products)),
            np.zeros((chunk if self.fourier else 1, side * width), self.dtype), np.zeros((chunk, 3)),
        )  # fmt: skip

    def _as(self, image: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.ascontiguousarray(image, self.dtype)

    def _moving(self, image: NDArray[np.floating] | None) -> Rows:
        """Samples of an image that is moved by the kernel's pixels, its border as wide as they reach."""
        ky, kx = self.model.kernel_shape
        values = np.zeros((1, 1), self.dtype) if image is None else self._as(image)
        stride = values.shape[1]
        y, x = np.arange(ky)[::-1], np.arange(kx)[::-1]
        offsets = np.zeros(padded(ky * kx), np.int64)
        offsets[: ky * kx] = (y[:, None] * stride + x).ravel()
        return Rows(values.ravel(), offsets, stride, True)

    def _filled(self, side: int) -> Rows:
        """Samples that are written out for every block."""
        n = self.model.n_kernel
        offsets = np.zeros(padded(n), np.int64)
        offsets[:n] = np.arange(n) * side * side
        # a vector may be longer than a line
        return Rows(np.zeros(n * side * side + VECTOR_BYTES, self.dtype), offsets, side, False)

    def _work(self, side: int, width: int) -> None:
        """Buffers of one block."""
        nb, order, n = self.model.n_poly, self.model.order, len(self.rows.offsets)
        right = np.zeros((padded(nb + 1), side * width), self.dtype)
        right[nb] = 1
        offsets = np.zeros(padded(nb + 1), np.int64)
        offsets[: nb + 1] = np.arange(nb + 1) * side * width
        self.work = Work(
            np.zeros((order + 1, n + 1), self.dtype), np.zeros(n, self.dtype),
            np.zeros((6, width), self.dtype), np.zeros(side * width, self.dtype), right, offsets,
            np.zeros(4 * side * width, self.dtype),
        )  # fmt: skip

    def set(self, coefficients: Array | None, planes: Planes | None) -> None:
        """The kernel of the pass before, and the images to fill."""
        n, m = len(self.rows.offsets), self.model.n_kernel
        self.theta = np.zeros((self.model.n_poly, n + 1))
        if coefficients is not None:
            self.theta[:, :m], self.theta[:, n] = coefficients[:-1].T, coefficients[-1]
        blank = np.zeros((1, 1), self.dtype)
        self.planes = (
            Filled(blank, blank, np.zeros((1, 1), bool))
            if planes is None
            else Filled(planes.convolved, planes.variance, planes.fit_mask)
        )

    def visit(self, corners: NDArray[np.int64], rules: Rules) -> None:
        """Evaluate and sum blocks, a chunk at most; of each a Gram matrix waits, where one is wanted."""
        given = (self.frame, self.rows, self.noise, self.theta, rules, self.planes, self.work)
        if self.rows.moves:
            sweep_blocks(corners, *given, self.found)
            return
        m = self.model.n_kernel
        rows = self.rows.values[: m * rules.side**2].reshape(m, -1)
        for k, (y, x) in enumerate(corners):
            self.samples.fill(int(y), int(x), rows)
            kept = {name: getattr(self.found, name)[k:] for name in ("edges", "weighed", "peaks")}
            if rules.gram:
                kept["grams"] = self.found.grams[k:]
            sweep_blocks(corners[k : k + 1], *given, self.found._replace(**kept))

    def add(self, corners: NDArray[np.int64]) -> None:
        """Add the Gram matrices of blocks, in products of one size for their bits."""
        found, count = self.found, len(corners)
        found.weighed[count:] = 0
        add_products(self.edges, found.weighed, found.edges)
        if self.total is not None:
            add_products(self.total, found.weighed, found.grams.reshape(self.chunk, -1))
        if self.fourier is not None:
            side = self.fourier.side
            weights = found.weights[:count].reshape(count, side, -1)[:, :, :side]
            self.fourier.add(corners, weights, found.weighed[:count])

    def grams(self) -> Array:
        """Sums of Gram matrices, (products, n_kernel, n_kernel)."""
        if self.fourier is not None:
            return self.fourier.grams()
        assert self.total is not None
        n = self.model.n_kernel
        return self.total.reshape(-1, n, n)
