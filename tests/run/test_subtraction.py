"""Method sfft as a run: any tiling gives the same kernels; templates kept in the field."""

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from survey.config import Config, ConfigError, make_config
from survey.io.store import Field, FieldError
from survey.run.api import run
from survey.run.results import list_events
from survey.simulate import simulate_field
from survey.stages import kernel_model, matching
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
    with pytest.raises(FieldError, match=r"not written whole: 4 of 4 tiles have no record; make it by"):
        run(path, config, client="synchronous")
    ledger = field.ledger("template/mine")
    for tile in field.tiles:
        ledger.record(tile.name, "1")
    ledger.flush()
    summary = run(path, config, client="synchronous")
    assert summary.ok, summary.failures
    field = Field.open(path)
    bad = np.asarray(field.array("difference/sfft", "mask")[...])
    # the kernel and the two pixels beyond it that a cubic spline needs
    size = kernel_model.kernel_size(field, config)
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


def test_events_are_taken_out_of_the_reference_that_is_subtracted(tmp_path):
    """Alone or after a run of the reference's own method, the same flux; a second run has nothing to do."""
    simulate_field(
        tmp_path / "frames", size=64, frames=80, seed=5, events=1, variables=0, density=0.05, psf_fwhm=2.4,
        event_snr=(70, 90), event_duration=(8, 8.1), saturation=None, bad_pixels=0, cosmic_rays=0,
    )  # fmt: skip
    config = Config(
        grid={"tile": 64}, reference={"n_basis": 3}, psf={"size": 11, "oversampling": 2}, method="sfft"
    )
    config.subtraction.kernel_order = config.subtraction.background_order = 0
    field = tmp_path / "field"
    summary = run(field, config, frames=[tmp_path / "frames"], client="synchronous")
    assert summary.ok, summary.failures
    event = max(list_events(field, method="sfft"), key=lambda e: e["snr"])
    alone = flux_at(field, event)
    again = run(field, config, client="synchronous")
    assert (again.computed, again.events) == (0, summary.events)
    assert run(field, config.model_copy(update={"method": "oversampled"}), client="synchronous").ok
    assert run(field, config, client="synchronous").ok
    later = flux_at(field, event)
    assert np.sum(alone * later) / np.sum(later**2) == pytest.approx(1, abs=0.01)


def flux_at(path, event):
    """Flux of an event in the frames' differences, by 5 x 5 pixels."""
    y, x = round(event["y"]), round(event["x"])
    window = (slice(None), slice(y - 2, y + 3), slice(x - 2, x + 3))
    flux = np.asarray(Field.open(path).array("difference/sfft", "flux")[window], float)
    assert np.isfinite(flux).mean() > 0.9
    return np.nansum(flux, axis=(1, 2))
