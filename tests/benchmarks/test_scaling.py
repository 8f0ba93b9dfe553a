"""What a scheduler costs a tile, how a run scales with workers, and 100,000 tiles in bounded memory.

The figures of deploy/SCALING.md. Units of the tiny stage do nothing, or wait for a known time, so that what
is left is the scheduler's, the driver's and the workers' share.
"""

import time

import distributed
import psutil
import pytest

from survey.config import Config
from survey.io.store import Field
from survey.run.clusters import THREADS
from survey.run.engine import Engine
from survey.run.executor import DaskExecutor
from survey.run.worker import function_key
from survey.stages.protocol import Unit
from tests.faults import tiny

pytestmark = pytest.mark.benchmark


def cluster(workers):
    """Workers without dashboards or limits; scheduler and driver live in this process."""
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
        env=THREADS,
        preload=["tests.faults.tiny"],
        memory_limit=0,
        silence_logs=50,
    )


class Watch:
    """Progress that remembers the most tasks the scheduler ever held and the driver's memory."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.held = self.count = 0

    def start(self, stage, total, done):
        pass

    def advance(self, stage, report, failed=False):
        self.count += 1
        if self.count % 100 == 0:
            self.held = max(self.held, len(self.scheduler.tasks))

    def message(self, text):
        pass


def timed(field, made, client, units):
    """Wall seconds and this process's CPU seconds of the engine; the engine, and who watched it."""
    watch = Watch(made.scheduler)
    engine = Engine(field, Config(), DaskExecutor(client), watch)
    started, cpu = time.perf_counter(), time.process_time()
    engine.submit("tiny", units)
    engine.collect()
    engine.finish()
    assert not engine.failures
    return time.perf_counter() - started, time.process_time() - cpu, engine, watch


def bare(count, seconds=0.0):
    """Units without a tile: they write nothing."""
    items = (("sleep", seconds), ("quiet", True))
    return [(Unit(f"unit-{i:06d}", None, items), function_key(i)) for i in range(count)]


def test_cost_of_a_tile_and_scaling_on_16_to_1_workers(tmp_path):
    """2,000 units of nothing; then units that wait 0.2 s, as workers on cores of their own would work."""
    with cluster(16) as made, distributed.Client(made, set_as_default=False) as client:
        for workers in (16, 8, 4, 2, 1):
            made.scale(workers)
            while len(client.scheduler_info()["workers"]) > workers:
                time.sleep(0.1)
            field = tiny.make_field(tmp_path / f"cost-{workers}")
            seconds, cpu, _, watch = timed(field, made, client, bare(2000))
            print(
                f"\n{workers} workers: {1e3 * seconds / 2000:.2f} ms a unit, {1e3 * cpu / 2000:.2f} ms of "
                f"CPU in driver and scheduler, {watch.held} tasks held"
            )
            for label, count in (("strong", 160), ("weak", 20 * workers)):
                field = tiny.make_field(tmp_path / f"{label}-{workers}")
                seconds, _, _, _ = timed(field, made, client, bare(count, 0.2))
                efficiency = count * 0.2 / workers / seconds
                print(f"{label}: {count} units of 0.2 s in {seconds:.2f} s, efficiency {efficiency:.0%}")


def test_100_000_tiles(tmp_path):
    """The scheduler holds a window of them, and the driver little more than its ledger."""
    field = tiny.make_field(tmp_path / "field")
    count = 100_000
    with cluster(2) as made, distributed.Client(made, set_as_default=False) as client:
        client.wait_for_workers(2)
        before = psutil.Process().memory_info().rss
        seconds, cpu, _, watch = timed(field, made, client, bare(count))
        after = psutil.Process().memory_info().rss
        segments = len(list((field.path / "ledger" / "oversampled.tiny").glob("*.jsonl")))
        assert len(Field.open(field.path).ledger("oversampled.tiny").records) == count
        assert watch.held < 1000
        print(
            f"\n{count} tiles: {seconds:.0f} s, {1e3 * seconds / count:.2f} ms a tile, "
            f"{1e3 * cpu / count:.2f} ms of CPU in driver and scheduler, at most {watch.held} tasks held, "
            f"{(after - before) / 1e6:.0f} MB more in driver and scheduler, {segments} ledger objects"
        )
        seconds, _, engine, _ = timed(Field.open(field.path), made, client, bare(count))
        assert engine.skipped == count
        print(f"again, nothing to do: {seconds:.1f} s")
