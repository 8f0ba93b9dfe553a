"""The process that sees a submitted run to its end: ``python -m survey.driver RUN_FOLDER [SCHEDULER]``."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from survey.config import make_config
from survey.io.locations import Location, locate, write_atomic
from survey.io.objects import ObjectPath
from survey.run.api import run
from survey.run.clusters import ClusterError, remote_client
from survey.run.live import OBJECT_BEAT_SECONDS, LiveProgress
from survey.run.record import RUN_ID, RunSummary
from survey.run.submit import read_job, take_private

logger = logging.getLogger("survey.driver")

# A scheduler that a supervisor starts again gets its run back.
ATTEMPTS = 5
PATIENCE_SECONDS = 120.0


def main(folder: str, scheduler: str | None = None) -> int:
    """Run what ``job.json`` of the folder asks for; exit status 0 only if all of it was done."""
    _log_to(locate(folder) / "log.txt")
    # A script's background jobs ignore SIGINT, and so does what they start: a cancelled run would go on.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    job = read_job(folder)
    RUN_ID.set(job["run_id"])
    config = make_config(job["settings"], source=f"{folder}/job.json")
    take_private(config)
    if scheduler:
        # Beside the scheduler its own certificates serve, which the environment names.
        config.cluster.scheduler, config.cluster.tls = scheduler, None
    elif config.cluster.scheduler is None:
        logger.info("no scheduler given: workers are started for this run")
    with LiveProgress(folder) as progress:
        try:
            summary = _run(job, config, progress)
            if summary.ok and job["report"]:
                from survey.report import write_report

                logger.info("report: %s", write_report(job["field"], config.method))
            progress.state = summary.status
        except KeyboardInterrupt:
            progress.state = "cancelled" if progress.cancelled else "interrupted"
            logger.info("%s; what was done is kept: submit again to resume", progress.state)
            return 130
        except Exception as error:
            progress.state = "failed"
            logger.error("failed: %s: %s", type(error).__name__, error)
            return 1
    for failure in summary.failures:
        logger.error("failed %s %s: %s", failure.stage, failure.unit, failure.reason)
    logger.info("%s: %d events, %d units computed", summary.status, summary.events, summary.computed)
    return 0 if summary.ok else 1


def _run(job: dict[str, Any], config: Any, progress: LiveProgress) -> RunSummary:
    """Run, and once more whenever a lost scheduler is there again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run(
                job["field"],
                config,
                progress=progress,
                frames=job["frames"],
                strict=job["strict"],
                rebuild=job["rebuild"],
            )
        except ClusterError as error:
            if attempt == ATTEMPTS or not config.cluster.scheduler:
                raise
            progress.message(f"{error}; waiting up to {PATIENCE_SECONDS:.0f} s for a scheduler")
            _wait_for_scheduler(config)
    raise AssertionError


def _wait_for_scheduler(config: Any) -> None:
    """Return when the scheduler answers.

    Raises
    ------
    ClusterError
        If it does not in time.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with remote_client(config.cluster.scheduler, config.cluster, timeout=5.0):
                return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


class ObjectLog(logging.StreamHandler[io.StringIO]):
    """A log in an object store: written again as a whole where it grew, once in some seconds."""

    def __init__(self, place: Location) -> None:
        super().__init__(io.StringIO())
        self.place = place
        self._written = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(OBJECT_BEAT_SECONDS):
            self._put()

    def _put(self) -> None:
        text = self.stream.getvalue()
        if len(text) > self._written:
            # Said on the next beat; a log that cannot be written cannot say so.
            with suppress(OSError):
                write_atomic(self.place, text.encode())
                self._written = len(text)

    def close(self) -> None:
        """Write what is left."""
        self._stop.set()
        self._thread.join()
        self._put()
        super().close()


def _log_to(file: Location) -> None:
    handler = ObjectLog(file) if isinstance(file, ObjectPath) else logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("survey").setLevel(logging.INFO)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
