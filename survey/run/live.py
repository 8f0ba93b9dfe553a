"""What a run under way says of itself, and what others may tell it: two small files in the run's folder."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from types import TracebackType
from typing import Any

from survey.config import SlurmSettings
from survey.io.files import write_json
from survey.io.ledger import process_lives, this_process
from survey.io.locations import Location, folders, locate
from survey.io.objects import ObjectPath
from survey.run.worker import UnitReport

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
# Every word to an object store is a request that is paid for.
OBJECT_BEAT_SECONDS = 3.0
# Seconds a driver may take to import everything and say its first word.
START_SECONDS = 60.0


class LiveProgress:
    """Keeps ``live.json`` of a run's folder current, and interrupts the run when ``cancel`` appears there.

    A context manager that a run may be told about: ``run(path, progress=progress)``. Its thread beats once a
    second whatever the run is doing; the interruption is a SIGINT to the main thread, as from a keyboard.
    """

    def __init__(self, folder: str | Location) -> None:
        self.folder = locate(folder)
        self.cancelled = False
        self.state = "running"
        self._stages: dict[str, dict[str, Any]] = {}
        self._said = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> LiveProgress:
        self.write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.write()

    def _beat(self) -> None:
        pause = OBJECT_BEAT_SECONDS if isinstance(self.folder, ObjectPath) else BEAT_SECONDS
        while not self._stop.wait(pause):
            try:
                self.write()
                if not self.cancelled and (self.folder / "cancel").is_file():
                    self.cancelled = True
                    logger.info("cancelled on request")
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            except OSError as error:
                logger.warning("the run's folder cannot be written: %s", error)

    def write(self) -> None:
        """Write the file now."""
        stages = [{"stage": name, **counts} for name, counts in list(self._stages.items())]
        state = {"state": self.state, **this_process(), "stages": stages, "message": self._said}
        write_json(self.folder / "live.json", state)

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins; ``done`` of its ``total`` units were there already."""
        logger.info("%s: %d units, %d there already", stage, total, done)
        self._stages[stage] = {"total": total, "done": done, "failed": 0, "began": time.time()}

    def advance(self, stage: str, report: UnitReport | None, failed: bool = False) -> None:
        """One more unit ended."""
        counts = self._stages[stage]
        counts["failed" if failed else "done"] += 1
        if counts["done"] + counts["failed"] == counts["total"]:
            took = time.time() - counts["began"]
            logger.info("%s: %d done, %d failed, %.1f s", stage, counts["done"], counts["failed"], took)

    def message(self, text: str) -> None:
        """Something worth a line."""
        logger.info(text)
        self._said = text


def run_states(field: str | Location) -> list[dict[str, Any]]:
    """Every run of a field, oldest first: ``run_id``, ``state`` and what is known of each.

    What a submitted run says of itself while it goes on is in ``live``.

    States: ``starting``, ``running``; ``done``, ``failed``, ``interrupted``, ``cancelled``; ``lost`` for
    a run whose process is gone without a last word.
    """
    return [run_state(folder) for folder in folders(locate(field) / "runs")]


def run_state(folder: str | Location) -> dict[str, Any]:
    """One run, as `run_states` describes it."""
    folder = locate(folder)
    job, live, record = (_load(folder / f"{name}.json") for name in ("job", "live", "run"))
    found = {"run_id": folder.name, **job, **record, "live": live}
    slurm = (found.get("settings", {}).get("cluster") or {}).get("slurm") or {}
    for name in SlurmSettings.PRIVATE:  # of records of earlier versions
        slurm.pop(name, None)
    ended = record.get("status", "running")
    if live.get("state", "running") != "running":
        found["state"] = live["state"]
    elif live and process_lives(live):
        found["state"] = "running"
    elif ended != "running":
        found["state"] = ended
    else:
        fresh = not live and time.time() - job.get("submitted", 0.0) < START_SECONDS
        found["state"] = "starting" if fresh else "lost"
    return found


def _load(file: Location) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found


class RunError(ValueError):
    """A run that is not there, or cannot be cancelled."""


def find_run(field: str | Location, run_id: str | None = None) -> Location:
    """Folder of a run, by the beginning of its id; the latest submitted where none is given.

    Raises
    ------
    RunError
        If there is none, or the beginning fits several.
    """
    found = [p for p in folders(locate(field) / "runs") if p.name.startswith(run_id or "")]
    if run_id is None:
        found = [p for p in found if (p / "job.json").exists()][-1:]
    if len(found) != 1:
        what = f"run {run_id!r}" if run_id else "submitted run"
        names = ", ".join(p.name for p in found) or "none"
        raise RunError(f"{field}: {what}: {names} found; `survey status {field}` lists the runs")
    return found[0]


def cancel(field: str | Location, run_id: str | None = None, *, wait: float = 30.0) -> dict[str, Any]:
    """Ask a submitted run to stop, and wait for it; what it did is kept.

    Returns
    -------
    dict
        Its state after that, see `run_states`.

    Raises
    ------
    RunError
        If there is no such run, or it has ended.
    """
    folder = find_run(field, run_id)
    found = run_state(folder)
    if found["state"] not in ("starting", "running"):
        raise RunError(f"run {folder.name} is {found['state']}: nothing to cancel")
    if not (folder / "job.json").exists():
        raise RunError(f"run {folder.name} was not submitted: press Ctrl-C where it runs")
    write_json(folder / "cancel", {"from": socket.gethostname(), "at": time.time()})
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and found["state"] in ("starting", "running"):
        time.sleep(0.2)
        found = run_state(folder)
    return found
