"""Work that waits for other work: what may start now, and what can never start."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from survey.stages.protocol import Unit


@dataclass(eq=False)
class Ticket:
    """One step of one unit on its way through a run.

    Parameters
    ----------
    note : mapping
        What the ledger remembers of the unit besides its payload.
    parts : int
        Row blocks in which the unit is done; more than one where a whole one does not fit into memory.
    alone : bool
        Whether it runs while nothing else does, because its worker died.
    overtaken : int
        Times that another execution began after the one that was waited for.
    status : str
        ``waiting``, ``running``, ``done`` or ``failed``.
    """

    stage: str
    step: str
    unit: Unit
    key: str
    label: str
    state: Any = None
    ledger: bool = True
    note: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1
    alone: bool = False
    overtaken: int = 0
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    order: int = 0
    missing: int = 0
    dependents: list[Ticket] = field(default_factory=list)

    @property
    def kind(self) -> tuple[str, str, str]:
        """What units of one task have in common."""
        return self.stage, self.step, self.label

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.label} of {self.unit.name}"


# A task should last this long: handing one over and fetching its result takes some milliseconds.
TASK_SECONDS = 0.25
MAX_BATCH = 64
# Units after which a label's pace is believed.
ENOUGH = 16


class Pace:
    """How long the units of each label take, so that short ones are handed over in batches."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def note(self, label: str, seconds: float) -> None:
        """One more unit took so long."""
        known = self._seconds.setdefault(label, [0.0, 0.0])
        known[0] += 1
        known[1] += seconds

    def batch(self, label: str | None, waiting: int, workers: int) -> int:
        """Units that a task should hold; few enough that every worker still gets four tasks."""
        count, seconds = self._seconds.get(label or "", (0.0, 0.0))
        if count < ENOUGH:
            return 1
        wanted = TASK_SECONDS * count / max(seconds, 1e-9)
        return max(1, min(int(wanted), MAX_BATCH, waiting // (4 * workers)))


class Tickets:
    """Tickets in the order they were added, each once what it needs is done.

    Tickets that wait stay here: a cluster is handed only what can run.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[int, Ticket]] = []
        self._count = 0
        self.open = 0

    def add(self, ticket: Ticket, after: Iterable[Ticket]) -> Ticket | None:
        """Take a ticket in; returns a failed one that it needs, in which case it was not taken."""
        needed = list(after)
        failed = next((other for other in needed if other.status == "failed"), None)
        if failed is not None:
            ticket.status = "failed"
            return failed
        self._count += 1
        self.open += 1
        ticket.order = self._count
        for other in needed:
            if other.status != "done":
                ticket.missing += 1
                other.dependents.append(ticket)
        if not ticket.missing:
            heapq.heappush(self._ready, (ticket.order, ticket))
        return None

    def take(self) -> Ticket | None:
        """The first that may start; None if there is none."""
        if not self._ready:
            return None
        ticket = heapq.heappop(self._ready)[1]
        ticket.status = "running"
        return ticket

    def batch(self, size: int) -> list[Ticket]:
        """The first that may start, and those of its kind that follow it, at most so many in all."""
        found: list[Ticket] = []
        while len(found) < size and self._ready:
            head = self._ready[0][1]
            if found and (head.stage, head.step, head.label) != (
                found[0].stage,
                found[0].step,
                found[0].label,
            ):
                break
            ticket = self.take()
            assert ticket is not None
            found.append(ticket)
        return found

    @property
    def next_label(self) -> str | None:
        """Label of the first that may start."""
        return self._ready[0][1].label if self._ready else None

    def again(self, ticket: Ticket) -> None:
        """Put a ticket back that ran in vain."""
        ticket.status = "waiting"
        heapq.heappush(self._ready, (ticket.order, ticket))

    def done(self, ticket: Ticket) -> None:
        """Let go what waited for the ticket."""
        self.open -= 1
        ticket.status, ticket.state = "done", None
        for other in ticket.dependents:
            other.missing -= 1
            if other.status == "waiting" and not other.missing:
                heapq.heappush(self._ready, (other.order, other))
        ticket.dependents = []

    def fail(self, ticket: Ticket) -> Iterator[tuple[Ticket, Ticket]]:
        """Give a ticket up; yields every other that can never start, with the one it needed."""
        self.open -= 1
        ticket.status, ticket.state = "failed", None
        for other in ticket.dependents:
            if other.status == "waiting":
                yield other, ticket
                yield from self.fail(other)
        ticket.dependents = []

    def clear(self) -> None:
        """Forget all that wait: the run ends."""
        self._ready.clear()
        self.open = 0
