"""What goes wrong in units and how the engine takes it; no cluster, no waiting."""

import errno
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest

from survey.config import Config
from survey.io.ledger import FieldBusyError, LostLeaseError
from survey.io.store import Field
from survey.run.clusters import ClusterError
from survey.run.engine import Engine, StoppedError
from survey.run.executor import DaskExecutor, InlineExecutor
from survey.run.progress import Silent
from survey.run.tickets import Pace, Ticket, Tickets
from survey.run.turns import LostTurnError, Turn
from survey.run.upkeep import unlock
from survey.run.worker import execute
from survey.stages.protocol import Unit
from tests.faults import tiny
from tests.faults.harness import ROOT, wait_for


@pytest.fixture
def field(tmp_path):
    return tiny.make_field(tmp_path / "field")


def test_a_task_that_outlives_its_run_writes_nothing(field):
    """Its run gave the lease up, as when it was cancelled; then another run holds it."""
    unit, key = tiny.keyed(field)[0]
    call = (str(field.path), "tiny", "apply", unit, Config(), None, key, 1, (tiny.GROUP, "first"))
    region = (slice(None), *unit.tile.core)
    untouched = np.asarray(field.array(tiny.GROUP, "flux")[region]).tobytes()
    with pytest.raises(LostLeaseError, match="run first no longer holds"):
        execute(*call)
    with field.lease(tiny.GROUP, "second"), pytest.raises(LostLeaseError):
        execute(*call)
    assert np.asarray(field.array(tiny.GROUP, "flux")[region]).tobytes() == untouched
    with field.lease(tiny.GROUP, "first"):
        execute(*call)
    assert np.asarray(field.array(tiny.GROUP, "flux")[region]).tobytes() == tiny.samples(unit.tile).tobytes()


def test_a_run_whose_lease_is_taken_stops_and_says_so(field):
    class Thief(Silent):
        def advance(self, stage, report, failed=False):
            unlock(field.path, force=True)

    with pytest.raises(StoppedError, match="no longer holds difference/tiny"):
        tiny.run_tiny(field.path, InlineExecutor(), Thief())
    assert len(tiny.recorded(field.path)) == 1
    tiny.run_tiny(field.path, InlineExecutor())
    tiny.assert_undisturbed(field.path)


def test_a_run_that_loses_any_lease_of_its_own_stops_and_says_so(field):
    with field.lease("images", "tiny") as images, field.lease(tiny.GROUP, "tiny"):
        with field.lease("images", "tiny"):
            pass  # a step of the run asks for what the run holds: that gives nothing up
        engine = Engine(field, Config(), InlineExecutor(), holder=(tiny.GROUP, "tiny"), leases=[images])
        engine.submit("tiny", tiny.keyed(field)[:2])
        engine.collect()
        images.path.unlink()
        engine.submit("tiny", tiny.keyed(field)[2:])
        with pytest.raises(StoppedError, match="run tiny no longer holds images"):
            engine.collect()


def test_an_execution_that_was_given_to_another_worker_meanwhile_writes_nothing(field):
    """The host is cut off after the first of four row blocks; the whole is done elsewhere, and it goes on."""
    unit, key = tiny.keyed(field)[0]
    call = (str(field.path), "tiny", "apply", unit, Config(), None, key)
    region, pieces = (slice(None), *unit.tile.core), []

    def cut_off(target, group, arrays, where):
        pieces.append(where)
        sums = write(target, group, arrays, where)
        if len(pieces) == 1:
            execute(*call)
            target.array(tiny.GROUP, "flux")[region] = 7  # what was written over it since
        return sums

    write = Field.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Field, "write", cut_off)
        with pytest.raises(LostTurnError, match="given to another worker"):
            execute(*call, 4)
    assert len(pieces) == 2
    assert (np.asarray(field.array(tiny.GROUP, "flux")[region]) == 7).all()
    tiny.run_tiny(field.path, InlineExecutor())
    tiny.assert_undisturbed(field.path)
    assert not list((field.path / "turns").glob("*"))


def test_a_run_that_lost_its_lease_takes_nobodys_turn(field):
    unit, key = tiny.keyed(field)[0]
    with field.lease(tiny.GROUP, "second"):
        living = Turn(field, "oversampled.tiny", unit.name)
        with pytest.raises(LostLeaseError):
            execute(str(field.path), "tiny", "apply", unit, Config(), None, key, 1, (tiny.GROUP, "first"))
        living.check()


