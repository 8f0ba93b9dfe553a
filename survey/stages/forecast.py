"""What the stages of other methods take in memory: forecasts, with coefficients measured for them.

Measured by tests/benchmarks/test_memory.py, in bytes, above what a worker holds with everything imported.
"""

from __future__ import annotations

from survey.config import Config
from survey.stages.matching import SPLINE_REACH, kernel_edge
from survey.stages.pairwise import reach
from survey.stages.protocol import Outlook, Unit

# cpm: a sample of core and halo (calibrated, normalised, whitened, squared), one of the core (predicted and
# written), and the rest.
CPM = {"sample": 67, "phase": 16, "core": 40, "least": 20e6}
# sfft: a sample of the block in core and halo, and the rest, while sums are made and while it is subtracted.
SUMS = {"sample": 20, "phase": 16, "least": 22e6}
SUBTRACTED = {"sample": 52, "phase": 16, "least": 18e6}
# zogy, hotpants: a sample of a block's cutouts, a pixel of one while it is subtracted, and the rest.
PAIRS = {"sample": 42, "pixel": 900, "least": 20e6}


def predicted(unit: Unit, outlook: Outlook, halo: int) -> float:
    """Forecast of a tile of cpm, and of all around it that may predict it."""
    assert unit.tile is not None
    each = CPM["sample"] + (CPM["phase"] if outlook.own_phases else 0)
    return (
        each * outlook.samples(unit.tile, halo) + CPM["core"] * outlook.samples(unit.tile, 0) + CPM["least"]
    )


def matching(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile and a block of frames: their samples, and every frame's sums while it makes them."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    settings = config.subtraction
    edge = settings.kernel_size or kernel_edge(*outlook.psf_widths)
    samples = Outlook(last - first).samples(unit.tile, edge // 2 + SPLINE_REACH)
    kernel_order = 2 if settings.kernel_order is None else settings.kernel_order
    order = max(kernel_order, settings.flux_order, settings.background_order)
    matrix = 8 * ((edge**2 + 1) * (order + 1) * (order + 2) // 2) ** 2

    def taken(bytes_of: dict[str, float]) -> float:
        each = bytes_of["sample"] + (bytes_of["phase"] if outlook.own_phases else 0)
        return each * samples + bytes_of["least"]

    return max(taken(SUMS) + matrix * (last - first), taken(SUBTRACTED))


def pairs(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile's cutouts of a block of frames, and of one frame and the template in them."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    edge = 2 * ((max(unit.tile.shape) + 1) // 2 + 2 + reach(outlook.psf_widths[1])) + 1
    return PAIRS["sample"] * edge**2 * (last - first) + PAIRS["pixel"] * edge**2 + PAIRS["least"]
