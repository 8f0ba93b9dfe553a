"""What the blocks of a tile share: settings, tables, packed designs, workspaces, products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from survey.kernels._reference_gather import EDGE, LANE_ARRAYS, WIDTH, Rows
from survey.kernels._reference_moments import PANEL, Products, make_products, pack
from survey.kernels._simd import aligned_zeros
from survey.kernels.legendre import design_matrix, phase_basis


class Prior(NamedTuple):
    """Sums of images seen before, pixels flat; arrays (0, 0) where there are none."""

    moments: NDArray[np.floating]
    right: NDArray[np.floating]
    theta: NDArray[np.floating]
    n_used: NDArray[np.int32]


class Plan(NamedTuple):
    """What all blocks share: settings, tables, and the packed design where one phase serves a frame."""

    n: int
    extension: float
    ridge: float
    iterations: int
    clip: float
    positive_only: bool
    leave_one_out: bool
    min_images: int
    shared: bool
    tiny: float
    products: Products
    own_ok: NDArray[np.bool_]
    extra: NDArray[np.int64]
    gain_slope: NDArray[np.floating]
    moments: NDArray[np.floating]  # (degrees**2, rows) @ weight -> moments
    right: NDArray[np.floating]  # (size, rows) @ weighted -> right-hand side
    start: NDArray[np.floating]  # (size, rows) @ centred flux -> coefficients at equal weights
    surface: NDArray[np.floating]  # (rows, size) @ coefficients -> model
    form: NDArray[np.floating]  # (rows, degrees**2) @ inverse moments -> b^T N^-1 b
    prior: Prior
    recurrence: NDArray[np.floating]  # (2, degrees): P_i = a u P_{i-1} - b P_{i-2}


class Work(NamedTuple):
    """One block's workspaces beside its rows."""

    moments: NDArray[np.floating]
    right: NDArray[np.floating]
    theta: NDArray[np.floating]
    inverse: NDArray[np.floating]
    half: NDArray[np.floating]
    pairs: NDArray[np.floating]
    matrix: NDArray[np.floating]
    vector: NDArray[np.floating]
    basis: NDArray[np.floating]  # (2, degrees) vectors


class Result(NamedTuple):
    """Products of a tile, pixels flat."""

    flux: NDArray[np.floating]
    error: NDArray[np.floating]
    leverage: NDArray[np.floating]
    mask: NDArray[np.bool_]
    fit_mask: NDArray[np.bool_]
    theta: NDArray[np.floating]
    n_used: NDArray[np.int32]
    chi2: NDArray[np.floating]
    valid: NDArray[np.bool_]  # (1, pixels)
    span: NDArray[np.floating]  # of the surface over the own phases, in errors
    moments: NDArray[np.floating]  # (pixels, degrees**2), or (0, 0)
    right: NDArray[np.floating]


class Settings(NamedTuple):
    """What the caller may choose."""

    n_basis: int
    extension: float
    ridge: float
    iterations: int
    clip: float
    positive_only: bool
    leave_one_out: bool
    min_images: int


def make_plan(phase_y, phase_x, n_time, settings: Settings, slope, prior, dtype) -> Plan:
    """Tables for a tile.

    Parameters
    ----------
    phase_y, phase_x : array (time,) or (time, y, x)
    n_time : int
    settings : Settings
    slope : array (time,) or None
        d error^2 / d flux where it is known.
    prior : tuple of arrays or None
        Members of `Prior`.
    dtype : numpy.dtype
        Precision of the sums.
    """
    n, ridge = settings.n_basis, settings.ridge
    degrees, shared = 2 * n - 1, phase_y.ndim == 1
    extra, own_ok = np.empty((0, 3), np.int64), np.ones(n_time, bool)
    matrices = {name: np.zeros(0, dtype) for name in ("moments", "right", "start", "surface", "form")}
    if shared:
        own_ok, extra = _shared_rows(phase_y, phase_x, settings.extension)
        matrices = _shared_matrices(phase_y, phase_x, own_ok, extra, n, settings.extension, ridge, dtype)
    order = np.arange(1, degrees)
    recurrence = np.zeros((2, degrees))
    recurrence[0, 1:], recurrence[1, 1:] = (2 * order - 1) / order, (order - 1) / order
    none = np.zeros((0, 0), dtype)
    arrays = (none, none, none) if prior is None else tuple(np.ascontiguousarray(a, dtype) for a in prior[:3])
    counts = np.zeros(0, np.int32) if prior is None else np.ascontiguousarray(prior[3], np.int32)
    return Plan(
        n=n,
        extension=settings.extension,
        ridge=ridge,
        iterations=settings.iterations,
        clip=settings.clip,
        positive_only=settings.positive_only,
        leave_one_out=settings.leave_one_out,
        min_images=settings.min_images,
        shared=shared,
        tiny=0.1 * float(np.sqrt(np.finfo(dtype).eps)),
        products=make_products(n),
        own_ok=own_ok,
        extra=extra,
        gain_slope=np.zeros(0, dtype) if slope is None else np.array(slope, dtype),
        prior=Prior(arrays[0], arrays[1], arrays[2], counts),
        recurrence=recurrence.astype(dtype),
        **matrices,
    )


