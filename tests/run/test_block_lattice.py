"""The blocks over which a kernel's polynomials are held are the field's, wherever its tiles are cut."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from survey.config import Config
from survey.kernels._sfft_fit import KernelModel
from survey.kernels.reference import ReferenceFit
from survey.stages import matching
from survey.stages.calibrated import CalibratedTile
from survey.tiles import Tile, tile_grid


@pytest.mark.parametrize("edge", [48, 36])
def test_kernels_and_noise_do_not_depend_on_where_tiles_are_cut(edge):
    """Whether tiles cut blocks, or not: sums and variances are those of one tile."""
    size, config = 90, Config()
    model = KernelModel((3, 3), 1, 0, 1, (size, size))
    rng = np.random.default_rng(3)
    template = gaussian_filter(rng.exponential(size=(size, size)) ** 4, 1.0)
    image = template * np.linspace(0.9, 1.1, size) + rng.normal(size=(size, size))
    coefficients = np.zeros((model.n_kernel + 1, model.n_poly))
    coefficients[4, :2], coefficients[3, 1] = (1.0, 0.1), 0.05

    def block_of(tile):
        halo = matching.tile_halo(tile, model)
        window = tile.window(halo, (size, size))
        flux, zeros = image[window][None], np.zeros((1, *image[window].shape))
        samples = CalibratedTile(
            flux=flux, error=np.ones(flux.shape), mask=zeros.astype(bool),
            phase_y=np.zeros(1), phase_x=np.zeros(1), time=np.zeros(1), flags=np.zeros(1, int),
            gain=np.ones(1), window=window,
        )  # fmt: skip
        n, chi2 = np.zeros(flux.shape[1:], int), np.zeros(flux.shape[1:])
        reference = ReferenceFit(template[window][:, :, None, None], n, chi2, n == 0)
        kernel = matching.FrameKernel(coefficients, 0.01)
        return matching.BlockData(
            0, tile, samples, tile.inner(halo), model, reference, template[window], zeros[0] > 0,
            np.linspace(1, 2, size)[window[0], None] * np.ones(flux.shape[1:]), kernels=[kernel],
        )  # fmt: skip

    whole = block_of(Tile(0, 0, size, 0, size))
    (expected,), (planes, _, _) = matching.partial(whole, config), matching.evaluate(whole, 0, config)
    total, variance = None, np.zeros((size, size))
    for tile in tile_grid((size, size), edge):
        data = block_of(tile)
        (sums,) = matching.partial(data, config)
        total = sums if total is None else total + sums
        variance[tile.core] = matching.evaluate(data, 0, config)[0].variance[data.inner]
    assert total.pixels == expected.pixels
    for name in ("gradient", "matrix"):
        found, wanted = getattr(total, name), getattr(expected, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
    np.testing.assert_allclose(variance, planes.variance, rtol=1e-9)
