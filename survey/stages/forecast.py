"""What the stages of other methods take in memory: forecasts, with coefficients measured for them.

Measured by tests/benchmarks/test_memory.py, in bytes, above what a worker holds with everything imported.
"""

from __future__ import annotations

from survey.config import Config
from survey.stages.kernel_model import kernel_edge
from survey.stages.matching import SPLINE_REACH
from survey.stages.pairwise import reach
from survey.stages.protocol import Outlook, Unit

# cpm: a sample of core and halo, one of the core (predicted and written), and the rest.
CPM = {"sample": 49, "phase": 16, "core": 41, "least": 25e6}
# A sample of a block of frames: sfft's in core and halo while sums are made, which takes most; zogy's and
# hotpants' in the cutouts of the frames.
SUMS = {"sample": 45, "phase": 16, "kept": 34e6}
MATCHED = {"sample": 73, "kept": 55e6}
PROGRAM = {"sample": 85, "least": 19.5e6}
# Freed memory that a process keeps meanwhile (`survey.run.memory`): so much a sample, and at most ``kept``.
KEPT = 100

# A worker maps larger arrays apart and gives them back at once; smaller ones it keeps when they are freed,
# until its unit ends (`survey.run.memory`). Larger than any chunk, smaller than a tile's cubes.
MMAP_BYTES = 16 << 20


def held(size: float) -> float:
    """Bytes that a freed array of so many leaves with the process."""
    return size if size < MMAP_BYTES else 0.0


def predicted(unit: Unit, outlook: Outlook, halo: int) -> float:
    """Forecast of a tile of cpm, and of all around it that may predict it."""
    assert unit.tile is not None
    each = CPM["sample"] + (CPM["phase"] if outlook.own_phases else 0)
    return (
        each * outlook.samples(unit.tile, halo) + CPM["core"] * outlook.samples(unit.tile, 0) + CPM["least"]
    )


def matching(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile and a block of frames: their samples, and the frames' sums."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    settings = config.subtraction
    edge = settings.kernel_size or kernel_edge(outlook.psf_widths, *outlook.template)
    samples = Outlook(last - first).samples(unit.tile, edge // 2 + SPLINE_REACH)
    kernel_order = 2 if settings.kernel_order is None else settings.kernel_order
    order = max(kernel_order, settings.flux_order, settings.background_order)
    matrix = 8 * ((edge**2 + 1) * (order + 1) * (order + 2) // 2) ** 2
    each = SUMS["sample"] + (SUMS["phase"] if outlook.own_phases else 0)
    return each * samples + matrix * (last - first) + min(KEPT * samples, SUMS["kept"])


def pairs(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile's cutouts of a block of frames; what the external program takes is not in it."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    edge = 2 * ((max(unit.tile.shape) + 1) // 2 + 2 + reach(outlook.psf_widths, outlook.template[0])) + 1
    samples = edge**2 * (last - first)
    if config.method == "hotpants":
        return PROGRAM["sample"] * samples + PROGRAM["least"]
    return MATCHED["sample"] * samples + min(KEPT * samples, MATCHED["kept"])
