"""Frames into the cube: on the sky grid by nearest pixel, never by interpolation, or as they were taken."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.calibration import check_calibration
from survey.io.frames import FrameError, FrameHeader, FrameSource, read_frame
from survey.io.store import Field
from survey.kernels.pixelmap import PixelMap, nearest_pixels
from survey.stages.calibrated import Grid, frame_map
from survey.stages.pattern import pattern_key, stored_pattern
from survey.stages.protocol import Outlook, Output, Stage, Unit

# Bytes of a placed sample (flux, error, dq, mask) and how much of a worker's budget a block may fill.
SAMPLE_BYTES = 13
BLOCK_SHARE = 0.25
IDENTITY = PixelMap.translation(0.0, 0.0)


class UnplacedError(ValueError):
    """Frames of a block that cannot be read: which, and why.

    Where a WCS places a frame, only its middle was read before.
    """

    def __init__(self, lost: list[tuple[FrameSource, str]]) -> None:
        self.lost = lost
        super().__init__(lost)

    def __str__(self) -> str:
        more = f" (and {len(self.lost) - 1} more frames)" if len(self.lost) > 1 else ""
        return self.lost[0][1] + more


@dataclass(frozen=True)
class Placement:
    """One frame and where it belongs."""

    header: FrameHeader
    pixel_map: PixelMap


def place_units(
    field: Field,
    frames: xr.Dataset,
    headers: list[FrameHeader],
    start: int,
    config: Config,
    grid: Grid = "sky",
) -> list[Unit]:
    """Units that place frames ``start`` … of the table: a time block and a band of tile rows each.

    Every shard of the cube belongs to one unit, so that it has one writer. Where even one row of tiles would
    take too much, units hold a part of it.
    """
    height, width = field.shape
    rows, columns = block_shape(width, field.tile_size, field.time_block, config)
    units = []
    own = pattern_key(field), tuple(field.attrs.get("calibration", ()))
    block = field.time_block
    total = frames.sizes["time"]
    for first in range(start // block * block, total, block):
        k0, k1 = max(first, start), min(first + block, total)
        placements = tuple(
            Placement(headers[k - start], frame_map(frames, k) if grid == "sky" else IDENTITY)
            for k in range(k0, k1)
        )
        for y0 in range(0, height, rows):
            y1 = min(y0 + rows, height)
            name = f"{prefix(grid)}epochs-{k0:06d}-{k1:06d}-rows-{y0:05d}"
            for x0 in range(0, width, columns):
                x1 = min(x0 + columns, width)
                part = name if columns >= width else f"{name}-columns-{x0:05d}"
                units.append(Unit(part, None, (k0, k1, y0, y1, placements, grid, own, x0, x1)))
    return units


def block_shape(width: int, tile: int, time_block: int, config: Config) -> tuple[int, int]:
    """Rows and columns of a unit: whole tiles, of all columns where a row of tiles fits into the budget."""
    pixels = config.grid.memory * 2**30 * BLOCK_SHARE / (SAMPLE_BYTES * time_block)
    rows = max(tile, int(pixels / width) // tile * tile)
    if rows * width <= pixels:
        return rows, width
    return rows, min(max(tile, int(pixels / rows) // tile * tile), width)


def prefix(grid: Grid) -> str:
    """How the names of a grid's units begin."""
    return "" if grid == "sky" else f"{grid}-"


def epoch_span(name: str, grid: Grid = "sky") -> tuple[int, int] | None:
    """First epoch of the block of this name and one more than its last; None of another grid's."""
    found = re.match(rf"{prefix(grid)}epochs-(\d+)-(\d+)-", name)
    return (int(found[1]), int(found[2])) if found else None


def unit_identity(unit: Unit) -> list[Any]:
    """What the placed data depend on besides the settings: content of the files, maps."""
    k0, k1, y0, y1, *_, x0, x1 = unit.items
    rows: list[Any] = [k0, k1, y0, y1, *([x0, x1] if "columns" in unit.name else [])]
    for placement in unit.items[4]:
        m = placement.pixel_map
        rows.append([placement.header.fingerprint, m.coefficients.tolist(), list(m.center), m.scale])
    pattern, files = unit.items[6]
    return [*rows, *([] if pattern is None else [pattern]), *files]


