"""Peaks: false alarms as promised, one list however tiles are cut, candidates measured and told apart."""

import numpy as np
import pytest
from scipy.special import erf

from survey.kernels._psf_pass import GaussianPSF
from survey.kernels.candidates import EventFlag, exact_significance, measure_candidate
from survey.kernels.matched_filter import ScaleMap, event_bank, matched_filter_bank
from survey.kernels.peaks import (
    PEAK_DTYPE,
    find_peaks,
    independent_trials,
    merge_peaks,
    search_halo,
    search_thresholds,
    threshold_for,
)
from survey.kernels.reference import difference_images

SIGMA = 1.1 / 2.3548
PSF = GaussianPSF(SIGMA)


def pixel_profile(d):
    return 0.5 * (erf((d + 0.5) / SIGMA / 2**0.5) - erf((d - 0.5) / SIGMA / 2**0.5))


def add_event(flux, phase_y, phase_x, *, y, x, t0, sigma, amplitude, velocity=0.0):
    """Add a Gaussian event (in images) to a cube, in place; `velocity` in px an image along y."""
    t = np.arange(len(flux))
    rows, columns = np.mgrid[: flux.shape[1], : flux.shape[2]]
    profile = amplitude * np.exp(-0.5 * ((t - t0) / sigma) ** 2)[:, None, None]
    dy = rows + phase_y[:, None, None] - y - velocity * (t - t0)[:, None, None]
    flux += profile * pixel_profile(dy) * pixel_profile(columns + phase_x[:, None, None] - x)


@pytest.fixture(scope="module")
def field():
    """Differences of a flat field of noise 1 with four sources, and the phases."""
    rng = np.random.default_rng(5)
    shape = (72, 36, 36)
    py, px = rng.uniform(-0.5, 0.5, (2, shape[0]))
    flux = rng.normal(size=shape)
    add_event(flux, py, px, y=8.3, x=9.2, t0=30.4, sigma=4, amplitude=15)
    add_event(flux, py, px, y=26.8, x=8.1, t0=40.0, sigma=8, amplitude=-10)
    add_event(flux, py, px, y=8.0, x=26.0, t0=36.0, sigma=3, amplitude=30, velocity=0.5)
    flux[50, 26, 26] += 25
    mask = rng.random(shape) < 0.03
    mask[49:52, 26, 26] = False
    difference = difference_images(flux, np.ones(shape), mask, py, px, iterations=2)
    return difference, py, px


def search(field, thresholds=(4.5, 4.5, 4.5), columns=slice(None), core=None, origin=(0, 0)):
    difference, py, px = field
    flux, error, mask = (
        np.ascontiguousarray(a[:, :, columns]) for a in (difference.flux, difference.error, difference.mask)
    )
    bank = event_bank([2, 4, 8], py, px, spatial_sigma=SIGMA)
    maps = matched_filter_bank(flux, error, mask, py, px, bank, spatial_sigma=SIGMA)
    return [
        find_peaks(m, u, scale=i, core=core, origin=origin)
        for i, (m, u) in enumerate(zip(maps, thresholds, strict=True))
    ]


def measure(field, **peak):
    difference, py, px = field
    return measure_candidate(
        difference.flux, difference.error, difference.mask, psf=PSF, phase_y=py, phase_x=px,
        leverage=difference.leverage, fit_mask=difference.fit_mask, **peak,
    )  # fmt: skip


def test_search_finds_brightening_and_fading_once_each_and_no_cosmic_ray(field):
    events = merge_peaks(search(field))
    places = [(int(e["y"]), int(e["x"])) for e in events if abs(e["snr"]) > 5.5]
    assert sorted(places[:3]) == [(8, 9), (8, 26), (27, 8)]
    signs = {(int(e["y"]), int(e["x"])): np.sign(e["snr"]) for e in events}
    assert signs[8, 9] == 1
    assert signs[27, 8] == -1
    assert (26, 26) not in places


def test_candidate_is_measured_within_its_errors(field):
    c = measure(field, y=8, x=9, t0=30, temporal_sigma=4)
    assert np.hypot(c.y - 8.3, c.x - 9.2) < 4 * c.position_error < 0.5
    assert c.amplitude == pytest.approx(15, abs=3 * c.amplitude_error)
    assert c.time == pytest.approx(30.4, abs=1.5)
    assert c.snr > 8
    assert c.psf_correlation > 0.8
    assert c.n_epochs >= 6
    assert c.flags == EventFlag.NONE


