"""The comparison of what was found with a truth."""

import json

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Table

from survey.report import compare_field, compare_with_truth, field_truth
from tests.report_fields import EVENT, empty_field, frames_table, full_field, truth_case


def test_comparison_finds_by_place_and_time():
    found = compare_with_truth(*truth_case())
    first, second, third = found["rows"]
    assert (first["found"], first["object_id"], first["duplicates"]) == (True, "a", 1)
    assert first["position_error"] == pytest.approx(0.5)
    assert first["amplitude_ratio"] == pytest.approx(10 / 11.8)
    assert not second["found"]
    assert (third["found"], third["object_id"]) == (True, "d")
    assert [row["object_id"] for row in found["false_alarms"]] == ["c"]
    assert found["summary"]["events_found"] == 1
    assert found["summary"]["false_alarms"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_comparison_counts_completeness_by_true_snr():
    table = compare_with_truth(*truth_case())["completeness"]
    assert [(row["low"], row["true"], row["found"]) for row in table] == [(0.0, 1, 0), (20.0, 1, 1)]


def test_flux_ratio_recovers_a_scaled_light_curve():
    from survey.report.truth import excess

    events, truth = truth_case()
    time = np.linspace(0, 10, 50)
    curve = {"object_id": "a", "time": time, "flux": 0.9 * excess(truth[0], time) - 0.3, "error": np.ones(50)}
    row = compare_with_truth(events, truth, light_curves=[curve])["rows"][0]
    assert row["flux_ratio"] == pytest.approx(0.9)
    assert row["flux_ratio_error"] > 0


def test_a_moving_body_is_found_along_its_way():
    body = {"id": 0, "kind": "moving", "x": 20.0, "y": 30.0, "t0": 5.0, "vx": 4.0, "vy": -3.0, "snr": 0.0}
    places = {"a": (20.4, 30.0, 5.0), "b": (28.0, 24.0, 7.0), "c": (20.0, 30.0, 7.0)}
    events = [
        {"object_id": name, "x": x, "y": y, "time": time, "sigma_days": 0.1, "snr": 9.0, "amplitude": 1.0}
        for name, (x, y, time) in places.items()
    ]
    found = compare_with_truth(events, [body])
    (row,) = found["rows"]
    assert (row["found"], row["object_id"], row["duplicates"]) == (True, "a", 1)
    assert row["position_error"] == pytest.approx(0.4)
    assert [row["object_id"] for row in found["false_alarms"]] == ["c"]


def test_comparison_takes_tables_and_columns():
    events, truth = truth_case()
    columns = {name: np.array([row[name] for row in events]) for name in events[0]}
    assert compare_with_truth(pa.Table.from_pylist(events), truth) == compare_with_truth(columns, truth)


def test_comparison_of_nothing():
    found = compare_with_truth([], [])
    assert found["rows"] == []
    assert found["summary"]["events_found"] == 0


def test_truth_is_placed_by_the_map_of_its_frame(tmp_path):
    field = empty_field(tmp_path / "field")
    frames = frames_table(np.random.default_rng(5), path=str(tmp_path))
    field.write_table("frames", frames)
    Table({"id": [0], "kind": ["sinusoid"], "x": [20.0], "y": [25.0]}).write(tmp_path / "truth.ecsv")
    row = field_truth(field)[0]
    offset = frames["map"].values[0, :, 0] - 31.5
    assert row["x"] == pytest.approx(20.0 - offset[0])
    assert row["y"] == pytest.approx(25.0 - offset[1])


def test_truth_is_placed_by_the_sky_where_its_frame_is_missing(tmp_path):
    field = empty_field(tmp_path / "field")
    frames = frames_table(np.random.default_rng(5)).isel(time=slice(1, None))
    field.write_table("frames", frames)
    Table({"id": [0], "kind": ["sinusoid"], "x": [0.0], "y": [0.0], "ra": [268.0], "dec": [-29.2]}).write(
        tmp_path / "truth.ecsv"
    )
    row = field_truth(field, tmp_path / "truth.ecsv")[0]
    assert (row["x"], row["y"]) == pytest.approx((31.0, 31.0))


def test_field_is_compared_on_its_own_grid(tmp_path):
    field = full_field(tmp_path / "field")
    offset = field.frames()["map"].values[0, :, 0] - 31.5
    row = {"id": 0, "kind": "sinusoid", "x": EVENT["x"] + offset[0], "y": EVENT["y"] + offset[1], "snr": 20.0}
    Table([row]).write(tmp_path / "truth.ecsv")
    found = compare_field(field.path, truth=tmp_path / "truth.ecsv")
    assert found["rows"][0]["object_id"] == "event-0001"
    assert found["summary"]["median_offset_x"] == pytest.approx(0, abs=1e-9)
    assert compare_field(field.path) is None
