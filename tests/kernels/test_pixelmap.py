"""Maps from the sky grid to the detector."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from survey.kernels.pixelmap import TRANSLATION_TOLERANCE, PixelMap, nearest_pixels

SMALL = st.floats(-2e-6, 2e-6)


@given(SMALL, SMALL, SMALL, SMALL, st.floats(0.5, 500))
def test_a_linear_map_is_a_shift_where_its_corners_say_so(a, b, c, d, scale):
    shape = (300, 700)
    coefficients = np.array([[3.2, (1 + a) * scale, b * scale], [-8.1, c * scale, (1 + d) * scale]])
    linear = PixelMap(coefficients, (40.0, 90.0), scale)
    x, y = np.meshgrid([0.0, shape[1] - 1.0], [0.0, shape[0] - 1.0])
    xd, yd = linear.evaluate(x, y)
    reach = max(np.ptp(xd - x), np.ptp(yd - y))
    assume(abs(reach - TRANSLATION_TOLERANCE) > 1e-9)
    assert linear.is_translation(shape) == (reach < TRANSLATION_TOLERANCE)


@pytest.mark.parametrize("turn", [0.0, 2e-3])
def test_refining_a_map_leaves_the_samples_where_they_were_placed(turn):
    """A sample placed half a pixel off is, once the map is refined, a little more than half a pixel off."""
    shape, terms = (40, 50), np.array([[0.48, 1.0, turn], [-3.3, -turn, 1.0]])
    placed = PixelMap(terms)
    moved = (-0.05, 0.02)
    refined = PixelMap(terms, moved, placed_center=placed.center)
    y, x, phase_y, phase_x = nearest_pixels(placed, (0, 40), (0, 50), shape)
    ry, rx, refined_y, refined_x = nearest_pixels(refined, (0, 40), (0, 50), shape)
    np.testing.assert_array_equal(ry, y)
    np.testing.assert_array_equal(rx, x)
    np.testing.assert_allclose(refined_y - phase_y, moved[1], atol=1e-4)
    np.testing.assert_allclose(refined_x - phase_x, moved[0], atol=1e-4)
    rows, columns = np.mgrid[0:40, 0:50]
    xd, yd = refined.evaluate(columns + refined_x, rows + refined_y)
    np.testing.assert_allclose((yd, xd), (y, x), atol=1e-9)
