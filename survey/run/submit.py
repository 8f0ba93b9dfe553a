"""Hand a run over and let go: a driver process of its own sees it to its end.

The driver runs beside the scheduler where there is one, else on this machine; in both cases it belongs to no
terminal. It is no task of the cluster: a worker that dies with a tile too large for it would take the driver
along, and Dask gives a task up whose workers die. The scheduler cannot be spared anyway; its host is where a
driver adds no further thing that can fail.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from survey.config import Config, to_show
from survey.io.files import write_json
from survey.io.locations import Location, absolute, locate, remove
from survey.io.objects import ObjectPath
from survey.run.clusters import THREADS, ClusterError, remote_client
from survey.run.record import new_run_id

# Starts the process that its arguments name and leaves at once: the driver is then no child of whoever
# launched it, so that a scheduler that never waits for children keeps no dead one.
DETACH = (
    "import subprocess, sys; log = open(sys.argv[1], 'ab'); "
    "print(subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd='/', "
    "start_new_session=True).pid)"
)

# Where the environment of a driver has what jobs are started with and no file may hold.
PRIVATE = "SURVEY_SLURM_PRIVATE"


def submit(
    path: str | Location,
    config: Config,
    frames: Sequence[str | Location] = (),
    *,
    strict: bool = False,
    rebuild: bool = False,
    report: bool = True,
    here: bool = False,
) -> str:
    """Hand a run to a driver process that outlives this one.

    Parameters
    ----------
    path : path
        The field, as workers and the scheduler's host see it.
    config : Config
        Settings. With ``[cluster] scheduler`` the driver starts on the scheduler's host; without, or with
        ``here``, on this one.
    frames : sequence of path
        Frames to ingest first.
    strict, rebuild : bool
        As in `survey.run`.
    report : bool
        Draw ``report.html`` at the end.

    Returns
    -------
    str
        The run's id: its folder is ``<field>/runs/<id>``.

    Raises
    ------
    ClusterError
        If the scheduler does not answer, or its host does not see the field or has no `survey`.
    """
    run_id = new_run_id()
    field = absolute(locate(path))
    folder = field / "runs" / run_id
    remote = config.cluster.scheduler if not here else None
    job = {
        "run_id": run_id,
        "field": str(field),
        "frames": [os.path.abspath(frame) for frame in frames],
        "strict": strict,
        "rebuild": rebuild,
        "report": report,
        "settings": to_show(config),
        "submitted": time.time(),
        "from": socket.gethostname(),
        "scheduler": config.cluster.scheduler,
    }
    write_json(folder / "job.json", job)
    try:
        if remote:
            started = _launch_remotely(remote, config, folder)
        else:
            started = launch(str(folder), environment=_private(config))
    except ClusterError:
        # Nothing was started. After anything else a driver may be on its way, which needs its folder.
        remove(folder)
        raise
    write_json(folder / "job.json", {**job, **started})
    return run_id


def _private(config: Config) -> dict[str, str]:
    """What no file of the run holds, for the environment of its driver."""
    slurm = config.cluster.slurm
    if slurm is None:
        return {}
    return {PRIVATE: json.dumps({name: getattr(slurm, name) for name in slurm.PRIVATE})}


def take_private(config: Config) -> None:
    """In the driver: put into the settings what its environment brought, and keep it from its children."""
    for name, value in json.loads(os.environ.pop(PRIVATE, "{}")).items():
        if config.cluster.slurm is not None:
            setattr(config.cluster.slurm, name, value)


def _launch_remotely(address: str, config: Config, folder: Location) -> dict[str, Any]:
    with remote_client(address, config.cluster) as client:
        try:
            found: dict[str, Any] = client.run_on_scheduler(launch_beside, folder=str(folder))
        except ImportError as error:
            raise ClusterError(
                f"the scheduler at {address} cannot import survey ({error}): install it there, "
                "or keep the driver on this machine with --here"
            ) from None
    if "error" in found:
        raise ClusterError(f"{found['error']}; or keep the driver on this machine with --here")
    return found


def launch_beside(folder: str, dask_scheduler: Any = None) -> dict[str, Any]:
    """Start the driver on the scheduler's host; called by the scheduler itself."""
    host = socket.gethostname()
    if not (locate(folder) / "job.json").exists():
        return {
            "error": f"the scheduler's host {host} does not see {folder}: mount it there as on the workers, "
            "or give the scheduler's environment what opens the bucket"
        }
    secure = dask_scheduler.security
    keys = {
        "CA_FILE": secure.tls_ca_file,
        "CLIENT__CERT": secure.tls_scheduler_cert,
        "CLIENT__KEY": secure.tls_scheduler_key,
    }
    # The driver is a client of the cluster with the scheduler's own papers.
    tls = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in keys.items() if value}
    return launch(folder, dask_scheduler.address, tls)


def launch(
    folder: str, scheduler: str | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Start a driver that belongs to no terminal.

    Returns
    -------
    dict
        ``pid`` and ``host`` of the driver, and the file there that takes what it prints.
    """
    place = locate(folder)
    # Whatever is printed before the driver keeps a log of its own can only be printed to a file.
    printed = (
        Path(tempfile.gettempdir()) / f"survey-{place.name}.log"
        if isinstance(place, ObjectPath)
        else place / "driver.log"
    )
    driver = [sys.executable, "-m", "survey.driver", folder, *([scheduler] if scheduler else [])]
    done = subprocess.run(
        [sys.executable, "-S", "-c", DETACH, str(printed), *driver],
        env={**os.environ, **THREADS, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"pid": int(done.stdout), "host": socket.gethostname(), "printed": str(printed)}


def read_job(folder: str | Location) -> dict[str, Any]:
    """What was asked of a driver."""
    job: dict[str, Any] = json.loads((locate(folder) / "job.json").read_text())
    return job
