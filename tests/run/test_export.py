"""What `survey export` writes, read back by others' readers."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from click.testing import CliRunner

from survey.cli import main
from survey.io.frames import parse_wcs, read_frame
from survey.io.store import Field
from survey.run.export import export
from survey.run.results import ResultError, list_events
from survey.run.template import make_template


@pytest.fixture(scope="module")
def field(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "field"
    shutil.copytree(finished.path, path)
    make_template(path, "stack", client="synchronous")
    return Field.open(path)


def test_by_default_what_there_is(field, tmp_path):
    written = export(field.path, tmp_path)
    assert [path.name for path in written] == [
        "reference.fits", "template-stack.fits", "events-oversampled.ecsv", "lightcurves-oversampled.ecsv",
    ]  # fmt: skip
    with fits.open(written[0], checksum=True) as hdul:
        assert [hdu.name for hdu in hdul] == ["PRIMARY", "SCI", "MASK", "NUSED", "CHI2"]
        coefficients = np.asarray(field.array("reference", "coefficients")[...])
        missing = ~np.any(coefficients != 0, axis=(2, 3))
        np.testing.assert_array_equal(hdul["MASK"].data.astype(bool), missing)
        assert np.isfinite(hdul["SCI"].data[~missing]).all()
        assert hdul["SCI"].header["BUNIT"] == field.attrs["units"]
        ours, theirs = parse_wcs(field.attrs["wcs"]), WCS(hdul["SCI"].header)
        np.testing.assert_allclose(
            theirs.wcs_pix2world([[10, 20]], 0), ours.wcs_pix2world([[10, 20]], 0), atol=1e-9
        )
    with fits.open(written[1]) as hdul:
        np.testing.assert_array_equal(
            hdul["SCI"].data, np.asarray(field.array("template/stack", "flux")[...])
        )
    events, curves = Table.read(written[2]), Table.read(written[3])
    assert len(events) == len(list_events(field.path))
    assert len(curves) == 72 * len(set(curves["object_id"]))


def test_an_exported_difference_is_a_frame_again(field, tmp_path):
    frames = field.frames()
    name = str(frames["frame_id"].values[7])
    (path,) = export(field.path, tmp_path, what=["differences"], frames=[name])
    frame = read_frame(path)
    flux = np.asarray(field.array("difference/oversampled", "flux")[7])
    mask = np.asarray(field.array("difference/oversampled", "mask")[7])
    np.testing.assert_array_equal(frame.mask, mask)
    np.testing.assert_array_equal(frame.flux[~mask], flux[~mask])
    assert fits.getheader(path)["MJD-AVG"] == frames["time"].values[7]


def test_cutouts_are_centred_on_their_event(field, tmp_path):
    event = list_events(field.path)[0]
    (path,) = export(field.path, tmp_path, what=["cutouts"], events=[str(event["object_id"])], size=21)
    with fits.open(path) as hdul:
        assert hdul["SCI"].data.shape == (72, 21, 21)
        header = hdul[0].header
        x, y = header["X"], header["Y"]
        ra, dec = WCS(hdul["SCI"].header).celestial.wcs_pix2world([[x, y]], 0)[0]
        assert (ra, dec) == (pytest.approx(event["ra"], abs=1e-7), pytest.approx(event["dec"], abs=1e-7))
        np.testing.assert_array_equal(hdul["EPOCHS"].data["time"], field.frames()["time"].values)
        peak = np.argmin(np.abs(hdul["EPOCHS"].data["time"] - event["time"]))
        sky = np.nan_to_num(hdul["SCI"].data[peak])
        assert abs(sky[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]).max() == abs(sky).max()


@pytest.mark.parametrize("form", ["csv", "votable", "parquet"])
def test_tables_in_every_format(field, tmp_path, form):
    (path,) = export(field.path, tmp_path, what=["events"], table_format=form)
    if form == "parquet":
        found = pq.read_table(path)
    else:
        found = Table.read(path, format={"csv": "ascii.csv", "votable": "votable"}[form])
    assert len(found) == len(list_events(field.path))


def test_what_is_not_there_is_named(field, finished, tmp_path):
    for options, words in (
        ({"what": ["pictures"]}, "cannot export 'pictures'"),
        ({"what": ["differences"], "method": "cpm"}, "no differences of method 'cpm'"),
        ({"what": ["differences"], "frames": ["nobody"]}, "no frame 'nobody'"),
        ({"what": ["cutouts"], "events": ["E99999"]}, "no event 'E99999'"),
        ({"what": ["events"], "table_format": "xls"}, "no table format 'xls'"),
    ):
        with pytest.raises(ResultError, match=words):
            export(field.path, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_command(field, tmp_path):
    event = str(list_events(field.path)[0]["object_id"])
    done = CliRunner().invoke(main, ["export", str(field.path), "-o", str(tmp_path), "--event", event])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == [f"cutout-oversampled-{event}.fits"]
