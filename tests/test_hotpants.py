"""Driving HOTPANTS: what it is told and what is made of its answer; crashes, timeouts, absence."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from survey.hotpants import HotpantsError, find_hotpants, subtract_hotpants
from survey.simulate.pairs import simulate_pair
from tests.kernels.pair_quality import measure

FAKE = Path(__file__).with_name("fake_hotpants.py")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that behaves as $FAKE_HOTPANTS says, and a clean directory for temporary files."""
    script = tmp_path / "bin" / "hotpants"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    script.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("FAKE_HOTPANTS_LOG", str(tmp_path / "log.json"))
    return script


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    template = rng.normal(100, 1, (40, 50))
    image = 0.5 * template + rng.normal(0, 1, (40, 50))
    return image, template


def test_hotpants__what_it_is_told(program, pair, tmp_path):
    image, template = pair
    mask = np.zeros(image.shape, bool)
    mask[15, 16] = True
    s = subtract_hotpants(
        image, template, mask=mask, error=1.0, template_error=0.5, image_gain=2.0, image_fwhm=3.0,
        template_fwhm=2.0, stars=[(10.0, 20.5)], extra={"ko": 1, "sconv": None}, executable=program,
        keep=tmp_path / "kept",
    )  # fmt: skip
    given = json.loads((tmp_path / "log.json").read_text())
    sigma = np.sqrt(5) / 2.355
    assert given["ng"][:2] == ["3", "6"]
    assert_allclose(float(given["ng"][4]), max(1, sigma), rtol=1e-3)
    assert (given["r"], given["rss"]) == (["9"], ["12"])
    assert given["c"] == ["t"]
    assert given["n"] == ["i"]
    assert given["ko"] == ["1"]
    assert given["bgo"] == ["2"]
    assert given["ig"] == ["2.0"]
    assert given["sconv"] == []
    assert "tg" not in given
    assert (tmp_path / "kept" / "stars.txt").read_text() == "21.500 11.000\n"
    assert s.kernel.header["KSUM00"] == pytest.approx(0.5, abs=0.1)
    assert_array_equal(s.kernel.coefficients[:, 0], [0, 1, 2, 3])
    assert s.kernel.basis["TTYPE1"] == "Region0"
    inside = np.zeros(image.shape, bool)
    inside[9:-9, 9:-9] = True
    assert_array_equal(s.mask, mask | ~inside)
    good = ~s.mask
    assert_allclose(s.scaled[good], s.difference[good] / s.error[good])
    assert_allclose(s.difference[good], image[good] - s.convolved[good], atol=1e-4)


def test_hotpants__the_broader_image_stays(program, pair, tmp_path):
    image, template = pair
    s = subtract_hotpants(image, template, image_fwhm=2.0, template_fwhm=3.0, executable=program)
    assert json.loads((tmp_path / "log.json").read_text())["c"] == ["i"]
    assert s.direction == "image"


def test_hotpants__what_was_seen_through_a_bad_pixel_is_masked(program, pair):
    """A bad pixel of the convolved one spoils its surroundings, one of the other only itself."""
    image, template = pair
    image = gaussian_filter(20 * (image - 50), 1.0)
    mask, template_mask = np.zeros((2, *image.shape), bool)
    mask[20, 15], template_mask[20, 30] = True, True
    s = subtract_hotpants(
        image, 20 * template, mask=mask, template_mask=template_mask, image_fwhm=3.0, template_fwhm=2.0,
        error=1.0, template_error=1.0, executable=program,
    )  # fmt: skip
    near = s.mask[12:29, 10:40]
    assert_array_equal(np.argwhere(near[:, :12]), [[8, 5]])
    assert near[7:10, 19:22].all()
    assert 9 <= near[:, 12:].sum() <= 60


def test_hotpants__in_a_folder_of_any_depth(program, pair, tmp_path):
    """The program copies the paths it is given into 256 characters."""
    deep = tmp_path.joinpath(*["a" * 100] * 3)
    s = subtract_hotpants(*pair, image_fwhm=3.0, template_fwhm=2.0, executable=program, keep=deep)
    assert not s.mask.all()
    assert (deep / "difference.fits").exists()


def test_hotpants__the_program_s_own_options_do_not_change_what_the_result_means(program, pair):
    given = {"image_fwhm": 3.0, "template_fwhm": 2.0, "executable": program}
    assert subtract_hotpants(*pair, **given).direction == "template"
    assert subtract_hotpants(*pair, **given, extra={"c": "i"}).direction == "image"
    with pytest.raises(ValueError, match="differences are in the image's units"):
        subtract_hotpants(*pair, **given, extra={"n": "t"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crashes", "signal 6: could not allocate stamps"),
        ("fails", r"status 3: no good stamps found \| exiting"),
        ("writes nothing", "no readable difference"),
        ("one layer", "leave -allm as it is"),
    ],
)
def test_hotpants__a_crash_is_an_error_of_the_pair(program, pair, monkeypatch, tmp_path, how, message):
    monkeypatch.setenv("FAKE_HOTPANTS", how)
    with pytest.raises(HotpantsError, match=message):
        subtract_hotpants(*pair, executable=program)
    assert not list((tmp_path / "temporary").iterdir())


def test_hotpants__a_timeout_stops_the_program(program, pair, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_HOTPANTS", "hangs")
    started = time.monotonic()
    with pytest.raises(HotpantsError, match="had not ended after 2 s"):
        subtract_hotpants(*pair, executable=program, timeout=2)
    assert time.monotonic() - started < 20
    assert not list((tmp_path / "temporary").iterdir())


def test_hotpants__absent(monkeypatch, pair):
    monkeypatch.delenv("HOTPANTS", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HotpantsError, match="'hotpants' is no program here: install"):
        subtract_hotpants(*pair)
    with pytest.raises(HotpantsError, match="'/nowhere/hotpants' is no program"):
        find_hotpants("/nowhere/hotpants")


def test_hotpants__what_is_no_program_after_all(pair, tmp_path):
    broken = tmp_path / "hotpants"
    broken.write_bytes(b"\x00 no program of this machine")
    broken.chmod(0o755)
    with pytest.raises(HotpantsError, match=r"could not be run: .*Exec format error"):
        subtract_hotpants(*pair, executable=broken)


def test_hotpants__inputs_are_checked(program, pair, tmp_path):
    image, template = pair
    with pytest.raises(ValueError, match="one"):
        subtract_hotpants(image[1:], template, executable=program)
    with pytest.raises(ValueError, match="no good pixel in the template"):
        subtract_hotpants(image, template * np.nan, executable=program)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(HotpantsError, match="is not empty"):
        subtract_hotpants(image, template, executable=program, keep=tmp_path / "used")


@pytest.mark.skipif(shutil.which("hotpants") is None, reason="the program HOTPANTS is not installed")
def test_hotpants__the_program_itself():
    pair = simulate_pair((512, 512), n_stars=750, n_transients=10, seed=1)
    s = subtract_hotpants(
        pair.image, pair.template, mask=pair.mask, template_mask=pair.template_mask,
        image_gain=pair.gain, template_gain=pair.template_gain,
    )  # fmt: skip
    q = measure(pair, s)
    assert q.chi2_star < 2
    assert q.found >= 0.9 * q.bright
