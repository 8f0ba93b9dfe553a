"""What kernels leave of a reference's noise is in all epochs: it makes no event, and events stay."""

import numpy as np
import pytest

from survey.config import Config
from survey.run.api import run
from survey.run.results import list_events
from survey.simulate import simulate_field
from survey.stages.constant import holds_constant, take_off_constant

EPOCHS, SHAPE = 40, (3, 4)


def leave_one_out(samples, sigma, fitted):
    """Differences from the mean of the samples in the fit, each without its own share, and their errors."""
    weight = np.where(fitted, 1 / sigma**2, 0.0)
    share = weight / weight.sum(0)
    rest = samples - (share * samples).sum(0)
    return rest / (1 - share), sigma / np.sqrt(1 - share)


def test_an_event_stays_and_what_all_epochs_share_goes():
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.5, 2, (EPOCHS, *SHAPE))
    mask = rng.random(sigma.shape) < 0.1
    fitted = ~mask & (rng.random(sigma.shape) < 0.9)
    event = 30 * np.exp(-(((np.arange(EPOCHS) - 15) / 4) ** 2))[:, None, None]
    flux, error = leave_one_out(event + sigma * rng.normal(size=sigma.shape), sigma, fitted)
    noise = rng.normal(size=SHAPE)
    flux[mask] = error[mask] = np.nan
    arrays = {"flux": flux + noise, "error": error, "mask": mask, "fit_mask": ~mask & ~fitted}
    take_off_constant(arrays)
    np.testing.assert_allclose(arrays["flux"], flux, atol=1e-12)


def test_a_pixel_without_samples_in_the_fit_stays_as_it_is():
    arrays = {"flux": np.ones((3, 1, 1)), "error": np.ones((3, 1, 1))}
    arrays |= {"mask": np.zeros((3, 1, 1), bool), "fit_mask": np.ones((3, 1, 1), bool)}
    take_off_constant(arrays)
    assert (arrays["flux"] == 1).all()


@pytest.mark.parametrize(
    ("method", "template", "holds"),
    [
        ("oversampled", "reference", False),
        ("cpm", "reference", False),
        ("sfft", "mine", False),
        ("sfft", "reference", True),
        ("zogy", "reference", True),
    ],
)
def test_where_it_may_be(method, template, holds):
    config = Config(method=method)
    config.subtraction.template = template
    assert holds_constant(config) == holds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stars_of_a_restless_psf_are_hardly_events(tmp_path):
    """The convolved reference's noise made 29 long events of 6 to 10 sigma beside the two; now it is five."""
    simulate_field(
        tmp_path / "frames", size=256, frames=101, seed=11, events=2, variables=0, density=0.03, psf_fwhm=2.4,
        psf_variation=0.05, saturation=None,
    )  # fmt: skip
    config = Config(method="sfft")
    config.registration.reference = "frame_00005"
    frames = sorted((tmp_path / "frames").glob("*.fits*"))[:96]
    assert run(tmp_path / "field", config, frames=frames, client="synchronous").ok
    events = list_events(tmp_path / "field", method="sfft")
    strong = np.abs(events["snr"]) > 15
    assert strong.sum() == 2
    assert len(events) <= 10
