"""Methods zogy and hotpants as runs: turned frames, seeing that changes, a template of the field's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from survey.config import Config
from survey.hotpants import HotpantsError
from survey.io.store import Field
from survey.kernels._zogy_match import Match
from survey.run.api import create_field, run, stored_config
from survey.run.progress import Silent
from survey.run.rebuild import begin_rebuild
from survey.run.results import light_curve
from survey.run.template import make_template
from survey.stages import difference_psf, frame_psf, psf, zogy
from survey.stages.calibrated import read_calibrated
from survey.stages.pairwise import FrameState, Shared
from survey.stages.zogy import FrameMatches
from tests.templates.archives import draw, tan

RA, DEC, SHAPE, SKY, FRAMES = 150.0, 20.0, (96, 96), 200.0, 7
GRID = tan(RA, DEC, 1.0, SHAPE)
# Where something flares up in the last frames, and how bright.
FLARE, FLARE_FLUX, FLARE_FROM = (60.3, 40.6), 6000.0, 5


def simulated_stars(rng):
    """Positions (x, y) and fluxes."""
    places = rng.uniform(4, 92, (30, 2))
    places = places[np.hypot(*(places - FLARE[::-1]).T) > 8]
    return places, 10 ** rng.uniform(3.3, 4.3, len(places))


def lone_star():
    """Position (y, x) and flux of the brightest star that is far from others and from the edge."""
    places, flux = simulated_stars(np.random.default_rng(9))
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 99 * np.eye(len(places))
    lone = (distance.min(1) > 9) & (np.abs(places - 47.5).max(1) < 36)
    best = np.argmax(np.where(lone, flux, 0))
    return places[best][::-1], flux[best]


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Seven drifting frames of seeing 2.2 to 3.2 pixels, turned by up to 0.4 degrees, and a template."""
    folder, rng = tmp_path_factory.mktemp("turned"), np.random.default_rng(9)
    places, fluxes = simulated_stars(rng)
    sky = GRID.wcs_pix2world(places, 0)
    stars = [(ra, dec, flux) for (ra, dec), flux in zip(sky, fluxes, strict=True)]
    flare = (*GRID.wcs_pix2world([FLARE[::-1]], 0)[0], FLARE_FLUX)
    for k in range(FRAMES):
        turn = np.radians(0.0 if k == 0 else rng.uniform(-0.4, 0.4))
        wcs = GRID.deepcopy()
        drift = np.zeros(2) if k == 0 else rng.uniform(-1.5, 1.5, 2)
        wcs.wcs.crpix = np.asarray(wcs.wcs.crpix) + drift
        wcs.wcs.pc = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        shown = [*stars, flare] if k >= FLARE_FROM else stars
        image = draw(wcs, SHAPE, shown, 1.0, fwhm=rng.uniform(2.2, 3.2))
        image = rng.poisson(image + SKY).astype("f4")
        header = wcs.to_header()
        header["MJD-OBS"], header["EXPTIME"], header["FILTER"] = 60000.0 + k / 24, 60.0, "r"
        header["GAIN"], header["RDNOISE"] = 1.0, 3.0
        fits.PrimaryHDU(image, header).writeto(folder / f"frame{k:02d}.fits")
    path = folder / "field"
    config = Config(grid={"tile": 48}, reference={"n_basis": 2}, psf={"fwhm": 2.7})
    config.registration.reference = "frame00"
    create_field(path, [folder], config, client="synchronous")
    noise = 2.0
    template = draw(GRID, SHAPE, stars, 1.0, fwhm=2.1) + rng.normal(0, noise, SHAPE)
    header = GRID.to_header()
    planes = [template.astype("f4"), np.full(SHAPE, noise, "f4")]
    fits.HDUList([fits.PrimaryHDU(planes[0], header), fits.ImageHDU(planes[1], header, name="ERR")]).writeto(
        folder / "sharp.fits"
    )
    make_template(path, str(folder / "sharp.fits"), "sharp", client="synchronous")
    return path


