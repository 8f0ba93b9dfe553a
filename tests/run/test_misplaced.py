"""Frames whose WCS is wrong: matched by their stars and told, or listed; never placed beside the others."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from survey.config import make_config
from survey.io.frames import find_files, scan
from survey.kernels.frame_quality import FrameFlag
from survey.run.executor import InlineExecutor
from survey.run.ingest import ingest
from survey.simulate import simulate_field
from survey.stages import register
from survey.stages.calibrated import frame_map
from survey.stages.measure import measure_frame

CONFIG = make_config({"grid": {"tile": 48}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("right")
    simulate_field(folder, size=96, frames=8, seed=4, events=0, variables=0)
    return folder


@pytest.fixture(scope="module")
def measures(folder):
    """Eight frames, looked at; their WCS is true."""
    return [measure_frame(header, CONFIG) for header in scan(find_files([folder])).headers]


def with_wcs(measure, **change):
    """The frame with so much added to cards of its WCS."""
    cards = fits.Header.fromstring(measure.header.wcs_text)
    for name, value in change.items():
        cards[name] = cards.get(name, 0.0) + value
    return replace(measure, header=replace(measure.header, wcs_text=cards.tostring()))


def without_stars(measure):
    flux, error = measure.scale_flux[:, :0], measure.scale_error[:, :0]
    stars = measure.stars.select(np.zeros(0, int))
    return replace(measure, stars=stars, scale_flux=flux, scale_error=error)


def changed(measures, change, *indices, **cards):
    return [change(m, **cards) if k in indices else m for k, m in enumerate(measures)]


def places(registration):
    """Where each frame sees the middle of the grid."""
    ids = registration.frames["frame_id"].values
    return {str(name): frame_map(registration.frames, k).evaluate(48, 48) for k, name in enumerate(ids)}


@pytest.mark.parametrize("pixels", [3, 20, -35])
def test_a_frame_beside_its_wcs_is_matched_by_its_stars_and_told(measures, pixels):
    truth = places(register.combine(measures, CONFIG))
    found = register.combine(changed(measures, with_wcs, 2, CRPIX1=pixels), CONFIG)
    assert found.rejected == []
    (told,) = found.warnings
    name = measures[2].name
    assert told.startswith("1 of 8 frames are not where their WCS puts them")
    assert told.endswith(f"{name} by {abs(pixels)}.0 px")
    assert int(found.frames["n_matched"][2]) > 20
    assert float(found.frames["registration_rms"][2]) < 0.2
    np.testing.assert_allclose(places(found)[name], truth[name], atol=0.1)


def test_where_only_the_wcs_counts_such_a_frame_is_left_out(measures):
    config = make_config({"registration": {"mode": "wcs"}})
    found = register.combine(changed(measures, with_wcs, 2, CRPIX1=20), config)
    ((source, reason),) = found.rejected
    assert source == measures[2].header.source
    assert f"{measures[2].name}: its stars are not where its WCS puts them; set [registration]" in reason
    assert found.frames.sizes["time"] == 7


def test_a_frame_of_other_stars_at_the_same_place_is_left_out(measures):
    other = replace(measures[2].stars, x=95 - measures[2].stars.x)
    found = register.combine([*measures[:2], replace(measures[2], stars=other), *measures[3:]], CONFIG)
    ((_, reason),) = found.rejected
    assert "its stars are not where its WCS puts them, and they do not match the reference's: " in reason


@pytest.mark.parametrize("degrees", [1.0, 150.0])
def test_a_frame_of_another_place_is_left_out(measures, degrees):
    found = register.combine(changed(measures, with_wcs, 2, CRVAL1=degrees), CONFIG)
    ((_, reason),) = found.rejected
    assert "beside the reference frame and covers none of it" in reason or "another part of the sky" in reason


@pytest.mark.parametrize("cards", [{"CRPIX1": 20}, {"CRVAL2": 1.0}])
def test_the_frame_that_most_others_contradict_is_not_the_reference(measures, cards):
    usual = register.combine(measures, CONFIG).reference
    at = [m.name for m in measures].index(usual.name)
    found = register.combine(changed(measures, with_wcs, at, **cards), CONFIG)
    assert found.reference.name != usual.name
    assert (len(found.rejected), len(found.warnings)) == ((0, 1) if "CRPIX1" in cards else (1, 0))


def test_a_frame_without_stars_among_others_follows_its_wcs_flagged(measures):
    found = register.combine(changed(measures, without_stars, 2), CONFIG)
    flags = found.frames["flags"].values
    assert flags[2] & FrameFlag.POOR_REGISTRATION
    assert not np.delete(flags, 2).any()
    (told,) = found.warnings
    assert f"1 of 8 frames have too few stars to be matched (the first is {measures[2].name})" in told


def test_a_field_without_stars_is_placed_and_its_unit_scale_told(measures):
    found = register.combine([without_stars(m) for m in measures], CONFIG)
    assert found.frames.sizes["time"] == 8
    assert not (found.frames["flags"].values & FrameFlag.POOR_REGISTRATION).any()
    (told,) = found.warnings
    assert told.startswith("7 of 8 frames")
    assert told.endswith("their photometric scale is taken as 1")


def test_an_ingest_lists_and_tells_them(folder, tmp_path):
    files = []
    for k, file in enumerate(sorted(folder.glob("*.fits"))[:5]):
        files.append(tmp_path / file.name)
        with fits.open(file) as hdul:
            for hdu in hdul:
                if "CRPIX1" in hdu.header:
                    hdu.header["CRPIX1"] += 20.0 * (k == 3)
                    hdu.header["CRVAL2"] += 1.0 * (k == 4)
            hdul.writeto(files[-1])
    summary = ingest(tmp_path / "field", files, CONFIG, InlineExecutor())
    assert summary.added == 4
    assert [path for path, _ in summary.rejected] == [str(files[4])]
    assert any("matched by their stars" in text for text in summary.warnings)