@pytest.mark.parametrize(("times", "failed"), [(1, []), (99, ["tile-00003"])])
def test_a_unit_that_a_cut_off_worker_began_meanwhile_is_begun_again(field, monkeypatch, times, failed):
    taken = []

    class Overtaken(Turn):
        def __init__(self, target, stage, unit):
            super().__init__(target, stage, unit)
            if unit == "tile-00003" and len(taken) < times:
                taken.append(Turn(target, stage, unit))

    monkeypatch.setattr("survey.run.worker.Turn", Overtaken)
    engine = tiny.run_tiny(field.path, InlineExecutor())
    assert [f.unit for f in engine.failures] == failed
    assert tiny.executions(field.path)["tile-00003"] == min(times, 3) + 1
    monkeypatch.undo()
    tiny.run_tiny(field.path, InlineExecutor())
    tiny.assert_undisturbed(field.path)


def test_undisturbed_run_is_what_the_tests_compare_with(field):
    engine = tiny.run_tiny(field.path, InlineExecutor())
    assert len(engine.reports) == 16
    tiny.assert_undisturbed(field.path)
    again = tiny.run_tiny(field.path, InlineExecutor())
    assert (len(again.reports), again.skipped) == (0, 16)


def test_a_failed_tile_is_named_with_its_reason_and_the_rest_goes_on(field):
    engine = tiny.run_tiny(field.path, InlineExecutor(), tile_3={"fail": "no such luck"})
    assert [(f.unit, f.reason) for f in engine.failures] == [
        ("tile-00003", "ValueError: no such luck (read tile-00003)")
    ]
    assert len(tiny.recorded(field.path)) == 15
    assert len(tiny.run_tiny(field.path, InlineExecutor()).reports) == 1
    tiny.assert_undisturbed(field.path)


def test_what_needs_a_failed_tile_says_so_and_is_not_begun(field):
    engine = Engine(field, Config(), InlineExecutor())
    pairs = tiny.keyed(field, tile_0={"fail": "broken"})
    first = engine.submit("tiny", pairs[:2], step="partial", ledger=False, label="first")
    engine.submit("tiny", pairs[2:4], label="second", after=lambda unit: [first["tile-00000"]])
    engine.submit("tiny", pairs[4:5], label="third", after=lambda unit: [first["tile-00001"]])
    done = engine.collect()
    reasons = {f.unit: f.reason for f in engine.failures}
    assert reasons["tile-00002"] == reasons["tile-00003"] == "needs first of tile-00000, which failed"
    assert list(done["third"]) == ["tile-00004"]
    assert "tile-00002" not in tiny.executions(field.path)


def test_a_tile_beyond_memory_is_done_in_row_blocks_with_the_same_bits(field):
    engine = tiny.run_tiny(field.path, InlineExecutor(), tile_5={"eat": 16, "limit": 5})
    assert not engine.failures
    assert tiny.executions(field.path)["tile-00005"] == 1 + 4
    assert engine.ledger("tiny").records["tile-00005"].payload["rows"] == 32
    tiny.assert_undisturbed(field.path)


def test_a_tile_beyond_memory_in_any_size_is_reported(field):
    engine = tiny.run_tiny(field.path, InlineExecutor(), tile_5={"eat": 16, "limit": 0})
    assert [f.unit for f in engine.failures] == ["tile-00005"]
    assert "MemoryError" in engine.failures[0].reason
    assert len(tiny.recorded(field.path)) == 15


def test_two_runs_want_the_same_group(field):
    with field.lease(tiny.GROUP, "first"), pytest.raises(FieldBusyError, match="first"):
        tiny.run_tiny(field.path, InlineExecutor())
    assert not tiny.executions(field.path)


