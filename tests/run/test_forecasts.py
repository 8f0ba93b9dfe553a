"""Forecasts of memory against what tests/benchmarks/test_memory.py measured, which takes half an hour."""

import pytest

import survey.stages.registry  # noqa: F401  (every stage may be asked for its memory)
from survey.config import Config
from survey.stages.methods import METHODS
from survey.stages.protocol import STAGES, Outlook, Unit
from survey.tiles import Tile

# MB above the import baseline, mean of two processes; the larger of sums and subtraction.
MEASURED = [
    ("oversampled", 64, 96, 58),
    ("oversampled", 128, 192, 176),
    ("oversampled", 64, 768, 171),
    ("detect", 64, 96, 24),
    ("detect", 128, 192, 166),
    ("detect", 64, 768, 159),
    ("refine", 96, 96, 39),
    ("refine", 96, 384, 137),
    ("refine", 96, 1000, 287),
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


@pytest.mark.parametrize(("stage", "edge", "epochs", "measured"), MEASURED)
def test_forecast_is_within_a_quarter_of_what_was_measured(stage, edge, epochs, measured):
    config = Config(method=stage if stage in METHODS else "oversampled", subtraction={"kernel_size": 7})
    unit = Unit("", Tile(0, 0, edge, 0, edge), (0, epochs))
    forecast = STAGES[stage].memory(unit, Outlook(epochs, psf_widths=(1.1, 1.3)), config) / 1e6
    assert forecast == pytest.approx(measured, rel=0.25)
