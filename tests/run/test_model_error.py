"""A search must neither take star cores for events nor let a variable hide in its own scatter."""

import numpy as np
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.stages.calibrated import calibrated_frames
from survey.stages.model_error import LEAST, model_scatter, model_share


def scattered(excess, seed=0):
    """Differences of a 4 x 4 field of bright stars that scatter by so many errors."""
    rng = np.random.default_rng(seed)
    flux = rng.normal(0, 1, (1000, 4, 4)) * np.asarray(excess)
    return flux.astype(np.float32), np.ones(flux.shape, np.float32), np.zeros(flux.shape, bool)


def test_a_pixel_is_believed_up_to_the_model_error():
    excess = np.ones((4, 4))
    excess[0, 0], excess[1, 1] = 2.0, 9.0
    level = np.full((4, 4), 100.0, np.float32)
    factor = model_scatter(level, *scattered(excess), share=0.03)
    assert factor[0, 0] == pytest.approx(2.0, rel=0.06)
    assert factor[1, 1] == pytest.approx(np.sqrt(1 + 3.0**2))
    assert (factor[2:] == 1).all()


def test_faint_pixels_and_fields_without_reference_keep_their_errors():
    flux, error, mask = scattered(5.0)
    assert (model_scatter(np.full((4, 4), 10.0), flux, error, mask, share=np.inf) == 1).all()
    assert (model_scatter(None, flux, error, mask, share=np.inf) == 1).all()
    assert (model_scatter(np.full((4, 4), 1e3), flux, error, mask, share=np.inf) > 4).all()


def test_a_masked_epoch_takes_no_pixel_out():
    excess = np.full((4, 4), 3.0)
    flux, error, mask = scattered(excess)
    level = np.full((4, 4), 100.0)
    whole = model_scatter(level, flux, error, mask, share=0.1)
    for k in (len(error) // 2, 0):
        flux[k], error[k], mask[k] = np.nan, np.nan, True
    np.testing.assert_allclose(model_scatter(level, flux, error, mask, share=0.1), whole, rtol=0.02)
    error[:, 2, 2], mask[:, 2, 2] = np.nan, True
    assert model_scatter(level, flux, error, mask, share=0.1)[2, 2] == 1


def test_the_field_says_how_far_its_model_errs(finished):
    opened = Field.open(finished.path)
    share = model_share(opened, calibrated_frames(opened), Config())
    assert LEAST <= share < 0.05
