"""142 raw frames of HAT-P-32: registration, quality flags, and the transit by plain aperture photometry."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time

from survey.kernels.aperture import aperture_flux, ensemble_light_curve
from survey.kernels.background import measure_background, noise_model
from survey.kernels.frame_quality import FrameFlag, flag_frames
from survey.kernels.gain import gain_from_light_curves
from survey.kernels.registration import find_stars, match_stars, photometric_scale, psf_width

ROOT = Path(os.environ.get("SURVEY_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
FRAMES = sorted((ROOT / "hatp32").glob("HATP-32*.fits.fz"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(len(FRAMES) != 142, reason=f"the 142 HAT-P-32 frames are not in {ROOT / 'hatp32'}"),
]

REFERENCE = "HATP-32171220050312.fits.fz"
TARGET = (293.83, 346.25)  # x, y in REFERENCE; (423.2, 285.9) in the night's first frame
GAIN = 16.0
# Mid-transit from the published ephemeris (JD 2455867.4027 + 1042 x 2.1500082 d), less the light travel time.
MID_TRANSIT = 58107.2088


@dataclass
class Night:
    time: np.ndarray
    matches: list
    reference: object
    elongation: np.ndarray
    psf_fwhm: np.ndarray
    background: np.ndarray
    flux: dict
    error: dict


@pytest.fixture(scope="module")
def night():
    """Every frame read once; stars, maps and apertures kept."""
    images, times, skies, stars = [], [], [], []
    for path in FRAMES:
        with fits.open(path) as hdus:
            image, header = hdus[1].data.astype(float), hdus[1].header
        # The lowest rows are dark, and the camera saturates hard at 4095.
        bad = (image < 310) | (image >= 4000)
        sky = measure_background(image, image < 310, order=1)
        stars.append(find_stars(image, mask=image < 310, saturation=4000, background=sky))
        images.append((image.astype(np.float32), bad))
        skies.append(sky)
        times.append(Time(header["UT-OBS"][:23], scale="utc").mjd + header["EXPTIME"] / 2 / 86400)
    reference = stars[[path.name for path in FRAMES].index(REFERENCE)]
    matches = [match_stars(s, reference) for s in stars]
    flux, error = {3: [], 4: []}, {3: [], 4: []}
    for (image, bad), sky, match in zip(images, skies, matches, strict=True):
        noise = noise_model(image, sky, GAIN)
        x, y = match.pixel_map.evaluate(reference.x, reference.y)
        for radius in flux:
            f, e = aperture_flux(image, noise, bad, x, y, radius, (8, 14))
            flux[radius].append(f)
            error[radius].append(e)
    width = np.array([psf_width(s) for s in stars])
    return Night(
        time=np.array(times),
        matches=matches,
        reference=reference,
        elongation=width[:, 1],
        psf_fwhm=width[:, 0],
        background=np.array([sky.level for sky in skies]),
        flux={r: np.array(f) for r, f in flux.items()},
        error={r: np.array(e) for r, e in error.items()},
    )


def test_every_frame_is_registered_to_a_twentieth_of_a_pixel(night):
    held_out = np.array([m.held_out_rms for m in night.matches])
    median = np.array([m.held_out_median for m in night.matches])
    matched = np.array([m.n_matched for m in night.matches])
    assert np.median(held_out) <= 0.05
    assert np.median(median) <= 0.05
    assert matched.min() >= 250
    assert max(m.map_error for m in night.matches) < 0.006
    shift = np.array([np.subtract(m.pixel_map.evaluate(325.0, 250.0), (325.0, 250.0)) for m in night.matches])
    assert np.ptp(shift, axis=0) == pytest.approx([273, 63], abs=8)
    rotation = np.array([m.rotation for m in night.matches])
    assert np.ptp(rotation) == pytest.approx(0.56, abs=0.02)


def scales(night):
    row = [path.name for path in FRAMES].index(REFERENCE)
    f, e = night.flux[4], night.error[4]
    return np.array([photometric_scale(f[k], f[row], e[k], e[row]) for k in range(len(f))])


def test_scale_follows_the_airmass_and_trailed_frames_are_flagged(night):
    scale = scales(night)
    assert np.all(scale[:, 1] < 0.004)
    assert 0.9 < scale[-1, 0] < 0.95
    flags = flag_frames(
        elongation=night.elongation,
        psf_fwhm=night.psf_fwhm,
        scale=scale[:, 0],
        background=night.background,
        n_stars=[m.n_matched for m in night.matches],
        residual=[m.held_out_rms for m in night.matches],
    )
    trailed = np.flatnonzero(flags & FrameFlag.TRAILED)
    assert {47, 95, 131} <= set(trailed)  # twice as long as wide
    assert len(trailed) <= 20
    assert 71 in np.flatnonzero(flags & FrameFlag.HAZY)
    assert (flags == 0).sum() > 105


def test_the_camera_s_gain_comes_out_of_the_scatter_of_its_stars(night):
    unsaturated = night.reference.flags == 0
    estimate = gain_from_light_curves(night.flux[3][:, unsaturated])
    assert 12 < estimate.gain < 26  # about 16 by other means
    assert estimate.gain_error < 5


def target_curve(night, radius=4):
    distance = np.hypot(night.reference.x - TARGET[0], night.reference.y - TARGET[1])
    target = int(np.argmin(distance))
    assert distance[target] < 0.1
    hours = (night.time - MID_TRANSIT) * 24
    out = np.abs(hours) > 1.7
    curve = ensemble_light_curve(
        night.flux[radius], night.error[radius], target=target, baseline=out, brightness=(0.3, 4)
    )
    return hours, curve


def test_the_target_shows_the_transit_of_hat_p_32_b(night):
    hours, curve = target_curve(night)
    good = np.isfinite(curve.flux)
    assert good.mean() > 0.97
    assert len(curve.comparisons) >= 10
    out, inside = good & (np.abs(hours) > 1.7), good & (np.abs(hours) < 1.1)
    depth = np.median(curve.flux[out]) - np.median(curve.flux[inside])
    scatter = np.std(curve.flux[out])
    assert depth == pytest.approx(0.025, abs=0.004)
    assert scatter < 0.008
    duration, middle = box_fit(hours[good], curve.flux[good])
    assert duration == pytest.approx(2.9, abs=0.3)  # first to fourth contact
    assert middle == pytest.approx(0, abs=0.15)


def test_no_other_star_dips_like_the_target(night):
    hours, _ = target_curve(night)
    out, inside = np.abs(hours) > 1.7, np.abs(hours) < 1.1
    flux, error = night.flux[4], night.error[4]
    level = np.nanmedian(flux[:, np.isfinite(flux).mean(axis=0) > 0.9], axis=0)
    bright = np.flatnonzero((np.isfinite(flux).mean(axis=0) > 0.9) & (np.nan_to_num(flux[0]) > 2500))
    assert len(level) > 50
    dips = {}
    for star in bright:
        curve = ensemble_light_curve(flux, error, target=int(star), baseline=out, brightness=(0.3, 4))
        before, after = (curve.flux[out & (np.sign(hours) == sign)] for sign in (-1, 1))
        # A dip against both sides of the night: slow trends have none.
        dips[star] = min(np.nanmedian(before), np.nanmedian(after)) - np.nanmedian(curve.flux[inside])
    ranked = sorted(dips, key=lambda star: -dips[star])
    assert np.hypot(night.reference.x[ranked[0]] - TARGET[0], night.reference.y[ranked[0]] - TARGET[1]) < 0.1
    assert dips[ranked[0]] > 2.5 * dips[ranked[1]]


def box_fit(hours, flux):
    """First to fourth contact and middle of a trapezoid with the ingress of HAT-P-32 b, 0.4 h."""
    best = (np.inf, 0.0, 0.0)
    for duration in np.arange(2.0, 4.0, 0.05):
        for middle in np.arange(-0.5, 0.5, 0.025):
            depth = np.clip((duration / 2 - np.abs(hours - middle)) / 0.4, 0, 1)
            design = np.column_stack([np.ones_like(hours), hours, depth])
            chi2 = np.linalg.lstsq(design, flux, rcond=None)[1]
            if len(chi2) and chi2[0] < best[0]:
                best = (chi2[0], duration, middle)
    return best[1], best[2]
