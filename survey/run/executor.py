"""Where tasks run: an embedded or remote Dask cluster, or this very thread."""

from __future__ import annotations

import logging
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import distributed

from survey.config import ClusterSettings
from survey.run.clusters import ClusterError, cluster_client

logger = logging.getLogger(__name__)

# Calls handed to a cluster ahead of those that run: enough to hide the way there and back.
WINDOW = 64
WINDOW_A_WORKER = 4
# Seconds between looks at whether the cluster is still there.
LOOK_SECONDS = 1.0
# Seconds without any worker after which a person is told.
LONELY_SECONDS = 20.0
# Seconds for which all workers are paused and none computes, after which nothing will free their memory.
STUCK_SECONDS = 120.0

Outcome = tuple[Any, Any, BaseException | None]


class Executor(Protocol):
    """The little that a run asks of a cluster."""

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> Any:
        """Start a call."""

    def share(self, value: Any) -> Any:
        """What stands for a large value among the arguments of many calls."""

    def watch(self, call: Any) -> None:
        """Have `ended` report the call."""

    def ended(self, timeout: float) -> list[Outcome]:
        """(call, result, error) of watched calls that ended; waits for the first of them, at most so long."""

    def completed(self, calls: Iterable[Any]) -> Iterator[Outcome]:
        """(call, result, error) of these calls as each ends."""

    def cancel(self, calls: Iterable[Any]) -> None:
        """Give up what has not ended."""

    @property
    def window(self) -> int:
        """Calls that should be under way at a time."""

    @property
    def worker_memory(self) -> int | None:
        """Bytes of the smallest worker's limit; None without a limit."""

    @property
    def alert(self) -> str | None:
        """What keeps the calls from running, if something does."""

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
    alert: str | None = None
    worker_memory: int | None = None
    n_workers = 1
    window = 1

    def __init__(self) -> None:
        self._ended: deque[_Call] = deque()

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> _Call:
        """Call now; an error is kept."""
        try:
            return _Call(function(*args))
        except Exception as error:
            return _Call(error=error)

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def watch(self, call: _Call) -> None:
        """It has ended already."""
        self._ended.append(call)

    def ended(self, timeout: float) -> list[Outcome]:
        """All that is watched."""
        found: list[Outcome] = [(call, call.result, call.error) for call in self._ended]
        self._ended.clear()
        return found

    def completed(self, calls: Iterable[_Call]) -> Iterator[Outcome]:
        """In the order they were submitted."""
        for call in calls:
            yield call, call.result, call.error
            call.result = None

    def cancel(self, calls: Iterable[_Call]) -> None:
        """Nothing to do: all calls have ended."""


