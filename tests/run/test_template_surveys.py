"""`survey template` from archives, whole: a sparse ground-based field, a local server, the command line."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner

from survey.cli import main
from survey.config import Config
from survey.io.frames import parse_wcs
from survey.io.ledger import FieldBusyError
from survey.io.store import Field, FieldError
from survey.run.api import create_field
from survey.run.upkeep import prune
from survey.run.verify import verify
from tests.templates import archives
from tests.templates.archives import LS_SCALE, PS1_SCALE, draw, tan
from tests.templates.server import serve

RA, DEC, SHAPE = 150.0, 20.0, (96, 96)
GRID = tan(RA, DEC, 1.0, SHAPE)
ZERO_POINT = 26.0


@pytest.fixture(scope="module")
def stars():
    """Thirty stars (ra, dec, magnitude) in and around the field."""
    rng = np.random.default_rng(8)
    x, y = rng.uniform(4, 92, (2, 30))
    sky = GRID.wcs_pix2world(np.column_stack([x, y]), 0)
    return [(ra, dec, mag) for (ra, dec), mag in zip(sky, rng.uniform(15.5, 18.5, 30), strict=True)]


def in_units(stars, zero_point):
    return [(ra, dec, 10 ** (-0.4 * (mag - zero_point))) for ra, dec, mag in stars]


@pytest.fixture(scope="module")
def field(stars, tmp_path_factory):
    """Ten drifting frames of seeing 2.2 to 3.2 pixels, with WCS and zero point."""
    folder, rng = tmp_path_factory.mktemp("sparse"), np.random.default_rng(9)
    for k in range(10):
        wcs = GRID.deepcopy()
        wcs.wcs.crpix = np.asarray(wcs.wcs.crpix) + rng.uniform(-1.5, 1.5, 2)
        image = draw(wcs, SHAPE, in_units(stars, ZERO_POINT), 1.0, fwhm=rng.uniform(2.2, 3.2))
        image = rng.poisson(np.maximum(image + 200.0, 0)).astype("f4")
        header = wcs.to_header()
        header["MJD-OBS"], header["EXPTIME"], header["FILTER"] = 60000.0 + k / 24, 60.0, "r"
        header["GAIN"], header["RDNOISE"], header["MAGZPT"] = 1.0, 3.0, ZERO_POINT
        fits.PrimaryHDU(image, header).writeto(folder / f"frame{k:02d}.fits")
    path = folder / "field"
    create_field(path, [folder], Config(grid={"tile": 48}), client="synchronous")
    return Field.open(path)


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("SURVEY_CACHE", str(tmp_path / "cache"))
    with serve() as served:
        yield served


def run_template(field, source, *options):
    done = CliRunner().invoke(main, ["template", str(field.path), "--from", source, *options])
    assert done.exit_code == 0, done.output
    return done.output


def check(field, name, stars):
    """The template holds every star with its flux in the field's unit."""
    group = f"template/{name}"
    flux, error, mask = (np.asarray(field.array(group, part)[...]) for part in ("flux", "error", "mask"))
    assert (error[~mask] > 0).all()
    y, x = np.indices(SHAPE)
    true = draw(GRID, SHAPE, in_units(stars, ZERO_POINT), 1.0, fwhm=2.0)
    own = parse_wcs(field.attrs["wcs"])
    ratios = []
    for ra, dec, _ in stars:
        (cx, cy), (gx, gy) = own.wcs_world2pix([[ra, dec]], 0)[0], GRID.wcs_world2pix([[ra, dec]], 0)[0]
        near, there = np.hypot(y - cy, x - cx) < 5, np.hypot(y - gy, x - gx) < 5
        if not mask[near].any() and near.sum() > 70:
            ratios.append(flux[near].sum() / true[there].sum())
    assert len(ratios) > 15
    return float(np.median(ratios))


def test_from_pan_starrs(field, server, stars):
    server.files["/cgi-bin/ps1filenames.py"] = archives.ps1_listing({(1789, 31): (RA, DEC)}, "r")
    shape = (560, 560)
    cell = archives.ps1_cell(
        in_units(stars, 25.0), tan(RA, DEC, PS1_SCALE, shape), shape, exposure=500.0, cutout=True
    )
    content = {archives.ps1_name(1789, 31, "r", kind): data for kind, data in cell.items()}
    server.files["/cgi-bin/fitscut.cgi"] = lambda query: (200, content[query["red"]])
    server.trouble["/cgi-bin/fitscut.cgi"] = []
    assert "100.0% of the field is good" in run_template(field, "ps1", "--server", server.url)
    attrs = dict(field.root["template/ps1"].attrs)
    assert attrs["scale"] == pytest.approx(10 ** (-0.4 * (ZERO_POINT - 25.0)), rel=0.03)
    assert attrs["source_zero_point"] == 25.0
    assert attrs["source_units"] == "count/s"
    assert attrs["units"] == field.attrs["units"]
    assert check(field, "ps1", stars) == pytest.approx(1, abs=0.03)


