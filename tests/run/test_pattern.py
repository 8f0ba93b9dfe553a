"""What the detector adds to every frame alike, measured from drifting frames and taken off (issue 5, 7)."""

import shutil

import numpy as np
import pytest
from astropy.io import fits

from survey.config import Config
from survey.io.frames import FrameError
from survey.io.store import Field
from survey.kernels.pattern import MESH
from survey.run.engine import Engine
from survey.run.executor import InlineExecutor, connect
from survey.run.grids import _grid_units
from survey.run.ingest import ingest
from survey.run.pattern import PatternError
from survey.run.verify import verify
from survey.stages import pattern as stage

SHAPE, COUNT, NOISE, SKY = (128, 128), 36, 3.0, 400.0
FIRST = COUNT - 4
SIGMA = 1.1
# As wide as a star, but it stays.
CLUSTER = np.s_[70:73, 50:53]


def hot_pixels(rng):
    """A few very hot pixels, many warm ones, all stable."""
    pattern = np.zeros(SHAPE)
    places = rng.permutation(pattern.size)[:150]
    pattern.flat[places] = np.concatenate([rng.uniform(100, 900, 30), rng.uniform(6, 60, 120)])
    pattern[CLUSTER] = 300.0
    return pattern


def write_night(folder, *, drift=45.0, pattern=0.0, unstable=(), seed=1):
    """Frames of one sky that wander over the detector; a WCS says where."""
    rng, restless = np.random.default_rng(seed), np.random.default_rng(5)
    folder.mkdir(exist_ok=True)
    n = 260
    star = np.random.default_rng(7)
    y, x = star.uniform(-90, SHAPE[0] + 90, n), star.uniform(-90, SHAPE[1] + 90, n)
    flux = 10 ** star.uniform(2.2, 4.3, n)
    row, column = np.arange(SHAPE[0]), np.arange(SHAPE[1])
    for k in range(COUNT):
        dy, dx = drift * np.sin(2.1 * k + 0.3), drift * np.cos(1.3 * k)
        across, down = (
            np.exp(-0.5 * ((at - to[:, None]) / SIGMA) ** 2) for at, to in ((column, x + dx), (row, y + dy))
        )
        image = SKY + 0.05 * column + down.T @ (across * flux[:, None]) / (2 * np.pi * SIGMA**2)
        image += rng.normal(0, NOISE, SHAPE)
        for place in unstable:
            image[place] += 300 * restless.random()
        header = fits.Header()
        header["MJD-OBS"], header["EXPTIME"], header["FILTER"] = 60000 + k / 500, 60.0, "R"
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        header["CRVAL1"], header["CRVAL2"] = 31.0, 46.0
        header["CRPIX1"], header["CRPIX2"] = 64.0 + dx, 64.0 + dy
        header["CDELT1"], header["CDELT2"] = -1e-3, 1e-3
        fits.PrimaryHDU((image + pattern).astype(np.float32), header).writeto(
            folder / f"frame{k:02d}.fits", overwrite=True
        )
    return sorted(folder.glob("*.fits"))


def settings(**own):
    return Config(input={"noise": "measured", **own}, calibrate={"background": "surface"}, grid={"tile": 64})


def take_in(path, files, config):
    with connect(config.cluster, "synchronous") as executor:
        return ingest(path, files, config, executor)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    pattern = hot_pixels(np.random.default_rng(3))
    unstable = [(30, 40), (100, 20)]
    with_it = write_night(folder / "hot", pattern=pattern, unstable=unstable)
    return pattern, unstable, with_it, write_night(folder / "clean")


@pytest.fixture(scope="module")
def field(night, tmp_path_factory):
    path = tmp_path_factory.mktemp("pattern") / "field"
    assert take_in(path, night[2][:FIRST], settings(pattern=True)).added == FIRST
    return Field.open(path)


def test_the_pattern_is_recovered_to_within_its_noise(night, field):
    truth, unstable, _, _ = night
    found = stage.stored_pattern(field)
    for place in unstable:
        assert found.mask[place]
    known = found.error > 0
    assert (found.mask & known).sum() <= len(unstable) + 3
    assert found.mask[~known].all()
    assert not found.mask[CLUSTER].any()
    assert np.abs(found.flux - truth)[CLUSTER].max() < 6 * found.error[CLUSTER].max() < 30
    good = ~found.mask
    assert good.mean() > 0.97
    assert good[truth > 0].mean() > 0.9
    pull = (found.flux - truth)[good] / found.error[good]
    # a warm pixel in a mesh lifts the mesh's mean, which is what a pattern is told from
    assert 0.8 < 1.4826 * np.median(np.abs(pull)) < 1.2
    assert abs(np.median(pull)) < 0.1
    hot = good & (truth > 20)
    assert np.abs((found.flux - truth)[hot]).max() < 6 * found.error[hot].max()
    assert 0.5 < found.usual / (NOISE / np.sqrt(FIRST)) < 2.5


