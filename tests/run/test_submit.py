"""Runs that are handed over: to a driver beside a scheduler, over TLS; cancelled, lost and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.config import ClusterSettings, Config, make_config, to_show, to_store
from survey.driver import _run
from survey.io.certificates import CertificateError, make_certificates
from survey.io.files import write_json
from survey.io.store import Field
from survey.run import submit as survey_submit
from survey.run.api import stored_config
from survey.run.clusters import ClusterError, cluster_client, remote_client
from survey.run.live import RunError, cancel, find_run, run_state, run_states
from survey.run.progress import Silent
from survey.run.record import RUN_ID, begin, recorded, write_record
from survey.run.submit import read_job, submit, take_private
from survey.run.worker import UnitReport
from tests.faults.harness import ROOT, Processes, wait_for
from tests.report_fields import empty_field
from tests.run.conftest import assert_same_bits, small_config


def tls_options(folder, role):
    return [
        f"--tls-{n}={folder / f}"
        for n, f in (("ca-file", "ca.pem"), ("cert", f"{role}.pem"), ("key", f"{role}-key.pem"))
    ]


def survey(*arguments):
    """The command in a process of its own, which has ended when this returns."""
    return subprocess.run(
        [sys.executable, "-m", "survey.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )


def settings_file(folder, frames):
    file = folder / "run.toml"
    file.write_text(f'[input]\nframes = ["{frames}"]\n[grid]\ntile = 48\n[psf]\nsize = 11\n')
    return file


def ended(folder):
    return lambda: run_state(folder)["state"] not in ("starting", "running")


def test_a_scheduler_with_certificates_refuses_strangers(tmp_path):
    """Whoever has no certificate, or one of another authority, is not let in."""
    certs = tmp_path / "certs"
    make_certificates(certs)
    make_certificates(tmp_path / "others")
    with Processes(tmp_path / "cluster") as cluster:
        cluster.start_scheduler("--protocol=tls", *tls_options(certs, "scheduler"))
        assert cluster.address.startswith("tls://")
        for tls in (None, str(tmp_path / "others")):
            with pytest.raises(ClusterError, match="survey certs"):
                remote_client(cluster.address, ClusterSettings(tls=tls), timeout=3)
        with remote_client(cluster.address, ClusterSettings(tls=str(certs)), timeout=15) as client:
            assert client.run_on_scheduler(lambda dask_scheduler: 1) == 1


@pytest.fixture
def tls_cluster(tmp_path):
    """A scheduler and two workers that talk TLS: its address and the folder of certificates."""
    certs = tmp_path / "certs"
    make_certificates(certs)
    with Processes(tmp_path / "cluster") as cluster:
        cluster.start_scheduler("--protocol=tls", *tls_options(certs, "scheduler"))
        for _ in range(2):
            cluster.start_worker(*tls_options(certs, "worker"))
        yield cluster.address, certs


@pytest.mark.slow
def test_submitted_over_tls_outlives_its_submitter_and_equals_a_local_run(finished, tmp_path, tls_cluster):
    """The submitting process ends at once; the field is a local run's bit for bit."""
    field, (address, certs) = tmp_path / "field", tls_cluster
    config = settings_file(tmp_path, finished.frames)
    done = survey("submit", config, "-o", field, "--scheduler", address, "--tls", certs, "--no-report")
    assert done.returncode == 0, done.stderr
    folder = field / "runs" / done.stdout.strip()
    wait_for(ended(folder), 150, "the end of the run")
    state = run_state(folder)
    assert state["state"] == "done", (folder / "log.txt").read_text()
    assert state["settings"]["cluster"]["scheduler"] == address
    assert_same_bits(finished.path, field)


@pytest.mark.slow
def test_a_run_over_tls_equals_a_local_one(finished, tmp_path, tls_cluster):
    """`survey run` stays in the terminal; without certificates it is told how to get them."""
    field, (address, certs) = tmp_path / "field", tls_cluster
    command = ("run", settings_file(tmp_path, finished.frames), "-o", field, "--scheduler", address)
    refused = survey(*command, "--no-report")
    assert refused.returncode == 1
    assert "survey certs" in refused.stderr
    done = survey(*command, "--tls", certs, "--no-report")
    assert done.returncode == 0, done.stderr
    assert_same_bits(finished.path, field)


@pytest.mark.parametrize(
    ("command", "called"),
    [
        (("ingest", "x.fits", "-o", "FIELD"), "survey.run.api.append_frames"),
        (("run", "FIELD"), "survey.run.api.run"),
        (("watch", "night", "-o", "FIELD"), "survey.run.watch.watch"),
        (("template", "FIELD", "--from", "stack"), "survey.run.template.make_template"),
        (("nn2", "FIELD"), "survey.run.nn2.run_nn2"),
        (("submit", "FIELD"), "survey.run.submit.submit"),
    ],
)
def test_whoever_takes_a_scheduler_takes_certificates(finished, tmp_path, monkeypatch, command, called):
    class Called(Exception):
        pass

    def remember(*args, **kwargs):
        found = [a for a in (*args, *kwargs.values()) if isinstance(a, Config | ClusterSettings)]
        raise Called(*(getattr(a, "cluster", a) for a in found))

    monkeypatch.setattr(called, remember)
    words = [str(finished.path) if word == "FIELD" else word for word in command]
    options = ["--scheduler", "tls://127.0.0.1:1", "--tls", str(tmp_path), "--workers", "3"]
    result = CliRunner().invoke(main, [*words, *options])
    assert isinstance(result.exception, Called), result.output
    (cluster,) = result.exception.args
    assert (cluster.scheduler, cluster.tls, cluster.workers) == ("tls://127.0.0.1:1", str(tmp_path), 3)


