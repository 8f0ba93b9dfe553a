"""Relative light curves: of faint stars too, in units of the reference flux; no run fails for want of one."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.config import make_config
from survey.io.store import Field
from survey.run.api import run
from survey.run.results import light_curve, list_events
from survey.stages.relative import RelativeError


def test_a_faint_target_has_one_in_units_of_its_reference_flux(finished):
    """A twentieth as bright as the stars it is compared with; one that the reference lacks has none."""
    events = list_events(finished.path)
    plain = {str(e): light_curve(finished.path, event=str(e)) for e in events["object_id"]}
    known = {e: c.meta["reference_flux"] for e, c in plain.items()}
    sure = [e for e, c in plain.items() if known[e] > 5 * c.meta["reference_flux_error"]]
    lost = next(e for e in plain if e not in sure)
    with pytest.raises(RelativeError, match="no flux here to be the unit"):
        light_curve(finished.path, event=lost, relative=True)
    faint = min(sure, key=known.__getitem__)
    curve = light_curve(finished.path, event=faint, relative=True)
    good = np.isfinite(curve["flux"]) & (plain[faint]["flags"] == 0)
    ratio = 1 + np.asarray(plain[faint]["flux"])[good] / known[faint]
    # A simulated sky is equally clear all the time: what the ensemble says is its own noise.
    assert np.median(np.abs(np.asarray(curve["flux"])[good] - ratio)) < 0.02
    assert curve["flux"].unit is None


def test_what_is_printed_says_what_it_needs(finished):
    """The reference flux is in every format; the help says what the flags' bits are."""
    event = str(list_events(finished.path)["object_id"][0])
    called = CliRunner().invoke(main, ["lightcurve", str(finished.path), "--event", event, "--format", "csv"])
    assert called.exit_code == 0, called.output
    head, first = called.output.splitlines()[:2]
    values = dict(zip(head.split(","), first.split(","), strict=True))
    assert float(values["reference_flux"]) == pytest.approx(
        light_curve(finished.path, event=event).meta["reference_flux"]
    )
    assert light_curve(finished.path, event=event).meta["time_scale"] == "utc"
    assert "MJD (UTC)" in list_events(finished.path)["time"].description
    assert "8 moving" in CliRunner().invoke(main, ["events", "--help"]).output


@pytest.mark.parametrize(
    "options", [["--event", "E00001", "--ra", "3"], ["--ra", "3"], ["--x", "3", "--y", "3", "--dec", "1"], []]
)
def test_half_a_position_is_no_position(finished, options):
    called = CliRunner().invoke(main, ["lightcurve", str(finished.path), *options])
    assert called.exit_code == 1
    assert "give one of: an event, both RA and Dec, both x and y" in called.output


def test_a_run_without_a_relative_curve_says_so_and_is_done(finished, tmp_path):
    """A corner of empty sky: no reference flux."""
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    field = Field.open(path)
    flux = np.asarray(field.array("reference", "coefficients")[..., 0, 0])
    y, x = np.unravel_index(np.argmin(flux[8:-8, 8:-8]), flux[8:-8, 8:-8].shape)
    stored = field.attrs["config"]
    targets = tmp_path / "targets.csv"
    targets.write_text(f"x,y\n{x + 8},{y + 8}\n")
    config = make_config(
        {**stored, "photometry": {**stored["photometry"], "targets": str(targets), "relative": True}}
    )
    summary = run(path, config, client="synchronous")
    assert summary.ok
    assert any("no relative light curve: the reference has no flux here" in w for w in summary.warnings)
