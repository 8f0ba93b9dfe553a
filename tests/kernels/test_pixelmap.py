"""Maps from the sky grid to the detector."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from survey.kernels.pixelmap import TRANSLATION_TOLERANCE, PixelMap

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
