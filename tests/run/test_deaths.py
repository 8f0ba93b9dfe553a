"""Workers die while frames are measured and while a night is added: the field is the undisturbed one."""

import shutil

import numpy as np
import pytest

from survey.io.store import Field, FieldError
from survey.run import ingest as module
from survey.run.api import append_frames, create_field, run
from survey.run.executor import InlineExecutor
from survey.run.ingest import IngestError, ingest
from survey.run.progress import Silent, StoppedError
from survey.run.upkeep import unlock
from tests.faults.harness import Processes
from tests.run.conftest import FIRST, assert_same_bits, night_config, small_config


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Three workers that die where a file in their folder says so."""
    folder = tmp_path / "dying"
    folder.mkdir()
    monkeypatch.setenv("DYING", str(folder))
    with Processes(tmp_path / "cluster") as processes:
        processes.start_scheduler()
        for _ in range(3):
            processes.start_worker("--preload", "tests.faults.dying")
        with processes.client(workers=3) as client:
            yield client, folder


def test_a_frame_that_could_not_be_looked_at_for_the_machine_s_sake_is_not_left_out(
    frames, tmp_path, monkeypatch
):
    files = sorted(frames[0].glob("*.fits*"))[:3]
    look, deaths = module.measure_frame, []

    def dying(header, *args):
        if header.source.path == str(files[1]) and len(deaths) < most:
            deaths.append(header)
            raise MemoryError("worker over its limit")
        return look(header, *args)

    monkeypatch.setattr(module, "measure_frame", dying)
    most = 2
    with pytest.raises(IngestError, match=r"MemoryError.*also alone; nothing is written"):
        ingest(tmp_path / "field", files, small_config(), InlineExecutor())
    with pytest.raises(FieldError):
        Field.open(tmp_path / "field")
    most = 3
    summary = ingest(tmp_path / "field", files, small_config(), InlineExecutor())
    assert (summary.added, summary.rejected) == (3, [])


@pytest.mark.slow
def test_workers_die_while_a_night_comes_in_and_the_field_is_undisturbed(nights, frames, cluster, tmp_path):
    client, folder = cluster
    path = tmp_path / "field"
    shutil.copytree(nights[0] / "early", path)
    for moment in ("measure", "reference"):
        (folder / moment).touch()
    summary = run(path, frames=sorted(frames[0].glob("*.fits*"))[FIRST:], client=client)
    assert summary.ok, summary.failures
    assert not list(folder.iterdir()), "not both have died"
    assert summary.rejected == []
    assert_same_bits(nights[0] / "later", path)
    assert np.asarray(Field.open(path).array("reference", "n_used")[...]).max() <= FIRST + 12


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True])
def test_frames_that_come_in_the_middle_of_the_differences_spoil_nothing(nights, frames, tmp_path, forced):
    """They are refused; where their owner takes the run's leases by force, no tile holds them twice."""
    path, files = tmp_path / "field", sorted(frames[0].glob("*.fits*"))
    later = files[FIRST:]
    create_field(path, files[:FIRST], night_config(frames[0]), client="synchronous")
    told = []

    class Second(Silent):
        def advance(self, stage, report, failed=False):
            if stage == "oversampled" and not told:
                told.append("nothing yet")
                if forced:
                    unlock(path, force=True)
                try:
                    append_frames(path, later, client="synchronous")
                except Exception as error:
                    told.append(error)

    if forced:
        with pytest.raises(StoppedError, match="no longer holds"):
            run(path, client="synchronous", progress=Second())
        assert len(told) == 1
    else:
        assert run(path, client="synchronous", progress=Second()).ok
        assert "is writing images" in str(told[1])
        assert_same_bits(nights[0] / "early", path)
    again = run(path, frames=later, client="synchronous")
    assert again.ok, again.failures
    used = np.asarray(Field.open(path).array("reference", "n_used")[...])
    assert FIRST + 6 < used.max() <= FIRST + 12
    if not forced:
        assert_same_bits(nights[0] / "later", path)
