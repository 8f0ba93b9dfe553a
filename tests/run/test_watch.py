"""Frames are worked on as they arrive."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from survey.io.ledger import FieldBusyError
from survey.io.store import Field
from survey.run.clusters import ClusterError
from survey.run.engine import Failure
from survey.run.progress import Silent
from survey.run.record import RunSummary
from survey.run.watch import Arrivals, Batch, watch
from tests.run.conftest import small_config
from tests.small_field import OTHERS, method_config


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


def test_a_file_that_was_refused_is_looked_at_again_once_it_has_changed(tmp_path):
    """Its copying had only paused; one that the field holds is never taken again."""
    files = [tmp_path / name for name in ("good.fits", "half.fits")]
    for file in files:
        file.write_bytes(b"1")
    arrivals = Arrivals([tmp_path], settle=0)
    assert arrivals.look() == []
    ready = arrivals.look()
    assert ready == [str(file) for file in files]
    arrivals.settle_for(Batch(ready, RunSummary("r", "", "", "done", rejected=[(str(files[1]), "short")])))
    assert arrivals.look() == []
    for file in files:
        file.write_bytes(b"12")
    assert arrivals.look() == []
    assert arrivals.look() == [str(files[1])]


def test_what_fails_is_told_and_tried_again(tmp_path, monkeypatch):
    """Somebody else runs on the field; in the end an error that stays is raised."""
    (tmp_path / "a.fits").write_bytes(b"1")
    outcomes = [FieldBusyError("busy"), OSError("lost"), RunSummary("r", "", "", "done")]
    told = []

    class Listener(Silent):
        def message(self, text):
            told.append(text)

    def work(path, config, files, client, progress):
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return Batch(files, outcome)

    monkeypatch.setattr("survey.run.watch._work", work)
    options = {"interval": 0.01, "settle": 0, "first": 1, "client": "synchronous", "progress": Listener()}
    batches = watch([tmp_path], tmp_path / "field", small_config(), idle=0.2, **options)
    assert [batch.frames for batch in batches] == [[str(tmp_path / "a.fits")]]
    assert [text.partition(";")[0] for text in told] == ["FieldBusyError: busy", "OSError: lost"]
    outcomes[:] = [OSError("lost")]
    with pytest.raises(OSError, match="lost"):
        watch([tmp_path], tmp_path / "field", small_config(), idle=0.2, **options)


def test_a_closed_client_ends_it(tmp_path, monkeypatch):
    """Its cluster was lost for good; one that connects again is waited for."""
    (tmp_path / "a.fits").write_bytes(b"1")
    client, tried = SimpleNamespace(status="connecting"), []

    def work(*_):
        tried.append(client.status)
        if len(tried) == 2:
            client.status = "closed"
        raise ClusterError("the cluster was lost")

    monkeypatch.setattr("survey.run.watch._work", work)
    options = {"interval": 0.01, "settle": 0, "first": 1, "idle": 1.0, "client": client}
    with pytest.raises(ClusterError):
        watch([tmp_path], tmp_path / "field", small_config(), **options)
    assert tried == ["connecting", "connecting"]


def test_frames_that_could_not_be_placed_are_tried_again(tmp_path, monkeypatch):
    """The field has none of them, and the run says so by its failures alone."""
    (tmp_path / "a.fits").write_bytes(b"1")
    lost = RunSummary("r", "", "", "failed", failures=[Failure("ingest", "b", "OSError: no space")])
    outcomes, told = [lost, RunSummary("r", "", "", "done", inputs=1)], []

    class Listener(Silent):
        def message(self, text):
            told.append(text)

    monkeypatch.setattr("survey.run.watch.run", lambda *_, **__: outcomes.pop(0))
    options = {"interval": 0.01, "settle": 0, "first": 1, "idle": 0.2, "client": "synchronous"}
    (batch,) = watch([tmp_path], tmp_path / "field", small_config(), progress=Listener(), **options)
    assert batch.summary.inputs == 1
    assert [text.partition(";")[0] for text in told] == [
        "IngestError: 1 blocks could not be placed: OSError: no space"
    ]


def test_a_directory_that_is_not_there_yet_has_no_files(tmp_path):
    assert Arrivals([tmp_path / "night"], settle=0).look() == []


@pytest.mark.parametrize(
    "method", ["oversampled", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_frames_are_worked_on_as_they_come(frames, tmp_path, method):
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

    config = method_config(method)
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
    assert 0.3 < batches[1].slowest < 120
    record = tmp_path / "field" / "runs" / batches[1].summary.run_id / "latency.json"
    assert json.loads(record.read_text()) == pytest.approx(batches[1].latency)
    # Only the new frames were fitted.
    assert "refine (partial)" not in batches[1].summary.stages
    version = np.asarray(Field.open(tmp_path / "field").array(f"difference/{method}", "version")[...])
    assert version.tolist() == [0] * 60 + [1] * 3
