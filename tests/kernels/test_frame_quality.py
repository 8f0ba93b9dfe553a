import numpy as np
import pytest

from survey.kernels.frame_quality import FrameFlag, flag_frames
from survey.kernels.gain import gain_from_light_curves, gain_from_pair, photon_transfer


def steady(n, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "elongation": 1.2 + 0.1 * rng.random(n),
        "psf_fwhm": 2.0 + 0.1 * rng.random(n),
        "scale": (1 - 0.1 * np.linspace(0, 1, n) ** 2) * rng.normal(1, 0.001, n),
        "background": 350 + np.linspace(0, 30, n) + 0.1 * rng.random(n),
        "n_stars": 400 - rng.integers(0, 20, n),
        "residual": 0.03 + 0.005 * rng.random(n),
        "n_matched": 300 - rng.integers(0, 20, n),
    }


def test_flag_frames__a_steady_night_with_airmass_has_no_flags():
    assert not flag_frames(**steady(100)).any()


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("elongation", 2.2, FrameFlag.TRAILED),
        ("psf_fwhm", 3.4, FrameFlag.BROAD_PSF),
        ("scale", 0.93, FrameFlag.HAZY),
        ("scale", np.nan, FrameFlag.UNREGISTERED),
        ("background", 420.0, FrameFlag.BRIGHT_SKY),
        ("n_stars", 100, FrameFlag.FEW_STARS),
        ("residual", 0.2, FrameFlag.POOR_REGISTRATION),
        ("residual", np.nan, FrameFlag.POOR_REGISTRATION),
        ("n_matched", 9, FrameFlag.POOR_REGISTRATION),
    ],
)
def test_flag_frames__names_what_stands_out(name, value, flag):
    frames = steady(60)
    frames[name][17] = value
    flags = flag_frames(**frames)
    assert list(np.flatnonzero(flags)) == [17]
    assert flags[17] == flag


def test_flag_frames__where_no_frame_can_be_matched_none_stands_out():
    frames = steady(20)
    frames["residual"][1:] = np.nan
    assert not flag_frames(**frames).any()


def test_gain_from_light_curves__finds_the_gain():
    rng = np.random.default_rng(2)
    level = 10 ** rng.uniform(2.3, 4.0, 250)
    transparency = 1 + 0.05 * np.sin(np.arange(140) / 20)[:, None]
    sigma = np.sqrt(50 + level / 16 + (0.003 * level) ** 2)
    flux = (level + rng.normal(size=(140, 250)) * sigma) * transparency
    flux[3, 10] = np.nan
    estimate = gain_from_light_curves(flux)
    assert estimate.gain == pytest.approx(16, rel=0.12)
    assert estimate.gain_error < 3
    assert estimate.floor == pytest.approx(50, rel=0.15)
    with pytest.raises(ValueError, match="too few"):
        gain_from_light_curves(flux[:, :4])


def test_gain_from_pair__flats_with_read_noise():
    rng = np.random.default_rng(3)
    scene = np.tile(np.geomspace(20, 3000, 250), (250, 1))
    first, second = (rng.poisson(scene * 1.8) / 1.8 + rng.normal(100, 4, scene.shape) for _ in range(2))
    mask = np.zeros(scene.shape, bool)
    first[:5] = np.nan
    mask[5:9] = True
    estimate = gain_from_pair(first, second, mask, background=100)
    assert estimate.gain == pytest.approx(1.8, rel=0.05)
    assert np.sqrt(estimate.floor) == pytest.approx(4, rel=0.15)


def test_photon_transfer__without_photon_noise_the_gain_is_infinite():
    level = np.geomspace(1, 1e3, 30)
    assert photon_transfer(level, np.full(30, 4.0)).gain > 1e6
    with pytest.raises(ValueError, match="6 needed"):
        photon_transfer(level[:4], level[:4])
