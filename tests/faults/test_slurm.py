"""Workers as Slurm jobs, where there is a Slurm that takes jobs; one of them is cancelled in the middle."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from survey.config import ClusterSettings
from survey.io.certificates import make_certificates
from survey.run.api import run
from survey.run.clusters import cluster_client
from tests.faults.harness import ROOT, wait_for
from tests.run.conftest import assert_same_bits, small_config

pytestmark = pytest.mark.slow


def jobs():
    """Names of the workers' jobs that run or wait."""
    found = subprocess.run(
        ["squeue", "-h", "-n", "dask-worker", "-o", "%i"], capture_output=True, text=True, check=True
    )
    return found.stdout.split()


@pytest.fixture
def slurm(tmp_path):
    """Settings of a small cluster under Slurm, over TLS."""
    try:
        subprocess.run(["sinfo"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Slurm answers here (sinfo)")
    make_certificates(tmp_path / "certs")
    return ClusterSettings(
        workers=2,
        tls=str(tmp_path / "certs"),
        slurm={
            "memory": "3GB",
            "walltime": "00:20:00",
            "interface": "lo",
            "logs": str(tmp_path / "jobs"),
            "scratch": str(tmp_path / "scratch"),
            "setup": [f"export PYTHONPATH={ROOT} PATH={Path(sys.executable).parent}:$PATH"],
        },
    )


def test_a_run_under_slurm_loses_a_job_and_equals_a_local_one(finished, slurm, tmp_path):
    field = tmp_path / "field"
    config = small_config()
    result = []
    with cluster_client(slurm) as client:
        assert client.scheduler.address.startswith("tls://")
        client.wait_for_workers(2, timeout=120)
        first = jobs()
        thread = threading.Thread(
            target=lambda: result.append(run(field, config, frames=[finished.frames], client=client)),
            daemon=True,
        )
        thread.start()
        wait_for(lambda: (field / "ledger" / "place").exists(), 120, "placing")
        subprocess.run(["scancel", first[0]], check=True)
        wait_for(lambda: len(jobs()) == 2 and first[0] not in jobs(), 60, "another job in its place")
        thread.join(240)
    assert result[0].ok, result[0].failures
    wait_for(lambda: not jobs(), 30, "the jobs' end")
    assert_same_bits(finished.path, field)
