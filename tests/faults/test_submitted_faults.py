"""The whole pipeline, submitted, on a cluster treated badly: the field is bit for bit as ever."""

import os
import signal
import subprocess
import sys
import uuid

import pytest

from survey.run.live import run_state
from survey.run.submit import submit
from survey.run.verify import verify
from tests.faults.harness import ROOT, Processes, kill, wait_for
from tests.run.conftest import assert_same_bits, small_config

pytestmark = pytest.mark.slow


def reached(folder, *stages):
    """A condition: the run is in one of these stages or beyond."""

    def check():
        state = run_state(folder)
        assert state["state"] in ("starting", "running"), (folder / "log.txt").read_text()
        return any(s["stage"] in stages for s in state["live"].get("stages", ()))

    return check


def ended(folder):
    return lambda: run_state(folder)["state"] not in ("starting", "running")


def test_a_submitted_run_survives_its_workers_and_its_scheduler(finished, tmp_path):
    """A worker dies; all die and come back; the scheduler dies and comes back; nobody submits again."""
    config = small_config()
    with Processes(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        for _ in range(2):
            cluster.start_worker()
        config.cluster.scheduler = cluster.address
        folder = tmp_path / "field" / "runs"
        folder /= submit(tmp_path / "field", config, [finished.frames], report=False)
        wait_for(reached(folder, "ingest"), 90, "placing")
        kill(cluster.workers[0])
        wait_for(reached(folder, "oversampled", "reference"), 90, "differences")
        kill(cluster.workers[1])
        for _ in range(2):
            cluster.start_worker()
        wait_for(reached(folder, "detect"), 90, "the search")
        kill(cluster.scheduler)
        cluster.start_scheduler()
        for _ in range(2):
            cluster.start_worker()
        wait_for(ended(folder), 240, "the end of the run")
    log = (folder / "log.txt").read_text()
    assert run_state(folder)["state"] == "done", log
    assert "the cluster was lost" in log
    assert verify(tmp_path / "field").problems == []
    assert_same_bits(finished.path, tmp_path / "field")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Four hosts on a switch, each a network namespace: name -> prefix that runs a command there."""
    tag = uuid.uuid4().hex[:4]
    names = {role: f"sv{tag}{role}" for role in ("switch", "s", "a", "b", "c")}
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", names["switch"]], check=False).returncode:
        pytest.skip("this machine does not let the tests make network namespaces (needs root and iproute2)")
    try:
        ip("-n", names["switch"], "link", "add", "br0", "type", "bridge")
        ip("-n", names["switch"], "link", "set", "br0", "up")
        for number, role in enumerate(("s", "a", "b", "c"), start=1):
            ip("netns", "add", names[role])
            cable = f"v{tag}{role}"
            ip(
                "link",
                "add",
                cable,
                "netns",
                names["switch"],
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                names[role],
            )
            ip("-n", names["switch"], "link", "set", cable, "master", "br0", "up")
            ip("-n", names[role], "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", names[role], "link", "set", device, "up")
        yield (
            {role: ("ip", "netns", "exec", name) for role, name in names.items() if role != "switch"},
            lambda role: ip("-n", names["switch"], "link", "set", f"v{tag}{role}", "down"),
        )
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_host_is_cut_off_and_the_submitter_dies(finished, tmp_path, hosts, monkeypatch):
    """Scheduler, workers, submitter on hosts of their own; one worker is cut off mid-run."""
    prefix, cut = hosts
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", "12s")
    file = tmp_path / "run.toml"
    file.write_text(f'[input]\nframes = ["{finished.frames}"]\n[grid]\ntile = 48\n[psf]\nsize = 11\n')
    field = tmp_path / "field"
    with Processes(tmp_path / "cluster") as cluster:
        cluster.start_scheduler(prefix=prefix["s"], host="10.77.0.1")
        for host, address in (("a", "10.77.0.2"), ("b", "10.77.0.3")):
            cluster.start_worker("--host", address, prefix=prefix[host])
        submitter = subprocess.Popen(
            [
                *prefix["c"],
                sys.executable,
                "-m",
                "survey.cli",
                "submit",
                str(file),
                "-o",
                str(field),
                "--scheduler",
                cluster.address,
                "--no-report",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with submitter.stdout as stream:
            run_id = stream.readline().strip()
        os.killpg(submitter.pid, signal.SIGKILL)
        submitter.wait()
        folder = field / "runs" / run_id
        wait_for(reached(folder, "oversampled", "reference"), 120, "differences")
        cut("a")
        wait_for(ended(folder), 240, "the end of the run")
    assert run_state(folder)["state"] == "done", (folder / "log.txt").read_text()
    assert verify(field).problems == []
    assert_same_bits(finished.path, field)
