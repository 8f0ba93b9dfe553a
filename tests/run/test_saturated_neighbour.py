"""An event beside a pixel that a star saturates in some of the frames says so."""

import numpy as np
import pytest
import xarray as xr

from survey.io.frames import DQ_NO_DATA, DQ_SATURATED
from survey.io.store import Field
from survey.stages.candidates import saturated_pixels

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
    found = saturated_pixels(field, (slice(2, EDGE), slice(1, EDGE)), frames)
    assert np.argwhere(found).tolist() == [[3 - 2, 5 - 1]]
