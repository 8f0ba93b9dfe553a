"""Frames are worked on as they arrive."""

import json
import shutil
import threading
import time

import pytest

from survey.io.store import Field
from survey.run.watch import Arrivals, watch
from tests.run.conftest import small_config


def test_a_file_counts_when_it_has_stopped_growing(tmp_path):
    arrivals = Arrivals([tmp_path], settle=0.2)
    assert arrivals.look() == []
    file = tmp_path / "a.fits"
    file.write_bytes(b"1")
    assert arrivals.look() == []
    assert arrivals.look() == []
    time.sleep(0.25)
    file.write_bytes(b"12")
    assert arrivals.look() == []
    time.sleep(0.25)
    assert arrivals.look() == [str(file)]
    arrivals.taken.add(str(file))
    assert arrivals.look() == []


def test_a_directory_that_is_not_there_yet_has_no_files(tmp_path):
    assert Arrivals([tmp_path / "night"], settle=0).look() == []


def test_frames_are_worked_on_as_they_come(frames, tmp_path):
    folder, _ = frames
    files = sorted(folder.glob("*.fits*"))
    night = tmp_path / "night"
    night.mkdir()
    for file in files[:60]:
        shutil.copy(file, night)

    def later():
        for file in files[60:63]:
            shutil.copy(file, night)
        (night / "broken.fits").write_bytes(b"SIMPLE  =")

    config = small_config()
    config.registration.reference = files[5].name.split(".")[0]
    timer = []

    def done(batch):
        if not timer:
            timer.append(threading.Timer(0.1, later))
            timer[0].start()

    batches = watch(
        [night], tmp_path / "field", config,
        interval=0.2, settle=0.3, first=60, idle=4.0, client="synchronous", done=done,
    )  # fmt: skip
    assert [len(batch.latency) for batch in batches] == [60, 3]
    assert Field.open(tmp_path / "field").frames().sizes["time"] == 63
    assert [reason for _, reason in batches[1].summary.rejected if "broken.fits" in _]
    assert 0.3 < batches[1].slowest < 60
    record = tmp_path / "field" / "runs" / batches[1].summary.run_id / "latency.json"
    assert json.loads(record.read_text()) == pytest.approx(batches[1].latency)
    # Only the new frames were fitted.
    assert "refine (partial)" not in batches[1].summary.stages
