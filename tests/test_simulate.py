"""The simulator against analytic truth: light, noise, geometry, light curves, files."""

import numpy as np
import pytest

from survey.simulate import magnification, simulate_cube


def test_noise_matches_the_true_error():
    cube = simulate_cube((48, 48), 24, seed=3)
    pull = (cube.flux - cube.noiseless) / cube.true_error
    assert pull.mean() == pytest.approx(0, abs=4 / np.sqrt(pull.size))
    assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size))


def test_frame_is_the_same_whatever_the_number_of_frames():
    few, many = simulate_cube((40, 32), 3, seed=5), simulate_cube((40, 32), 6, seed=5)
    np.testing.assert_array_equal(few.flux, many.flux[:3])
    np.testing.assert_array_equal(few.phase_x, many.phase_x[:3])


def test_magnification_at_the_einstein_radius():
    assert magnification(1.0) == pytest.approx(3 / np.sqrt(5))
