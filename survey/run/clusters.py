"""Dask clusters as the `[cluster]` table asks for them: on this machine, under Slurm, or one that runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed.comm import connect

from survey.config import ClusterSettings

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CONNECT_SECONDS = 15.0


class ClusterError(RuntimeError):
    """A cluster that cannot be reached, or was lost on the way."""


@contextmanager
def cluster_client(settings: ClusterSettings) -> Iterator[distributed.Client]:
    """A client of the cluster that the settings name; what was started for it ends with it.

    Raises
    ------
    ClusterError
        If a scheduler does not answer, certificates are missing, or Slurm's package is not installed.
    """
    if settings.scheduler:
        with remote_client(settings.scheduler, settings) as client:
            yield client
        return
    start = _slurm if settings.slurm is not None else _local
    with start(settings) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


def remote_client(address: str, settings: ClusterSettings, timeout: float = CONNECT_SECONDS) -> Any:
    """A client of a running scheduler; a context manager.

    Raises
    ------
    ClusterError
        If it does not answer, or refuses.
    """
    secure = security(settings)
    # A client that cannot connect closes itself when it is collected, and may wait for itself then. So knock
    # first; from a thread, because a notebook has an event loop of its own in this one.
    with ThreadPoolExecutor(1) as thread:
        failure = thread.submit(asyncio.run, _knock(address, secure, timeout)).result()
    if failure is not None:
        hint = "start one with `dask scheduler`, or leave --scheduler out"
        if address.startswith("tls://"):
            hint = "certificates of its authority are needed: [cluster] tls = DIR, made by `survey certs DIR`"
        raise ClusterError(f"no Dask scheduler answers at {address} ({failure}); {hint}")
    return distributed.Client(address, timeout=timeout, set_as_default=False, security=secure)


async def _knock(address: str, secure: distributed.Security | None, timeout: float) -> str | None:
    """What keeps a scheduler from being reached; None if nothing does."""
    options = (secure or distributed.Security()).get_connection_args("client")
    try:
        comm = await connect(address, timeout=timeout, **options)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        return f"{error}"
    await comm.close()
    return None


def security(settings: ClusterSettings) -> distributed.Security | None:
    """Certificates of the directory that ``[cluster] tls`` names; None leaves it to Dask's own settings.

    Raises
    ------
    ClusterError
        If one of them is missing.
    """
    if settings.tls is None:
        return None
    folder = Path(settings.tls).expanduser()
    files = {"tls_ca_file": folder / "ca.pem"}
    for role in ("scheduler", "worker", "client"):
        # A host needs the files of its own roles only.
        if (folder / f"{role}.pem").exists():
            files[f"tls_{role}_cert"] = folder / f"{role}.pem"
            files[f"tls_{role}_key"] = folder / f"{role}-key.pem"
    missing = [str(file) for file in files.values() if not file.exists()]
    if missing or "tls_client_cert" not in files:
        raise ClusterError(
            f"[cluster] tls = {str(folder)!r}: {', '.join(missing) or folder / 'client.pem'} is missing; "
            f"make certificates with `survey certs {folder}`"
        )
    return distributed.Security(require_encryption=True, **{name: str(f) for name, f in files.items()})


def _local(settings: ClusterSettings) -> Any:
    """Worker processes on this machine, on the loopback address."""
    return distributed.LocalCluster(
        n_workers=settings.workers or os.cpu_count() or 1,
        threads_per_worker=1,
        memory_limit=settings.memory_limit,
        dashboard_address=settings.dashboard,
        host="tls://127.0.0.1" if settings.tls else "127.0.0.1",
        security=security(settings),
        env=THREADS,
        preload=[*dask.config.get("distributed.worker.preload"), "survey.run.interrupts"],
        silence_logs=logging.CRITICAL,
    )


def _slurm(settings: ClusterSettings) -> Any:
    """One single-threaded worker a job, through dask-jobqueue; the scheduler lives in this process.

    Raises
    ------
    ClusterError
        If dask-jobqueue is not installed, or anybody on the network could send the scheduler code to run.
    """
    if settings.tls is None:
        raise ClusterError(
            "[cluster.slurm] needs certificates: its scheduler listens on the network and runs all it is "
            'sent; make them with `survey certs DIR` and give [cluster] tls = "DIR"'
        )
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ClusterError("[cluster.slurm] needs dask-jobqueue: pip install 'survey[slurm]'") from None
    asked = settings.slurm
    assert asked is not None
    secure = security(settings)
    encrypted: dict[str, Any] = {} if secure is None else {"security": secure, "protocol": "tls://"}
    cluster = SLURMCluster(
        queue=asked.partition,
        account=asked.account,
        walltime=asked.walltime,
        cores=asked.workers_per_job,
        processes=asked.workers_per_job,
        memory=asked.memory,
        interface=asked.interface,
        job_extra_directives=asked.directives,
        job_script_prologue=[*(f"export {k}={v}" for k, v in THREADS.items()), *asked.setup],
        log_directory=asked.logs,
        local_directory=asked.scratch,
        scheduler_options={"dashboard_address": settings.dashboard},
        **encrypted,
    )
    count = settings.workers or asked.workers_per_job
    # Not `scale`, which would never ask for a job again that was lost.
    cluster.adapt(minimum=count, maximum=count, interval="5s")
    return cluster
