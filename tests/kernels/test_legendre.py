"""Legendre bases against numpy's polynomials."""

import numpy as np
import pytest
from numpy.polynomial import legendre

from survey.kernels.legendre import (
    design_matrix,
    legendre_derivatives,
    legendre_values,
    phase_basis,
    phase_basis_gradient,
    product_table,
)

U = np.linspace(-1, 1, 41)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_values_and_derivatives_are_numpys(n):
    unit = np.eye(n)
    for i in range(n):
        np.testing.assert_allclose(legendre_values(U, n)[i], legendre.legval(U, unit[i]), atol=1e-13)
        derivative = legendre.legval(U, legendre.legder(unit[i]))
        np.testing.assert_allclose(legendre_derivatives(U, n)[i], derivative, atol=1e-12)


def test_gradient_of_the_phase_basis_is_per_pixel():
    phase, step = np.linspace(-0.5, 0.5, 11), 1e-6
    numeric = (phase_basis(phase + step, 5, 1.2) - phase_basis(phase - step, 5, 1.2)) / (2 * step)
    np.testing.assert_allclose(phase_basis_gradient(phase, 5, 1.2), numeric, atol=1e-7)


def test_product_table_multiplies_polynomials():
    values = legendre_values(U, 9)
    np.testing.assert_allclose(
        np.einsum("ija,au->iju", product_table(5), values),
        values[:5, None] * values[None, :5],
        atol=1e-13,
    )


def test_design_matrix_orders_columns_y_first():
    design = design_matrix(np.array([0.3]), np.array([-0.2]), 5, 1.2)
    by, bx = phase_basis(0.3, 5, 1.2), phase_basis(-0.2, 5, 1.2)
    assert design.shape == (1, 25)
    assert design[0, 5 * 3 + 1] == pytest.approx(by[3] * bx[1])
