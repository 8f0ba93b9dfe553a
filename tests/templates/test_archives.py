"""Clients of the archives against a local server that holds files in the archives' formats."""

import numpy as np
import pytest

from survey.templates import hips, legacy, ps1
from survey.templates.fetch import ArchiveError
from survey.templates.footprint import Footprint
from survey.templates.project import TemplateError, project
from tests.templates import archives
from tests.templates.archives import LS_SCALE, PS1_SCALE, tan

RA, DEC, SHAPE = 150.0, 20.0, (60, 70)
GRID = tan(RA, DEC, 1.0, SHAPE)
FIELD = Footprint(GRID, SHAPE)
STARS = [(RA, DEC, 40.0), (RA + 0.004, DEC - 0.003, 90.0), (RA - 0.005, DEC + 0.004, 15.0)]


def star_fluxes(mosaic, radius=5.0):
    y, x = np.indices(mosaic.flux.shape)
    flux = np.where(mosaic.mask, 0.0, mosaic.flux)
    found = []
    for ra, dec, _ in STARS:
        cx, cy = GRID.wcs_world2pix([[ra, dec]], 0)[0]
        found.append(flux[np.hypot(y - cy, x - cx) < radius].sum())
    return np.array(found)


TRUE = np.array([flux for _, _, flux in STARS])


def put_ps1(server, cells, *, cutout=False, **options):
    """Serve sky cells {(projection, cell): (ra, dec, shape)}."""
    where = {key: value[:2] for key, value in cells.items()}
    server.files["/cgi-bin/ps1filenames.py"] = archives.ps1_listing(where, "r")
    content = {}
    for (projection, cell), (ra, dec, shape) in cells.items():
        wcs = tan(ra, dec, PS1_SCALE, shape)
        for kind, data in archives.ps1_cell(STARS, wcs, shape, cutout=cutout, **options).items():
            content[archives.ps1_name(projection, cell, "r", kind)] = data
    if cutout:
        server.files["/cgi-bin/fitscut.cgi"] = lambda query: (200, content[query["red"]])
    else:
        server.files |= content


