"""Runs units of any stage: what is missing is submitted, what comes back is recorded."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from distributed import KilledWorker

from survey.config import Config
from survey.io.ledger import Lease, Ledger, LostLeaseError
from survey.io.store import Field
from survey.run.executor import Executor
from survey.run.progress import Failure, Progress, Silent, StoppedError, describe
from survey.run.tickets import Pace, Ticket, Tickets
from survey.run.turns import LostTurnError, forget_turns
from survey.run.worker import Holder, UnitReport, execute_batch, function_key, row_blocks
from survey.run.written import patch_written
from survey.stages.calibrated import outlook
from survey.stages.protocol import STAGES, Outlook, Unit

# Row blocks into which a unit is cut when its worker dies or runs out of memory, step by step.
SPLIT = 4
MAX_PARTS = 64
# Times that a unit is begun again because a cut-off worker began it after the one it was given to.
MAX_OVERTAKEN = 3
# Share of a worker's limit that a unit may be forecast to need beside what the process holds already.
MEMORY_SHARE = 0.7
WORKER_BASELINE = 440 * 2**20
# Packages, compiled kernels and a first tile take 490-580 MB, and Dask pauses a worker at 80 % of its limit.
LEAST_MEMORY = 700 * 2**20


@dataclass
class Engine:
    """Runs units on an executor, a window of them at a time, and records what comes back.

    Parameters
    ----------
    target : Field
        The field that is written.
    config : Config
        The run's settings.
    executor : Executor
        Where tasks run.
    progress : Progress
        Who watches.
    holder : tuple of str, optional
        Group and run of the lease without which workers write nothing.
    leases : sequence of Lease
        All that the run holds: it stops where one of them is lost.
    errors : list of exception
        What the units that failed raised.
    """

    target: Field
    config: Config
    executor: Executor
    progress: Progress = field(default_factory=Silent)
    holder: Holder | None = None
    leases: Sequence[Lease] = ()
    reports: list[UnitReport] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: int = 0
    _ledgers: dict[str, Ledger] = field(default_factory=dict)
    _tickets: Tickets = field(default_factory=Tickets)
    _suspects: deque[Ticket] = field(default_factory=deque)
    _pace: Pace = field(default_factory=Pace)
    _running: dict[int, tuple[Any, list[Ticket]]] = field(default_factory=dict)
    _done: dict[str, dict[str, UnitReport]] = field(default_factory=dict)
    _alert: str | None = None

    def ledger(self, stage: str) -> Ledger:
        """The ledger of a stage of this run's method, read once a run."""
        if stage not in self._ledgers:
            self._ledgers[stage] = self.target.ledger(ledger_name(stage, self.config.method))
        return self._ledgers[stage]

    def submit(
        self,
        stage: str,
        units: Iterable[tuple[Unit, str]],
        *,
        step: str = "apply",
        state: Any = None,
        state_of: Callable[[Unit], Any] | None = None,
        after: Callable[[Unit], list[Ticket]] = lambda unit: [],
        label: str | None = None,
        ledger: bool = True,
        note: Callable[[Unit], Mapping[str, Any]] = lambda unit: {},
    ) -> dict[str, Ticket]:
        """Take in the units whose data do not carry the wanted key; those that may start do.

        Parameters
        ----------
        units : iterable of (Unit, key)
            Units and the keys wanted.
        state : object
            What `combine` of an earlier stage gave; the same for all units, or
        state_of : callable (unit) -> object
            a state of each unit's own.
        after : callable (unit) -> list of tickets
            What must have ended before the unit may begin.
        ledger : bool
            Whether the unit's result stays in the store; False for passing results (partials).
        note : callable (unit) -> mapping
            What the ledger remembers of the unit besides its payload.

        Returns
        -------
        dict
            Unit name -> ticket, of those taken in.
        """
        label = label or stage
        pairs = list(units)
        todo = [p for p in pairs if not (ledger and self.ledger(stage).has(p[0].name, p[1]))]
        self.skipped += len(pairs) - len(todo)
        self.progress.start(label, len(pairs), len(pairs) - len(todo))
        if ledger:
            self.ledger(stage).invalidate(unit.name for unit, _ in todo)
        tickets = {}
        for unit, key in todo:
            own = state if state_of is None else state_of(unit)
            ticket = Ticket(
                stage, step, unit, key, label, own, ledger, note(unit), self._parts(stage, step, unit)
            )
            if (beyond := self._beyond(ticket)) is not None:
                ticket.status = "failed"
                self._give_up(ticket, beyond)
            elif (failed := self._tickets.add(ticket, after(unit))) is not None:
                self._give_up(ticket, f"needs {failed.name}, which failed")
            tickets[unit.name] = ticket
        self._fill()
        return tickets

    def warn(self, text: str) -> None:
        """Something that the run goes on with, told and kept for its summary, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.message(text)

    def skip(self, count: int) -> None:
        """Count units that were found done without being submitted."""
        self.skipped += count

    def _parts(self, stage: str, step: str, unit: Unit) -> int:
        """Row blocks in which a unit fits into the smallest worker."""
        found, limit = STAGES[stage], self.executor.worker_memory
        if limit is None or found.merge is None or found.memory is None or step != "apply":
            return 1
        share = MEMORY_SHARE * max(limit - WORKER_BASELINE, 0.1 * limit)
        parts = 1
        while (
            parts < MAX_PARTS and found.memory(row_blocks(unit, parts)[0], self._outlook, self.config) > share
        ):
            parts *= SPLIT
        return parts

    def _beyond(self, ticket: Ticket) -> str | None:
        """Why no worker could do a unit, where its forecast exceeds the whole limit of the smallest."""
        found, limit = STAGES[ticket.stage].memory, self.executor.worker_memory
        if found is None or limit is None:
            return None
        part = row_blocks(ticket.unit, ticket.parts)[0]
        needed = found(part, self._outlook, self.config)
        if needed <= limit:
            return None
        return (
            f"would take {needed / 2**20:.0f} MiB, and the smallest worker holds {limit / 2**20:.0f}: give "
            "workers more memory, or the field a smaller [grid] tile or time_block"
        )

    @cached_property
    def _outlook(self) -> Outlook:
        if not self.target.has_table("frames"):
            return Outlook(0)
        return outlook(self.target, self.config.subtraction.template)

    @cached_property
    def _sent_config(self) -> Config:
        """Settings as workers get them: where the work runs is none of their business."""
        return self.config.model_copy(update={"cluster": type(self.config.cluster)()})

    def _fill(self) -> None:
        """Hand calls to the executor until its window is full; suspects last, one by one."""
        while len(self._running) < self.executor.window:
            label, workers = self._tickets.next_label, self.executor.n_workers
            size = self._pace.batch(label, self._tickets.open, workers)
            batch = self._tickets.batch(size)
            if not batch:
                break
            self._start(batch)
        if self._suspects and not self._running:
            self._start([self._suspects.popleft()])

    def _start(self, batch: list[Ticket]) -> None:
        first = batch[0]
        call = self.executor.submit(
            execute_batch,
            str(self.target.path),
            first.stage,
            first.step,
            self._sent_config,
            [(ticket.unit, ticket.state, ticket.key, ticket.parts) for ticket in batch],
            self.holder,
            name=f"{first.label}-{first.unit.name}",
        )
        self._running[id(call)] = call, batch
        self.executor.watch(call)

    def collect(self) -> dict[str, dict[str, UnitReport]]:
        """Wait for everything submitted; returns label -> unit -> report.

        Failed units are in `failures`, with their reasons, and the rest goes on without them.

        Raises
        ------
        ClusterError
            If the cluster is lost.
        StoppedError
            If nothing more can be written.
        """
        try:
            self._drain()
            self._flush()
            # What comes next is often written by the caller.
            self._check_leases(closely=True)
        except BaseException as error:
            self.executor.cancel(call for call, _ in self._running.values())
            self._running.clear()
            self._suspects.clear()
            self._tickets.clear()
            with suppress(OSError):  # on a full disk: what is not recorded is done again
                self._flush()
            if isinstance(error, OSError):
                raise StoppedError(
                    f"{describe(error)}; mend that at {self.target.path} and run again to resume"
                ) from error
            raise
        done, self._done = self._done, {}
        return done

    def _drain(self) -> None:
        while self._tickets.open:
            for call, results, error in self.executor.ended(1.0):
                batch = self._running.pop(id(call))[1]
                for ticket, result in zip(batch, results or [error] * len(batch), strict=True):
                    if isinstance(result, UnitReport):
                        self._record(ticket, result)
                    else:
                        self._failed(ticket, result)
            self._check_leases()
            self._fill()
            self._tell()

    def _check_leases(self, *, closely: bool = False) -> None:
        try:
            for lease in self.leases:
                lease.check(closely=closely)
        except LostLeaseError as error:
            self._stop(error)

    def _stop(self, lost: LostLeaseError) -> None:
        raise StoppedError(f"{describe(lost)}; see who runs with `survey status {self.target.path}`")

    def _flush(self) -> None:
        for ledger in self._ledgers.values():
            ledger.flush()

    def _tell(self) -> None:
        """Pass on what keeps the cluster from working, or soon will, once."""
        limit = self.executor.worker_memory
        if limit is not None and limit < LEAST_MEMORY:
            self.warn(
                f"workers of {limit / 2**20:.0f} MiB may be paused for good by the packages alone: give them "
                f"{LEAST_MEMORY / 2**20:.0f} MiB or more"
            )
        alert = self.executor.alert
        if alert and not self._alert:
            self.progress.message(alert)
        self._alert = alert

    def _record(self, ticket: Ticket, report: UnitReport) -> None:
        if ticket.step == "apply" and ticket.ledger:
            payload = {**report.payload, **ticket.note}
            # Data of earlier epochs, and what no window touched, stand as they were written.
            before = patch_written(payload.pop("written_before", ()), report.patched)
            payload["written"] = [*before, *report.written]
            self.ledger(ticket.stage).record(ticket.unit.name, ticket.key, payload)
        self._done.setdefault(ticket.label, {})[ticket.unit.name] = report
        # Partial results are the caller's; a run's record would hold them all to its end.
        self.reports.append(report if report.result is None else replace(report, result=None))
        self._pace.note(ticket.label, sum(report.seconds.values()))
        self._tickets.done(ticket)
        if ticket.alone:
            self._acquit(ticket)
        self.progress.advance(ticket.label, report)

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._give_up(ticket, describe(error))
            raise StoppedError(
                f"{ticket.name}: {describe(error)}; mend that at {self.target.path} and run again to resume"
            )
        if isinstance(error, LostLeaseError):
            self._give_up(ticket, describe(error))
            self._stop(error)
        if self._try_again(ticket, error):
            return
        for other, needed in self._tickets.fail(ticket):
            self._give_up(other, f"needs {needed.name}, which failed")
        self.errors.append(error)
        self._give_up(ticket, describe(error))

    def _try_again(self, ticket: Ticket, error: BaseException) -> bool:
        """Whether a unit that had no memory, whose worker died or lost its turn, gets another chance."""
        if isinstance(error, KilledWorker) and not ticket.alone:
            # It may only have stood beside the culprit; whose worker dies while nothing else runs is one.
            ticket.alone = True
            self._suspects.append(ticket)
            self.progress.message(f"{ticket.name}: {describe(error)}; again when it can be alone")
            return True
        if isinstance(error, LostTurnError) and ticket.overtaken < MAX_OVERTAKEN:
            # Who took the turn may be cut off: then what it writes is never recorded.
            ticket.overtaken += 1
            self._put_back(ticket, f"{describe(error)}; again")
            return True
        whole = ticket.step != "apply" or STAGES[ticket.stage].merge is None
        if not isinstance(error, MemoryError | KilledWorker) or whole or ticket.parts >= MAX_PARTS:
            return False
        ticket.parts *= SPLIT
        self._put_back(ticket, f"{describe(error)}; again in {ticket.parts} row blocks")
        return True

    def _put_back(self, ticket: Ticket, reason: str) -> None:
        self.progress.message(f"{ticket.name}: {reason}")
        if ticket.alone:
            self._suspects.appendleft(ticket)
        else:
            self._tickets.again(ticket)

    def _acquit(self, ticket: Ticket) -> None:
        """A suspect is done, in so many row blocks: those of its stage are let out to run so, together."""
        if ticket.parts == 1:
            return
        fellows = [other for other in self._suspects if other.stage == ticket.stage]
        for other in fellows:
            other.parts, other.alone = max(other.parts, ticket.parts), False
            self._suspects.remove(other)
            self._tickets.again(other)

    def _give_up(self, ticket: Ticket, reason: str) -> None:
        self.failures.append(Failure(ticket.label, ticket.unit.name, reason))
        self.progress.advance(ticket.label, None, failed=True)

    def payloads(self, stage: str, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """What the units' `apply` reported, in unit order, whether now or in an earlier run."""
        records = self.ledger(stage).records
        return [records[unit.name].payload for unit in units if unit.name in records]

    def finish(self) -> None:
        """Compact the ledgers that were written, and end whatever may still be under way somewhere."""
        for stage, ledger in self._ledgers.items():
            ledger.compact()
            forget_turns(self.target, f"{self.config.method}.{stage}")


# Stages whose results serve every method.
SHARED = frozenset({"place", "refine", "psf"})


def ledger_name(stage: str, method: str) -> str:
    """Name of a stage's ledger: a method's stages write groups of their own, a few serve all methods."""
    return stage if stage in SHARED else f"{method}.{stage}"


def stage_key(stage: str, config: Config, unit: str, inputs: Mapping[str, Any]) -> str:
    """Key of a unit: the stage's version and settings, its inputs' keys, the unit."""
    found = STAGES[stage]
    return function_key(stage, found.version, _plain(found.settings(config)), unit, dict(inputs))


def _plain(settings: Any) -> Any:
    return settings.model_dump(mode="json") if hasattr(settings, "model_dump") else settings