def test_cosmic_ray_is_flagged_single_epoch(field):
    assert EventFlag.SINGLE_EPOCH in measure(field, y=26, x=26, t0=50, temporal_sigma=2).flags


def test_moving_source_is_flagged(field):
    assert EventFlag.MOVING in measure(field, y=8, x=26, t0=36, temporal_sigma=2).flags


def test_edge_and_saturated_neighbour_are_flagged(field):
    assert EventFlag.EDGE in measure(field, y=1, x=9, t0=30, temporal_sigma=4).flags
    saturated = np.zeros((36, 36), bool)
    saturated[8, 12] = True
    flags = measure(field, y=8, x=9, t0=30, temporal_sigma=4, saturated=saturated).flags
    assert EventFlag.SATURATED_NEIGHBOUR in flags


def test_exact_significance_is_calibrated_and_leverage_can_be_left_out(field):
    difference, py, px = field
    cube = difference.flux, difference.error, difference.mask
    event = {"t0": 20.0, "temporal_sigma": 8.0, "psf": PSF, "fit_mask": difference.fit_mask}
    quiet = [
        exact_significance(*cube, y=y, x=x, phase_y=py, phase_x=px, leverage=leverage, **event)
        for y, x in [(16, 16), (18, 27)]
        for leverage in (difference.leverage, None)
    ]
    assert all(abs(s.snr) < 4 for s in quiet)
    assert quiet[0].snr == pytest.approx(quiet[1].snr, abs=0.02)
    assert quiet[2].amplitude_error == pytest.approx(quiet[3].amplitude_error, rel=0.02)


def test_amplitudes_are_unbiased_once_the_events_are_out_of_the_fit():
    rng = np.random.default_rng(6)
    shape = (96, 60, 60)
    py, px = rng.uniform(-0.5, 0.5, (2, shape[0]))
    flux = rng.normal(size=shape)
    fit_mask = np.zeros(shape, bool)
    rows, columns = np.mgrid[:60, :60]
    t = np.arange(shape[0])
    places = [(6 + 12 * i + rng.uniform(-0.5, 0.5), 6 + 12 * j + rng.uniform(-0.5, 0.5), rng.uniform(30, 66))
              for i in range(5) for j in range(5)]  # fmt: skip
    for y, x, t0 in places:
        add_event(flux, py, px, y=y, x=x, t0=t0, sigma=8, amplitude=60)
        near = np.hypot(rows - y, columns - x) <= 4
        fit_mask |= (np.abs(t - t0) <= 24)[:, None, None] & near
    difference = difference_images(flux, np.ones(shape), None, py, px, fit_mask=fit_mask)
    cube = difference.flux, difference.error, difference.mask
    fits = [
        exact_significance(
            *cube, y=y, x=x, t0=t0, temporal_sigma=8, psf=PSF, phase_y=py, phase_x=px,
            leverage=difference.leverage, fit_mask=difference.fit_mask,
        )
        for y, x, t0 in places
    ]  # fmt: skip
    amplitude = np.array([f.amplitude for f in fits])
    error = np.array([f.amplitude_error for f in fits])
    assert np.average(amplitude, weights=error**-2) == pytest.approx(60, rel=0.02)
    assert np.std((amplitude - 60) / error) == pytest.approx(1, abs=0.4)
    assert np.median(amplitude / error) > 30


def test_two_tiles_with_halo_give_exactly_the_whole_list(field):
    whole = merge_peaks(search(field, (3.5,) * 3))
    halo, cut = search_halo(5), 17
    left = search(field, (3.5,) * 3, slice(0, cut + halo), (slice(None), slice(0, cut)))
    right = search(
        field, (3.5,) * 3, slice(cut - halo, None), (slice(None), slice(halo, None)), (0, cut - halo)
    )
    np.testing.assert_array_equal(merge_peaks([*right, *left]), whole)
    assert len(whole) > 10