def _detector_rows(pixel_map: PixelMap, y0: int, y1: int, columns: tuple[int, int]) -> tuple[int, int]:
    """Detector rows that a part of the sky grid may need."""
    x = np.linspace(columns[0], columns[1] - 1, 9)
    edges = [pixel_map.evaluate(x, np.full_like(x, float(y)))[1] for y in (y0, y1 - 1)]
    return int(np.floor(np.min(edges))) - 2, int(np.ceil(np.max(edges))) + 3


@dataclass
class Placed:
    """A block of the cube: its arrays and where they belong."""

    arrays: dict[str, NDArray[Any]]
    region: tuple[slice, ...]
    grid: Grid


def _nearest(
    pixel_map: PixelMap,
    part: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int],
    low: int,
    held: tuple[int, int],
) -> tuple[Any, Any]:
    """Indices of a part of the grid that a frame covers, and of the frame's pixels that belong there.

    Of the frame the rows from ``low`` on are held, pixels of shape ``held``.
    """
    shift = pixel_map.shift(shape)
    if shift is None:
        jy, jx, _, _ = nearest_pixels(pixel_map, *part, shape)
        jy = jy - low
        inside = (jy >= 0) & (jy < held[0]) & (jx >= 0) & (jx < held[1])
        return inside, (jy[inside], jx[inside])
    (y0, y1), (x0, x1) = part
    to, source = [], []
    for start, size, moved, limit in zip(
        (y0 - low, x0), (y1 - y0, x1 - x0), map(round, shift), held, strict=True
    ):
        first = max(-(start + moved), 0)
        stop = max(min(limit - (start + moved), size), first)
        to.append(slice(first, stop))
        source.append(slice(start + moved + first, start + moved + stop))
    return tuple(to), tuple(source)


def read(field: Field, unit: Unit, config: Config) -> Placed:
    """Read the unit's frames one by one and take the nearest pixel of each.

    Raises
    ------
    UnplacedError
        If some cannot be read.
    """
    k0, k1, y0, y1, placements, grid, own, x0, x1 = unit.items
    check_calibration(config.input, own[1], str(field.path))
    pattern = None if own[0] is None else stored_pattern(field)
    size = (k1 - k0, y1 - y0, x1 - x0)
    placed: dict[str, NDArray[Any]] = {
        "flux": np.full(size, np.nan, np.float32),
        "error": np.full(size, np.nan, np.float32),
        "mask": np.ones(size, bool),
        "dq": np.zeros(size, np.uint32),
    }
    detector_height = int(field.attrs["detector_shape"][0])
    lost = []
    for k, placement in enumerate(placements):
        low, high = _detector_rows(placement.pixel_map, y0, y1, (x0, x1))
        low, high = max(low, 0), min(high, detector_height)
        if low >= high:
            continue
        try:
            frame = read_frame(placement.header, config.input, (low, high), pattern)
        except FrameError as error:
            lost.append((placement.header.source, str(error)))
            continue
        to, source = _nearest(placement.pixel_map, ((y0, y1), (x0, x1)), field.shape, low, frame.shape)
        for name, values in placed.items():
            values[k][to] = getattr(frame, name)[source]
    if lost:
        raise UnplacedError(lost)
    return Placed(placed, (slice(k0, k1), slice(y0, y1), slice(x0, x1)), grid)


def apply(data: Placed, state: None, config: Config) -> Output:
    """Hand the placed block on to be written."""
    good = int((~data.arrays["mask"]).sum())
    return Output({f"images/{data.grid}": data.arrays}, data.region, payload={"good": good})


# Measured (tests/benchmarks/test_memory.py), bytes: a placed sample with its share of a frame and of what is
# on its way to disk, and whatever the block.
BYTES = {"sample": 28, "least": 25e6}


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of one block."""
    k0, k1, y0, y1, *_, x0, x1 = unit.items
    height, width = unit.items[4][0].header.shape
    # whole, beside the block: the pattern, and calibration files, each read in float32
    pattern, files = unit.items[6]
    kept = height * width * (9 * (pattern is not None) + 8 * len(files))
    return block_memory(k1 - k0, y1 - y0, x1 - x0) + kept


def block_memory(epochs: int, rows: int, columns: int) -> float:
    """Forecast of so many samples, without calibration files."""
    return BYTES["sample"] * epochs * rows * columns + BYTES["least"]


STAGE = Stage(
    "place", 1, lambda config: config.input, lambda field, config: [], read, apply=apply, memory=memory
)