def settings(path, method):
    config = stored_config(path)
    config.method, config.subtraction.template = method, "sharp"
    return config


def chi2(path, method):
    """In the sky and in stars, away from the flare.

    Also in stars if nothing were matched, and the share of pixels that have a difference.
    """
    target = Field.open(path)
    template = np.nan_to_num(np.asarray(target.array("template/sharp", "flux")[...]))
    plain = read_calibrated(target, (slice(0, SHAPE[0]), slice(0, SHAPE[1])))
    flux, error, mask = (
        np.asarray(target.array(f"difference/{method}", name)[...]) for name in ("flux", "error", "mask")
    )
    y, x = np.indices(template.shape)
    away = np.hypot(y - FLARE[0], x - FLARE[1]) > 9
    square = np.where(mask, np.nan, flux / error) ** 2
    good = (~mask)[:, 8:-8, 8:-8].mean()
    star, sky = away & (template > 60), away & (template < 5)
    unmatched = np.where(mask | plain.mask, np.nan, (plain.flux - template) / plain.error) ** 2
    return np.nanmean(square[:, sky]), np.nanmean(square[:, star]), np.nanmean(unmatched[:, star]), good


def test_zogy(field, tmp_path):
    summary = run(field, settings(field, "zogy"), client="synchronous")
    assert summary.ok, summary.failures
    sky, stars, unmatched, covered = chi2(field, "zogy")
    assert 0.85 < sky < 1.15
    # PSFs of twenty stars are known to a few percent: measured 5
    assert 0.8 < stars < 0.1 * unmatched
    assert covered > 0.9
    again = run(field, settings(field, "zogy"), client="synchronous")
    assert again.computed == 0
    assert_fluxes(field, "zogy")
    # whose PSFs were used is noted with the differences: what else lies there decides nothing
    target, config = Field.open(field), settings(field, "zogy")
    assert len(difference_psf.load(target, config).frames) == FRAMES
    # a proper difference shows a frame's PSF through its filter
    sharp = frame_psf.load(target, np.arange(FRAMES + 1), partly=True)
    assert list(sharp) == list(range(FRAMES))
    with pytest.raises(KeyError):
        frame_psf.load(target, np.arange(FRAMES + 1))
    shown = difference_psf.load(target, config)
    assert all(shown.frames[k].fwhm != sharp[k].fwhm for k in sharp)
    assert shown.typical is shown.common
    config.subtraction.psf = "field"
    shown = difference_psf.load(target, config)
    # a template that is not of the frames has a PSF of its own, whoseever the frames have
    assert all(psf_.fwhm != shown.common.fwhm for psf_ in shown.frames)
    assert shown.common.fwhm == pytest.approx(2.7, abs=0.1)
    assert shown.base.fwhm == pytest.approx(2.1, abs=0.15)
    # whoever makes a method anew makes the frames' PSFs and the reference anew
    shutil.copytree(field, tmp_path / "copy")
    copy = Field.open(tmp_path / "copy")
    assert copy.ledger("oversampled.frame_psf").records
    begin_rebuild(copy, settings(field, "zogy"), "forgotten", Silent())
    assert not copy.ledger("oversampled.frame_psf").records
    assert not copy.ledger("oversampled.oversampled").records


def assert_fluxes(path, method):
    """The flare's light curve, and a star's flux in the template, are what was simulated."""
    curve = light_curve(path, method, y=FLARE[0], x=FLARE[1])
    true = FLARE_FLUX * (np.arange(FRAMES) >= FLARE_FROM)
    pulls = (curve["flux"] - true) / curve["error"]
    assert np.abs(pulls[:FLARE_FROM]).max() < 4
    assert curve["flux"][FLARE_FROM:] == pytest.approx(true[FLARE_FROM:], rel=0.05)
    (y, x), flux = lone_star()
    assert light_curve(path, method, y=y, x=x).meta["reference_flux"] == pytest.approx(flux, rel=0.03)


