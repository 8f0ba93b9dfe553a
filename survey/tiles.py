"""Tiles: cores that partition an image, halos that overlap, and their fixed order."""

from __future__ import annotations

from dataclasses import dataclass

Window = tuple[slice, slice]


@dataclass(frozen=True, order=True)
class Tile:
    """A core of the image, rows [y0, y1) and columns [x0, x1).

    Examples
    --------
    >>> tile = Tile(0, 0, 8, 0, 8)
    >>> tile.window(2, (16, 16))
    (slice(0, 10, None), slice(0, 10, None))
    >>> tile.inner(2)
    (slice(0, 8, None), slice(0, 8, None))
    """

    index: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def name(self) -> str:
        """Name used in ledgers and messages."""
        return f"tile-{self.index:05d}"

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) shape of the core."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def core(self) -> Window:
        """The core as slices of the whole image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def window(self, halo: int, shape: tuple[int, int]) -> Window:
        """Core and halo as slices of the whole image, cut at its edges."""
        return (
            slice(max(self.y0 - halo, 0), min(self.y1 + halo, shape[0])),
            slice(max(self.x0 - halo, 0), min(self.x1 + halo, shape[1])),
        )

    def inner(self, halo: int) -> Window:
        """The core as slices of an array that holds `window(halo)`."""
        top, left = min(halo, self.y0), min(halo, self.x0)
        return slice(top, top + self.y1 - self.y0), slice(left, left + self.x1 - self.x0)

    def touches(self, y: float, x: float, radius: float) -> bool:
        """Whether a square of this half-width around a position overlaps the core."""
        return (
            self.y0 - radius <= y + 0.5 < self.y1 + radius + 1
            and self.x0 - radius <= x + 0.5 < self.x1 + radius + 1
        )

    def contains(self, y: float, x: float) -> bool:
        """Whether the pixel nearest to a position is in the core."""
        return self.y0 <= round(y) < self.y1 and self.x0 <= round(x) < self.x1


def tile_grid(shape: tuple[int, int], size: int) -> list[Tile]:
    """Tiles of an image in their fixed order, row by row.

    Parameters
    ----------
    shape : tuple of int
        (y, x) shape of the image.
    size : int
        Edge of a core; the last row and column are smaller where it does not divide the image.

    Raises
    ------
    ValueError
        If the size is not positive.
    """
    if size < 1:
        raise ValueError(f"tile size {size}: must be at least 1")
    corners = [(y, x) for y in range(0, shape[0], size) for x in range(0, shape[1], size)]
    return [
        Tile(i, y, min(y + size, shape[0]), x, min(x + size, shape[1])) for i, (y, x) in enumerate(corners)
    ]


def choose_tile_size(shape: tuple[int, int], epochs: int, memory: float) -> int:
    """Tile edge for a number of epochs and a memory budget.

    The budget bounds it from above (see `tile_bytes`; a run cuts tiles into row blocks where it was not
    enough); at least four tiles keep several workers busy.
    Always a multiple of 32.

    Parameters
    ----------
    memory : float
        Bytes that one tile may take.
    """
    per_pixel = tile_bytes(1, epochs) - BYTES_AT_LEAST
    bounded = int((max(memory - BYTES_AT_LEAST, 0.0) / per_pixel) ** 0.5)
    busy = -(-max(shape) // 2)
    return max(32, min(256, bounded // 32 * 32, -(-busy // 32) * 32))


# Measured on the oversampled stage, the hungriest (tests/benchmarks/test_memory.py): bytes a pixel and epoch
# (calibrated inputs, masks, differences, leverage, an array's copy on its way to disk), what it adds where
# every sample has a phase of its own (rotation, distortion), bytes a pixel (coefficients), and the rest.
BYTES_PER_SAMPLE = 40
BYTES_PER_PHASE = 16
BYTES_PER_PIXEL = 400
BYTES_AT_LEAST = 26e6


def sums_bytes(n_basis: int) -> int:
    """Bytes a pixel of the sums kept for later nights, and of a copy of the larger while it is written."""
    return 8 * (2 * (2 * n_basis - 1) ** 2 + n_basis**2)


def tile_bytes(size: int, epochs: int, *, own_phases: bool = False, n_basis: int = 6) -> float:
    """Forecast of the memory one tile takes above the import baseline.

    Parameters
    ----------
    own_phases : bool
        Whether frames are rotated or distorted, so that every sample has a phase of its own.
    n_basis : int
        Of the reference whose sums are kept; 0: none are.
    """
    sample = BYTES_PER_SAMPLE + (BYTES_PER_PHASE if own_phases else 0)
    pixel = BYTES_PER_PIXEL + (sums_bytes(n_basis) if n_basis else 0)
    return float(size**2 * (sample * epochs + pixel) + BYTES_AT_LEAST)
