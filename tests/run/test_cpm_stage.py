"""The stage's pure functions on a mock field cut in several ways."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from survey.config import Config
from survey.simulate.wander import simulate_wander
from survey.stages import cpm
from survey.stages.calibrated import CalibratedTile
from survey.stages.protocol import Unit
from survey.tiles import tile_grid

SHAPE, EPOCHS = (48, 64), 120


def settings(**values):
    return Config(cpm={"n_predictors": 80, "exclusion": 7, "row_column_exclusion": 3, "reach": 9, **values})


def make_mock():
    """Pointing as steady as from space, or bright stars' misfit would hide the variable at so few epochs."""
    return simulate_wander(
        shape=SHAPE, n_frames=EPOCHS, n_stars=180, noise=1e-3, amplitude=0.3, seed=3, pointing=0.2,
        rotation=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mock():
    return make_mock()


def tile_data(mock, tile, config):
    halo = cpm.tile_halo(config)
    window = tile.window(halo, SHAPE)
    cut = (slice(None), *window)
    samples = CalibratedTile(
        mock.flux[cut].astype(np.float32), mock.error[cut].astype(np.float32), mock.mask[cut].copy(),
        np.zeros(EPOCHS), np.zeros(EPOCHS), np.arange(EPOCHS, dtype=float), np.zeros(EPOCHS, int),
        np.ones(EPOCHS), window,
    )  # fmt: skip
    return cpm.TileData(tile, halo, samples, np.ones(EPOCHS), np.zeros(EPOCHS, int))


def difference(mock, size, config):
    """Both passes over tiles of one size."""
    data = [tile_data(mock, tile, config) for tile in tile_grid(SHAPE, size)]
    state = cpm.combine([cpm.partial(d, config) for d in data], config)
    flux, error = np.full(mock.flux.shape, np.nan), np.full(mock.flux.shape, np.nan)
    for d in data:
        out = cpm.apply(d, state.of(Unit("", d.tile), config), config)
        flux[out.region] = out.arrays[cpm.GROUP]["flux"]
        error[out.region] = out.arrays[cpm.GROUP]["error"]
    return flux, error, state


def test_a_tile_is_told_of_the_variables_around_it_and_of_no_others():
    config, rng = settings(), np.random.default_rng(2)
    state = cpm.State(80, 1.0, rng.random((40, 200)) < 0.1)
    for tile in tile_grid((64, 200), 20):  # as if the field's last tiles had told nothing
        own = state.of(Unit("", tile), config)
        window = tile.window(cpm.tile_halo(config), (64, 200))
        assert own.variable.size < state.variable.size / 2
        for part in (window, tile.core):
            np.testing.assert_array_equal(own.variable_in(part), state.variable_in(part))


def lose_samples(mock):
    """Cosmic rays, a trail, an epoch without the right half, one without anything."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mock.mask[rng.random(mock.mask.shape) < 1e-3] = True
    mock.mask[40, np.abs(y - x) < 3] = True
    mock.mask[61, :, 32:] = True
    mock.mask[80] = True


@pytest.mark.parametrize("lose", [None, pytest.param(lose_samples, marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_tiles(lose):
    mock = make_mock()
    if lose is not None:
        lose(mock)
    first, first_error, state = difference(mock, 64, settings())
    whole = np.arange(EPOCHS) != 61  # where most of the predictors are gone, so are those that they predict
    assert np.isfinite(first[whole][~mock.mask[whole]]).all()
    assert np.isfinite(first[61][~mock.mask[61]]).mean() > 0.5
    for size in (20, 32):  # 20 cuts blocks of 8
        flux, error, other = difference(mock, size, settings())
        assert other.ridge == state.ridge
        np.testing.assert_array_equal(other.variable, state.variable)
        assert_allclose(flux, first, atol=1e-6)
        assert_allclose(error, first_error, rtol=1e-5)


def test_one_of_several_numbers_of_predictors_and_epochs_of_an_event(mock):
    """The number is the field's; the epochs left out are predicted, flagged, and bend nothing."""
    few, many = settings(n_predictors=[8, 80]), settings(n_predictors=80)
    data = [tile_data(mock, tile, few) for tile in tile_grid(SHAPE, 32)]
    state = cpm.combine([cpm.partial(d, few) for d in data], few)
    assert state.n_predictors == 80
    assert state.ridge == difference(mock, 64, many)[2].ridge
    event = settings(ridge=1.0, two_passes=False, leave_out=[(20, 29)])
    altered = make_mock()
    altered.flux[20:30, 24, 30] += 0.5
    plain, changed = (
        cpm.apply(tile_data(m, tile_grid(SHAPE, 64)[0], event), None, event).arrays[cpm.GROUP]
        for m in (mock, altered)
    )
    moved = changed["flux"] - plain["flux"]
    assert_allclose(moved[20:30, 24, 30], 0.5, rtol=1e-5)
    assert np.abs(moved[:20]).max() < 1e-6
    assert plain["fit_mask"][20:30].all()
    assert not plain["fit_mask"][:20].any()


def test_residuals_of_a_fit_that_saw_them_on_request(mock):
    data = tile_data(mock, tile_grid(SHAPE, 64)[0], settings())
    held, seen = (
        cpm.apply(data, None, settings(residuals=kind, ridge=0.1)).arrays[cpm.GROUP]
        for kind in ("held-out", "in-sample")
    )
    assert np.median(seen["flux"].std(0)) < 0.7 * np.median(held["flux"].std(0))
    assert 0.9 < np.median((held["flux"] / held["error"]).std(0)) < 1.1
    # 80 noisy predictors of 120 epochs: coefficients made for noise count as if they brought it
    assert 0.7 < np.median((seen["flux"] / seen["error"]).std(0)) < 1.05


def test_the_variable_is_found_and_does_not_predict(mock):
    flux, _, state = difference(mock, 32, settings())
    y, x = (round(p) for p in mock.variable)
    assert state.variable[y, x]
    assert state.variable.mean() <= 0.05
    d = tile_data(mock, tile_grid(SHAPE, 64)[0], settings())
    altered = make_mock()
    altered.flux[:, y, x] += 5 * np.sin(np.arange(EPOCHS))
    e = tile_data(altered, tile_grid(SHAPE, 64)[0], settings())
    far = np.hypot(*np.ogrid[-y : SHAPE[0] - y, -x : SHAPE[1] - x]) > 8  # outside blocks that hold it
    far &= (np.arange(SHAPE[0]) // 8 != y // 8)[:, None] | (np.arange(SHAPE[1]) // 8 != x // 8)
    one, two = (cpm.apply(data, state, settings()).arrays[cpm.GROUP]["flux"][:, far] for data in (d, e))
    assert_allclose(one, two, atol=1e-7)
    assert_allclose(one, flux[:, far], atol=1e-6)


def test_one_pass_and_a_given_ridge(mock):
    config = settings(two_passes=False, ridge=3.0)
    _, _, state = difference(mock, 64, config)
    assert state.ridge == 3.0
    assert not state.variable.any()


def test_each_campaign_has_a_fit_of_its_own(mock):
    """Two halves told apart by number give what each gives alone; a few epochs of a third are left out."""
    config = settings(ridge=1.0, two_passes=False)
    (tile,) = tile_grid(SHAPE, 64)
    whole = tile_data(mock, tile, config)
    whole.stretch[60:] = 1
    whole.stretch[115:] = 2
    out = cpm.apply(whole, None, config).arrays[cpm.GROUP]
    first = tile_data(mock, tile, config)
    first.samples.flags[60:] = 1  # predicted, but they do not train
    alone = cpm.apply(first, None, config).arrays[cpm.GROUP]
    assert_allclose(out["flux"][:60], alone["flux"][:60], atol=1e-6)
    assert np.abs(out["flux"][60:115] - alone["flux"][60:115]).max() > 1e-4
    assert out["mask"][115:].all()


def test_tiles_and_corners_without_data(mock):
    """As where target pixel files are joined: nothing there, nothing predicted, and the rest unharmed."""
    config = settings(two_passes=True)
    data = [tile_data(mock, tile, config) for tile in tile_grid(SHAPE, 32)]
    empty, half = data[0], data[1]
    empty.samples.mask[:] = True
    half.samples.mask[:, :, :12] = True
    state = cpm.combine([cpm.partial(d, config) for d in data], config)
    assert cpm.apply(empty, state, config).arrays[cpm.GROUP]["mask"].all()
    got = cpm.apply(half, state, config).arrays[cpm.GROUP]["mask"]
    margin = half.tile.inner(half.halo)[1].start
    gone = max(12 - margin, 0)
    assert got[:, :, :gone].all()
    assert not got[:, :, gone:].any()


@pytest.mark.parametrize("campaign", [EPOCHS, 80, 70, 112])
def test_later_epochs_of_the_same_campaign_and_of_a_new_one(mock, campaign):
    """By those before; a new campaign by its own folds, as in a whole run; one too short by nothing."""
    config = settings(ridge=1.0, two_passes=False)
    (tile,) = tile_grid(SHAPE, 64)
    whole, later = tile_data(mock, tile, config), tile_data(mock, tile, config)
    start = 80 if campaign != 112 else 112
    for data in (whole, later):
        data.stretch[campaign:] = 1
    later.later, later.excluded = cpm.Later(start, EPOCHS, 80, 1.0), np.zeros(SHAPE, bool)
    if campaign == EPOCHS:
        whole.samples.flags[start:] = 1  # predicted, and do not train
    out, expected = (cpm.apply(data, None, config) for data in (later, whole))
    assert out.region == (slice(start, EPOCHS), *tile.core)
    assert list(out.arrays) == [cpm.GROUP]
    for name in ("flux", "error", "mask", "leverage"):
        assert_allclose(
            out.arrays[cpm.GROUP][name], expected.arrays[cpm.GROUP][name][start:], rtol=1e-5, atol=1e-6
        )
    assert out.arrays[cpm.GROUP]["mask"].all() == (campaign == 112)
    assert not out.arrays[cpm.GROUP]["fit_mask"].any()
