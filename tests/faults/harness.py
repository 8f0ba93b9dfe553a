"""A Dask cluster of separate processes that a test may kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed

ROOT = Path(__file__).parents[2]
PRELOAD = "tests.faults.tiny"


def wait_for(condition, seconds=30.0, what="condition"):
    """Wait until a function returns something true; returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def _address(file):
    """What a scheduler wrote into its file, once it has written all of it."""
    try:
        return json.loads(file.read_text())["address"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class Processes:
    """Scheduler and workers as processes of their own; a context manager that ends them all."""

    def __init__(self, folder, prefix=()):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scheduler = None
        self.workers = []
        self.all = []
        self.port = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.all):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, *command, prefix=()):
        """A Python process in a session of its own."""
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self.folder / f"process-{len(self.all)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, *command],
                env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.all.append(process)
        return process

    def start_scheduler(self, *options, prefix=(), host="127.0.0.1"):
        """A scheduler; after its death another one on the same port."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        where = ["--host", host, "--port", str(self.port), "--no-dashboard", "--scheduler-file", str(file)]
        self.scheduler = self.start("-m", "distributed.cli.dask_scheduler", *where, *options, prefix=prefix)
        self.address = wait_for(lambda: _address(file), 60, "scheduler")
        self.port = int(self.address.rsplit(":", 1)[1])
        return self.scheduler

    def start_worker(self, *options, prefix=(), nanny=False):
        """A worker of one thread; without a nanny, a kill is a death."""
        worker = self.start(
            "-m",
            "distributed.cli.dask_worker",
            self.address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(self.folder / "scratch"),
            "--preload",
            PRELOAD,
            *(() if nanny else ("--no-nanny",)),
            *options,
            prefix=prefix,
        )
        self.workers.append(worker)
        return worker

    def client(self, workers=None, **options):
        """A client once so many workers are there."""
        client = distributed.Client(self.address, set_as_default=False, timeout="30s", **options)
        if workers:
            client.wait_for_workers(workers, timeout=60)
        return client


def kill(process):
    """SIGKILL, and wait for the end."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
