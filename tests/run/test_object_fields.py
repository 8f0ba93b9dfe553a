"""Everything that is done to a field, on one in a bucket whose first run was killed."""

import json
import os
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.io.ledger import Ledger
from survey.io.locations import entries, locate
from survey.io.store import Field, open_field
from survey.run.api import run
from survey.run.executor import InlineExecutor
from survey.run.submit import submit
from survey.run.verify import verify
from survey.run.worker import execute_batch
from survey.stages.oversampled import Later
from tests.faults.harness import wait_for
from tests.objects.bucket_server import KEY_ID, SECRET
from tests.run.conftest import FIRST, assert_same_bits, night_config, small_config

# A process that kills itself, as nobody else could in time, when tiles have been recorded.
DOOMED = """
import os, signal
from survey.io.ledger import Ledger
from survey.run.api import run
from tests.run.conftest import small_config

flush = Ledger.flush

def flush_and_die(self):
    flush(self)
    if self.directory.name == "oversampled.oversampled" and self.records:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.flush = flush_and_die
run({url!r}, small_config(), frames=[{frames!r}], client="synchronous")
"""


def kill_halfway(url: str, frames) -> set[str]:
    """Start a run in a process that is killed when tiles are recorded; returns the recorded ones."""
    code = DOOMED.format(url=url, frames=str(frames))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=250, check=False)
    assert done.returncode == -signal.SIGKILL
    return set(Ledger(locate(url) / "ledger" / "oversampled.oversampled").records)


@pytest.fixture(scope="module")
def there(bucket, finished):
    """The finished field in a bucket, by a killed run and one that resumed it; what tasks carried."""
    url, cargo = f"{bucket.url}/finished", []
    recorded = kill_halfway(url, finished.frames)
    submit = InlineExecutor.submit

    def look(self, function, *args, name):
        cargo.append(cloudpickle.dumps((function, args)))
        return submit(self, function, *args, name=name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InlineExecutor, "submit", look)
        summary = run(url, small_config(), frames=[finished.frames], client="synchronous")
    assert summary.ok, summary.failures
    assert summary.skipped >= len(recorded) > 0
    return url, cargo


def call(*arguments: str, status: int = 0) -> str:
    """Output of a command."""
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def test_a_killed_run_is_resumed_in_a_bucket_to_the_same_bits(there, finished):
    assert_same_bits(finished.path, there[0])
    again = run(there[0], client="synchronous")
    assert again.ok
    assert again.computed == 0


def test_commands_take_a_url(there, finished):
    url = there[0]
    status = json.loads(call("status", url, "--json"))
    assert status["runs"][-1]["state"] == "done"
    assert call("events", url, "--format", "csv") == call("events", str(finished.path), "--format", "csv")
    where = ("--x", "40", "--y", "50", "--format", "csv")
    assert call("lightcurve", url, *where) == call("lightcurve", str(finished.path), *where)
    assert call("unlock", url) == ""
    assert "units checked, 0 problems" in call("verify", url)
    assert "could go" in call("prune", url)
    assert "tiles" in call("plan", url)


def test_the_cube_opens_as_a_tree(there, finished):
    tree = open_field(there[0])
    assert tree["images/sky"]["flux"].shape == (72, 96, 96)
    known = open_field(finished.path)["frames"]["frame_id"].values
    assert np.array_equal(tree["frames"]["frame_id"].values, known)


def test_damage_is_found_and_mended(there):
    url = there[0]
    shard = locate(url) / "cube.zarr" / "difference" / "oversampled" / "flux" / "c" / "0" / "0" / "0"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-100] + bytes(100))
    try:
        assert "difference/oversampled/flux" in call("verify", url, status=1)
    finally:
        shard.write_bytes(sound)
    copy = locate(url) / "cube.zarr" / "frames" / "time" / "c" / "0"
    copy.unlink()
    assert "copy of table frames" in call("verify", url, status=1)
    call("verify", url, "--repair")
    assert copy.exists()
    assert "0 problems" in call("verify", url)


def test_no_credential_is_stored_or_sent(there):
    url, cargo = there
    assert len(cargo) > 20
    stored = [entry.place.read_bytes() for entry in entries(locate(url))]
    assert len(stored) > 100
    for data in (*cargo, *stored):
        assert SECRET.encode() not in data
        assert KEY_ID.encode() not in data


def ended(url):
    """State of the latest run once it has ended."""
    deadline = time.monotonic() + 250
    while (state := json.loads(call("status", url, "--json"))["runs"][-1])["state"] in (
        "starting",
        "running",
    ):
        assert time.monotonic() < deadline, state
        time.sleep(0.3)
    return state


@pytest.mark.slow
def test_a_submitted_run_ends_in_the_bucket(there):
    url = there[0]
    settings = Field.open(url).attrs["config"]
    assert SECRET not in json.dumps(settings)
    run_id = call("submit", url, "--workers", "1", "--no-report").splitlines()[0]
    state = ended(url)
    assert (state["run_id"], state["state"]) == (run_id, "done"), state
    said = call("logs", url, run_id)
    assert "units computed" in said
    assert SECRET not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_run_is_cancelled_in_the_bucket_and_the_next_one_ends_it(bucket, finished):
    url, config = f"{bucket.url}/submitted", small_config()
    config.cluster.workers = 1
    submit(url, config, [finished.frames], report=False)
    tiles = locate(url) / "ledger" / "oversampled.oversampled"
    wait_for(lambda: Ledger(tiles).records, 200, "first tiles")
    call("cancel", url)
    assert ended(url)["state"] == "cancelled"
    call("submit", url, "--workers", "1", "--no-report")
    assert ended(url)["state"] == "done"
    assert_same_bits(finished.path, url)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_night_more_in_a_bucket_and_a_rebuild(bucket, nights, frames, monkeypatch):
    """As on a file system to the last bit, although every worker dies once after it wrote the night."""
    base, _, _ = nights
    url, files = f"{bucket.url}/nights", sorted(frames[0].glob("*.fits*"))
    config = night_config(frames[0])

    def twice(where, stage, step, sent, calls, holder=None):
        if any(isinstance(item, Later) for unit, *_ in calls for item in unit.items):
            execute_batch(where, stage, step, sent, calls, holder)
        return execute_batch(where, stage, step, sent, calls, holder)

    assert run(url, config, frames=files[:FIRST], client="synchronous").ok
    assert_same_bits(base / "early", url)
    monkeypatch.setattr("survey.run.engine.execute_batch", twice)
    assert run(url, config, frames=files[FIRST:], client="synchronous").ok
    monkeypatch.undo()
    assert_same_bits(base / "later", url)
    assert not (locate(url) / "adding").exists()
    assert verify(url).problems == []
    assert run(url, config, client="synchronous", rebuild=True).ok
    assert_same_bits(base / "whole", url)
