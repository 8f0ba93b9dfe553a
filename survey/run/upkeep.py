"""Looking after a field: what can go, and who holds it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from survey.io.ledger import beats, process_lives
from survey.io.locations import Location, changed, entries, files, folders, remove
from survey.io.store import Field, FieldError
from survey.run.live import run_state
from survey.run.record import new_run_id
from survey.stages.methods import known_method

# A temporary file this old belongs to nobody: writing one takes seconds.
LEFTOVER_SECONDS = 3600.0


def ledgers(target: Field) -> list[str]:
    """Names of a field's ledgers."""
    return [folder.name for folder in folders(target.path / "ledger")]


@contextmanager
def all_leases(target: Field) -> Iterator[None]:
    """The right to write every group that there is.

    Raises
    ------
    FieldBusyError
        If a run writes one of them.
    """
    heads = {tuple(name.split(".", 1)) for name in ledgers(target) if "." in name}
    templates = {f"template.{name}" for head, name in heads if head == "template"}
    methods = {head for head, _ in heads if head != "template"} | {"oversampled"}
    groups = {"images", "frame_psf", "lightcurves.nn2", *templates}
    groups |= {f"difference.{method}" for method in methods}
    # What a run makes for the first time has a lease, but no ledger yet.
    groups |= {file.stem for file in files(target.path / "leases", "*.json")}
    owner = new_run_id()
    with ExitStack() as stack:
        for group in sorted(groups):
            stack.enter_context(target.lease(group, owner))
        yield


@dataclass(frozen=True)
class Leftover:
    """Something that no run will look at again."""

    path: Location
    size: int
    why: str


def prune(
    path: str | Location,
    *,
    delete: bool = False,
    keep_runs: int | None = None,
    method: str | None = None,
    template: str | None = None,
) -> list[Leftover]:
    """Find, and with ``delete`` remove, what no run will look at again.

    Parameters
    ----------
    path : path
        The field.
    delete : bool
        Remove it; the field must not be written by a run.
    keep_runs : int, optional
        Also the folders of all runs but so many latest ones.
    method : str, optional
        Also everything that this difference method made; one of `survey.stages.methods.METHODS`.
    template : str, optional
        Also this template.

    Returns
    -------
    list of Leftover

    Raises
    ------
    FieldBusyError
        With ``delete``, if a run writes the field.
    MethodError
        If there is no such method.
    """
    target = Field.open(path)
    if not delete:
        return _leftovers(target, keep_runs, method, template)
    with all_leases(target):
        found = _leftovers(target, keep_runs, method, template)
        # A ledger goes before what it vouches for: a kill in between leaves nothing that looks done.
        for leftover in sorted(found, key=lambda f: "ledger" not in f.path.parts):
            remove(leftover.path)
        for name in ledgers(target):
            target.ledger(name).compact()
    return found


def _leftovers(
    target: Field, keep_runs: int | None, method: str | None, template: str | None
) -> list[Leftover]:
    now = time.time()
    found = [
        Leftover(entry.place, entry.size, "temporary file of a killed writer")
        for entry in entries(target.path)
        if entry.place.name.endswith(".partial") and now - entry.changed > LEFTOVER_SECONDS
    ]
    found += [_leftover(p, "left by a replacement") for p in target.unused_places()]
    found += _stale_parts(target)
    if keep_runs is not None:
        runs = folders(target.path / "runs")
        old = runs[: max(len(runs) - keep_runs, 0)]
        # One that starts holds no lease yet.
        over = [p for p in old if run_state(p)["state"] not in ("starting", "running")]
        found += [_leftover(p, "old run") for p in over]
    if method is not None:
        found += _of_method(target, method)
    if template is not None:
        found += _of_template(target, template)
    return found


def _stale_parts(target: Field) -> list[Leftover]:
    """Parts of tables whose units are in no ledger any more."""
    found = []
    for folder in target.path.glob("*/*.parts"):
        method = folder.name.removesuffix(".parts")
        known: set[str] = set()
        for name in ledgers(target):
            if name.startswith(f"{method}."):
                known |= set(target.ledger(name).records)
        found += [
            _leftover(file, "part of a table that is no longer used")
            for file in folder.glob("*.parquet")
            if file.stem not in known
        ]
    return found


def _of_method(target: Field, method: str) -> list[Leftover]:
    if known_method(method) == "oversampled":
        raise FieldError("oversampled differences carry the reference that all methods use: they stay")
    paths = [
        *(target.cube / group / method for group in ("difference", "search", "variability")),
        *(target.path / "ledger").glob(f"{method}.*"),
        *(target.path / folder / f"{method}{end}" for folder in ("events", "lightcurves") for end in ENDS),
    ]
    there = [p for p in paths if p.exists()]
    if not there:
        raise FieldError(f"{target.path}: holds nothing of a method {method!r}")
    return [_leftover(p, f"made by {method}") for p in there]


def _of_template(target: Field, template: str) -> list[Leftover]:
    if template not in target.replaced():
        raise FieldError(f"{target.path}: has no template {template!r}; list: survey template {target.path}")
    group = f"template/{template}"
    versions = target.versions(group)
    paths: list[Location] = [target.path / "ledger" / f"template.{template}", target.cube / group]
    if versions is not None:
        paths += [versions.pointer, *versions.all()]
    return [_leftover(p, "template") for p in paths if p.exists()]


ENDS = (".parquet", ".parts")


def _leftover(path: Location, why: str) -> Leftover:
    return Leftover(path, sum(entry.size for entry in entries(path)), why)


@dataclass(frozen=True)
class Held:
    """A lease and whether its holder lives."""

    group: str
    owner: str
    host: str
    pid: int
    alive: bool
    removed: bool


def unlock(path: str | Location, *, force: bool = False) -> list[Held]:
    """Remove the leases of dead runs; with ``force`` also those of runs that seem alive.

    A run removes a dead one's lease by itself; this is for a holder on a host that is gone for good, or whose
    heart only seems to beat.

    Returns
    -------
    list of Held
        Every lease there was.
    """
    folder = Field.open(path).path / "leases"
    found = []
    for file in files(folder, "*.json"):
        try:
            claim: dict[str, Any] = json.loads(file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            claim = {"owner": "unknown", "host": "", "pid": 0, "beat": changed(file)}
        alive = process_lives(claim) or (not force and beats(file, claim))
        if force or not alive:
            file.unlink(missing_ok=True)
        group = file.stem.replace(".", "/", 1)
        found.append(Held(group, claim["owner"], claim["host"], claim["pid"], alive, force or not alive))
    return found
