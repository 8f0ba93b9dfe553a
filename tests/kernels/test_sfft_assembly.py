"""The normal matrix by products of samples and by transforms: one matrix, and the faster way to it."""

import numpy as np
import pytest

from survey.kernels._sfft_assembly import choose, products_take, transforms_take
from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_pass import Scene, pad_variance, sweep
from survey.kernels._sfft_samples import ShiftedSamples, StoredSamples
from survey.kernels.pixelmap import n_terms
from survey.kernels.sfft import subtract_sfft

# of the root of both diagonal entries: rounding of some thousand products
ROUNDING = {np.float64: 1e-13, np.float32: 2e-6}


def scene_of(shape, kernel_shape, dtype, seed=3):
    """Stars, holes, weights that span four decades, and a noisy template."""
    rng = np.random.default_rng(seed)
    template = rng.normal(0, 1, shape) + 200 * (rng.random(shape) > 0.98)
    image = template + rng.normal(0, 1, shape)
    variance = 10.0 ** rng.uniform(-1, 3, shape)
    excluded = rng.random(shape) < 0.1
    excluded[10:30, 20:26] = True
    noise = pad_variance(rng.uniform(0.5, 2, shape).astype(dtype), kernel_shape)
    image[excluded] = 0
    scene = Scene(image.astype(dtype), variance.astype(dtype), excluded, noise, corrects=True)
    return ShiftedSamples(template.astype(dtype), kernel_shape), scene


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("kernel_shape", "orders", "side"),
    [((7, 7), (2, 1, 2), 32), ((5, 11), (1, 3, 0), 16), ((13, 3), (0, 0, 1), 8), ((1, 1), (0, 0, 0), 16)],
)
def test_assembly__both_ways_are_one_matrix(dtype, kernel_shape, orders, side):
    shape = (107, 150)
    samples, scene = scene_of(shape, kernel_shape, dtype)
    model = KernelModel(kernel_shape, *orders, shape)
    blocks, fft = (sweep(model, samples, scene, None, side=side, assembly=way) for way in ("blocks", "fft"))
    scale = np.sqrt(np.diag(blocks.matrix))
    assert np.abs((fft.matrix - blocks.matrix) / scale / scale[:, None]).max() < ROUNDING[dtype]
    np.testing.assert_array_equal(fft.gradient, blocks.gradient)
    np.testing.assert_array_equal(fft.noise, blocks.noise)


@pytest.mark.parametrize("assembly", ["blocks", "fft"])
def test_assembly__is_the_sum_over_pixels(assembly):
    """Without polynomials nothing is held over blocks: the matrix is the samples' weighted products."""
    shape, kernel_shape = (70, 90), (5, 3)
    samples, scene = scene_of(shape, kernel_shape, np.float64)
    template = samples.padded[2:72, 1:91]
    rows = [
        np.pad(template, 2)[2 - y : 72 - y, 2 - x : 92 - x].ravel()
        for y in (-2, -1, 0, 1, 2) for x in (-1, 0, 1)
    ]  # fmt: skip
    rows = np.array([*rows, np.ones(70 * 90)])
    weights = np.where(scene.excluded, 0, 1 / (scene.variance + scene.template_variance[2:72, 1:91])).ravel()
    expected = (rows * weights) @ rows.T
    model = KernelModel(kernel_shape, 0, 0, 0, shape)
    found = sweep(model, samples, scene, None, assembly=assembly)
    scale = np.sqrt(np.diag(expected))
    assert np.abs((found.matrix - expected) / scale / scale[:, None]).max() < 1e-13


def test_assembly__subtractions_differ_by_rounding_alone():
    samples, scene = scene_of((120, 130), (9, 9), np.float64)
    template = samples.padded[4:124, 4:134]
    rng = np.random.default_rng(5)
    image = 0.8 * np.roll(template, 1, 0) + 5 + rng.normal(0, 1, template.shape)
    found = [
        subtract_sfft(
            image, template, mask=scene.excluded, error=np.ones(image.shape), kernel_shape=(9, 9),
            kernel_poly_order=1, direction="template", assembly=assembly,
        )
        for assembly in ("blocks", "fft")
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].mask, found[1].mask)
    np.testing.assert_allclose(found[0].difference, found[1].difference, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_assembly__auto_takes_what_takes_less_time(dtype):
    shape = (1024, 1024)
    for edge, expected in ((7, "blocks"), (11, "blocks"), (21, "fft"), (31, "fft"), (41, "fft")):
        model = KernelModel((edge, edge), 2, 1, 2, shape)
        samples = ShiftedSamples(np.zeros((8, 8), dtype), (edge, edge))
        assert choose("auto", model, samples, 32, np.dtype(dtype)) == expected
        given = ((edge, edge), 32, n_terms(4), np.dtype(dtype))
        assert (transforms_take(*given) < products_take(*given)) == (expected == "fft")
        assert choose("blocks", model, samples, 32, np.dtype(dtype)) == "blocks"
        # samples that are no moved image have no transform
        assert choose("auto", model, StoredSamples(np.zeros((1, 8, 8))), 32, np.dtype(dtype)) == "blocks"


def test_assembly__errors_are_clear():
    image = np.random.default_rng(1).normal(size=(64, 64))
    with pytest.raises(ValueError, match="assembly 'fast' is not auto, blocks or fft"):
        subtract_sfft(image, image, assembly="fast")
    with pytest.raises(ValueError, match="'fft' needs a template that is moved by whole pixels"):
        subtract_sfft(image, image, phase_y=np.full((64, 64), 0.1), error=np.ones((64, 64)), assembly="fft",
                      kernel_shape=(3, 3))  # fmt: skip
