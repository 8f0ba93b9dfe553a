"""Frames of two exposure times in one field: short ones are no hazy ones."""

import json

import numpy as np
import pytest
import xarray as xr

from survey.kernels.frame_quality import FrameFlag
from survey.stages.frame_table import flag_table


def night(exposure, units):
    """Steady frames: scale, sky and stars are what their exposure makes of them."""
    rng = np.random.default_rng(3)
    n = len(exposure)
    share = np.ones(n) if units.endswith("s") else exposure / 120.0
    columns = {
        "exposure": exposure,
        "scale": share * rng.normal(1, 0.002, n),
        "psf_fwhm": rng.normal(3, 0.02, n),
        "elongation": rng.normal(1.1, 0.005, n),
        "registration_median": rng.normal(0.03, 0.001, n),
        "n_stars": np.round(400 * (exposure / 120) ** 0.5 * rng.normal(1, 0.01, n)),
        "n_matched": np.full(n, 150),
    }
    frames = xr.Dataset({name: ("time", values) for name, values in columns.items()})
    frames["background"] = (
        ("time", "background_term"),
        (300 + 400 * share * rng.normal(1, 0.01, n))[:, None],
    )
    frames["header"] = ("time", np.array([json.dumps({"units": units})] * n, object))
    return frames


@pytest.mark.parametrize("units", ["count", "electron / s"])
def test_short_exposures_among_long_ones_are_not_hazy(units):
    exposure = np.full(60, 120.0)
    exposure[::4] = 30.0
    assert not flag_table(night(exposure, units))["flags"].any()


@pytest.mark.parametrize("units", ["count", "electron / s"])
def test_a_cloud_over_a_short_exposure_is_seen(units):
    exposure = np.full(60, 120.0)
    exposure[::4] = 30.0
    frames = night(exposure, units)
    frames["scale"][8] *= 0.9
    frames["scale"][9] *= 0.9
    flags = flag_table(frames)["flags"].values
    assert list(np.flatnonzero(flags)) == [8, 9]
    assert (flags[[8, 9]] == FrameFlag.HAZY).all()


def test_too_few_of_one_exposure_are_compared_by_transparency_alone():
    exposure = np.full(40, 120.0)
    exposure[[3, 20]] = 30.0
    frames = night(exposure, "count")
    assert not flag_table(frames)["flags"].any()
    frames["scale"][20] *= 0.4
    assert list(np.flatnonzero(flag_table(frames)["flags"].values)) == [20]


def test_a_field_of_an_earlier_version_has_the_median_in_the_place_of_the_rms():
    frames = night(np.full(20, 120.0), "count").rename(registration_median="registration_rms")
    frames["registration_rms"][4] = 3.0
    assert list(np.flatnonzero(flag_table(frames)["flags"].values)) == [4]
