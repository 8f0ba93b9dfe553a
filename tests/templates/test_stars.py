"""Which stars a template cannot show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from survey.templates.stars import mask_stars, saturation_level, unreliable_stars


def test_saturation_strikes_the_bright_ones():
    flux = np.geomspace(10, 1e5, 60)
    ratio = np.minimum(1.0, 2e4 / flux)  # cores clipped at a level
    assert saturation_level(flux, ratio) == pytest.approx(2e4 / 0.85, rel=0.2)


@given(st.lists(st.integers(0, 59), max_size=2, unique=True))
def test_a_few_variables_are_no_saturation(faded):
    ratio = np.ones(60)
    ratio[faded] = 0.3
    assert saturation_level(np.geomspace(10, 1e5, 60), ratio) is None


def test_a_variable_among_the_brightest_does_not_hide_saturation():
    flux = np.geomspace(10, 1e5, 60)
    ratio = np.where(flux > 2e4, 0.5, 1.0)
    ratio[-3] = 1.2
    assert saturation_level(flux, ratio) is not None


def test_catalogue_stars_without_magnitude_or_too_bright():
    magnitude = [12.0, np.nan, 16.0, 17.0]
    assert unreliable_stars(magnitude, 14.0).tolist() == [True, True, False, False]
    assert unreliable_stars(magnitude).tolist() == [False, True, False, False]
    assert unreliable_stars(magnitude, error=[0.1, 0.1, np.nan, 0.1]).tolist() == [False, True, True, False]


def test_discs_are_round_and_stay_inside():
    mask = mask_stars(np.zeros((20, 30), bool), [10.2, -3.0, 29.0, np.nan], [7.8, 5.0, 19.0, 3.0], 2.5)
    y, x = np.nonzero(mask[:15, 5:20])
    assert np.hypot(y - 7.8, x + 5 - 10.2).max() <= 2.5
    assert len(y) == pytest.approx(np.pi * 2.5**2, abs=4)
    assert mask[19, 29]
    assert not mask[3].any() or not mask[3, :5].any()
    tiny = mask_stars(np.zeros((5, 5), bool), [2.4], [2.4], 0.0)
    assert tiny.sum() == 1
