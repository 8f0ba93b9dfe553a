"""Templates of a field: from its own frames, from a FITS file; how they are stored and what goes wrong."""

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from survey.cli import main
from survey.config import Config
from survey.io.frames import parse_wcs
from survey.io.ledger import FieldBusyError
from survey.io.store import Field, FieldError
from survey.kernels.reference import ReferenceFit
from survey.run.results import list_events
from survey.run.template import make_template
from survey.run.verify import verify
from survey.stages.matching import check_template
from survey.stages.stack import Choice, choose_frames
from survey.templates.project import TemplateError


@pytest.fixture
def field(finished, tmp_path):
    """A field of its own to write templates into."""
    import shutil

    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    return Field.open(path)


def arrays(field, name):
    group = f"template/{name}"
    return [np.asarray(field.array(group, part)[...]) for part in ("flux", "error", "mask")]


def reference_image(field):
    """The oversampled reference at the pixels' centres."""
    coefficients = np.asarray(field.array("reference", "coefficients")[...], float)
    zeros = np.zeros(coefficients.shape[:2])
    fit = ReferenceFit(coefficients, zeros.astype(int), zeros, zeros == 0, 1.2)
    return fit.evaluate(np.zeros(1), np.zeros(1))[0]


def write_file(field, path, *, factor=3.0, pedestal=40.0, shift=0.0, turn=0.0, **cards):
    """The reference, as another telescope would give it: other units, a sky, a WCS of its own."""
    image = factor * reference_image(field) + pedestal
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    wcs, angle = parse_wcs(field.attrs["wcs"]), np.radians(turn)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.pc = wcs.wcs.get_pc() @ turned
    header = wcs.to_header()
    header["CRPIX1"] += shift
    for key, value in cards.items():
        header[key] = value
    fits.PrimaryHDU(image.astype("f4"), header).writeto(path)
    return image


def test_a_stack_is_the_mean_of_its_frames(field):
    summary = make_template(field.path, "stack", client="synchronous")
    flux, error, mask = arrays(field, "stack")
    reference = reference_image(field)
    assert summary.coverage > 0.95  # frames wander, so that fewer than three cover the grid's edge
    assert np.isfinite(flux[~mask]).all()
    assert (error[~mask] > 0).all()
    # every star's light is there, a little broader than in a model of all frames
    both = ~mask & (reference != 0)
    assert flux[both].sum() / reference[both].sum() == pytest.approx(1, abs=0.005)
    assert np.corrcoef(flux[both], reference[both])[0, 1] > 0.97


def test_a_template_is_cut_like_the_other_groups_of_the_grid(field):
    make_template(field.path, "stack", client="synchronous")
    like, made = field.array("search/oversampled", "significance"), field.array("template/stack", "flux")
    assert (made.chunks, made.shards, made.shape) == (like.chunks, like.shards, like.shape)
    attrs = dict(field.root["template/stack"].attrs)
    assert attrs["source"] == "stack"
    assert attrs["units"] == field.attrs["units"]
    assert len(attrs["frames"]) == 24
    assert attrs["date"].endswith("Z")
    assert attrs["events_left_out"] >= 1
    assert verify(field.path).problems == []


def test_known_events_are_left_out_of_a_stack(field):
    """The stack of all frames, at the event on the faintest star, with and without knowing of it.

    Of a bright star a stack, whose PSF is broader, and the reference would differ by more than by the event.
    """
    events = list_events(field.path)
    reference = reference_image(field)
    places = [(round(float(e["y"])), round(float(e["x"]))) for e in events if e["kind"] == "event"]
    y, x = min(places, key=lambda place: reference[place])
    make_template(field.path, "stack", "knowing", choice=Choice(count=72), client="synchronous")
    field.events_path("oversampled").unlink()
    make_template(field.path, "stack", "blind", choice=Choice(count=72), client="synchronous")
    knowing, blind = (float(arrays(field, name)[0][y, x]) for name in ("knowing", "blind"))
    error = float(arrays(field, "blind")[1][y, x])
    assert blind - knowing > 5 * error
    near = reference[y, x]  # made without the event, too
    assert abs(knowing - near) < abs(blind - near)


def test_events_of_any_method_are_left_out_of_a_stack(field):
    field.events_path("oversampled").rename(field.events_path("cpm"))
    make_template(field.path, "stack", client="synchronous")
    assert dict(field.root["template/stack"].attrs)["events_left_out"] >= 1


def test_frames_are_chosen_by_seeing_time_and_name(finished):
    frames = Field.open(finished.path).frames()
    names = [str(name) for name in frames["frame_id"].values]
    sharpest = choose_frames(frames, Choice(count=5))
    assert len(sharpest) == 5
    middle = float(np.median(frames["time"].values))
    assert (frames["time"].values[choose_frames(frames, Choice(before=middle))] < middle).all()
    assert (frames["time"].values[choose_frames(frames, Choice(after=middle))] > middle).all()
    without = choose_frames(frames, Choice(count=5, leave_out=(names[sharpest[0]],)))
    assert sharpest[0] not in without
    with pytest.raises(FieldError, match="no frame 'nobody' in the field"):
        choose_frames(frames, Choice(leave_out=("nobody",)))
    with pytest.raises(FieldError, match="0 frames to stack, and 3 are needed: 0 of 72"):
        choose_frames(frames, Choice(before=0.0))


