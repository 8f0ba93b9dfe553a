import json
import shutil

import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.cli._common import METHOD, load_settings
from survey.stages.methods import METHODS


def call(*args, status=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result.output


COMMANDS = sorted(main.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    text = " ".join(call(command, "--help").split())
    assert f"survey {command}" in text.split("Example", 1)[1]


def test_every_method_can_be_asked_for_and_no_other():
    assert list(METHOD.choices) == list(METHODS)
    assert "'foo' is not one of" in call("report", "field", "--method", "foo", status=2)


def test_events_in_every_text_format(finished, tmp_path):
    assert "E00001" in call("events", finished.path)
    first = call("events", finished.path, "--format", "csv").splitlines()
    assert first[0].startswith("object_id,kind,ra,dec")
    assert len(first) == finished.summary.events + 1
    assert "%ECSV" in call("events", finished.path, "--format", "ecsv")
    assert "<VOTABLE" in call("events", finished.path, "--format", "votable")
    assert "-o" in call("events", finished.path, "--format", "parquet", status=2)
    call("events", finished.path, "--format", "parquet", "-o", tmp_path / "e.parquet")
    assert (tmp_path / "e.parquet").stat().st_size > 0


def test_light_curve_of_an_event_and_of_a_pixel(finished):
    by_event = call("lightcurve", finished.path, "--event", "E00001", "--format", "csv").splitlines()
    assert by_event[0].split(",")[:4] == ["time", "flux", "error", "flags"]
    assert len(by_event) == 73
    by_pixel = call("lightcurve", finished.path, "--x", 50, "--y", 40, "--format", "csv").splitlines()
    assert len(by_pixel) == 73


def test_errors_are_one_line_and_name_the_way_out(tmp_path, finished):
    assert "survey ingest" in call("events", tmp_path / "nothing", status=1)
    assert "-o FIELD" in call("run", tmp_path / "a.fits", status=2)
    assert "no such file" in call("run", tmp_path / "none.toml", status=1)
    assert "outside the field" in call("lightcurve", finished.path, "--x", 5000, "--y", 1, status=1)
    assert "no tile 99" in call("oversampled", finished.path, "--tile", 99, status=1)
    out = call("run", tmp_path / "*.fits", "-o", tmp_path / "f", status=1)
    assert "no frame matches" in out
    assert "Traceback" not in out


def settings_of(folder, method):
    """A settings file that names a method."""
    file = folder / f"{method}.toml"
    file.write_text(f'method = "{method}"\n')
    return file


def test_plan_says_what_would_run(finished, tmp_path):
    text = call("plan", finished.frames, "-o", tmp_path / "new")
    assert "72 of 96 x 96" in text
    assert not (tmp_path / "new").exists()
    there = json.loads(call("plan", finished.path, "--json"))
    assert there["units"]["oversampled"] == [0, 4]
    by_method = json.loads(call("plan", settings_of(tmp_path, "cpm"), "-o", finished.path, "--json"))
    assert by_method["memory"] > there["memory"] > 0, "cpm takes all around a tile, too"


def test_status_names_runs_and_events(finished):
    text = call("status", finished.path)
    assert "72 of 96 x 96" in text
    assert "done" in text
    assert json.loads(call("status", finished.path, "--json"))["events"] == finished.summary.events


def test_one_tile_alone(finished, tmp_path):
    field = tmp_path / "field"
    shutil.copytree(finished.path, field)
    text = call("detect", field, "--tile", 1)
    assert "tile-00001: read" in text


def test_a_run_by_settings_file_reports_and_exits_by_what_was_done(finished, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text(f'[input]\nframes = ["{finished.frames}"]\n[grid]\ntile = 48\n[psf]\nsize = 11\n')
    field = tmp_path / "field"
    shutil.copytree(finished.path, field)
    text = call("run", settings, "-o", field, "--workers", 1, "--no-report")
    assert "0 units computed" in text
    settings.write_text("[refrence]\nclip = 3\n")
    assert "did you mean 'reference'" in call("run", settings, "-o", field, status=1)


def test_dask_survey_is_the_same_command():
    from importlib.metadata import entry_points

    (entry,) = (e for e in entry_points(group="dask_cli") if e.name == "survey")
    command = entry.load()
    assert command.name == "survey"
    assert {"submit", "status", "verify"} <= set(command.commands)


@pytest.mark.parametrize("from_file", [False, True])
def test_the_command_line_changes_the_cluster_whatever_gave_the_settings(tmp_path, from_file):
    file = tmp_path / "settings.toml"
    file.write_text("[cluster]\nworkers = 3\n")
    config = load_settings(file if from_file else None, tmp_path / "field", workers=2, scheduler=None)
    assert (config.cluster.workers, config.cluster.scheduler) == (2, None)


def test_watching_a_directory_in_which_nothing_comes_ends_when_told(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("survey.run.watch.watch", lambda *args, **options: asked.update(options, args=args))
    result = CliRunner().invoke(main, ["watch", str(tmp_path), "-o", str(tmp_path / "field"), "--idle", "1"])
    assert result.exit_code == 0, result.output
    assert (asked["idle"], asked["interval"], asked["args"][0]) == (1.0, 10.0, [str(tmp_path)])