def test_a_frame_of_other_stars_is_masked_and_told(field):
    """A negative flux ratio; one with too few stars in a pass keeps what it had."""
    shared = Shared([FrameState(ratio=0.9), FrameState(ratio=0.9), FrameState(ratio=0.9)])
    matches = FrameMatches(shared)
    few, other, good = (Match(np.eye(4), g * np.ones(4), n) for g, n in ((-1, 19), (-1, 99), (0.8, 99)))
    matches.add([[few], [other], [good]])
    matches.step()
    kept, failed, found = matches.state.frames
    assert (kept.ratio, kept.failed) == (0.9, None)
    assert "do not show the same stars; check their WCS" in failed.failed
    assert found.ratio == pytest.approx(0.8)
    # the noise of registration is what the tiles' own shifts scatter by
    tiles = [
        Match(1e6 * np.eye(4), 1e6 * np.array([1, moved, 0, 0]), 500) for moved in (-0.2, -0.1, 0, 0.1, 0.2)
    ]
    matches = FrameMatches(Shared([FrameState()]))
    for tile in tiles:
        matches.add([[tile]])
    matches.step()
    (state,) = matches.state.frames
    assert state.shift_error == pytest.approx((0.148, 0.0), abs=1e-3)
    target, config = Field.open(field), settings(field, "zogy")
    unit = zogy.STAGE.units(target, config)[0]
    data = zogy.STAGE.read(target, unit, config)
    frames = [replace(failed) if k == 2 else FrameState() for k in range(FRAMES)]
    data.shared = Shared(frames, psf.load(target))
    assert [k for k, sums in enumerate(zogy.partial(data, config)) if sums is None] == [2]
    output = zogy.apply(data, data.shared, config)
    assert output.payload["failed"] == [[2, failed.failed]]
    assert output.arrays["difference/zogy"]["mask"].all(axis=(1, 2)).tolist() == [
        k == 2 for k in range(FRAMES)
    ]


@pytest.mark.slow
def test_sfft_by_kernel_and_psf(field):
    """A source's PSF in a difference is the template's, convolved with that frame's kernel."""
    summary = run(field, settings(field, "sfft"), client="synchronous")
    assert summary.ok, summary.failures
    kernels = np.asarray(Field.open(field).array("difference/sfft", "kernel")[...])
    assert np.isfinite(kernels).all()
    curve = light_curve(field, "sfft", y=FLARE[0], x=FLARE[1])
    pulls = (curve["flux"] - FLARE_FLUX * (np.arange(FRAMES) >= FLARE_FROM)) / curve["error"]
    assert np.abs(pulls).max() < 3.5


def test_hotpants_absent(field, monkeypatch):
    monkeypatch.setenv("HOTPANTS", "/nowhere/hotpants")
    before = set((Path(field) / "runs").glob("*"))
    with pytest.raises(HotpantsError, match="is no program here: install HOTPANTS"):
        run(field, settings(field, "hotpants"), client="synchronous")
    (failed,) = set((Path(field) / "runs").glob("*")) - before
    record = json.loads((failed / "run.json").read_text())
    assert (record["status"], record["computed"], record["skipped"]) == ("failed", 0, 0)


def test_hotpants(field, hotpants, tmp_path):
    """Against the stand-in, which fits a kernel of Gaussians as the program does; a crash costs one frame."""
    (tmp_path / "crash").touch()
    hotpants(f"crashes once {tmp_path / 'crash'}")
    summary = run(field, settings(field, "hotpants"), client="synchronous")
    assert summary.ok, summary.failures
    assert any("hotpants: 1 of 7 frames could not be subtracted" in text for text in summary.warnings)
    mask = np.asarray(Field.open(field).array("difference/hotpants", "mask")[...])
    assert mask[0, :48, :48].all()
    assert not mask[1:, 20:-20, 20:-20].all(axis=(1, 2)).any()
    assert light_curve(field, "hotpants", y=30.0, x=30.0)["flags"][0] & 1
    sky, stars, unmatched, covered = chi2(field, "hotpants")
    assert 0.8 < sky < 1.2
    assert stars < 0.1 * unmatched
    assert covered > 0.85
    assert_fluxes(field, "hotpants")
