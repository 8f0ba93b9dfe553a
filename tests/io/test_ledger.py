import json
import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from survey.io import ledger as module
from survey.io import locations
from survey.io.ledger import FieldBusyError, Lease, Ledger, process_lives, this_process


def test_records_survive_and_later_ones_win(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record("a", "k1", {"n": 1})
    ledger.record("a", "k2", {"n": 2})
    ledger.flush()
    again = Ledger(tmp_path)
    assert again.has("a", "k2")
    assert not again.has("a", "k1")
    assert again.records["a"].payload == {"n": 2}


def test_invalidation_is_on_disk_at_once(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.record("a", "k")
    ledger.flush()
    ledger.invalidate(["a", "unknown"])
    assert not Ledger(tmp_path).records


def test_compaction_changes_no_record(tmp_path):
    ledger = Ledger(tmp_path)
    for i in range(5):
        ledger.record(f"u{i}", f"k{i}")
        ledger.flush()
    ledger.invalidate(["u3"])
    ledger.compact()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert set(Ledger(tmp_path).records) == {"u0", "u1", "u2", "u4"}


def test_compaction_keeps_what_another_wrote_since(tmp_path):
    ledger = Ledger(tmp_path)
    for unit in "ab":
        ledger.record(unit, "old")
        ledger.flush()
    other = Ledger(tmp_path)
    other.record("c", "new")
    other.record("a", "new")
    other.flush()
    other.invalidate(["b"])
    ledger.compact()
    assert {unit: record.key for unit, record in Ledger(tmp_path).records.items()} == {"a": "new", "c": "new"}
    other.compact()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert {unit: record.key for unit, record in Ledger(tmp_path).records.items()} == {"a": "new", "c": "new"}


def test_many_records_share_few_files(tmp_path):
    ledger = Ledger(tmp_path)
    for i in range(2000):
        ledger.record(f"u{i}", "k")
    ledger.flush()
    assert len(list(tmp_path.glob("*.jsonl"))) < 20
    assert len(Ledger(tmp_path).records) == 2000


def test_second_run_is_told_who_writes(tmp_path):
    code = f"""
import time
from survey.io.ledger import Lease
from pathlib import Path
with Lease(Path({str(tmp_path)!r}) / "group.json", "first"):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FieldBusyError, match="run first"), Lease(tmp_path / "group.json", "second"):
            pass
        process.kill()
        process.wait()
        with Lease(tmp_path / "group.json", "second"):
            assert json.loads((tmp_path / "group.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "group.json").exists()


def test_a_silent_holder_on_another_host_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    claim = {"owner": "old", "host": "elsewhere", "pid": 1, "beat": time.time() - 3600}
    path = tmp_path / "group.json"
    path.write_text(json.dumps(claim))
    with Lease(path, "new"):
        pass
    claim["beat"] = time.time()
    path.write_text(json.dumps(claim))
    with pytest.raises(FieldBusyError, match="elsewhere"), Lease(path, "new"):
        pass


def test_another_process_with_the_holders_number_does_not_hold_the_lease(tmp_path):
    path = tmp_path / "group.json"
    began = psutil.Process().create_time()
    claim = {"owner": "old", "host": socket.gethostname(), "pid": os.getpid(), "beat": began - 100}
    path.write_text(json.dumps(claim))
    with Lease(path, "new"):
        assert json.loads(path.read_text())["owner"] == "new"
    path.write_text(json.dumps({**claim, "beat": time.time()}))
    with pytest.raises(FieldBusyError, match="run old"), Lease(path, "new"):
        pass


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_the_heart_goes_on_beating_after_a_lost_answer_and_stops_for_another_run(tmp_path, monkeypatch):
    path = tmp_path / "group.json"
    calls = []

    def replace_and_lose_the_first_answer(place, data, expected):
        calls.append(data)
        done = replace(place, data, expected)
        if len(calls) == 1:
            raise OSError("connection reset")
        return done

    replace = module.replace
    monkeypatch.setattr(module, "replace", replace_and_lose_the_first_answer)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    with Lease(path, "run"):
        assert wait_for(lambda: len(calls) > 4)
        assert wait_for(lambda: path.read_bytes() in calls[3:])
        claim = {**json.loads(path.read_text()), "owner": "thief"}
        # A beat under way may yet go over the other's claim: written again until it stands.
        assert wait_for(lambda: path.write_text(json.dumps(claim)) and not beating(calls))
    assert json.loads(path.read_text())["owner"] == "thief"


def beating(calls):
    before = len(calls)
    time.sleep(0.1)
    return len(calls) > before


def test_what_was_struck_stays_so_though_the_clock_went_back(tmp_path, monkeypatch):
    ahead, now = Ledger(tmp_path), time.time_ns()
    ahead.record("a", "old")
    ahead.flush()
    monkeypatch.setattr(module.time, "time_ns", lambda: now - 30 * 10**9)
    behind = Ledger(tmp_path)
    behind.invalidate(["a"])
    assert not Ledger(tmp_path).records
    behind.record("a", "new")
    behind.flush()
    assert Ledger(tmp_path).has("a", "new")


def test_a_ledger_that_is_compacted_meanwhile_is_read_again(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.record("u", "k")
    ledger.flush()
    looks = iter([[tmp_path / "gone.jsonl"], sorted(tmp_path.glob("*.jsonl"))])
    monkeypatch.setattr("survey.io.ledger.files", lambda *_: next(looks))
    assert Ledger(tmp_path).has("u", "k")


def test_processes_of_another_container_of_this_name_are_judged_by_their_heart(tmp_path):
    claim = {"host": socket.gethostname(), "machine": "another", "pid": 2**22 + 1, "beat": time.time()}
    assert process_lives(claim)
    assert not process_lives({**claim, "beat": time.time() - 3600})
    assert not process_lives({**this_process(), "pid": 2**22 + 1})


def test_a_holder_whose_clock_is_behind_lives_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    path, stopped = tmp_path / "group.json", threading.Event()

    def beat():
        while not stopped.wait(0.02):
            claim = {"owner": "old", "host": "elsewhere", "pid": 1, "beat": time.time() - 3600}
            locations.write_atomic(path, json.dumps(claim).encode(), synced=False)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        assert wait_for(path.exists)
        with pytest.raises(FieldBusyError, match="run old"), Lease(path, "new"):
            pass
    finally:
        stopped.set()
        heart.join()
    with Lease(path, "new"):
        assert module.holder_of(path) == "new"


def test_data_are_on_the_disk_before_they_are_recorded(tmp_path, monkeypatch):
    """What is written lies in the host's memory for half a minute: who loses power then loses it."""
    told, ledger = [], Ledger(tmp_path / "field" / "ledger")
    (tmp_path / "field").mkdir()
    monkeypatch.setattr(module, "sync", lambda place: (told.append("data"), locations.sync(place)))
    write = module.write_atomic
    monkeypatch.setattr(module, "write_atomic", lambda *args: (told.append("ledger"), write(*args)))
    ledger.record("a", "k")
    ledger.flush()
    ledger.invalidate(["a"])
    assert told == ["data", "ledger", "ledger"]
