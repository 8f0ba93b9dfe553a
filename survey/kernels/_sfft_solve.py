"""Passes of fit, noise and clipping until the matching kernel stands."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from survey.kernels._sfft_assembly import Assembly
from survey.kernels._sfft_fit import KernelModel, Normal
from survey.kernels._sfft_pass import Planes, Scene, blocks_of, sweep
from survey.kernels._sfft_samples import Samples, block_side
from survey.kernels._sfft_sums import Sums

LOG = logging.getLogger(__name__)
Array = NDArray[np.float64]

# Kernel errors leave residuals proportional to the star: this part of the model counts as noise in clipping.
CLIP_FRACTION = 0.05
# The weights need the kernel of the pass before: two more passes than the first.
MIN_PASSES = 3
# A first kernel, which only serves the weights, needs no more blocks than this.
_ENOUGH_BLOCKS = 256
# Where fewer pixels than this fraction change sides, the old normal matrix serves the new weights.
_SAME_MATRIX = 1e-3
# Part of the template's noise that stays in the normal matrix at least.
_NOISE_KEPT = 0.05
# A model error that falls by less than this fraction, or this much, leaves the weights as they are.
_SAME_ERROR = (1.0, 0.003)
# A flux scale of fewer errors than this is none.
_LEAST_FLUX = 5.0
# Bright stars missed by this much: steps with a matrix held over blocks have run away, or nothing fits.
_LOST = 0.75
_POOR = 0.2  # and by this much, what is worth a word


@dataclass(frozen=True)
class Limits:
    """How a fit is regularised, clipped and ended."""

    ridge: float
    clip: float
    max_iter: int
    assembly: Assembly = "auto"


@dataclass
class Fitted:
    """Coefficients (n_kernel + 1, n_poly), the images they make, and how well they follow stars."""

    coefficients: Array
    planes: Planes
    model_error: float


class Solver:
    """Turns the sums of each pass into the next coefficients.

    Noise in the template draws the kernel towards zero. It is taken out of the sums as far as the pixels
    allow: modes of the kernel that hold little but noise would be divided by a difference near zero.
    """

    def __init__(self, model: KernelModel, ridge: float, kept: float = 0.0) -> None:
        self.model, self.ridge, self.least = model, ridge, max(kept, _NOISE_KEPT)
        self._parameters = np.zeros(model.n_parameters)
        self._coefficients: Array | None = None
        self._normal: Normal | None = None
        self._kept = 1.0

    def step(self, sums: Sums) -> Array:
        """Coefficients (n_kernel + 1, n_poly) after a pass."""
        if sums.matrix is not None:
            self._factorise(sums)
        assert self._normal is not None
        _, gradient = sums.corrected(self._kept, self._coefficients)
        self._parameters = self._normal.step(gradient, self._parameters)
        self._coefficients = self.model.expand(self._parameters)
        return self._coefficients

    def check_flux(self) -> None:
        """Raise where the template's light is not found in the image."""
        assert self._normal is not None
        flux, error = self._normal.flux(self._parameters)
        if not flux > _LEAST_FLUX * error:
            raise ValueError(
                f"the template's light is not in the image: flux scale {flux:.3g} +- {error:.2g}; "
                "no stars in common, or images not registered"
            )

    def _factorise(self, sums: Sums) -> None:
        # eigenvalues of a sample's noise spread by this much about their mean
        spread = 2 * np.sqrt(self.model.n_parameters / max(sums.pixels, 1))
        for kept in (min(self.least + 2 * spread, 1.0), 1.0):
            matrix, _ = sums.corrected(kept, None)
            assert matrix is not None
            try:
                self._normal, self._kept = Normal(self.model, matrix, self.ridge), kept
                return
            except ValueError:
                if kept == 1.0 or sums.noise is None:
                    raise


def check_pixels(model: KernelModel, pixels: int) -> None:
    """Raise where pixels cannot determine the parameters."""
    if pixels < 2 * model.n_parameters:
        raise ValueError(
            f"{pixels} good pixels are too few for {model.n_parameters} parameters; "
            "lower kernel_shape or the polynomial orders"
        )


def check_error(missed: float) -> None:
    """Raise where the matched template misses bright stars by too much of their flux."""
    if missed > _LOST:
        raise ValueError(
            f"the matched template misses bright stars by {missed:.0%} of their flux: too few stars for "
            "these polynomials, or images not registered; lower the polynomial orders of kernel and flux"
        )


def fit(model: KernelModel, samples: Samples, scene: Scene, limits: Limits) -> Fitted:
    """Solve for the kernel.

    The first pass weighs by the images' noise alone and may look at a part of the blocks; the next ones add
    the template's noise through the kernel, leave outliers out, and count what the model is found to miss in
    bright stars as noise. Later passes reuse the normal matrix: their gradients are exact.
    """
    check_pixels(model, int((~scene.excluded).sum()))
    clip = (limits.clip, CLIP_FRACTION)
    # a first kernel that is also the last looks at all
    part = _part(model, scene) if limits.max_iter > 1 else None
    first = sweep(model, samples, scene, None, corners=part, assembly=limits.assembly)
    solver = Solver(model, limits.ridge, scene.noise_kept)
    coefficients = solver.step(first)
    look = sweep(model, samples, scene, coefficients, clip=clip, gram=False, corners=part)
    model_error, clipped, stale = look.model_error(), -1, True
    for iteration in range(1, max(limits.max_iter, 1)):
        sums = sweep(
            model, samples, scene, coefficients, clip=clip, model_error=model_error, gram=stale,
            assembly=limits.assembly,
        )  # fmt: skip
        check_pixels(model, sums.pixels)
        coefficients = solver.step(sums)
        found = sums.model_error()
        stale = model_error - found > max(_SAME_ERROR[0] * found, _SAME_ERROR[1])
        if stale:
            model_error = found
        same = abs(sums.clipped - clipped) <= _SAME_MATRIX * sums.pixels
        clipped = sums.clipped
        if iteration + 1 >= MIN_PASSES and same and not stale:
            break
    solver.check_flux()
    empty = np.empty(scene.image.shape, scene.image.dtype)
    planes = Planes(empty, empty.copy(), np.empty(scene.image.shape, bool))
    last = sweep(
        model, samples, scene, coefficients, clip=clip, model_error=model_error, gram=False, planes=planes
    )
    missed = last.model_error()
    check_error(missed)
    if missed > _POOR:
        LOG.warning("the matched template misses bright stars by %.0f %% of their flux", 100 * missed)
    return Fitted(coefficients, planes, missed)


def _part(model: KernelModel, scene: Scene) -> list[tuple[int, int]] | None:
    """Evenly spread blocks of a large image, as many as enough or few more, if those have pixels enough.

    None: all.
    """
    side = block_side(model.image_shape)
    corners = blocks_of(scene.image.shape, side)
    step = 1
    while len(corners) >= 2 * _ENOUGH_BLOCKS * step**2:
        step *= 2
    while step > 1:
        some = [(y, x) for y, x in corners if (y // side) % step == 0 and (x // side) % step == 0]
        used = sum(int((~scene.excluded[y : y + side, x : x + side]).sum()) for y, x in some)
        if used >= 10 * model.n_parameters:
            return some
        step //= 2
    return None


def add_sums(parts: list[Sums]) -> Sums:
    """Sums of all tiles, added in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
