"""Which way the normal matrix of a matching kernel is summed: by products of samples or by transforms."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_fourier import groups_of
from survey.kernels._sfft_products import padded
from survey.kernels._sfft_samples import Samples, ShiftedSamples
from survey.kernels._simd import VECTOR_BYTES
from survey.kernels.pixelmap import n_terms

Assembly = Literal["auto", "blocks", "fft"]
# Nanoseconds per operation, float64, of one core (Xeon with AVX-512): 90 pairs of measured times, kernels of
# 7 x 7 to 31 x 31, blocks of 8 to 32, orders 1 to 3, both types, told within 16 %. Only their ratios matter.
_PRODUCT = 0.045  # of two samples in a pixel
_PAIR = 5.6  # keeping a sum
_ADDED = 0.07  # and adding it, per product of polynomials
_WEIGHTED = 3.3  # a sample in a pixel
_TRANSFORMED = 0.026  # the same to one frequency
_CORRELATED = 0.025  # two numbers of a frequency
_KEPT = 1.8  # keeping their sum
_ADDED_TRANSFORM = 0.12
_GROUP = 27e3  # calls for a group of columns


def check_assembly(wanted: str) -> None:
    """Raise where there is no such way."""
    if wanted not in get_args(Assembly):
        raise ValueError(f"assembly {wanted!r} is not auto, blocks or fft")


def choose(
    wanted: Assembly, model: KernelModel, samples: Samples, side: int, dtype: np.dtype
) -> Literal["blocks", "fft"]:
    """The way to go: as wanted, or the one that takes less time.

    Raises
    ------
    ValueError
        If transforms are wanted of samples that are not an image moved by whole pixels.
    """
    check_assembly(wanted)
    moved = isinstance(samples, ShiftedSamples)
    if wanted == "fft" and not moved:
        raise ValueError(
            "assembly='fft' needs a template that is moved by whole pixels; where every pixel has a phase of "
            "its own, or samples are given, use 'blocks'"
        )
    if wanted != "auto":
        return wanted
    given = (model.kernel_shape, side, n_terms(2 * model.order), dtype)
    return "fft" if moved and transforms_take(*given) < products_take(*given) else "blocks"


def products_take(kernel_shape: tuple[int, int], side: int, products: int, dtype: np.dtype) -> float:
    """Nanoseconds for a block by products of samples; ``products``: how many there are of two polynomials."""
    n, width = kernel_shape[0] * kernel_shape[1], max(side, VECTOR_BYTES // dtype.itemsize)
    pairs = padded(n) * (padded(n) + 4) / 2
    single = dtype.itemsize / 8
    return _PRODUCT * single * pairs * side * width + n * n * (_PAIR + _ADDED * products)


def transforms_take(kernel_shape: tuple[int, int], side: int, products: int, dtype: np.dtype) -> float:
    """Nanoseconds for a block by transforms."""
    ky, kx = kernel_shape
    parts = 2 * ((side + ky - 1) // 2 + 1)
    kept = parts * sum(ky * (last - first) * (kx - first) for first, last in groups_of(kx))
    single, pixels = dtype.itemsize / 8, ky * kx * side**2
    made = pixels * (_WEIGHTED + _TRANSFORMED * parts) + _CORRELATED * 2 * side * kept
    return single * made + kept * (_KEPT + _ADDED_TRANSFORM * products) + _GROUP * len(groups_of(kx))
