"""Which key each unit's data carry now, and who may write.

A ledger is a folder of small JSON-lines segments, each written once and whole; reading folds them in
order. Many records share a segment, and a finished run compacts them to one, so that 100,000 units do
not mean 100,000 objects.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from survey.io.locations import Location, changed, create, files, remove_files, replace, sync, write_atomic

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
# Times that a ledger is looked at anew which somebody compacts just then.
ATTEMPTS = 20


class FieldBusyError(RuntimeError):
    """Another run is writing what this one wants to write."""


@dataclass
class Record:
    """What is known of one unit: the key of its data and what the unit reported."""

    key: str
    payload: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Records of the units of one stage.

    Parameters
    ----------
    directory : Location
        Folder of the segments; made when the first one is written.

    Notes
    -----
    The order of writing is: invalidate, data, record. A unit without a record, or whose record has
    another key than wanted, is computed again. Data are on the disk before they are recorded, as far as
    this host wrote them: one that loses power loses no more than the records of its last second.
    """

    def __init__(self, directory: Location) -> None:
        self.directory = directory
        self.records: dict[str, Record] = {}
        self._struck: set[str] = set()
        self._pending: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        # Segments that this object has read or written, by name: it answers for no other.
        self._segments, texts = _read_segments(directory)
        for text in texts:
            for line in text.splitlines():
                self._fold(json.loads(line))

    def _fold(self, entry: dict[str, Any]) -> None:
        if entry["key"] is None:
            self.records.pop(entry["unit"], None)
            self._struck.add(entry["unit"])
        else:
            self.records[entry["unit"]] = Record(entry["key"], entry.get("payload", {}))
            self._struck.discard(entry["unit"])

    def has(self, unit: str, key: str) -> bool:
        """Whether the unit's data carry this key."""
        record = self.records.get(unit)
        return record is not None and record.key == key

    def invalidate(self, units: Iterable[str]) -> None:
        """Say, on disk and before any data are touched, that these units' data cannot be trusted."""
        known = [unit for unit in units if unit in self.records]
        self._pending += [{"unit": unit, "key": None} for unit in known]
        for unit in known:
            del self.records[unit]
            self._struck.add(unit)
        self.flush()

    def record(self, unit: str, key: str, payload: dict[str, Any] | None = None) -> None:
        """Say that the unit's data carry this key; on disk with the next batch."""
        entry = {"unit": unit, "key": key, "payload": payload or {}}
        self._fold(entry)
        self._pending.append(entry)
        if len(self._pending) >= 256 or time.monotonic() - self._flushed > 1.0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one segment."""
        if self._pending:
            if any(entry["key"] is not None for entry in self._pending):
                sync(self.directory)
            text = "".join(json.dumps(entry) + "\n" for entry in self._pending)
            # After all that is known, also where the clock of who wrote that was ahead of this one's.
            newest = max((int(segment.stem) for segment in self._segments), default=0)
            self._segments.append(self.directory / f"{max(time.time_ns(), newest + 1):020d}.jsonl")
            write_atomic(self._segments[-1], text.encode())
            self._pending.clear()
        self._flushed = time.monotonic()

    def compact(self) -> None:
        """Replace the segments that this object has read or written by one; what others wrote since stays."""
        self.flush()
        if len(self._segments) < 2:
            return
        lines = [
            json.dumps({"unit": unit, "key": record.key, "payload": record.payload}) + "\n"
            for unit, record in sorted(self.records.items())
        ]
        # Whichever of the old segments a kill leaves, the new one sorts after them and says all again, also
        # of units that have no record any more. What others wrote later sorts after it, and stands.
        lines += [json.dumps({"unit": unit, "key": None}) + "\n" for unit in sorted(self._struck)]
        *old, last = sorted(self._segments, key=str)
        write_atomic(last, "".join(lines).encode())
        remove_files(old)
        self._segments = [last]


def _read_segments(directory: Location) -> tuple[list[Location], list[str]]:
    """Segments of a ledger and what is in them; read again where a run compacts them meanwhile."""
    for _ in range(ATTEMPTS):
        found = files(directory, "*.jsonl")
        try:
            return found, [segment.read_text() for segment in found]
        except FileNotFoundError:
            continue
    raise FieldBusyError(f"{directory}: is written over again and again; try once more")


class LostLeaseError(RuntimeError):
    """The right to write went to another run, or was given up."""


class Lease:
    """The right to write a group, held by one run at a time; a context manager.

    Steps of a run ask for what they write whether the whole run holds it already or not.

    Parameters
    ----------
    path : Location
        File of the lease.
    owner : str
        The run that asks.

    Raises
    ------
    FieldBusyError
        On entry, if a living run holds the lease.
    """

    def __init__(self, path: Location, owner: str) -> None:
        self.path = path
        self.owner = owner
        self._claimed = b""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = False

    def _claim(self) -> bytes:
        return json.dumps({"owner": self.owner, **this_process()}).encode()

    def __enter__(self) -> Lease:
        if _same_run(_read(self.path), self._claim()):
            return self
        for _ in range(5):
            self._claimed = self._claim()
            if create(self.path, self._claimed) or self._take_over():
                break
        else:
            raise FieldBusyError(f"{self.path}: could not be taken; is another run starting?")
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _take_over(self) -> bool:
        """Put this run's claim in the place of a dead one's."""
        try:
            found = self.path.read_bytes()
            holder = json.loads(found)
        except FileNotFoundError:
            return False
        except json.JSONDecodeError:
            # A claim is written in one go: half of one is a run that died just then, or starts just now.
            if time.time() - changed(self.path) < 5:
                time.sleep(0.2)
                return False
            holder = {"owner": "unknown", "host": "", "pid": 0, "beat": 0.0}
        if process_lives(holder) or beats(self.path, holder):
            raise FieldBusyError(
                f"run {holder['owner']} (process {holder['pid']} on {holder['host']}) is writing "
                f"{self.path.stem} of {self.path.parent.parent}; wait for it or stop it"
            )
        logger.warning("taking over from run %s, which is dead", holder["owner"])
        return replace(self.path, self._claimed, found)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            claim = self._claim()
            try:
                if replace(self.path, claim, self._claimed):
                    self._claimed = claim
                    continue
                # The answer to an earlier beat may have been lost: then what is there is this run's own.
                found = _read(self.path)
                if not _same_run(found, claim):
                    # Workers look at the lease before they write: this run's no longer do.
                    logger.error("%s: is no longer held by run %s", self.path, self.owner)
                    self._lost = True
                    return
                self._claimed = found
            except OSError as error:
                logger.warning("heartbeat of %s: %s", self.path, error)

    def check(self, *, closely: bool = False) -> None:
        """See that it is still held: by what the last beat found, or ``closely`` by a look of its own.

        Raises
        ------
        LostLeaseError
            If it is not.
        """
        if self._lost or (closely and holder_of(self.path) != self.owner):
            group = self.path.stem.replace(".", "/", 1)
            raise LostLeaseError(f"run {self.owner} no longer holds {group}: nothing is written")

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if holder_of(self.path) == self.owner:
            self.path.unlink(missing_ok=True)


def holder_of(path: Location) -> str | None:
    """The run that holds a lease; None where nobody does."""
    try:
        return str(json.loads(path.read_bytes())["owner"])
    except (FileNotFoundError, ValueError):
        return None


def _read(path: Location) -> bytes:
    """What a claim's file holds; nothing where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _same_run(first: bytes, second: bytes) -> bool:
    """Whether two claims are of one run, in one process; the beat may differ."""
    try:
        a, b = json.loads(first), json.loads(second)
    except ValueError:
        return False
    return all(a.get(name) == b.get(name) for name in ("owner", "host", "machine", "pid"))


