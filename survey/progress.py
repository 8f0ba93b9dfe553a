"""The progress of a run on the terminal: stage, units, rate, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


class TerminalProgress:
    """Bars on a terminal; a line a stage where the output is no terminal.

    A context manager that a run may be told about: ``run(path, progress=progress)``.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._counts: dict[str, list[int]] = {}
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[failed]}"),
            console=self.console,
        )

    def __enter__(self) -> TerminalProgress:
        if self.live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._bars.stop()
        sys.stderr.flush()

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins; ``done`` of its ``total`` units were there already."""
        self._started[stage] = time.monotonic()
        self._counts[stage] = [done, total, 0, done]
        if self.live:
            self._tasks[stage] = self._bars.add_task(
                stage, total=total, completed=done, rate="", failed="all there" if done == total else ""
            )
        elif done == total and total:
            self.console.print(f"{stage}: all {total} there already", highlight=False)

    def advance(self, stage: str, report: Any, failed: bool = False) -> None:
        """One more unit ended."""
        counts = self._counts[stage]
        counts[0] += 1
        counts[2] += failed
        elapsed = time.monotonic() - self._started[stage]
        rate = f"{(counts[0] - counts[3]) / max(elapsed, 1e-9):.1f}/s"
        if self.live:
            self._bars.update(
                self._tasks[stage],
                completed=counts[0],
                rate=rate,
                failed=f"{counts[2]} failed" if counts[2] else "",
            )
        elif counts[0] == counts[1]:
            bad = f", {counts[2]} failed" if counts[2] else ""
            self.console.print(f"{stage}: {counts[1]} in {elapsed:.1f} s{bad}", highlight=False)

    def message(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(text, highlight=False)
