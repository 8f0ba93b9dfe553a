"""Processes die under a run: the field comes out as if nothing had happened, nothing is redone."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from survey.run.clusters import ClusterError
from survey.run.executor import DaskExecutor
from tests.faults import tiny
from tests.faults.harness import ROOT, Processes, kill, wait_for


@pytest.fixture
def cluster(tmp_path):
    with Processes(tmp_path / "cluster") as processes:
        yield processes


class Run(threading.Thread):
    """A run of the tiny stage in a thread of its own, so that the test can do its mischief meanwhile."""

    def __init__(self, path, client, **settings):
        super().__init__(daemon=True)
        self.path, self.client, self.settings = path, client, settings
        self.engine = self.error = None
        self.start()

    def run(self):
        try:
            self.engine = tiny.run_tiny(self.path, DaskExecutor(self.client), **self.settings)
        except Exception as error:
            self.error = error

    def check(self):
        """Show an error that ended the run before the test meant it to."""
        if self.error is not None:
            raise self.error
        return True

    def end(self, seconds=60):
        self.join(seconds)
        assert not self.is_alive(), "the run does not end"
        return self.engine


def begun(path, n):
    return lambda: len(tiny.executions(path)) >= n


def test_workers_and_scheduler_die_and_the_field_is_undisturbed(cluster, tmp_path):
    """One worker dies; all die and come back; the scheduler dies and the run is resumed."""
    field = tiny.make_field(tmp_path / "field", tiles=6)
    cluster.start_scheduler()
    first, second = cluster.start_worker(), cluster.start_worker()
    # The last ones are at work still when the scheduler dies, however late a busy machine notes the others.
    last = {f"tile_{i}": {"sleep": 4} for i in range(30, 36)}
    with cluster.client(workers=2) as client:
        run = Run(field.path, client, sleep=0.5, **last)
        wait_for(begun(field.path, 6), what="six tiles begun")
        kill(first)
        wait_for(begun(field.path, 12), what="twelve tiles begun")
        kill(second)
        assert run.is_alive()
        cluster.start_worker()
        cluster.start_worker()
        wait_for(begun(field.path, 20), what="twenty tiles begun")
        wait_for(lambda: run.check() and len(tiny.recorded(field.path)) > 10, what="a batch of records")
        kill(cluster.scheduler)
        assert run.end() is None
        assert isinstance(run.error, ClusterError)
        assert "run again to resume" in str(run.error)
    done, before = tiny.recorded(field.path), tiny.executions(field.path)
    assert 10 < len(done) < 36
    for worker in cluster.workers[2:]:
        worker.wait(60)
    cluster.start_scheduler()
    cluster.start_worker()
    with cluster.client(workers=1) as client:
        engine = Run(field.path, client).end()
    assert not engine.failures
    assert engine.skipped == len(done)
    assert all(tiny.executions(field.path)[unit] == before[unit] for unit in done)
    tiny.assert_undisturbed(field.path)


@pytest.mark.slow
def test_the_process_that_runs_dies_and_the_next_one_resumes(cluster, tmp_path):
    field = tiny.make_field(tmp_path / "field", tiles=6)
    cluster.start_scheduler()
    cluster.start_worker()
    code = (
        "import distributed; from tests.faults import tiny; from survey.run.executor import DaskExecutor\n"
        f"client = distributed.Client({cluster.address!r})\n"
        f"tiny.run_tiny({str(field.path)!r}, DaskExecutor(client), sleep=0.1)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: len(tiny.recorded(field.path)) > 5, 120, "six tiles recorded")
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done, before = tiny.recorded(field.path), tiny.executions(field.path)
    with cluster.client(workers=1) as client:
        engine = Run(field.path, client).end()
    assert not engine.failures
    assert engine.skipped == len(done)
    after = tiny.executions(field.path)
    assert all(after[unit] == before[unit] for unit in done)
    tiny.assert_undisturbed(field.path)


BALLAST = """
import builtins, psutil
builtins.ballast = bytearray(b"x") * (int(0.87 * {limit}) - psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
def test_workers_that_are_paused_for_good_end_the_run(cluster, tmp_path, monkeypatch):
    """Nobody waits for ever for one whose memory is taken by what no task will give back."""
    monkeypatch.setattr("survey.run.executor.STUCK_SECONDS", 6.0)
    field = tiny.make_field(tmp_path / "field", tiles=2)
    cluster.start_scheduler()
    cluster.start_worker("--memory-limit", "500MB", nanny=True)
    with cluster.client(workers=1) as client:
        client.submit(exec, BALLAST.format(limit=500e6)).result()

        def paused():
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            return [worker["status"] for worker in workers] == ["paused"]

        wait_for(paused, what="a paused worker")
        run = Run(field.path, client)
        assert run.end() is None
        assert isinstance(run.error, ClusterError)
        assert re.search(r"paused for .* limit \(477 MiB\) .* run again to resume", str(run.error))
    assert not tiny.recorded(field.path)
    cluster.start_worker()
    with cluster.client(workers=1) as client:  # the paused one does not count
        assert Run(field.path, client).end().failures == []


@pytest.mark.slow
def test_a_worker_beyond_its_memory_is_restarted_and_the_tile_cut(cluster, tmp_path):
    """The tile takes 800 MB whole, 200 MB in four; the worker may hold 700 MB."""
    field = tiny.make_field(tmp_path / "field", tiles=3)
    cluster.start_scheduler()
    cluster.start_worker("--memory-limit", "700MB", nanny=True)
    with cluster.client(workers=1) as client:
        engine = Run(field.path, client, tile_4={"eat": 800}).end(240)
    assert not engine.failures
    tiny.assert_undisturbed(field.path)
    parts = tiny.executions(field.path)["tile-00004"]
    assert parts >= 4 + 4, "four deaths, then four row blocks"


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_in_any_size_is_reported_and_the_run_goes_on(cluster, tmp_path):
    field = tiny.make_field(tmp_path / "field", tiles=3)
    cluster.start_scheduler("--preload", "tests.faults.impatient")
    cluster.start_worker("--memory-limit", "700MB", nanny=True)
    with cluster.client(workers=1) as client:
        engine = Run(field.path, client, tile_4={"die": True}).end(240)
    assert [(f.unit, f.reason) for f in engine.failures] == [
        ("tile-00004", "its worker died every time (killed, or over its memory limit)")
    ]
    assert len(tiny.recorded(field.path)) == 8, "those that stood beside it are done"


@pytest.mark.slow
def test_a_season_is_spread_over_schedulers_that_know_nothing_of_each_other(tmp_path):
    """Two fields at once, each on a scheduler of its own; one of the schedulers dies."""
    paths = [tiny.make_field(tmp_path / f"field-{i}", tiles=6).path for i in range(2)]
    with Processes(tmp_path / "one") as one, Processes(tmp_path / "two") as two:
        for cluster in (one, two):
            cluster.start_scheduler()
            cluster.start_worker()
        with one.client(workers=1) as first, two.client(workers=1) as second:
            runs = [Run(path, client, sleep=0.2) for path, client in zip(paths, (first, second), strict=True)]
            for path in paths:
                wait_for(begun(path, 6), what="six tiles of each")
            kill(one.scheduler)
            assert runs[0].end() is None
            assert not runs[1].end().failures
        tiny.assert_undisturbed(paths[1])
        with two.client(workers=1) as client:
            assert not Run(paths[0], client).end().failures
    tiny.assert_undisturbed(paths[0])
