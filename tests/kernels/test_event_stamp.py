"""Filters on the cutout around a candidate."""

import numpy as np
import pytest

from survey.kernels._event_fit import EventStamp

EPOCHS, SIDE = 30, 9


@pytest.mark.parametrize("turned", [False, True])
def test_a_filter_is_freed_of_what_the_references_of_its_pixels_take_up(turned):
    """Pixel by pixel, sample by sample: each reference is fitted to its own and its neighbours' samples."""
    rng = np.random.default_rng(4)
    shape = (EPOCHS, SIDE, SIDE)
    phases = rng.uniform(-0.55, 0.55, (2, *shape) if turned else (2, EPOCHS))
    stamp = EventStamp(
        rng.normal(size=shape), rng.uniform(0.5, 2.0, shape), rng.random(shape) < 0.1, *phases, 4, 1, 5,
        fit_mask=rng.random(shape) < 0.1, leverage=rng.uniform(0, 0.3, shape), n_basis=2,
    )  # fmt: skip
    template = rng.normal(size=stamp.flux.shape) * stamp.inside
    filtered = template * stamp.weight / np.where(stamp.fitted, 1 - stamp.leverage, 1.0)
    expected = filtered.copy()
    ny, nx = stamp.inside.shape
    for j, i in np.argwhere(stamp.inside):
        rows = [
            (k, j + oy, i + ox, design[k, j + oy, i + ox] if turned else design[k])
            for (oy, ox), design in stamp._designs
            for k in range(EPOCHS)
            if 0 <= j + oy < ny and 0 <= i + ox < nx
        ]
        weights = np.array([stamp._fit_weight[k, y, x] for k, y, x, _ in rows])
        design = np.array([row for *_, row in rows])
        own = np.array([(y, x) == (j, i) for _, y, x, _ in rows])
        normal = np.linalg.pinv(design.T @ (weights[:, None] * design))
        taken = design @ (normal @ (design[own].T @ filtered[:, j, i]))
        for (k, y, x, _), weight, value in zip(rows, weights, taken, strict=True):
            expected[k, y, x] -= weight * value
    np.testing.assert_allclose(stamp.apply(template[None])[1][0], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("n_basis", "turned"), [(0, False), (2, False), (2, True)])
def test_filters_of_single_pixels_are_those_of_templates_without_the_others(n_basis, turned):
    """Also where every pixel has phases of its own."""
    rng = np.random.default_rng(3)
    shape = (EPOCHS, SIDE, SIDE)
    phases = rng.uniform(-0.5, 0.5, (2, *shape) if turned else (2, EPOCHS))
    stamp = EventStamp(
        rng.normal(size=shape), rng.uniform(0.5, 2.0, shape), rng.random(shape) < 0.1, *phases, 4, 2, 5,
        fit_mask=rng.random(shape) < 0.1, n_basis=n_basis,
    )  # fmt: skip
    template = rng.normal(size=stamp.flux.shape) * stamp.inside
    sums, covariance, response = stamp.pixels(template)
    every = np.argwhere(stamp.inside)
    assert len(sums) == len(every) == 25
    alone = np.zeros((len(every), *template.shape))
    for a, (j, i) in enumerate(every):
        alone[a, :, j, i] = template[:, j, i]
    expected, u = stamp.apply(alone)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)
    np.testing.assert_allclose(covariance, stamp.covariance(u), rtol=1e-12, atol=0)
    np.testing.assert_allclose(response, (u * template).sum((1, 2, 3)), rtol=1e-12)
