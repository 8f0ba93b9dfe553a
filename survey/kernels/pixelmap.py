"""Maps from reference pixels to detector pixels, nearest-pixel placement and sub-pixel phases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Phases that differ by less than this over the whole field are one phase: an affine term this small
# moves a star by a thousandth of a pixel, far below what a frame's registration can know.
TRANSLATION_TOLERANCE = 1e-3
# Maps whose shifts are remembered.
_SHIFTS = 8192


def polynomial_terms(u: ArrayLike, v: ArrayLike, order: int) -> Array:
    """Monomials ``u**i v**j``, ``i + j <= order``, by total degree; shape (n_terms, ...)."""
    u, v = np.asarray(u, float), np.asarray(v, float)
    u, v = np.broadcast_arrays(u, v)
    return np.stack([u ** (d - j) * v**j for d in range(order + 1) for j in range(d + 1)])


def n_terms(order: int) -> int:
    """Number of monomials of two variables up to a total degree."""
    return (order + 1) * (order + 2) // 2


@dataclass(frozen=True)
class PixelMap:
    """Polynomial map from reference pixel (x, y) to detector pixel (x, y).

    Parameters
    ----------
    coefficients : array (2, n_terms)
        Row 0 gives the detector x, row 1 the detector y; terms as in `polynomial_terms`
        of ``((x - center_x) / scale, (y - center_y) / scale)``.
    center : tuple of float
        (x, y) of the reference pixel where the polynomial is centred.
    scale : float
        Length in pixels that normalises the variables.
    placed_center : tuple of float, optional
        Where the polynomial was centred when the frame was placed on the grid, if it was refined since: its
        samples stay in the pixels that they were placed in.

    Examples
    --------
    >>> PixelMap.translation(3.0, -1.5).evaluate(10.0, 20.0)
    (13.0, 18.5)
    """

    coefficients: Array
    center: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    placed_center: tuple[float, float] | None = None

    @property
    def placing(self) -> PixelMap:
        """The map that the frame was placed by."""
        if self.placed_center is None:
            return self
        return PixelMap(self.coefficients, self.placed_center, self.scale)

    @property
    def order(self) -> int:
        """Total degree of the polynomial."""
        n = self.coefficients.shape[1]
        return next(order for order in range(n) if n_terms(order) >= n)

    @classmethod
    def translation(cls, dx: float, dy: float) -> PixelMap:
        """Map that adds (dx, dy)."""
        return cls(np.array([[dx, 1.0, 0.0], [dy, 0.0, 1.0]]))

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Detector position (x, y) of reference position (x, y); any shape."""
        u = (np.asarray(x, float) - self.center[0]) / self.scale
        v = (np.asarray(y, float) - self.center[1]) / self.scale
        mapped = np.tensordot(self.coefficients, polynomial_terms(u, v, self.order), axes=1)
        if mapped.ndim == 1:
            return float(mapped[0]), float(mapped[1])  # type: ignore[return-value]
        return mapped[0], mapped[1]

    def jacobian(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Derivatives d(xd, yd)/d(x, y), shape (2, 2, ...)."""
        u = (np.asarray(x, float) - self.center[0]) / self.scale
        v = (np.asarray(y, float) - self.center[1]) / self.scale
        u, v = np.broadcast_arrays(u, v)
        du, dv = [], []
        for d in range(self.order + 1):
            for j in range(d + 1):
                i = d - j
                du.append(i * u ** max(i - 1, 0) * v**j)
                dv.append(j * u**i * v ** max(j - 1, 0))
        derivatives = np.stack([np.stack(du), np.stack(dv)])
        return np.einsum("at,bt...->ab...", self.coefficients, derivatives) / self.scale

    def inverse(self, xd: ArrayLike, yd: ArrayLike) -> tuple[Array, Array]:
        """Reference position of a detector position, by Newton steps from the affine part."""
        xd, yd = np.broadcast_arrays(np.asarray(xd, float), np.asarray(yd, float))
        x = np.full(xd.shape, self.center[0])
        y = np.full(yd.shape, self.center[1])
        steps = 1 if self.order == 1 else 6
        for _ in range(steps):
            fx, fy = self.evaluate(x, y)
            (a, b), (c, d) = self.jacobian(x, y)
            det = a * d - b * c
            rx, ry = xd - fx, yd - fy
            x = x + (d * rx - b * ry) / det
            y = y + (a * ry - c * rx) / det
        return x, y

    def is_translation(self, shape: tuple[int, int]) -> bool:
        """Whether the map is a pure shift to `TRANSLATION_TOLERANCE` over an image of this shape."""
        if self.order == 1:
            # Linear: extreme in the corners. Asked of every frame of every tile, hence without arrays.
            (_, xx, xy), (_, yx, yy) = self.coefficients.tolist()
            width, height = shape[1] - 1, shape[0] - 1
            along_x = abs(xx / self.scale - 1) * width + abs(xy / self.scale) * height
            along_y = abs(yx / self.scale) * width + abs(yy / self.scale - 1) * height
            return max(along_x, along_y) < TRANSLATION_TOLERANCE
        ys, xs = (np.array([0.0, n - 1.0]) for n in shape)
        x, y = np.meshgrid(np.append(xs, xs.mean()), np.append(ys, ys.mean()))
        xd, yd = self.evaluate(x, y)
        return float(max(np.ptp(xd - x), np.ptp(yd - y))) < TRANSLATION_TOLERANCE

    def shift(self, shape: tuple[int, int]) -> tuple[float, float] | None:
        """The (y, x) shift that the map is on an image of this shape; None where it is more than that."""
        center = (float(self.center[0]), float(self.center[1]))
        return _shift(
            np.asarray(self.coefficients, float).tobytes(),
            self.coefficients.shape,
            center,
            float(self.scale),
            shape,
        )


@lru_cache(maxsize=_SHIFTS)
def _shift(
    coefficients: bytes,
    size: tuple[int, int],
    center: tuple[float, float],
    scale: float,
    shape: tuple[int, int],
) -> tuple[float, float] | None:
    """`PixelMap.shift`: asked again for every window that is read."""
    pixel_map = PixelMap(np.frombuffer(coefficients).reshape(size), center, scale)
    if not pixel_map.is_translation(shape):
        return None
    cx, cy = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    xd, yd = pixel_map.evaluate(cx, cy)
    return float(yd) - cy, float(xd) - cx


def fit_pixel_map(
    x: ArrayLike, y: ArrayLike, xd: ArrayLike, yd: ArrayLike, order: int = 1, weights: ArrayLike | None = None
) -> PixelMap:
    """Least-squares `PixelMap` through pairs of positions.

    Parameters
    ----------
    x, y : array (n,)
        Reference positions in pixels.
    xd, yd : array (n,)
        Detector positions in pixels.
    order : int
        Total degree; 0 fits a pure shift.
    weights : array (n,), optional
        Inverse variances.

    Raises
    ------
    ValueError
        If there are fewer pairs than terms.
    """
    x, y, xd, yd = (np.asarray(a, float) for a in (x, y, xd, yd))
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    if len(x) < n_terms(order):
        raise ValueError(f"{len(x)} pairs of positions cannot fix a map of order {order}")
    if order == 0:
        return PixelMap.translation(
            float(np.average(xd - x, weights=w)), float(np.average(yd - y, weights=w))
        )
    center = (float(np.mean(x)), float(np.mean(y)))
    scale = float(max(np.ptp(x), np.ptp(y), 1.0)) / 2
    design = polynomial_terms((x - center[0]) / scale, (y - center[1]) / scale, order).T
    root = np.sqrt(w)[:, None]
    solution, *_ = np.linalg.lstsq(design * root, np.column_stack([xd, yd]) * root, rcond=None)
    return PixelMap(solution.T.copy(), center, scale)


def nearest_pixels(
    pixel_map: PixelMap, rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """Detector pixel nearest to every reference pixel of a window, and the phase it was taken at.

    Nearest it was by the map that placed the frame; where that was refined since, a phase may lie a little
    beyond half a pixel.

    Parameters
    ----------
    rows, columns : tuple of int
        Window [start, stop) on the reference grid.
    shape : tuple of int
        (y, x) shape of the whole reference grid: decides, once for the field, whether the map
        counts as a pure shift, so that a phase does not depend on the tiling.

    Returns
    -------
    detector_y, detector_x : int arrays (y, x)
        Not to be written to.
    phase_y, phase_x : arrays (y, x), or scalars () where the map is a pure shift
        Sample [y, x] was taken at reference position (y + phase_y, x + phase_x).
    """
    shift = pixel_map.shift(shape)
    if shift is not None:
        dy, dx = shift
        iy, ix = (round(part) for part in pixel_map.placing.shift(shape) or shift)
        size = (rows[1] - rows[0], columns[1] - columns[0])
        at_y = np.broadcast_to((np.arange(*rows) + iy)[:, None], size)
        at_x = np.broadcast_to(np.arange(*columns) + ix, size)
        return at_y, at_x, np.asarray(iy - dy), np.asarray(ix - dx)
    x, y = np.meshgrid(np.arange(*columns), np.arange(*rows))
    xd, yd = pixel_map.evaluate(x, y)
    placed = (xd, yd) if pixel_map.placed_center is None else pixel_map.placing.evaluate(x, y)
    jx, jy = (np.rint(part).astype(np.int64) for part in placed)
    (a, b), (c, d) = pixel_map.jacobian(x, y)
    det = a * d - b * c
    rx, ry = jx - xd, jy - yd
    return jy, jx, (a * ry - c * rx) / det, (d * rx - b * ry) / det


def displacement(
    pixel_map: PixelMap, rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Where the detector pixels of a window lie on the reference grid, less their own indices.

    Parameters as in `nearest_pixels`, the window on the detector.

    Returns
    -------
    phase_y, phase_x : arrays (y, x), or scalars () where the map is a pure shift
        Pixel [y, x] lies at reference position (y + phase_y, x + phase_x).
    """
    shift = pixel_map.shift(shape)
    if shift is not None:
        return np.asarray(-shift[0]), np.asarray(-shift[1])
    x, y = np.meshgrid(np.arange(*columns), np.arange(*rows))
    xr, yr = pixel_map.inverse(x, y)
    return yr - y, xr - x
