"""The Compose cluster: what the file promises, what Compose makes of it and, with an engine, a run."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
IMAGE = os.environ.get("SURVEY_IMAGE", "survey:local")
WORKERS = ("worker-1", "worker-2")
SERVICES = {"scheduler", *WORKERS, "jupyter"}


def load(**environment: str) -> dict:
    """The file with the variables in its values replaced as Compose does: ``${NAME:-default}``."""

    def replace(item):
        if isinstance(item, dict):
            return {key: replace(value) for key, value in item.items()}
        if isinstance(item, list):
            return [replace(value) for value in item]
        if not isinstance(item, str):
            return item
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], item)
        assert "$" not in text, f"a variable without a default: {item}"
        return text

    return replace(yaml.safe_load(FILE.read_text()))


@pytest.fixture(scope="module")
def services() -> dict:
    return load()["services"]


def test_scheduler_two_workers_and_jupyter_from_one_image(services):
    assert set(services) == SERVICES
    assert len({(s["image"], json.dumps(s["build"], sort_keys=True)) for s in services.values()}) == 1


def test_every_port_is_on_loopback(services):
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:8786:8786", "127.0.0.1:8787:8787", "127.0.0.1:8888:8888"]
    assert all("network_mode" not in service for service in services.values())


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_comes_back_and_has_no_rights(services, name):
    service = services[name]
    # A worker whose scheduler died leaves with status 0: `on-failure` would not bring it back.
    assert service["restart"] == "unless-stopped"
    assert service["user"] == "1000:1000"
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][:2] == ["CMD", "survey-health"]
    if name != "scheduler":
        assert service["depends_on"]["scheduler"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_one_thread(services, name):
    assert {"--nthreads=1", "--nworkers=1", "tcp://scheduler:8786"} <= set(services[name]["command"])
    pinned = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    assert all(services[name]["environment"][variable] == "1" for variable in pinned)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_all_see_the_data_at_the_same_path(name):
    assert load()["services"][name]["volumes"][0] == "data:/data"
    given = load(SURVEY_DATA="/home/me/data", SURVEY_MOUNT="/home/me/data")
    assert given["services"][name]["volumes"][0] == "/home/me/data:/home/me/data"


def test_jupyter_is_never_open(services):
    # An empty token makes Jupyter generate one; no option switches that off.
    assert services["jupyter"]["environment"]["JUPYTER_TOKEN"] == ""
    started = (ROOT / "deploy" / "survey-jupyter").read_text() + str(services["jupyter"]["command"])
    for option in ("token", "password", "allow_unauthenticated", "allow_root", "allow-root"):
        assert option not in started


def test_files_name_no_host_and_no_machine():
    scripts = ("Dockerfile", "pip-install", "survey-health", "survey-jupyter")
    for path in (FILE, *(ROOT / "deploy" / name for name in scripts)):
        text = path.read_text()
        hosts = set(re.findall(r"\w+://([\w.-]+)", text)) - {"127.0.0.1", "scheduler"}
        assert not hosts, f"{path.name} names {hosts}"
        assert not re.search(r"/(work|root|etc/ssl)/", text), f"{path.name} holds a machine's path"


def test_dockerfile_takes_its_base_from_outside_and_ends_without_root(services):
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert set(stages) == {"${BASE}"}
    base = re.search(r"^ARG BASE=(\S+)", text, re.M)
    assert base
    assert services["scheduler"]["build"]["args"]["BASE"] == base[1]
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] not in ("root", "0")


def test_what_the_image_copies_passes_dockerignore():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for source in line.split()[:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(entry == source or entry.startswith(f"{source}/") for entry in kept), source


# -- with Compose itself -------------------------------------------------------------------------


def call(*words: str, check: bool = True, timeout: float = 60, **environment: str):
    """Run a command; its output is in the message of a failure."""
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


def works(*words: str) -> bool:
    try:
        return shutil.which(words[0]) is not None and not call(*words, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose() -> tuple[str, ...]:
    """The Compose of this machine, v2 before v1; skips where there is none."""
    for words in (("docker", "compose"), ("docker-compose",)):
        if works(*words, "version"):
            return words
    pytest.skip("neither `docker compose` (v2) nor `docker-compose` (v1) is installed")


@pytest.mark.parametrize("words", [("docker", "compose"), ("docker-compose",)], ids=["v2", "v1"])
@pytest.mark.parametrize("data", [{}, {"SURVEY_DATA": "/srv/frames", "SURVEY_MOUNT": "/srv/frames"}])
def test_compose_accepts_the_file(words, data):
    if not works(*words, "version"):
        pytest.skip(f"`{' '.join(words)}` is not installed")
    done = call(*words, "-f", str(FILE), "config", SURVEY_WORKER_MEMORY="2g", **data)
    resolved = yaml.safe_load(done.stdout)["services"]
    assert set(resolved) == SERVICES
    for service in resolved.values():
        for port in service.get("ports", []):
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert host == "127.0.0.1"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def cluster():
    """The cluster, up under a name and ports of its own; everything of it is removed at the end."""
    words = compose()
    if not works("docker", "info"):
        pytest.skip("no Docker engine answers")
    if not works("docker", "image", "inspect", IMAGE):
        pytest.skip(f"there is no image {IMAGE}; build it as deploy/README.md says")
    ports = free_ports(3)
    names = ("SURVEY_SCHEDULER_PORT", "SURVEY_DASHBOARD_PORT", "SURVEY_JUPYTER_PORT")
    environment = {name: str(port) for name, port in zip(names, ports, strict=True)}
    environment |= {"SURVEY_IMAGE": IMAGE, "JUPYTER_TOKEN": "of-this-test"}
    project = f"survey-test-{os.getpid()}"

    def run(*arguments: str, timeout: float = 120, **keywords):
        return call(
            *words, "-p", project, "-f", str(FILE), *arguments, timeout=timeout, **environment, **keywords
        )

    try:
        run("up", "-d", "--no-build")
        yield run, ports
    finally:
        run("down", "--volumes", "--timeout", "5", check=False)


def container(run, service: str) -> str:
    return run("ps", "-q", service).stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_on_the_cluster_survives_a_killed_worker(cluster):
    run, ports = cluster
    call("curl", "-fsS", "--retry", "30", "--retry-connrefused", "--retry-all-errors", "--retry-delay", "1",
         f"http://127.0.0.1:{ports[2]}/api")  # fmt: skip
    page = f"http://127.0.0.1:{ports[2]}/api/contents"
    assert call("curl", "-fsS", page, check=False).returncode, "Jupyter is open without a token"
    assert "notebooks" in call("curl", "-fsS", f"{page}?token=of-this-test").stdout

    simulate = ("survey", "simulate", "-o", "/data/frames", "--size", "128", "--frames", "72")
    run("exec", "-T", "jupyter", *simulate, "--events", "3", "--seed", "4")
    worker = container(run, "worker-2")
    survey = ("survey", "run", "/data/frames", "-o", "/data/field", "--scheduler", "tcp://scheduler:8786")
    inside = subprocess.Popen(
        ["docker", "exec", container(run, "jupyter"), *survey],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        begun = ("docker", "exec", container(run, "jupyter"), "ls", "/data/field/cube.zarr/difference")
        while inside.poll() is None and call(*begun, check=False).returncode:
            time.sleep(0.5)
        assert inside.poll() is None, f"ended before a worker could be killed: {inside.communicate()[0]}"
        call("docker", "kill", worker)
        output, _ = inside.communicate(timeout=1200)
    finally:
        inside.kill()
    assert inside.returncode == 0, output
    assert "done:" in output
    run("exec", "-T", "jupyter", "survey", "events", "/data/field", "--format", "csv")
