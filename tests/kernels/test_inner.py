import numpy as np
import pytest
from numba import njit

from survey.kernels._inner import inner


@inner()
def halve(values):
    """Half of the first one."""
    return values[0] / 2


@njit
def quarter(values):
    return halve(values) / 2


def test_compiled_functions_call_it():
    assert quarter(np.full(1, 8.0)) == 2.0


def test_python_is_told_that_it_may_not():
    with pytest.raises(TypeError, match="halve is for compiled functions only"):
        halve(np.full(1, 8.0))