@pytest.mark.slow
def test_cancelled_lost_and_resumed_on_this_machine(finished, tmp_path):
    """The first is cancelled, the second one's driver killed; the third ends, with the same bits."""
    field = tmp_path / "field"
    config = small_config()
    config.cluster.workers = 1
    # As from a script's background job, whose children ignore the interruption.
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = field / "runs" / submit(field, config, [finished.frames], report=False)
    signal.signal(signal.SIGINT, kept)
    wait_for(lambda: (field / "ledger" / "oversampled.oversampled").exists(), 300, "first tiles")
    assert cancel(field)["state"] == "cancelled"
    assert "cancelled" in (first / "log.txt").read_text()
    with pytest.raises(RunError, match="nothing to cancel"):
        cancel(field)
    second = field / "runs" / submit(field, config, report=False)
    wait_for(lambda: run_state(second)["live"].get("stages"), 300, "the second driver")
    os.kill(run_state(second)["live"]["pid"], signal.SIGKILL)
    wait_for(ended(second), 60, "the end of the second driver")
    assert run_state(second)["state"] == "lost"
    third = field / "runs" / submit(field, config, report=False)
    wait_for(ended(third), 400, "the end of the third")
    assert [state["state"] for state in run_states(field)] == ["cancelled", "lost", "done"]
    assert_same_bits(finished.path, field)


def test_state_of_a_run_from_its_files(tmp_path):
    folder = tmp_path / "runs" / "20260101T000000-abc"
    job = {"run_id": folder.name, "submitted": time.time()}
    write_json(folder / "job.json", job)
    assert run_state(folder)["state"] == "starting"
    write_json(folder / "job.json", {**job, "submitted": time.time() - 1e4})
    assert run_state(folder)["state"] == "lost"
    beat = {"state": "running", "pid": 1, "host": "elsewhere", "beat": time.time(), "stages": []}
    write_json(folder / "live.json", beat)
    assert run_state(folder)["state"] == "running"
    write_json(folder / "live.json", {**beat, "beat": time.time() - 1e3})
    assert run_state(folder)["state"] == "lost"
    write_json(folder / "run.json", {"status": "done"})
    assert run_state(folder)["state"] == "done"
    assert find_run(tmp_path, "2026") == find_run(tmp_path) == folder
    with pytest.raises(RunError, match="survey status"):
        find_run(tmp_path, "2027")


def test_a_scheduler_that_does_not_answer_leaves_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("survey.run.submit.remote_client", partial(remote_client, timeout=1))
    config = small_config()
    config.cluster.scheduler = "tcp://127.0.0.1:9"
    with pytest.raises(ClusterError, match="no Dask scheduler answers"):
        submit(tmp_path / "field", config)
    assert run_states(tmp_path / "field") == []


def test_certificates_are_private_and_never_overwritten(tmp_path):
    files = make_certificates(tmp_path / "certs", ["10.0.0.1", "scheduler.example.org"])
    assert {file.name for file in files if "key" not in file.name} == {
        "ca.pem",
        "scheduler.pem",
        "worker.pem",
        "client.pem",
    }
    assert all(file.stat().st_mode & 0o077 == 0 for file in files if "key" in file.name)
    with pytest.raises(CertificateError, match="--renew"):
        make_certificates(tmp_path / "certs")
    authority = (tmp_path / "certs" / "ca.pem").read_bytes()
    worker = (tmp_path / "certs" / "worker.pem").read_bytes()
    make_certificates(tmp_path / "certs", renew=True)
    assert (tmp_path / "certs" / "ca.pem").read_bytes() == authority
    assert (tmp_path / "certs" / "worker.pem").read_bytes() != worker
    (tmp_path / "certs" / "client-key.pem").unlink()
    with pytest.raises(ClusterError, match=r"client-key.pem is missing"):
        remote_client("tls://127.0.0.1:9", ClusterSettings(tls=str(tmp_path / "certs")))


def test_status_names_runs_and_logs_prints_them(finished):
    found = json.loads(CliRunner().invoke(main, ["status", str(finished.path), "--json"]).stdout)
    assert found["runs"][0]["state"] == "done"
    logs = CliRunner().invoke(main, ["logs", str(finished.path)])
    assert logs.exit_code == 1
    assert "none found" in logs.stderr