class DaskExecutor:
    """Runs calls on a Dask cluster through plain futures.

    Notes
    -----
    Futures report through callbacks into a queue. `distributed.as_completed` would end without a word when
    the scheduler is lost; a queue can be looked at with a timeout, and fed while it is read.
    """

    def __init__(self, client: distributed.Client) -> None:
        self.client = client
        self._queue: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()
        self._workers: list[tuple[int, int]] = []
        self._looked = self._seen = time.monotonic()
        self._still: float | None = None  # since when every worker stands still
        self._look()

    def submit(self, function: Callable[..., Any], *args: Any, name: str) -> distributed.Future:
        """Submit under a name of its own: two runs never share a task."""
        return self.client.submit(function, *args, key=f"{name}-{os.urandom(4).hex()}", pure=False)

    def share(self, value: Any) -> distributed.Future:
        """On every worker, so that the loss of one loses nothing."""
        return self.client.scatter(value, broadcast=True, hash=False)

    def watch(self, call: distributed.Future) -> None:
        """Have the future put itself into the queue."""
        call.add_done_callback(self._queue.put)

    def ended(self, timeout: float) -> list[Outcome]:
        """Take what has ended out of the queue, results in one message.

        Raises
        ------
        ClusterError
            If the scheduler is lost, or every worker is paused for good.
        """
        found: list[distributed.Future] = []
        with suppress(queue.Empty):
            found.append(self._queue.get(timeout=timeout))
            while True:
                found.append(self._queue.get_nowait())
        if not found and self.client.status not in ("running", "newly-created"):
            raise ClusterError(f"the cluster was lost (client {self.client.status}); run again to resume")
        if time.monotonic() - self._looked > 5 * LOOK_SECONDS:
            self._look()
            self._check_stuck()
        return self._outcomes(found)

    def _check_stuck(self) -> None:
        """A paused worker that computes may be freed by what ends; one that does not stays as it is."""
        still = None if self._still is None else time.monotonic() - self._still
        if still is not None and still > STUCK_SECONDS:
            raise ClusterError(
                f"{self._paused(still)}; none of them computes any more. Start workers with more memory "
                "and run again to resume"
            )

    def _outcomes(self, futures: list[distributed.Future]) -> list[Outcome]:
        for future in futures:
            if future.status == "cancelled":
                raise ClusterError("the cluster was lost; run again to resume")
        for future in futures:
            if future.status in ("lost", "pending"):
                # The worker that held the result died before it was fetched: it will end once more.
                self.watch(future)
        futures = [future for future in futures if future.status in ("finished", "error")]
        good = [future for future in futures if future.status == "finished"]
        try:
            results = dict(zip((f.key for f in good), self.client.gather(good), strict=True)) if good else {}
            return [
                (f, results[f.key], None) if f.key in results else (f, None, f.exception(timeout=10))
                for f in futures
            ]
        except (OSError, TimeoutError, distributed.CancelledError) as error:
            raise ClusterError(f"the cluster was lost ({error}); run again to resume") from None

    def _look(self) -> None:
        """Ask which workers there are; an unanswered question is left to `ended`."""
        self._looked = time.monotonic()
        with suppress(OSError, TimeoutError, ValueError):
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
            self._workers = [(int(w["nthreads"]), int(w["memory_limit"] or 0)) for w in workers]
            if any(w["status"] == "running" for w in workers):
                self._seen = self._looked
            # without any worker one is waited for, however long
            if not workers or not all(_stands_still(worker) for worker in workers):
                self._still = None
            elif self._still is None:
                self._still = self._looked

    def completed(self, calls: Iterable[distributed.Future]) -> Iterator[Outcome]:
        """As they end; see `ended`."""
        waiting = {id(call): call for call in calls}
        for call in waiting.values():
            self.watch(call)
        while waiting:
            for outcome in self.ended(LOOK_SECONDS):
                if waiting.pop(id(outcome[0]), None) is not None:
                    yield outcome

    def cancel(self, calls: Iterable[distributed.Future]) -> None:
        """Cancel what has not ended; a lost cluster has nothing left to cancel."""
        with suppress(OSError, RuntimeError, TimeoutError):
            self.client.cancel(list(calls))

    @property
    def window(self) -> int:
        """Some calls, and more for every worker: a scheduler holds these and no others."""
        return WINDOW + WINDOW_A_WORKER * self.n_workers

    @property
    def worker_memory(self) -> int | None:
        """The smallest limit; None where no worker has one."""
        limits = [limit for _, limit in self._workers if limit]
        return min(limits) if limits else None

    @property
    def alert(self) -> str | None:
        """That no worker works, for how long, and why."""
        lonely = time.monotonic() - self._seen
        if lonely < LONELY_SECONDS:
            return None
        if self._workers:
            return f"{self._paused(lonely)}; start more, with more of it: the run goes on then"
        return f"no worker has been connected for {lonely:.0f} s; waiting for one"

    def _paused(self, seconds: float) -> str:
        limit = (self.worker_memory or 0) / 2**20
        return (
            f"all workers have been paused for {seconds:.0f} s: 80 % of their memory limit ({limit:.0f} MiB) "
            "is taken"
        )

    @property
    def dashboard(self) -> str | None:
        """The dashboard's link."""
        return self.client.dashboard_link or None

    @property
    def n_workers(self) -> int:
        """Threads over all workers."""
        return max(1, sum(threads for threads, _ in self._workers))


def _stands_still(worker: dict[str, Any]) -> bool:
    """Whether a worker is paused, and computes nothing whose end would give memory back."""
    counts = worker["metrics"].get("task_counts", {})
    return bool(worker["status"] == "paused" and not counts.get("executing"))


@contextmanager
def connect(settings: ClusterSettings, client: Any = None) -> Iterator[Executor]:
    """An executor for a run.

    Parameters
    ----------
    settings : ClusterSettings
        ``scheduler`` connects to a running cluster, ``slurm`` starts one as jobs; otherwise one is started on
        this machine with a process a core. What was started is closed at the end.
    client : distributed.Client or "synchronous", optional
        A client to use instead; ``"synchronous"`` runs everything in this thread.

    Raises
    ------
    ClusterError
        If the scheduler does not answer.
    """
    if client == "synchronous":
        yield InlineExecutor()
    elif client is not None:
        yield DaskExecutor(client)
    else:
        with cluster_client(settings) as made:
            yield DaskExecutor(made)