def _shared_rows(phase_y, phase_x, extension):
    """Which frames' own samples lie in the domain, and the neighbours' (epoch, oy, ox) that do."""
    limit = extension / 2 + EDGE
    own_ok = (np.abs(phase_y) <= limit) & (np.abs(phase_x) <= limit)
    listed = [
        (k, oy, ox)
        for oy in (-1, 0, 1)
        for ox in (-1, 0, 1)
        for k in range(len(phase_y))
        if (oy or ox) and abs(phase_y[k] + oy) <= limit and abs(phase_x[k] + ox) <= limit
    ]
    return own_ok, np.array(listed, np.int64).reshape(-1, 3)


def _shared_matrices(phase_y, phase_x, own_ok, extra, n, extension, ridge, dtype):
    """Packed matrices of the rows that all pixels have in common."""
    degrees, size = 2 * n - 1, n * n
    y = np.concatenate([np.where(own_ok, phase_y, 0.0), phase_y[extra[:, 0]] + extra[:, 1]])
    x = np.concatenate([np.where(own_ok, phase_x, 0.0), phase_x[extra[:, 0]] + extra[:, 2]])
    design = design_matrix(y, x, n, extension)
    products = phase_basis(y, degrees, extension)[:, None] * phase_basis(x, degrees, extension)[None]
    products = products.reshape(degrees**2, -1)
    penalty = ridge * np.eye(size)
    penalty[0, 0] = 0.0
    used = design * np.concatenate([own_ok, np.ones(len(extra), bool)])[:, None]
    start = np.linalg.lstsq(used.T @ design + penalty, used.T, rcond=None)[0]
    named = {
        "moments": products,
        "right": design.T,
        "start": start,
        "surface": design,
        "form": products.T,
    }
    return {name: pack(matrix.astype(dtype)) for name, matrix in named.items()}


def make_buffers(plan: Plan, n_time: int, dtype) -> tuple[Rows, Work]:
    """Workspaces of one thread; the rows of a block take most: 8 to 10 numbers a row and pixel."""
    n_rows = n_time + len(plan.extra) if plan.shared else 9 * n_time
    lanes = 64 // np.dtype(dtype).itemsize
    degrees, size, n_pairs = 2 * plan.n - 1, plan.n**2, plan.n * (plan.n + 1) // 2

    def block(n: int) -> NDArray[np.floating]:
        return aligned_zeros((-(-n // PANEL) * PANEL) * WIDTH, dtype)

    def wanted(test: bool) -> NDArray[np.floating]:
        return block(n_rows) if test else np.zeros(0, dtype)

    rows = Rows(
        flux=block(n_rows),
        variance=block(n_rows),
        state=block(n_rows),
        model=block(n_rows),
        weight=block(n_rows),
        weighted=block(n_rows),
        form=block(n_rows),
        slope=wanted(plan.gain_slope.size > 0),
        y=wanted(not plan.shared),
        x=wanted(not plan.shared),
        lane=block(LANE_ARRAYS),
    )
    work = Work(
        block(degrees**2), block(size), block(size), block(degrees**2),
        aligned_zeros(2 * degrees * n_pairs * lanes, dtype), aligned_zeros(2 * n_pairs**2 * lanes, dtype),
        aligned_zeros(2 * size * (size + 1) // 2 * lanes, dtype), aligned_zeros(2 * size * lanes, dtype),
        aligned_zeros(2 * degrees * lanes, dtype),
    )  # fmt: skip
    return rows, work
