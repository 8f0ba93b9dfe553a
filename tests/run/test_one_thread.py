"""BLAS has one thread while a unit or a frame is worked on, whatever the environment says."""

from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from survey.run.calls import map_calls
from survey.run.executor import InlineExecutor
from survey.run.progress import Silent
from survey.stages.protocol import STAGES, Output
from tests.faults import tiny


def threads():
    """Threads of every BLAS library of this process."""
    np.linalg.inv(np.eye(2))
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_a_unit_is_worked_on_by_one_thread(tmp_path, monkeypatch):
    seen = []

    def apply(tile, state, config):
        seen.append(threads())
        return Output(payload={"rows": 0})

    monkeypatch.setitem(STAGES, "tiny", tiny.STAGE)
    replace(tiny.STAGE, apply=apply)  # which takes its name's place
    field = tiny.make_field(tmp_path / "field", tiles=1)
    with threadpool_limits(2):
        assert set(threads()) == {2}
        engine = tiny.run_tiny(field.path, InlineExecutor())
    assert not engine.failures
    assert [set(found) for found in seen] == [{1}]


def test_a_frame_is_worked_on_by_one_thread():
    with threadpool_limits(2):
        (found,) = map_calls(InlineExecutor(), lambda item: threads(), [0], Silent(), "measure")
    assert set(found) == {1}
