"""Where tasks run: an embedded or remote Dask cluster, or this very thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import distributed

from survey.config import ClusterSettings

logger = logging.getLogger(__name__)

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ClusterError(RuntimeError):
    """A cluster that cannot be reached, or was lost on the way."""


class Executor(Protocol):
    """The little that a run asks of a cluster."""

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        """Start a call; arguments may be results of other calls."""

    def completed(self, futures: Iterable[Any]) -> Iterator[tuple[Any, Any, BaseException | None]]:
        """(future, result, error) as each call ends."""

    def cancel(self, futures: Iterable[Any]) -> None:
        """Give up what has not ended."""

    @property
    def dashboard(self) -> str | None:
        """Address where a person can watch."""

    @property
    def n_workers(self) -> int:
        """Threads of work."""


class _Call:
    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result = result
        self.error = error


class InlineExecutor:
    """Runs every call at once in the calling thread: for notebooks, debugging and tests."""

    dashboard: str | None = None
    n_workers = 1

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> _Call:
        """Call now; an error is kept for `completed`."""
        failed = next((arg for arg in args if isinstance(arg, _Call) and arg.error is not None), None)
        if failed is not None:
            return _Call(error=failed.error)
        try:
            return _Call(function(*(arg.result if isinstance(arg, _Call) else arg for arg in args)))
        except Exception as error:
            return _Call(error=error)

    def completed(self, futures: Iterable[_Call]) -> Iterator[tuple[_Call, Any, BaseException | None]]:
        """In the order they were submitted."""
        for call in futures:
            yield call, call.result, call.error
            call.result = None

    def cancel(self, futures: Iterable[_Call]) -> None:
        """Nothing to do: all calls have ended."""


class DaskExecutor:
    """Runs calls on a Dask cluster through plain futures."""

    def __init__(self, client: distributed.Client) -> None:
        self.client = client

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> distributed.Future:
        """Submit; futures among the arguments are dependencies."""
        return self.client.submit(function, *args, key=f"{name}-{os.urandom(4).hex()}", pure=False)

    def completed(
        self, futures: Iterable[distributed.Future]
    ) -> Iterator[tuple[distributed.Future, Any, BaseException | None]]:
        """As they end. A lost scheduler is an error here: Dask itself would just stop yielding."""
        waiting = list(futures)
        seen = 0
        for future in distributed.as_completed(waiting, loop=self.client.loop):
            seen += 1
            if future.status == "finished":
                try:
                    result = future.result()
                except OSError as error:
                    raise ClusterError(f"the cluster was lost ({error}); run again to resume") from None
                yield future, result, None
            elif future.status == "error":
                yield future, None, future.exception()
            else:
                raise ClusterError(f"the cluster was lost ({future.status}); run again to resume")
        if seen != len(waiting):
            raise ClusterError(
                f"the cluster was lost with {len(waiting) - seen} tasks under way; run again to resume"
            )

    def cancel(self, futures: Iterable[distributed.Future]) -> None:
        """Cancel what has not ended; a lost cluster has nothing left to cancel."""
        with suppress(OSError, RuntimeError, TimeoutError):
            self.client.cancel(list(futures))

    @property
    def dashboard(self) -> str | None:
        """The dashboard's link."""
        return self.client.dashboard_link or None

    @property
    def n_workers(self) -> int:
        """Threads over all workers."""
        return max(1, sum(self.client.nthreads().values()))


@contextmanager
def connect(settings: ClusterSettings, client: Any = None) -> Iterator[Executor]:
    """An executor for a run.

    Parameters
    ----------
    settings : ClusterSettings
        ``scheduler`` connects to a running cluster; otherwise one is started on this machine with a
        process a core and closed at the end.
    client : distributed.Client or "synchronous", optional
        A client to use instead; ``"synchronous"`` runs everything in this thread.

    Raises
    ------
    ClusterError
        If the scheduler does not answer.
    """
    if client == "synchronous":
        yield InlineExecutor()
        return
    if client is not None:
        yield DaskExecutor(client)
        return
    if settings.scheduler:
        try:
            remote = distributed.Client(settings.scheduler, timeout="15s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {settings.scheduler} ({error}); "
                "start one with `dask scheduler`, or leave --scheduler out"
            ) from None
        with remote:
            yield DaskExecutor(remote)
        return
    with (
        distributed.LocalCluster(
            n_workers=settings.workers or os.cpu_count() or 1,
            threads_per_worker=1,
            memory_limit=settings.memory_limit,
            dashboard_address=settings.dashboard,
            host="127.0.0.1",
            env=THREADS,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as local,
    ):
        yield DaskExecutor(local)
