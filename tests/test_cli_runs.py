"""Commands that compute, as a person types them: without settings, strict, interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import survey.report
from survey.cli import main
from survey.io.store import Field
from survey.run import api, executor
from survey.simulate import simulate_field
from tests.small_field import small_config

# A run of its own process, which waits to be interrupted once the frames are in. What a shell starts in the
# background ignores SIGINT, and so would this.
RUN = """
import signal, sys, time
from survey import progress
from survey.cli import main
from survey.run import api, executor

advance = progress.TerminalProgress.advance

def slowly(self, stage, *args, **options):
    advance(self, stage, *args, **options)
    if stage == "refine 1":
        time.sleep(250)

signal.signal(signal.SIGINT, signal.default_int_handler)
progress.TerminalProgress.advance = slowly
if sys.argv.pop(1) == "inline":
    api.connect = lambda settings, client: executor.connect(settings, "synchronous")
main(sys.argv[1:])
"""


@pytest.fixture(scope="module", autouse=True)
def inline():
    """Commands start no workers: all else is as in a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "connect", lambda settings, client: executor.connect(settings, "synchronous"))
        yield


def call(*args, status=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Frames of a field so small that a run of it takes seconds."""
    folder = tmp_path_factory.mktemp("few") / "frames"
    simulate_field(folder, size=64, frames=30, events=0, variables=0)
    return folder


def check_demo(folder, said):
    """The words, the comparison and the page of a demo tell the same; returns the comparison."""
    assert f"look at {folder / 'field' / 'report.html'}" in said
    comparison = json.loads((folder / "field" / "truth_comparison.json").read_text())
    for kind in {row["kind"] for row in comparison["rows"]}:
        mine = [row for row in comparison["rows"] if row["kind"] == kind]
        found = sum(bool(row["found"]) for row in mine)
        assert f"{kind}: {found} of {len(mine)} found" in said
        # A variable puts a part of itself into its reference: a faint one may stay there.
        assert found > 0 or max(row["snr_true"] for row in mine) < 20
    assert f"false alarms: {len(comparison['false_alarms'])}" in said
    assert "done: " in said
    text = (folder / "field" / "report.html").read_text()
    assert '<section id="truth"' in text
    assert "S/N found against true S/N" in text
    return comparison


def test_a_demo_of_a_finished_field_compares_and_reports(finished, tmp_path, monkeypatch):
    """All of the demo but the making: its frames and its run are there already."""
    asked = {}
    shutil.copytree(finished.frames, tmp_path / "frames")
    shutil.copytree(finished.path, tmp_path / "field")
    monkeypatch.setattr("survey.demo.simulate_field", lambda folder, **options: asked.update(options))
    monkeypatch.setattr("survey.demo.Config", small_config)
    said = call("demo", "-o", tmp_path, "--size", 96, "--frames", 72, "--seed", 4)
    assert (asked["size"], asked["frames"], asked["seed"]) == (96, 72, 4)
    assert (asked["events"], asked["variables"]) == (4, 2), "no more than a small field has room for"
    comparison = check_demo(tmp_path, said)
    assert len(comparison["rows"]) == 4
    assert "0 units computed" in said
    asked.clear()
    said = call("demo", "-o", tmp_path, "--size", 96, "--frames", 72, "--seed", 5, status=1)
    assert "holds a demo of another seed: remove it, or give another directory" in said
    assert not asked, "nothing was written over"


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128])
def test_a_demo_of_a_small_field(tmp_path, size):
    comparison = check_demo(tmp_path, call("demo", "-o", tmp_path, "--size", size, "--frames", 48))
    assert all(r["found"] for r in comparison["rows"] if r["kind"] == "microlensing" and r["snr_true"] > 12)


def test_frames_are_ingested_without_settings_and_bad_ones_told(few, tmp_path):
    (tmp_path / "bad.fits").write_text("no image")
    files = sorted(few.glob("*.fits"))
    field = tmp_path / "field"
    said = call("ingest", *files[:4], tmp_path / "bad.fits", "-o", field)
    assert "left out bad.fits: " in said
    assert "4 frames added" in said
    said = call("ingest", *files[3:6], "-o", field)
    assert "2 frames added" in said
    assert Field.open(field).frames().sizes["time"] == 6


@pytest.mark.parametrize("command", ["ingest", "run"])
def test_strict_stops_at_one_bad_frame_and_writes_nothing(few, tmp_path, command):
    files = sorted(few.glob("*.fits"))[:3]
    (tmp_path / "bad.fits").write_text("no image")
    said = call(command, *files, tmp_path / "bad.fits", "-o", tmp_path / "field", "--strict", status=1)
    assert "1 frames cannot be used (--strict): bad.fits" in said
    assert "Traceback" not in said
    assert not (tmp_path / "field" / "cube.zarr").exists()


def interrupted(where, few, field):
    """What a run of frames says that gets a Ctrl-C when the frames are in the field."""
    command = [sys.executable, "-c", RUN, where, "run", str(few), "-o", str(field), "--workers", "1"]
    # As in a terminal: the signal reaches the whole group, workers too.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 250
    # The last table of an ingest; refinement follows.
    while not Field(field).has_table("frames") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    return said


def test_zarrs_thread_may_end_what_was_interrupted():
    """It is given 0.2 s by Zarr itself, and a traceback is printed then."""
    code = (
        "import atexit, time, zarr; from zarr.core import sync; from survey.cli._group import _await_zarr; "
        "zarr.create_array({}, shape=(4,), dtype='f4')[:] = 1; "
        "sync.loop[0].call_soon_threadsafe(time.sleep, 1); atexit.register(_await_zarr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["inline", pytest.param("cluster", marks=pytest.mark.slow)])
def test_the_same_command_without_settings_finishes_what_ctrl_c_left(few, tmp_path, monkeypatch, where):
    field = tmp_path / "field"
    said = interrupted(where, few, field)
    assert "interrupted; what was done is kept: run the same command again to resume" in said
    assert "Traceback" not in said
    (before,) = Field.open(field).runs()
    assert before["status"] == "interrupted"
    drawn = []
    monkeypatch.setattr(survey.report, "write_report", lambda *args: drawn.append(args) or "the page")
    said = call("run", few, "-o", field)
    after = Field.open(field).runs()[-1]
    assert (after["status"], after["inputs"]) == ("done", 0), "the frames were there already"
    assert Field.open(field).frames().sizes["time"] == 30
    assert after["computed"] > 0
    assert f"done: {after['events']} events, {after['computed']} units computed" in said
    assert "report: the page" in said
    assert drawn == [(Field.open(field).path, "oversampled")]