def this_process() -> dict[str, Any]:
    """What a claim says of the process that writes it, with the time."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "beat": time.time()}


@cache
def _machine() -> str:
    """Which processes' numbers mean something here: this boot's, of this container; nothing where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_here(claim: Mapping[str, Any]) -> bool:
    """Whether a claim's process, if it lives, is among those that this one can see."""
    return bool(claim["host"] == socket.gethostname() and claim.get("machine", _machine()) == _machine())


def beats(path: Location, claim: Mapping[str, Any]) -> bool:
    """Whether a claim that seems old is written again while one looks: the other host's clock is behind.

    It takes some heartbeats to see that it is not.
    """
    if _is_here(claim) or not claim["host"]:
        return False
    before = _read(path)
    end = time.monotonic() + 2.5 * HEARTBEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_SECONDS / 5)
        if _read(path) not in (before, b""):
            return True
    return False


def process_lives(claim: Mapping[str, Any]) -> bool:
    """Whether the process of a claim lives: on this host, if it runs; elsewhere, if its heart beats.

    Parameters
    ----------
    claim : mapping
        As `this_process` makes it. Hosts of one name may be containers that see none of each other's
        processes: then, too, the beat is what counts.
    """
    if not _is_here(claim):
        return bool(time.time() - claim["beat"] < STALE_SECONDS)
    try:
        process = psutil.Process(claim["pid"])
        # A number may have gone to another process since.
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= claim["beat"])
    except psutil.NoSuchProcess:
        return False