def test_a_ps1_cutout_becomes_flux_in_counts_a_second(server, archive):
    put_ps1(server, {(1789, 31): (RA, DEC, (420, 480))}, cutout=True)
    found = project(ps1.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    assert found.coverage == 1.0
    assert star_fluxes(found) == pytest.approx(TRUE, rel=0.01)
    # noise of 5 counts in 900 s, 16 pixels to one
    assert np.median(found.error) == pytest.approx(5 / 900 * 4, rel=0.02)
    assert found.images[0].zero_point == 25.0
    query = next(where for where, _ in server.requests if "fitscut" in where)
    assert "format=fits" in query


def test_a_ps1_sky_cell_is_read_whole_where_the_field_needs_several(server, archive):
    # two cells that meet in the field, as the tessellation's do, with some overlap
    offset = 40 * PS1_SCALE / 3600 / np.cos(np.radians(DEC))
    cells = {(1789, 31): (RA + 3 * offset, DEC, (420, 360)), (1789, 32): (RA - 3 * offset, DEC, (420, 360))}
    put_ps1(server, cells)
    found = project(ps1.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    assert found.coverage > 0.99
    assert star_fluxes(found) == pytest.approx(TRUE, rel=0.01)
    assert len(found.images) == 2
    assert not any("fitscut" in where for where, _ in server.requests)
    before = len(server.requests)
    again = project(ps1.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    assert len(server.requests) == before, "everything is in the cache"
    np.testing.assert_array_equal(found.flux, again.flux)


def test_ps1_masks_are_taken_with_the_bit_of_good_pixels_left_out(server, archive):
    shape = (420, 480)
    bits = np.full(shape, 0x8000, np.uint16)  # set in good pixels, in no list of flags
    bits[210, 240] |= 0x20  # saturated, in the middle
    put_ps1(server, {(1789, 31): (RA, DEC, shape)}, cutout=True, bits=bits)
    found = project(ps1.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    assert found.mask[30, 35] or found.mask[29, 34]
    assert found.mask.sum() < 12


def test_the_asinh_scale_of_ps1_is_undone_exactly():
    from astropy.io.fits import Header

    counts = np.array([-300.0, -1.0, 0.0, 2.2, 1e3, 1e6])
    header = Header({"BOFFSET": 2.2, "BSOFTEN": 95.4})
    assert ps1.linear_flux(archives.asinh_scale(counts, 2.2, 95.4), header) == pytest.approx(counts, rel=1e-9)
    assert ps1.linear_flux(counts, Header()) == pytest.approx(counts)


def test_ps1_says_where_it_has_nothing(server, archive):
    put_ps1(server, {})
    with pytest.raises(TemplateError, match=r"no r image at RA 150.0000.*north of declination -30"):
        list(ps1.images(FIELD, "r", archive, server.url))
    with pytest.raises(TemplateError, match="no band 'u', but g, r, i, z, y; give --band"):
        list(ps1.images(FIELD, "u", archive, server.url))


def put_brick(server, name="1500p200", part="dr10/south", bands="r", shape=(320, 360), **options):
    server.files["/dr10/survey-bricks.fits.gz"] = archives.ls_bricks(
        {name: (RA, DEC), "0001m002": (0.125, -0.25)}
    )
    wcs = tan(RA, DEC, LS_SCALE, shape)
    for kind, data in archives.ls_brick(STARS, wcs, shape, **options).items():
        end = "" if kind == "maskbits" else f"-{bands}"
        server.files[f"/{part}/coadd/{name[:3]}/{name}/legacysurvey-{name}-{kind}{end}.fits.fz"] = data


@pytest.mark.parametrize("part", ["dr10/south", "dr9/north"])
def test_a_legacy_brick_becomes_nanomaggies(server, archive, part):
    put_brick(server, part=part, noise=0.001)
    found = project(legacy.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    assert found.coverage == 1.0
    assert star_fluxes(found) == pytest.approx(TRUE, rel=0.01)
    assert np.median(found.error) == pytest.approx(0.001 / LS_SCALE, rel=0.02)
    assert found.images[0].name == f"{part} 1500p200 r"


def test_legacy_masks_by_band_and_by_coverage(server, archive):
    shape = (320, 360)
    bits, uncovered = np.zeros(shape, np.int32), np.zeros(shape, bool)
    bits[160, 180] |= 1 << 3  # saturated in r
    bits[100, 180] |= 1 << 2  # saturated in g
    bits[:, 100:120] |= 1 << 1  # near a bright star: good
    uncovered[:60] = True
    put_brick(server, shape=shape, bits=bits, uncovered=uncovered)
    found = project(legacy.images(FIELD, "r", archive, server.url), GRID, SHAPE)
    y = np.nonzero(found.mask)[0]
    rows = 60 * LS_SCALE - (320 * LS_SCALE - 60) / 2  # of the uncovered part on the grid
    assert found.mask[: int(rows)].all()
    middle = found.mask[int(rows) + 2 :]
    assert 1 <= middle.sum() <= 9
    assert abs(np.median(y[y > rows + 2]) - 29.5) < 2


def test_legacy_says_where_it_has_nothing(server, archive):
    server.files["/dr10/survey-bricks.fits.gz"] = archives.ls_bricks({"0001m002": (0.125, -0.25)})
    with pytest.raises(TemplateError, match="Legacy Survey has no r image"):
        list(legacy.images(FIELD, "r", archive, server.url))


def test_a_legacy_brick_without_its_mask_is_an_error(server, archive):
    put_brick(server)
    del server.files["/dr10/south/coadd/150/1500p200/legacysurvey-1500p200-maskbits.fits.fz"]
    with pytest.raises(ArchiveError, match="not all that belongs to it"):
        list(legacy.images(FIELD, "r", archive, server.url))


@pytest.mark.parametrize(("name", "asinh"), [("CDS/P/Test/r", False), ("CDS/P/PanSTARRS/DR1/r", True)])
def test_a_hips_is_drawn_on_the_field_s_grid(server, archive, name, asinh):
    server.files["/hips2fits"] = archives.hips_answer(STARS, known=name, asinh=asinh, noise=0.01)
    found = project(hips.images(FIELD, name, archive, f"{server.url}/hips2fits"), GRID, SHAPE)
    assert found.coverage == 1.0
    # surface brightness of pixels of 1 arcsec, of which the service was asked for four each
    assert star_fluxes(found) / 4 == pytest.approx(TRUE, rel=0.02)


def test_the_g_band_of_pan_starrs_holds_fluxes(server, archive):
    name = "CDS/P/PanSTARRS/DR1/g"
    server.files["/hips2fits"] = archives.hips_answer(STARS, known=name, noise=0.01)
    found = project(hips.images(FIELD, name, archive, f"{server.url}/hips2fits"), GRID, SHAPE)
    assert star_fluxes(found) / 4 == pytest.approx(TRUE, rel=0.02)
    assert found.images[0].notes["asinh"] is False


def test_values_that_no_asinh_scale_has_are_fluxes():
    assert hips.on_asinh_scale("CDS/P/PanSTARRS/DR1/r", [[-2.0, 11.0, np.nan]])
    assert not hips.on_asinh_scale("CDS/P/PanSTARRS/DR1/r", [[-2.0, 110.0, np.nan]])
    assert not hips.on_asinh_scale("CDS/P/DES-DR2/r", [[1.0]])


@pytest.mark.parametrize("coarse", [1, 2, 4])
def test_errors_of_a_hips_know_how_often_a_value_is_repeated(server, archive, coarse):
    """A survey of coarser pixels than asked for: pixels of the field's do not average its noise."""
    server.files["/hips2fits"] = archives.hips_answer([], noise=0.5, coarse=coarse)
    found = project(hips.images(FIELD, "CDS/P/Test/r", archive, f"{server.url}/hips2fits"), GRID, SHAPE)
    error = np.median(found.error)
    if coarse <= 2:  # resampling makes neighbours alike, and takes nothing from sums
        sums = found.flux.reshape(12, 5, 14, 5).sum(axis=(1, 3))
        assert 5 * error == pytest.approx(np.std(sums), rel=0.15)
    else:  # a pixel of the survey's is four of the field's
        assert 1 < error / np.std(found.flux) < 1.25


def test_a_damaged_file_is_fetched_anew(server, archive):
    answer = archives.hips_answer(STARS)
    server.files["/hips2fits"] = lambda query: (200, answer(query)[1][:20000])
    with pytest.raises(ArchiveError, match="deleted, so that it is fetched anew: try again"):
        list(hips.images(FIELD, "CDS/P/Test/r", archive, f"{server.url}/hips2fits"))
    server.files["/hips2fits"] = answer
    assert len(list(hips.images(FIELD, "CDS/P/Test/r", archive, f"{server.url}/hips2fits"))) == 1


def test_a_hips_that_is_not_known_says_so(server, archive):
    server.files["/hips2fits"] = archives.hips_answer(STARS)
    with pytest.raises(ArchiveError, match=r"HTTP 400 .*HiPS CDS/P/Nothing is not known"):
        list(hips.images(FIELD, "CDS/P/Nothing", archive, f"{server.url}/hips2fits"))


def test_positions_cover_a_field():
    wide = Footprint(tan(RA, DEC, 1.0, (3600, 3600)), (3600, 3600))
    positions = np.array(wide.positions(0.2))
    assert positions[0] == pytest.approx([RA, DEC])
    corner = wide.wcs.pixel_to_world(0, 0)
    assert np.abs(positions - [corner.ra.deg, corner.dec.deg]).max(1).min() < 1e-6
    assert wide.radius == pytest.approx(np.hypot(0.5, 0.5), rel=0.01)