def test_a_driver_that_may_be_on_its_way_keeps_its_folder(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("survey.run.submit.launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(tmp_path / "field", small_config())
    (state,) = run_states(tmp_path / "field")
    assert state["state"] == "starting"


def test_a_rebuild_is_asked_for_until_it_was_begun(tmp_path, monkeypatch):
    """Where the cluster was lost before it: what a second attempt finds done is not what was asked for."""
    asked = []

    def run(*_, rebuild, **__):
        asked.append(rebuild)
        if len(asked) == 1:
            raise ClusterError("lost")
        return "summary"

    monkeypatch.setattr("survey.driver.run", run)
    monkeypatch.setattr("survey.driver._wait_for_scheduler", lambda config: None)
    config = small_config()
    config.cluster.scheduler = "tcp://127.0.0.1:9"
    job = {"field": "field", "frames": [], "strict": False, "rebuild": True}
    assert _run(job, config, Silent()) == "summary"
    assert asked == [True, True]


def test_workers_under_slurm_ask_for_certificates():
    settings = ClusterSettings(slurm={"setup": ["export SECRET=1"]})
    with pytest.raises(ClusterError, match="survey certs"), cluster_client(settings):
        pass


def test_no_field_says_where_work_runs_or_by_which_program(tmp_path):
    """Whoever made it: a scheduler runs code, a job's setup is code, and may hold a secret."""
    config = small_config()
    slurm = {"setup": ["export SECRET=1"], "directives": ["--export=SECRET=2"]}
    config.cluster = ClusterSettings(scheduler="tcp://10.0.0.1:8786", slurm=slurm)
    config.subtraction.hotpants = "/tmp/anything"
    for text in (json.dumps(to_store(config)), json.dumps(to_show(config))):
        assert "SECRET" not in text
    foreign = {"tile_size": 10, "time_block": 4, "units": "count", "config": config.model_dump(mode="json")}
    Field.create(tmp_path / "field", (10, 10), foreign)
    found = stored_config(tmp_path / "field")
    assert found.cluster == ClusterSettings()
    assert found.subtraction.hotpants is None
    assert found.grid.tile == 48
    write_json(
        tmp_path / "field" / "runs" / "20260101T000000-abc" / "job.json", {"settings": foreign["config"]}
    )
    assert "SECRET" not in json.dumps(run_states(tmp_path / "field"))


def test_lines_of_shell_reach_the_driver_and_no_file(tmp_path, monkeypatch):
    """What is exported in [cluster.slurm] setup may be a secret."""
    found = {}
    monkeypatch.setattr(survey_submit, "launch", lambda folder, environment: found.update(environment) or {})
    slurm = {"setup": ["export AWS_SECRET_ACCESS_KEY=hidden"], "directives": ["--export=TOKEN=hidden"]}
    config = Config(cluster={"slurm": {**slurm, "account": "me"}})
    folder = tmp_path / "field" / "runs" / submit(tmp_path / "field", config)
    summary, _ = begin(tmp_path / "field", "oversampled")
    write_record(tmp_path / "field", summary, config, [])
    written = "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    assert written.count('"account": "me"') == 2
    assert "hidden" not in written

    (name,) = found
    monkeypatch.setenv(name, found[name])
    read = make_config(read_job(folder)["settings"])
    take_private(read)
    assert read.cluster == config.cluster
    assert name not in os.environ


def test_attempts_of_one_run_add_up_in_its_record(tmp_path):
    field = empty_field(tmp_path / "field")
    token = RUN_ID.set("run-1")
    for computed, skipped, error in ((36, 4, ClusterError("the scheduler is gone")), (1, 40, None)):
        summary, clock = begin(field.path, "oversampled")
        with suppress(ClusterError), recorded(summary, field.path, Config(), clock) as record:
            summary.computed, summary.skipped, summary.warnings = computed, skipped, ["hazy"]
            seconds = dict.fromkeys(("read", "compute", "write"), 1.0)
            record.reports.append(UnitReport("place", "apply", f"unit-{computed}", "key", seconds, 50, 10))
            if error is not None:
                raise error
    RUN_ID.reset(token)
    (kept,) = field.runs()
    assert (kept["status"], kept["computed"], kept["skipped"]) == ("done", 37, 4)
    assert kept["warnings"] == ["hazy"]
    assert kept["failures"] == []
    assert kept["stages"]["place"] == {"units": 2, "read": 2, "compute": 2, "write": 2, "memory": 40}
    (attempt,) = kept["attempts"]
    assert (attempt["status"], attempt["computed"]) == ("failed", 36)
    assert "the scheduler is gone" in attempt["failures"][0]["reason"]
    lines = (field.path / "runs" / "run-1" / "units.jsonl").read_text().splitlines()
    assert [json.loads(line)["unit"] for line in lines] == ["unit-36", "unit-1"]


def test_a_driver_without_a_log_is_looked_for_where_it_printed(tmp_path):
    job = {"printed": "/tmp/survey-run-1.log", "host": "node7", "submitted": 0.0}
    write_json(tmp_path / "field" / "runs" / "run-1" / "job.json", job)
    result = CliRunner().invoke(main, ["logs", str(tmp_path / "field")])
    assert "/tmp/survey-run-1.log on node7" in result.output
