"""Runs units of any stage: what is missing is submitted, what comes back is recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from survey.config import Config
from survey.io.ledger import Ledger
from survey.io.store import Field
from survey.run.executor import Executor
from survey.run.worker import UnitReport, execute, function_key
from survey.stages.protocol import STAGES, Unit

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """What a run tells whoever watches; see `survey.progress` for the terminal's bar."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins; ``done`` of its ``total`` units were there already."""

    def advance(self, stage: str, report: UnitReport | None, failed: bool = False) -> None:
        """One more unit ended."""

    def message(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """No progress shown."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Ignore."""

    def advance(self, stage: str, report: UnitReport | None, failed: bool = False) -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Log it."""
        logger.info(text)


@dataclass
class Failure:
    """A unit that could not be done, and why."""

    stage: str
    unit: str
    reason: str


@dataclass
class _Job:
    stage: str
    step: str
    unit: Unit
    key: str
    label: str
    future: Any = None
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Engine:
    """Submits units and records what comes back.

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
    """

    target: Field
    config: Config
    executor: Executor
    progress: Progress = field(default_factory=Silent)
    reports: list[UnitReport] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: int = 0
    _ledgers: dict[str, Ledger] = field(default_factory=dict)
    _jobs: list[_Job] = field(default_factory=list)

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
        after: Callable[[Unit], list[Any]] = lambda unit: [],
        label: str | None = None,
        ledger: bool = True,
        note: Callable[[Unit], Mapping[str, Any]] = lambda unit: {},
    ) -> dict[str, Any]:
        """Submit the units whose data do not carry the wanted key.

        Parameters
        ----------
        units : iterable of (Unit, key)
            Units and the keys wanted.
        state : object
            What `combine` of an earlier stage gave; the same for all units, or
        state_of : callable (unit) -> object
            a state of each unit's own.
        after : callable (unit) -> list of futures
            What must have ended before the unit may begin.
        ledger : bool
            Whether the unit's result stays in the store; False for passing results (partials).
        note : callable (unit) -> mapping
            What the ledger remembers of the unit besides its payload.

        Returns
        -------
        dict
            Unit name -> future, of those submitted.
        """
        label = label or stage
        pairs = list(units)
        todo = [p for p in pairs if not (ledger and self.ledger(stage).has(p[0].name, p[1]))]
        self.skipped += len(pairs) - len(todo)
        self.progress.start(label, len(pairs), len(pairs) - len(todo))
        if ledger:
            self.ledger(stage).invalidate(unit.name for unit, _ in todo)
        config = self.config.model_copy(update={"cluster": type(self.config.cluster)()})
        futures = {}
        for unit, key in todo:
            future = self.executor.submit(
                execute,
                str(self.target.path),
                stage,
                step,
                unit,
                config,
                state if state_of is None else state_of(unit),
                key,
                *after(unit),
                name=f"{label}-{unit.name}",
            )
            self._jobs.append(
                _Job(stage, step if ledger else "partial", unit, key, label, future, note(unit))
            )
            futures[unit.name] = future
        return futures

    def skip(self, count: int) -> None:
        """Count units that were found done without being submitted."""
        self.skipped += count

    def collect(self) -> dict[str, dict[str, UnitReport]]:
        """Wait for everything submitted; returns stage -> unit -> report.

        Failed units are in `failures`, with their reasons, and the rest goes on without them.
        """
        jobs, self._jobs = {id(job.future): job for job in self._jobs}, []
        done: dict[str, dict[str, UnitReport]] = {}
        pending = dict(jobs)
        by_key = {getattr(job.future, "key", id(job.future)): job for job in jobs.values()}
        try:
            for future, report, error in self.executor.completed([job.future for job in jobs.values()]):
                job = by_key[getattr(future, "key", id(future))]
                pending.pop(id(job.future), None)
                if error is not None:
                    self.failures.append(
                        Failure(job.label, job.unit.name, f"{type(error).__name__}: {error}")
                    )
                    self.progress.advance(job.label, None, failed=True)
                    continue
                if job.step == "apply":
                    payload = {**report.payload, **job.note, "checksum": report.checksum}
                    self.ledger(job.stage).record(job.unit.name, job.key, payload)
                done.setdefault(job.label, {})[job.unit.name] = report
                self.reports.append(report)
                self.progress.advance(job.label, report)
        except BaseException:
            self.executor.cancel(job.future for job in pending.values())
            raise
        finally:
            for ledger in self._ledgers.values():
                ledger.flush()
        return done

    def payloads(self, stage: str, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """What the units' `apply` reported, in unit order, whether now or in an earlier run."""
        records = self.ledger(stage).records
        return [records[unit.name].payload for unit in units if unit.name in records]

    def finish(self) -> None:
        """Compact the ledgers that were written."""
        for ledger in self._ledgers.values():
            ledger.compact()


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
