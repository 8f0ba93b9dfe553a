"""An event beside a pixel that a star saturates in some of the frames says so."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from survey.config import Config
from survey.io.frames import DQ_NO_DATA, DQ_SATURATED
from survey.io.store import Field
from survey.kernels.peaks import PEAK_DTYPE
from survey.stages import candidates

EPOCHS, EDGE = 20, 16


@pytest.fixture
def field(tmp_path):
    """Pixels saturated in 8 of 20 epochs, in one, in flagged epochs alone, and one without data."""
    made = Field.create(
        tmp_path / "field", (EDGE, EDGE), {"tile_size": EDGE, "time_block": EPOCHS, "units": "count"}
    )
    made.require_group("images/sky", {"time": EPOCHS, "y": EDGE, "x": EDGE})
    dq = np.zeros((EPOCHS, EDGE, EDGE), np.uint32)
    dq[4:12, 3, 5] = DQ_SATURATED | 1
    dq[7, 8, 8] = DQ_SATURATED
    dq[:3, 10, 2] = DQ_SATURATED
    dq[:, 12, 12] = DQ_NO_DATA
    made.write("images/sky", {"dq": dq}, (slice(0, EPOCHS), slice(0, EDGE), slice(0, EDGE)))
    return made


def test_saturated_in_some_epochs_not_in_one(field):
    frames = xr.Dataset({"flags": ("time", np.r_[1, 1, 1, np.zeros(EPOCHS - 3, int)])})
    found = candidates.saturated_pixels(field, (slice(2, EDGE), slice(1, EDGE)), frames)
    assert np.argwhere(found).tolist() == [[3 - 2, 5 - 1]]


class Measured(Exception):
    """Raised in the place of the measurement, which is the kernel's (tests/kernels/test_peaks.py)."""


def test_candidates_are_measured_beside_saturated_and_useless_pixels(monkeypatch):
    def measure(*args, saturated, **options):
        raise Measured(np.argwhere(saturated).tolist())

    monkeypatch.setattr(candidates, "measure_candidate", measure)
    cube = np.zeros((EPOCHS, 5, 5), np.float32)
    mask, saturated = np.zeros(cube.shape, bool), np.zeros((5, 5), bool)
    mask[:15, 4, 0] = True
    saturated[0, 1] = True
    peak = tuple(np.zeros(1, PEAK_DTYPE)[0].item())
    stamp = candidates.Stamp(peak, cube, cube + 1, mask, cube, cube, (0, 0), saturated)
    data = candidates.TilePeaks([stamp], np.arange(EPOCHS), None, (EDGE, EDGE), candidates.Measured((), ()))
    state = SimpleNamespace(model_share=0.1, psf=None, stamp=5)
    with pytest.raises(Measured, match=r"\[\[0, 1\], \[4, 0\]\]"):
        candidates.apply(data, state, Config())