def test_a_candidate_is_measured_the_same_on_a_tile(field):
    difference, py, px = field
    tile = np.s_[:, 4:20, 5:]
    names = ("flux", "error", "mask", "leverage", "fit_mask")
    cut = {name: np.ascontiguousarray(getattr(difference, name)[tile]) for name in names}
    peak = {"t0": 30.0, "temporal_sigma": 4.0, "psf": PSF, "phase_y": py, "phase_x": px}
    whole, part = (
        measure(field, y=8, x=9, t0=30.0, temporal_sigma=4.0),
        measure_candidate(**cut, y=4, x=4, **peak),
    )
    assert (part.y + 4, part.x + 5) == pytest.approx((whole.y, whole.x), abs=1e-12)
    assert (part.snr, part.amplitude, part.psf_chi2) == (whole.snr, whole.amplitude, whole.psf_chi2)


def test_equal_neighbours_make_one_peak():
    snr = np.zeros((3, 6, 6), np.float32)
    snr[1, 2, 2:4] = 7
    peaks = find_peaks(ScaleMap(2.0, np.arange(3.0), snr), 5.0, origin=(100, 200))
    assert [(p["y"], p["x"], p["time"]) for p in peaks] == [(102, 202, 1.0)]


def test_merge_keeps_the_best_scale_and_drops_the_lobe_of_the_other_sign():
    here = [(10.0, 2.0, 0, 8.0), (12.0, 4.0, 1, 9.0), (60.0, 4.0, 1, -5.0), (80.0, 4.0, 1, 7.5)]
    rows = [(5, 5, 0, 0, *peak) for peak in here] + [(20, 5, 0, 0, 12.0, 4.0, 1, 6.0)]
    merged = merge_peaks(np.array(rows, PEAK_DTYPE)[::-1])
    assert merged["snr"].tolist() == [9.0, 7.5, 6.0]


def test_merge_of_nothing_is_nothing():
    assert len(merge_peaks([])) == 0


def test_threshold_of_a_gaussian_tail():
    assert threshold_for(0.0455, 0.5 * 2) == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(ValueError, match="must be positive"):
        threshold_for(0, 100)


def test_number_of_false_alarms_is_the_expected_one():
    rng = np.random.default_rng(2)
    shape = (96, 64, 64)
    py, px = rng.uniform(-0.5, 0.5, (2, shape[0]))
    bank = event_bank([2, 4, 8, 16], py, px, spatial_sigma=SIGMA, n_basis=0)
    wanted = 100.0
    thresholds = search_thresholds(bank, shape[1] * shape[2], false_alarms=4 * wanted)
    counts = np.zeros(4)
    for _ in range(3):
        noise, error = rng.normal(size=shape), np.ones(shape)
        maps = matched_filter_bank(noise, error, noise > 9, py, px, bank, spatial_sigma=SIGMA)
        counts += [len(find_peaks(m, u)) for m, u in zip(maps, thresholds, strict=True)]
    # Rice's formula counts maxima of a continuous field: from above, since places are tried on a grid.
    assert np.all(counts / 3 < 1.1 * wanted)
    assert np.all(counts / 3 > 0.5 * wanted)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_an_event_on_a_pixel_corner_is_found_where_it_is(offset):
    rng = np.random.default_rng(8)
    py, px = rng.uniform(-0.5, 0.5, (2, 60))
    flux = np.zeros((60, 15, 15))
    add_event(flux, py, px, y=7 + offset, x=7 - offset, t0=30, sigma=4, amplitude=20)
    ideal = np.sqrt((flux**2).sum())
    bank = event_bank([4], py, px, spatial_sigma=SIGMA, n_basis=0)
    (result,) = matched_filter_bank(flux, np.ones_like(flux), flux > 99, py, px, bank, spatial_sigma=SIGMA)
    (peak,) = merge_peaks(find_peaks(result, 5.0))
    assert peak["snr"] > 0.9 * ideal
    assert peak["y"] + peak["offset_y"] == pytest.approx(7 + offset, abs=0.26)
    assert peak["x"] + peak["offset_x"] == pytest.approx(7 - offset, abs=0.26)


def test_trials_never_exceed_the_centres_searched():
    assert independent_trials(6.0, np.arange(50.0), 0.1, 10) == 500
    assert independent_trials(6.0, np.array([3.0]), 2.0, 10) == 10
