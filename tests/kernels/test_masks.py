"""Masks: growth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from survey.kernels.masks import grow_square


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_growth_is_a_dilation_by_a_square(seed, height, width, radius):
    mask = np.random.default_rng(seed).random((3, height, width)) < 0.1
    kept = mask.copy()
    edge = 2 * radius + 1
    expected = np.stack([binary_dilation(image, np.ones((edge, edge), bool)) for image in mask])
    np.testing.assert_array_equal(grow_square(mask, radius), expected)
    np.testing.assert_array_equal(mask, kept)


@pytest.mark.parametrize("radius", [0, 2])
def test_an_empty_mask_stays_empty(radius):
    assert not grow_square(np.zeros((5, 6), bool), radius).any()
