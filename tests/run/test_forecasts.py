"""Forecasts of memory against what tests/benchmarks/test_memory.py measured, which takes half an hour."""

import pytest

import survey.stages.registry  # noqa: F401  (every stage may be asked for its memory)
from survey.config import Config
from survey.stages.protocol import STAGES, Outlook, Unit
from survey.tiles import Tile

# MB above the import baseline; the larger of sums and subtraction. 64 x 64 pixels of sfft twice: 52, 42.
MEASURED = [
    ("cpm", 64, 96, 124),
    ("cpm", 128, 192, 518),
    ("cpm", 64, 768, 815),
    ("sfft", 64, 32, 47),
    ("sfft", 128, 32, 109),
    ("sfft", 256, 32, 170),
    ("zogy", 64, 32, 41),
    ("zogy", 128, 32, 115),
    ("zogy", 256, 32, 241),
    ("hotpants", 64, 32, 42),
    ("hotpants", 128, 32, 79),
]


@pytest.mark.parametrize(("method", "edge", "epochs", "measured"), MEASURED)
def test_forecast_is_within_a_quarter_of_what_was_measured(method, edge, epochs, measured):
    config = Config(method=method, subtraction={"kernel_size": 7})
    unit = Unit("", Tile(0, 0, edge, 0, edge), (0, epochs))
    forecast = STAGES[method].memory(unit, Outlook(epochs, psf_widths=(1.1, 1.3)), config) / 1e6
    assert forecast == pytest.approx(measured, rel=0.25)