def test_frames_without_the_pattern_are_those_of_a_clean_detector(night, field, tmp_path):
    take_in(tmp_path / "clean", night[3][:FIRST], settings())
    clean = Field.open(tmp_path / "clean")
    region = (slice(None), slice(MESH, -MESH), slice(MESH, -MESH))
    ours, theirs = (
        [np.asarray(f.array("images/sky", name)[region]) for name in ("flux", "error", "mask")]
        for f in (field, clean)
    )
    good = ~ours[2] & ~theirs[2]
    assert good.sum() > 0.9 * (~theirs[2]).sum()
    # The same noise in both: they differ by the error of the pattern.
    extra = np.sqrt(np.maximum(ours[1] ** 2 - (0.99 * NOISE) ** 2, stage.stored_pattern(field).usual ** 2))
    apart = (ours[0] - theirs[0])[good]
    assert 1.4826 * np.median(np.abs(apart)) < 1.3 * stage.stored_pattern(field).usual
    assert np.mean(np.abs(apart) > 6 * extra[good]) < 1e-3
    scatter = [f.frames()["background_rms"].values for f in (field, clean)]
    assert np.median(scatter[0]) == pytest.approx(np.median(scatter[1]), rel=0.05)


def test_appended_frames_are_given_the_stored_pattern(night, field, tmp_path, monkeypatch):
    path, config = tmp_path / "field", settings(pattern=True)
    shutil.copytree(field.path, path)
    key, before = stage.pattern_key(field), stage.stored_pattern(field)
    monkeypatch.setattr(stage, "measure_band", None)
    assert take_in(path, night[2][FIRST:], config).added == COUNT - FIRST
    after = Field.open(path)
    assert stage.pattern_key(after) == key
    assert np.array_equal(stage.stored_pattern(after).flux, before.flux)
    frame = np.asarray(after.array("images/sky", "dq")[FIRST + 1])
    assert (frame & (1 << 28)).any()
    assert not verify(path).problems


def test_an_ingest_that_was_killed_goes_on_with_the_same_pattern(night, tmp_path, monkeypatch):
    path, config = tmp_path / "field", settings(pattern=True)
    with monkeypatch.context() as patch:
        patch.setattr("survey.run.ingest._Ingest._write", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take_in(path, night[2][:20], config)
    key = stage.pattern_key(Field.open(path))
    assert key is not None
    monkeypatch.setattr(stage, "measure_band", None)
    take_in(path, night[2][:20], config)
    assert stage.pattern_key(Field.open(path)) == key


def test_bands_and_workers_give_one_pattern(night, field, monkeypatch):
    """Bands overlap by what the sky's meshes reach, so their seams do not show."""
    from survey.io.frames import scan

    config = settings(pattern=True)
    sample = stage.sampled(scan(night[2][:FIRST], config.input).headers, config)
    parts = [stage.measure_band(band, sample, config) for band in ((0, 64), (64, 128))]
    halves, whole = stage.joined(parts), stage.stored_pattern(field)
    both = ~halves.mask & ~whole.mask
    assert np.abs(halves.flux - whole.flux)[both].max() < 2.5 * whole.usual


def test_settings_must_fit_the_field(night, field):
    with pytest.raises(PatternError, match=r"placed with a pattern .* set \[input\] pattern = true"):
        take_in(field.path, night[2][FIRST:], settings())


def test_frames_that_stand_still_hold_no_pattern(tmp_path):
    files = write_night(tmp_path / "still", drift=1.0)
    with pytest.raises(PatternError, match=r"drift over the detector by \d\.\d px"):
        take_in(tmp_path / "field", files, settings(pattern=True))
    assert not (tmp_path / "field" / "cube.zarr").exists()


def test_a_whole_field_needs_its_calibration_files_no_more(night, tmp_path):
    """What is placed is known by the files' content at ingest; other content is refused."""
    flat = tmp_path / "flat.fits"
    fits.PrimaryHDU(np.ones(SHAPE, np.float32)).writeto(flat)
    path, config = tmp_path / "field", settings(flat=str(flat))
    take_in(path, night[3][:12], config)
    field = Field.open(path)
    before = [u for u, _ in _grid_units(Engine(field, config, InlineExecutor()), "sky")]
    flat.unlink()
    wanted = _grid_units(Engine(field, config, InlineExecutor()), "sky")
    assert [u.name for u, _ in wanted] == [u.name for u in before]
    assert all(field.ledger("place").has(unit.name, key) for unit, key in wanted)
    with pytest.raises(FrameError, match=r"flat\.fits: no such file"):
        take_in(path, night[3][12:], config)
    fits.PrimaryHDU(np.full(SHAPE, 2, np.float32)).writeto(flat)
    with pytest.raises(FrameError, match=r"flat\.fits: is not the flat that the frames of"):
        take_in(path, night[3][12:], config)