@pytest.mark.slow
def test_two_processes_want_the_same_group(field):
    """The second is told who writes; the first ends as if nobody had asked."""
    code = (
        "from tests.faults import tiny; from survey.run.executor import InlineExecutor\n"
        f"tiny.run_tiny({str(field.path)!r}, InlineExecutor(), sleep=0.3)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: len(tiny.executions(field.path)) > 2, 60, "three tiles begun")
    for _ in range(2):
        with pytest.raises(FieldBusyError, match=rf"run tiny \(process {first.pid} on .* is writing"):
            tiny.run_tiny(field.path, InlineExecutor())
    assert first.wait(60) == 0
    assert set(tiny.executions(field.path).values()) == {1}
    tiny.assert_undisturbed(field.path)


def test_a_full_disk_stops_the_run_and_it_resumes(tmp_path, small_disk):
    field = tiny.make_field(small_disk / "field", tiles=8, edge=64)
    engine = Engine(field, Config(), InlineExecutor())
    engine.submit("tiny", tiny.keyed(field)[:8])
    engine.collect()
    with pytest.raises(StoppedError, match=r"disk is full; mend that at .* run again to resume"):
        tiny.run_tiny(field.path, InlineExecutor())
    done = tiny.recorded(field.path)
    assert 8 <= len(done) < 64
    (small_disk / "ballast").unlink()
    before = tiny.executions(field.path)
    engine = tiny.run_tiny(field.path, InlineExecutor())
    assert not engine.failures
    assert all(tiny.executions(field.path)[unit] == before[unit] for unit in done)
    tiny.assert_undisturbed(field.path)


def test_a_ledger_that_cannot_be_written_stops_the_run_with_its_reason(field, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("survey.io.ledger.write_atomic", full)
    with pytest.raises(StoppedError, match=r"disk is full; mend that at .* run again to resume"):
        tiny.run_tiny(field.path, InlineExecutor())
    monkeypatch.undo()
    assert not tiny.recorded(field.path)
    tiny.run_tiny(field.path, InlineExecutor())
    tiny.assert_undisturbed(field.path)


def test_tickets_start_in_order_and_only_when_what_they_need_is_done():
    def make(name):
        return Ticket("s", "apply", Unit(name), "k", "s")

    tickets = Tickets()
    a, b, c = make("a"), make("b"), make("c")
    for ticket, after in ((a, []), (b, [a]), (c, [])):
        assert tickets.add(ticket, after) is None
    assert [tickets.take(), tickets.take(), tickets.take()] == [a, c, None]
    tickets.done(a)
    assert tickets.take() is b
    tickets.again(b)
    assert tickets.take() is b
    assert list(tickets.fail(b)) == []
    assert tickets.add(make("d"), [b]) is b
    tickets.done(c)
    assert tickets.open == 0


def test_short_units_go_in_batches_and_an_error_stays_its_own(field):
    engine = Engine(field, Config(), Counting())
    items = [
        (Unit(f"u{i:04d}", None, (("quiet", True), *((("fail", "odd"),) if i == 300 else ()))), str(i))
        for i in range(400)
    ]
    engine.submit("tiny", items)
    engine.collect()
    assert [(f.unit, f.reason) for f in engine.failures] == [("u0300", "ValueError: odd (read u0300)")]
    assert len(engine.reports) == 399
    assert engine.executor.calls < 150


class Counting(InlineExecutor):
    calls = 0

    def submit(self, function, *args, name):
        self.calls += 1
        return super().submit(function, *args, name=name)


def test_pace_leaves_work_for_every_worker():
    pace = Pace()
    assert pace.batch("a", 10_000, 2) == 1
    for _ in range(16):
        pace.note("a", 0.001)
        pace.note("slow", 2.0)
    assert pace.batch("a", 10_000, 2) == 64
    assert pace.batch("a", 40, 2) == 5
    assert pace.batch("a", 3, 2) == pace.batch("slow", 10_000, 2) == 1


def worker(status, executing=0):
    counts = {"executing": executing} if executing else {}
    return {"nthreads": 1, "memory_limit": 2**29, "status": status, "metrics": {"task_counts": counts}}


class Client:
    """One that knows of these workers."""

    status = "running"

    def __init__(self, **workers):
        self.workers = workers

    def scheduler_info(self, n_workers):
        return {"workers": self.workers}


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ({}, "no worker has been connected"),
        ({"w": worker("paused")}, r"paused .* limit \(512 MiB\)"),
        ({"w": worker("running")}, None),
    ],
)
def test_a_cluster_that_does_not_work_says_why(monkeypatch, workers, words):
    monkeypatch.setattr("survey.run.executor.LONELY_SECONDS", 0.0 if words else 20.0)
    alert = DaskExecutor(Client(**workers)).alert
    assert (alert is None) if words is None else re.search(words, alert)


@pytest.mark.parametrize(
    ("workers", "ends"),
    [
        ({}, False),  # one is waited for
        ({"a": worker("paused"), "b": worker("running")}, False),
        ({"a": worker("paused"), "b": worker("paused", executing=1)}, False),
        ({"a": worker("paused"), "b": worker("paused")}, True),
    ],
)
def test_only_a_cluster_that_can_never_go_on_ends_a_run(monkeypatch, workers, ends):
    monkeypatch.setattr("survey.run.executor.STUCK_SECONDS", 0.02)
    monkeypatch.setattr("survey.run.executor.LOOK_SECONDS", 0.0)
    executor = DaskExecutor(Client(**workers))
    time.sleep(0.04)
    with pytest.raises(ClusterError, match="run again to resume") if ends else nullcontext():
        executor.ended(0.01)


def test_workers_that_the_packages_alone_may_pause_are_told_of(field):
    engine = Engine(field, Config(), InlineExecutor())
    for limit, told in ((None, 0), (2**30, 0), (2**29, 1), (2**29, 1)):
        engine.executor.worker_memory = limit
        engine._tell()
        assert len(engine.warnings) == told
    assert "workers of 512 MiB" in engine.warnings[0]
