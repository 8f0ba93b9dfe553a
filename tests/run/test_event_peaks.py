"""What a run says of its events' highest flux, and of two events at one place."""

import shutil

import numpy as np
import pytest

from survey.report.truth import compare_field
from survey.run.api import run_stage
from survey.run.results import list_events
from survey.stages.candidates import one_per_source


def test_the_peaks_in_the_list_are_those_of_the_truth(finished):
    rows = [row for row in compare_field(finished.path)["rows"] if row["kind"] == "microlensing"]
    ratio, error = np.array([[row["peak_ratio"], row["peak_ratio_error"]] for row in rows]).T
    weight = 1 / error**2
    assert len(rows) == 3
    assert (weight * ratio).sum() / weight.sum() == pytest.approx(1.0, abs=0.02 + 2 * weight.sum() ** -0.5)
    # Of one event alone the PSF is known to a few percent here.
    assert np.all(np.abs(ratio - 1) < 3 * np.hypot(error, 0.03))
    events = list_events(finished.path)
    near = [int(np.argmin(np.hypot(events["x"] - r["x"], events["y"] - r["y"]))) for r in rows]
    np.testing.assert_allclose(events["peak_flux"][near], [row["peak_flux"] for row in rows])


def peak(time, snr=10.0, **other):
    return {"x": 20.0, "y": 30.0, "time": time, "sigma_days": 0.1, "snr": snr, **other}


def test_two_outbursts_of_one_place_are_two_events():
    found = one_per_source([peak(5.0, 12.0), peak(8.0), peak(6.0, 7.0, x=50.0)])
    assert [(e["time"], e["n_peaks"], e["kind"]) for e in found] == [
        (5.0, 2, "event"), (8.0, 2, "event"), (6.0, 1, "event"),
    ]  # fmt: skip
    assert [e["time"] for e in one_per_source([peak(5.0, 12.0), peak(5.5)])] == [5.0], "a wing"


def test_what_peaks_often_or_both_ways_is_a_variable():
    for rows in ([peak(5.0, 12.0), peak(8.0), peak(9.0, 9.0)], [peak(5.0, 12.0), peak(8.0, -10.0)]):
        (only,) = one_per_source(rows)
        assert (only["kind"], only["n_peaks"]) == ("variable", len(rows))


def test_photometry_alone_keeps_the_peaks_of_the_events(finished, tmp_path):
    """Of all of them, though one tile is measured."""
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    before = list_events(path)
    run_stage(path, "photometry", 0)
    after = list_events(path)
    assert np.isfinite(before["peak_flux"]).any()
    for name in before.colnames:
        np.testing.assert_array_equal(after[name], before[name])
