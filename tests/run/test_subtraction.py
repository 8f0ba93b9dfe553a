"""Method sfft as a run: any tiling gives the same kernels; templates kept in the field."""

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from survey.config import Config, ConfigError, make_config
from survey.io.store import Field, FieldError
from survey.run.api import run
from survey.simulate import simulate_field
from survey.stages import matching
from survey.stages.calibrated import read_calibrated
from survey.stages.protocol import STAGES
from tests.run.conftest import small_config


def sums_of(field, config, unit):
    stage = STAGES["sfft"]
    return stage.partial(stage.read(field, unit, config), config)


def test_sums_of_tiles_are_those_of_the_whole_field(finished):
    """Four tiles and their halos against one tile that is the whole field."""
    field, config = Field.open(finished.path), small_config()
    config.subtraction.kernel_order = 1
    units = [u for u in matching.units(field, config) if u.items[0] == 0]
    assert len(units) == 4
    parts = [sums_of(field, config, unit) for unit in units]
    whole = units[0].tile.__class__(0, 0, 96, 0, 96)
    one = sums_of(field, config, units[0].__class__("all", whole, units[0].items))
    for k in (0, 5):
        total = parts[0][k] + parts[1][k] + parts[2][k] + parts[3][k]
        assert total.pixels == one[k].pixels
        np.testing.assert_allclose(
            total.matrix, one[k].matrix, rtol=1e-9, atol=1e-9 * np.abs(one[k].matrix).max()
        )


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A well-sampled, sparse field in changing seeing, frames turned by up to 0.3 degrees; run once."""
    folder = tmp_path_factory.mktemp("ground")
    simulate_field(
        folder / "frames", size=96, frames=28, seed=2, events=0, variables=0, density=0.03, psf_fwhm=2.4,
        psf_variation=0.12, rotation=0.3, saturation=None, bad_pixels=0, cosmic_rays=0,
    )  # fmt: skip
    config = Config(grid={"tile": 48}, reference={"n_basis": 3}, psf={"size": 15, "oversampling": 2})
    assert run(folder / "field", config, frames=[folder / "frames"], client="synchronous").ok
    return folder / "field", config


def test_a_template_of_the_field(ground):
    """What is masked, the kernels' flux scale, chi2 in stars against a reference of one PSF, the keys."""
    path, config = ground
    config = config.model_copy(deep=True)
    config.method = "sfft"
    config.subtraction.template = "mine"
    with pytest.raises(FieldError, match="has no template/mine; make it by `survey template`"):
        run(path, config, client="synchronous")
    field = Field.open(path)
    height, width = field.shape
    everywhere = (slice(0, height), slice(0, width))
    reference, *_ = matching.read_template(field, everywhere, Config())
    flux = reference.evaluate(np.zeros(1), np.zeros(1))[0].astype(np.float32)
    field.require_group("template/mine", {"y": height, "x": width}, {"made": "1"})
    mask = ~reference.valid
    mask[50, 40] = True
    error = np.full(field.shape, 0.02, np.float32)
    field.write("template/mine", {"flux": flux, "error": error, "mask": mask}, everywhere)
    summary = run(path, config, client="synchronous")
    assert summary.ok, summary.failures
    field = Field.open(path)
    bad = np.asarray(field.array("difference/sfft", "mask")[...])
    # the kernel and the two pixels beyond it that a cubic spline needs
    size = matching.kernel_size(field, config)
    assert 3 <= size <= 9
    reach = maximum_filter(mask, size=size + 4, mode="constant", cval=True)
    samples = read_calibrated(field, everywhere)
    np.testing.assert_array_equal(bad, samples.mask | reach)
    records = field.ledger("sfft.sfft").records
    sums = np.concatenate([r.payload["kernel_sums"] for r in records.values()])
    assert np.abs(np.median(sums) - 1) < 0.03
    star = (flux > 8 * np.median(samples.error[~samples.mask])) & ~bad & ~samples.mask
    chi2 = {}
    for method in ("oversampled", "sfft"):
        difference = np.asarray(field.array(f"difference/{method}", "flux")[...])
        chi2[method] = np.nanmean((difference / samples.error)[star] ** 2)
    assert chi2["sfft"] < 0.5 * chi2["oversampled"]
    # a template that is made anew is another one
    assert run(path, config, client="synchronous").computed == 0
    field.require_group("template/mine", {"y": height, "x": width}, {"made": "2"})
    assert run(path, config, client="synchronous").computed > 0


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="a kernel of 6 pixels has no middle"):
        make_config({"subtraction": {"kernel_size": 6}})
    assert Config(subtraction={"kernel_size": 9}).subtraction.kernel_size == 9