def test_from_the_legacy_survey(field, server, stars):
    server.files["/dr10/survey-bricks.fits.gz"] = archives.ls_bricks({"1500p200": (RA, DEC)})
    shape = (520, 520)
    brick = archives.ls_brick(in_units(stars, 22.5), tan(RA, DEC, LS_SCALE, shape), shape)
    stem = "/dr10/south/coadd/150/1500p200/legacysurvey-1500p200"
    for kind, data in brick.items():
        server.files[f"{stem}-{kind}{'' if kind == 'maskbits' else '-r'}.fits.fz"] = data
    run_template(field, "ls", "--server", server.url, "--band", "r", "--name", "legacy")
    attrs = dict(field.root["template/legacy"].attrs)
    assert attrs["scale"] == pytest.approx(10 ** (-0.4 * (ZERO_POINT - 22.5)), rel=0.03)
    assert attrs["images"] == ["dr10/south 1500p200 r"]
    assert check(field, "legacy", stars) == pytest.approx(1, abs=0.03)


def test_from_a_hips(field, server, stars):
    server.files["/hips2fits"] = archives.hips_answer(in_units(stars, 24.0), noise=0.5)
    url = f"{server.url}/hips2fits"
    run_template(field, "hips:CDS/P/Test/r", "--server", url)
    assert check(field, "CDS-P-Test-r", stars) == pytest.approx(1, abs=0.03)


def test_from_its_own_frames(field, stars):
    run_template(field, "stack")
    attrs = dict(field.root["template/stack"].attrs)
    assert attrs["psf_fwhm"] <= np.median(field.frames()["psf_fwhm"].values)
    assert check(field, "stack", stars) == pytest.approx(1, abs=0.03)


def test_stars_of_a_catalogue_are_masked(field, server, stars, tmp_path):
    server.files["/hips2fits"] = archives.hips_answer(in_units(stars, 24.0), noise=0.5)
    magnitudes = np.array([mag for _, _, mag in stars])
    magnitudes[7] = np.nan
    there, dec = ([star[axis] for star in stars] for axis in (0, 1))
    # the list of a whole sky: a star of the other hemisphere does not project here
    table = {"RAJ2000": [*there, RA + 180], "DEJ2000": [*dec, -DEC], "rmag": [*magnitudes, 10.0]}
    table = Table(table)
    table.write(tmp_path / "stars.ecsv")
    options = ("--server", f"{server.url}/hips2fits", "--catalog", str(tmp_path / "stars.ecsv"))
    run_template(field, "hips:CDS/P/Test/r", *options, "--magnitude", "rmag", "--saturation", "16")
    mask = np.asarray(field.array("template/CDS-P-Test-r", "mask")[...])
    wcs = parse_wcs(field.attrs["wcs"])
    for (ra, dec, _), magnitude in zip(stars, magnitudes, strict=True):
        x, y = np.rint(wcs.wcs_world2pix([[ra, dec]], 0)[0]).astype(int)
        if 0 <= x < 96 and 0 <= y < 96 and not magnitude > 16:
            assert mask[y, x]
    assert dict(field.root["template/CDS-P-Test-r"].attrs)["catalog"]["masked"] == (~(magnitudes >= 16)).sum()
    wrong = CliRunner().invoke(main, ["template", str(field.path), "--from", "hips:CDS/P/Test/r", *options])
    assert wrong.exit_code == 1
    assert "no column 'mag'" in wrong.output


def test_saturated_stars_are_found_and_masked(field, server, stars):
    answer = archives.hips_answer(in_units(stars, 24.0), noise=0.5, saturation=60.0)
    server.files["/hips2fits"] = answer
    run_template(field, "hips:CDS/P/Test/r", "--server", f"{server.url}/hips2fits", "--name", "clipped")
    attrs = dict(field.root["template/clipped"].attrs)
    assert attrs["saturated"]["stars"] >= 3
    mask = np.asarray(field.array("template/clipped", "mask")[...])
    assert 0.01 < mask.mean() < 0.3


def test_a_template_is_leased_and_verified_with_the_field(field):
    run_template(field, "stack", "--name", "damaged")
    array = field.array("template/damaged", "flux")
    array[:4, :4] = 7.0
    found = verify(field.path, repair=True)
    assert [problem.ledger for problem in found.hopeless] == ["template.damaged"]
    assert "survey template" in found.hopeless[0].what
    run_template(field, "stack", "--name", "damaged")
    assert verify(field.path).problems == []
    with field.lease("template/damaged", "another"), pytest.raises(FieldBusyError, match="another"):
        prune(field.path, delete=True)


def test_templates_are_listed_and_removed(field):
    run_template(field, "stack", "--name", "passing")
    assert "passing          from stack, 20" in CliRunner().invoke(main, ["template", str(field.path)]).output
    prune(field.path, delete=True, template="passing")
    assert not field.has("template/passing")
    assert verify(field.path).problems == []
    with pytest.raises(FieldError, match="no template 'passing'"):
        prune(field.path, delete=True, template="passing")


def test_an_archive_that_is_down_is_one_line(field, server, monkeypatch):
    monkeypatch.setattr("survey.templates.fetch.time.sleep", lambda seconds: None)
    server.trouble["/cgi-bin/ps1filenames.py"] = [503] * 9
    done = CliRunner().invoke(main, ["template", str(field.path), "--from", "ps1", "--server", server.url])
    assert done.exit_code == 1
    assert "HTTP 503" in done.output
    assert "Traceback" not in done.output
