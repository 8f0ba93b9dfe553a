"""One function called on many items, on the cluster, without a ledger: the result is the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from distributed import KilledWorker
from threadpoolctl import threadpool_limits

from survey.run.executor import Executor
from survey.run.memory import kept_memory, peak, reset_peak, resident
from survey.run.progress import Progress, describe
from survey.run.worker import UnitReport

# What says nothing of the item itself: its worker died or had no memory, the storage did not answer.
OF_THE_MACHINE = (KilledWorker, MemoryError, OSError)


def map_calls(
    executor: Executor,
    function: Callable[..., Any],
    items: Sequence[Any],
    progress: Progress,
    label: str,
    *args: Any,
    reports: list[UnitReport] | None = None,
) -> list[Any]:
    """Call a function on every item; results, or the exceptions they raised, in order.

    What failed for a reason that is the machine's is tried once more, while nothing else runs: it may only
    have stood beside the culprit.

    Parameters
    ----------
    label : str
        What the calls are to who watches, and the stage of their reports.
    reports : list of UnitReport, optional
        Gets one of each call that succeeded: what it took.
    """
    progress.start(label, len(items), 0)
    results: list[Any] = [None] * len(items)

    def ask(numbers: Sequence[int]) -> None:
        futures = [
            executor.submit(_call, function, label, _name(items[i], i), items[i], *args, name=label)
            for i in numbers
        ]
        place_of = {getattr(f, "key", id(f)): i for f, i in zip(futures, numbers, strict=True)}
        try:
            for future, found, error in executor.completed(futures):
                i = place_of[getattr(future, "key", id(future))]
                results[i] = found if error is None else error
                if not isinstance(error, OF_THE_MACHINE):
                    progress.advance(label, None, failed=error is not None)
        except BaseException:
            executor.cancel(futures)
            raise

    ask(range(len(items)))
    for i, error in [(i, r) for i, r in enumerate(results) if isinstance(r, OF_THE_MACHINE)]:
        progress.message(f"{label} of {_name(items[i], i)}: {describe(error)}; again, alone")
        ask([i])
        if isinstance(results[i], OF_THE_MACHINE):
            progress.advance(label, None, failed=True)
    good = [i for i, result in enumerate(results) if not isinstance(result, BaseException)]
    for i in good:
        results[i], report = results[i]
        if reports is not None:
            reports.append(report)
    return results


def _name(item: Any, number: int) -> str:
    """A frame's or a tile's own name, else its number."""
    return str(getattr(item, "frame_id", None) or getattr(item, "name", None) or f"{number:05d}")


def _call(function: Callable[..., Any], label: str, name: str, *args: Any) -> tuple[Any, UnitReport]:
    report = UnitReport(label, "apply", name, "", baseline_memory=resident())
    reset_peak()
    started = time.perf_counter()
    # One core a worker, whatever the environment says; units see to it themselves.
    with threadpool_limits(1), kept_memory():
        result = function(*args)
    report.seconds = {"read": 0.0, "compute": time.perf_counter() - started, "write": 0.0}
    report.peak_memory = peak()
    return result, report