def test_a_file_comes_to_the_field_s_flux(field, tmp_path):
    image = write_file(field, tmp_path / "deep.fits", MAGZERO=27.0, BUNIT="nanomaggy")
    summary = make_template(field.path, str(tmp_path / "deep.fits"), client="synchronous")
    assert summary.name == "deep"
    flux, error, mask = arrays(field, "deep")
    assert summary.attrs["scale"] == pytest.approx(3.0, rel=0.02)
    assert summary.attrs["source_units"] == "nanomaggy"
    assert summary.attrs["source_zero_point"] == 27.0
    assert np.hypot(*summary.attrs["offset"]) < 0.1
    good = ~mask
    assert good.mean() > 0.9
    recovered = flux[good] * summary.attrs["scale"] + summary.attrs["background"]
    assert recovered == pytest.approx(image[good], abs=1e-3 * image.max())
    assert np.median(error[good]) > 0


def test_a_file_elsewhere_or_shifted_or_blank_is_refused(field, tmp_path):
    write_file(field, tmp_path / "far.fits", CRVAL1=10.0, CRVAL2=50.0)
    with pytest.raises(TemplateError, match=r"far\.fits lies on the field"):
        make_template(field.path, str(tmp_path / "far.fits"), client="synchronous")
    write_file(field, tmp_path / "shifted.fits", shift=6.0)
    with pytest.raises(TemplateError, match="one of the two WCS is wrong"):
        make_template(field.path, str(tmp_path / "shifted.fits"), client="synchronous")
    write_file(field, tmp_path / "turned.fits", turn=20.0)
    with pytest.raises(TemplateError, match="its WCS is wrong, or it shows another sky"):
        make_template(field.path, str(tmp_path / "turned.fits"), client="synchronous")
    fits.PrimaryHDU(np.ones((9, 9), "f4")).writeto(tmp_path / "blank.fits")
    with pytest.raises(ValueError, match="no WCS"):
        make_template(field.path, str(tmp_path / "blank.fits"), client="synchronous")
    with pytest.raises(TemplateError, match="no such file"):
        make_template(field.path, str(tmp_path / "gone.fits"), client="synchronous")
    assert not field.has("template/shifted")


def test_a_failed_template_leaves_the_old_one(field, tmp_path, monkeypatch):
    make_template(field.path, "stack", "own", client="synchronous")
    before = arrays(field, "own")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("survey.run.template.stack_tile", fail)
    with pytest.raises(OSError, match="disk full"):
        make_template(field.path, "stack", "own", client="synchronous", choice=Choice(count=5))
    for old, new in zip(before, arrays(field, "own"), strict=True):
        np.testing.assert_array_equal(old, new)
    assert verify(field.path).problems == []
    assert not list((field.cube / "template").glob(".*"))


@pytest.mark.parametrize("moment", ["survey.io.tables.swap", "survey.run.template._strike_older"])
def test_a_killed_replacement_leaves_the_old_template_or_the_new_one(field, monkeypatch, moment):
    config = Config(method="sfft", subtraction={"template": "own"})
    make_template(field.path, "stack", "own", client="synchronous")
    before = arrays(field, "own")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(KeyboardInterrupt):
            make_template(field.path, "stack", "own", client="synchronous", choice=Choice(count=5))
    target = Field.open(field.path)
    check_template(target, config)
    assert verify(field.path).problems == []
    is_old = all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(before, arrays(target, "own"), strict=True)
    )
    assert is_old == moment.endswith("swap")
    assert len(target.group_attrs("template/own")["frames"]) == (24 if is_old else 5)


def test_a_template_without_a_record_of_every_tile_is_refused(field):
    config = Config(method="sfft", subtraction={"template": "own"})
    make_template(field.path, "stack", "own", client="synchronous")
    ledger = field.ledger("template/own")
    ledger.invalidate(sorted(ledger.records)[:1])
    with pytest.raises(FieldError, match="template/own was not written whole: 1 of 4 tiles"):
        check_template(Field.open(field.path), config)


def test_one_writer_at_a_time(field):
    with field.lease("template/own", "another"), pytest.raises(FieldBusyError, match="another"):
        make_template(field.path, "stack", "own", client="synchronous")


def test_a_field_without_wcs_says_how_to_get_one(field, tmp_path):
    write_file(field, tmp_path / "deep.fits")
    field.root.attrs["wcs"] = None
    with pytest.raises(TemplateError, match=r"registration\] catalog = 'stars.csv'"):
        make_template(field.path, str(tmp_path / "deep.fits"), client="synchronous")
    make_template(field.path, "stack", client="synchronous")


@pytest.mark.parametrize("name", ["reference", "a/b", ".new"])
def test_names_that_are_none(field, name):
    with pytest.raises(TemplateError, match="template name"):
        make_template(field.path, "stack", name, client="synchronous")


def test_the_command(field):
    done = CliRunner().invoke(main, ["template", str(field.path), "--from", "stack", "--frames", "12"])
    assert done.exit_code == 0, done.output
    assert 'template = "stack"' in done.output
    wrong = CliRunner().invoke(main, ["template", str(field.path), "--from", "nowhere.fits"])
    assert wrong.exit_code == 1
    assert "no such file" in wrong.output
