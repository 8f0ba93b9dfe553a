"""What a run tells whoever watches, and what it says of units that could not be done."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import Protocol

from distributed import KilledWorker

from survey.run.worker import UnitReport

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


class StoppedError(RuntimeError):
    """A run that cannot go on anywhere; what was done is recorded."""


def describe(error: BaseException) -> str:
    """One line about an error: what it is, and where it struck."""
    if isinstance(error, KilledWorker):
        return "its worker died every time (killed, or over its memory limit)"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}{where}"
