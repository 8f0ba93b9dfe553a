"""Frames as they arrive: every batch is ingested and worked on, and each frame's latency is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from survey.config import Config
from survey.io.files import write_json
from survey.io.frames import find_files
from survey.io.locations import Location, locate
from survey.run.api import run, stored_config
from survey.run.clusters import cluster_client
from survey.run.ingest import INGEST, IngestError
from survey.run.progress import Progress, Silent, describe
from survey.run.record import RunSummary

# Longest pause in seconds before what failed is tried again.
MOST_PAUSE = 300.0


@dataclass
class Batch:
    """Frames that were worked on together.

    Parameters
    ----------
    frames : list of str
        Files taken in this batch, whether they could be used or not.
    latency : dict
        File -> seconds from its last change to the end of the run that used it.
    summary : RunSummary
        Of that run.
    """

    frames: list[str]
    summary: RunSummary
    latency: dict[str, float] = field(default_factory=dict)

    @property
    def slowest(self) -> float:
        """Longest latency, seconds."""
        return max(self.latency.values(), default=0.0)


# Size in bytes and time of the last change of a file.
State = tuple[int, float]


@dataclass
class Arrivals:
    """Files that have come and stopped growing.

    Parameters
    ----------
    patterns : sequence of path
        Directories or glob patterns.
    settle : float
        Seconds for which a file must not have changed.
    taken : set of str
        Files of frames that the field holds.
    """

    patterns: Sequence[str | Path]
    settle: float
    taken: set[str] = field(default_factory=set)
    _refused: dict[str, State] = field(default_factory=dict)
    _states: dict[str, State] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Files that are new and whole, as far as one can tell from outside.

        One that could not be used is looked at again once it has changed: its copying may have paused.
        """
        try:
            files = find_files(self.patterns)
        except ValueError:
            return []
        ready = []
        for name in files:
            state = None if name in self.taken else _state(name)
            if state is None or self._refused.get(name) == state:
                continue
            grown = self._states.get(name) != state
            self._states[name] = state
            if not grown and time.time() - state[1] >= self.settle:
                ready.append(name)
        return ready

    def settle_for(self, batch: Batch) -> None:
        """Frames of a batch are the field's; those that were refused wait for a change."""
        refused = {name for name, _ in batch.summary.rejected}
        self.taken.update(name for name in batch.frames if name not in refused)
        for name in refused.intersection(batch.frames):
            if name in self._states:
                self._refused[name] = self._states[name]


def _state(name: str) -> State | None:
    """Size and last change of a file; None where it is gone."""
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime


def watch(
    patterns: Sequence[str | Path],
    path: str | Location,
    config: Config | None = None,
    *,
    interval: float = 10.0,
    settle: float = 2.0,
    first: int | None = None,
    idle: float | None = None,
    client: Any = None,
    progress: Progress | None = None,
    done: Callable[[Batch], None] | None = None,
) -> list[Batch]:
    """Work on frames as they arrive in a directory, until interrupted.

    Parameters
    ----------
    patterns : sequence of path
        Directories or glob patterns to look at.
    path : path
        The field; made of the first frames if it does not exist yet.
    config : Config, optional
        Settings; by default those stored in the field.
    interval : float
        Seconds between looks.
    settle : float
        Seconds for which a file must not have changed to count as whole.
    first : int, optional
        Frames to wait for before a new field is made; by default as many as the reference needs.
    idle : float, optional
        Stop when nothing has come for so many seconds; default never.
    client : distributed.Client or "synchronous", optional
        Where the work runs; by default one embedded cluster for the whole time.
    progress : Progress, optional
        Told what happens.
    done : callable (Batch), optional
        Called after every batch.

    Returns
    -------
    list of Batch
        When ``idle`` ended it.

    Raises
    ------
    Exception
        What kept the last frames from being worked on, if ``idle`` ended it, or the client is closed,
        as it closes itself when its cluster stays away. Until then whatever fails is told and tried again
        after a pause, `MOST_PAUSE` seconds at most.
    """
    config = config or stored_config(path)
    if client is None:
        with cluster_client(config.cluster) as made:
            return watch(
                patterns, path, config, interval=interval, settle=settle, first=first, idle=idle,
                client=made, progress=progress, done=done,
            )  # fmt: skip
    progress = progress or Silent()
    arrivals = Arrivals(patterns, settle, _taken(path))
    batches: list[Batch] = []
    quiet, pause, failed = time.monotonic(), interval, None
    while idle is None or time.monotonic() - quiet < idle:
        ready = arrivals.look()
        needed = 1 if arrivals.taken else first or config.reference.needed_images
        if len(ready) < needed:
            time.sleep(interval)
            continue
        try:
            batch = _work(path, config, ready, client, progress)
        except Exception as error:  # a night's frames go on coming, whatever one run met with
            if getattr(client, "status", None) == "closed":
                raise  # nothing runs on it ever again; whoever started this can start it anew
            failed, pause = error, min(2 * pause, max(MOST_PAUSE, interval))
            progress.message(f"{describe(error)}; {len(ready)} frames wait, again in {pause:.0f} s")
            time.sleep(pause)
            continue
        failed, pause, quiet = None, interval, time.monotonic()
        arrivals.settle_for(batch)
        batches.append(batch)
        if done is not None:
            done(batch)
    if failed is not None:
        raise failed
    return batches


def _taken(path: str | Location) -> set[str]:
    """Files of the frames that a field holds."""
    from survey.io.store import Field, holds_frames

    if not holds_frames(path):
        return set()
    return {str(name) for name in Field.open(path).frames()["path"].values}


def _work(path: str | Location, config: Config, files: list[str], client: Any, progress: Progress) -> Batch:
    """Ingest and run one batch; its latencies go into the run's record.

    Raises
    ------
    IngestError
        If blocks could not be placed, so that the field has none of these frames.
    """
    states = {name: _state(name) for name in files}
    arrived = {name: state[1] for name, state in states.items() if state is not None}
    summary = run(path, config, frames=files, client=client, progress=progress)
    ended = time.time()
    unplaced = [failure for failure in summary.failures if failure.stage == INGEST]
    if unplaced and not summary.inputs:
        raise IngestError(f"{len(unplaced)} blocks could not be placed: {unplaced[0].reason}")
    unusable = {name for name, _ in summary.rejected}
    latency = {name: ended - since for name, since in arrived.items() if name not in unusable}
    write_json(locate(path) / "runs" / summary.run_id / "latency.json", latency)
    return Batch(files, summary, latency)
