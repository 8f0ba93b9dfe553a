"""Offsets refined against the reference: wrong ones are found, as a stage finds them."""

import shutil

import numpy as np

from survey.io.store import Field
from survey.stages import refine
from survey.stages.calibrated import REFINED, calibrated_frames
from tests.run.conftest import small_config

# Pixels by which some frames are said to lie beside where they do, y and x.
WRONG = {7: (0.05, -0.03), 30: (-0.04, 0.0), 55: (0.0, 0.06)}


def corrections(field, config):
    """What one round over all windows says of every frame: scale, sky, offset in y and x."""
    sums = [refine.partial(refine.read(field, u, config), config) for u in refine.units(field, config)]
    return refine.combine(sums, config)


def test_wrong_offsets_are_found_and_taken_out(finished, tmp_path):
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    field, config = Field.open(path), small_config()
    config.registration.refine_offsets = True
    true = corrections(field, config)
    frames = calibrated_frames(field).copy(deep=True)
    for k, (y, x) in WRONG.items():
        frames["map_center"].values[k] += (x, y)
    field.write_table("registration", frames[list(REFINED)].reset_coords(drop=True))
    found = corrections(field, config)
    added = found[:, 2:] - true[:, 2:]
    expected = np.zeros((72, 2))
    for k, offset in WRONG.items():
        # The map was moved by so much, so it has to come back.
        expected[k] = -np.array(offset)
    np.testing.assert_allclose(added, expected - expected.mean(axis=0), atol=0.012)
    reference = frames["frame_id"].values.tolist().index(field.attrs["reference_frame"])
    once = refine.corrected(frames, found, reference)
    field.write_table("registration", once[list(REFINED)].reset_coords(drop=True))
    left = corrections(field, config)[:, 2:] - true[:, 2:]
    assert np.abs(left).max() < 0.012
    config.registration.refine_offsets = False
    assert not corrections(field, config)[:, 2:].any()
