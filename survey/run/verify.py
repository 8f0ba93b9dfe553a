"""Does a field hold what was written into it? And if not, what can be done about it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import make_config
from survey.io.checksums import MODULUS, cell_sums
from survey.io.ledger import Record
from survey.io.locations import Location
from survey.io.store import Field
from survey.run.upkeep import all_leases, ledgers
from survey.stages import frame_table, place
from survey.stages.prior import forget_prior
from survey.stages.template_records import template_records

TABLES = ("frames", "stars", "pattern", "registration", "psf")


@dataclass(frozen=True)
class Problem:
    """Data that are not what the ledger says."""

    ledger: str
    unit: str
    what: str


@dataclass
class Verification:
    """What `verify` found.

    Parameters
    ----------
    checked : int
        Units whose data were read and compared.
    unknown : int
        Units recorded without checksums: they write no arrays.
    problems : list of Problem
    repaired : list of (ledger, unit)
        Blocks of images that were placed again, and units that the next run makes again.
    hopeless : list of Problem
        Images that cannot be placed again, and why.
    """

    checked: int = 0
    unknown: int = 0
    problems: list[Problem] = field(default_factory=list)
    repaired: list[tuple[str, str]] = field(default_factory=list)
    hopeless: list[Problem] = field(default_factory=list)


def verify(path: str | Location, *, repair: bool = False) -> Verification:
    """Read everything that units wrote and compare it with the checksums in the ledgers.

    Parameters
    ----------
    path : path
        The field.
    repair : bool
        Place damaged images again from their frames, and strike units with damaged results from their
        ledgers, so that the next run makes them again. Where images were damaged, all results are struck.

    Returns
    -------
    Verification

    Raises
    ------
    FieldError
        If there is no field.
    FieldBusyError
        With ``repair``, if a run writes the field.
    """
    target = Field.open(path)
    found = Verification()
    for name in TABLES:
        if target.has_table(name):
            found.problems += _check_table(target, name)
    for name in target.replaced():
        versions = target.versions(f"template/{name}")
        if versions is not None and not versions.is_copied():
            found.problems.append(Problem("", "", f"the plain copy of template {name} is not what it is"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for ledger in ledgers(target):
            records = _records(target, ledger)
            checks = pool.map(lambda item: _check_unit(target, *item), records.items())
            for unit, wrong in zip(records, checks, strict=True):
                if wrong is None:
                    found.unknown += 1
                    continue
                found.checked += 1
                found.problems += [Problem(ledger, unit, what) for what in wrong]
    if repair and found.problems:
        with all_leases(target):
            _repair(target, found)
    return found


def _records(target: Field, ledger: str) -> dict[str, Record]:
    """What a ledger says of the data that are there now."""
    head, _, name = ledger.partition(".")
    return template_records(target, name) if head == "template" else target.ledger(ledger).records


def _repair(target: Field, found: Verification) -> None:
    """Place damaged images again, strike damaged results and what may have been made of damaged images."""
    for name in TABLES:
        if target.has_table(name) and not target.table_is_copied(name):
            target.copy_table(name)
            found.repaired.append(("tables", name))
    for name in target.replaced():
        versions = target.versions(f"template/{name}")
        if versions is not None and not versions.is_copied():
            versions.copy()
            found.repaired.append(("templates", name))
    wanted: dict[str, set[str]] = {}
    for problem in found.problems:
        if problem.unit:
            wanted.setdefault(problem.ledger, set()).add(problem.unit)
    for name in [name for name in wanted if name.startswith("template.")]:
        wanted.pop(name)
        again = f"make it again: survey template {target.path} --name {name.partition('.')[2]} --from …"
        found.hopeless += [replace(p, what=f"{p.what}; {again}") for p in found.problems if p.ledger == name]
    placed = wanted.pop("place", set())
    images = target.ledger("place").records
    for unit in sorted(placed):
        failure = place_again(target, unit, images[unit])
        if failure is None:
            found.repaired.append(("place", unit))
        else:
            found.hopeless.append(Problem("place", unit, failure))
    if placed:
        # Whether they were made before or after the damage nobody knows.
        for name in ledgers(target):
            if name not in ("place", "pattern") and not name.startswith("template."):
                wanted[name] = set(target.ledger(name).records)
    if "oversampled.oversampled" in wanted:
        # What is kept of an addition that did not end would put the struck records back.
        forget_prior(target)
    for name, units in wanted.items():
        target.ledger(name).invalidate(sorted(units))
        found.repaired += [(name, unit) for unit in sorted(units)]


def place_again(target: Field, name: str, record: Record) -> str | None:
    """Write a block of images again from the files it came in; returns why that cannot be done."""
    config = make_config(target.attrs["config"], source=f"settings stored in {target.path}")
    (piece,) = record.payload["written"]
    (first, last), grid = piece["region"][0], piece["group"].split("/")[1]
    frames = target.frames().isel(time=slice(0, last))
    headers = frame_table.stored_headers(frames)[first:]
    units = place.place_units(target, frames, headers, first, config, grid)
    unit = next((u for u in units if u.name == name), None)
    if unit is None:
        return "was placed with other settings"
    try:
        output = place.apply(place.read(target, unit, config), None, config)
    except (OSError, ValueError) as error:
        return f"cannot be placed again: {error}"
    for group, arrays in output.arrays.items():
        for array, values in arrays.items():
            stored = np.asarray(values, dtype=target.array(group, array).dtype)
            if not _agrees(piece, array, stored, target.shape):
                return f"its frames are no longer what they were: {group}/{array} comes out different"
        target.write(group, arrays, output.region)
    return None


def _check_table(target: Field, name: str) -> list[Problem]:
    try:
        target.table(name, fresh=True)
    except Exception as error:
        return [Problem("", "", f"table {name} cannot be read: {type(error).__name__}: {error}")]
    if not target.table_is_copied(name):
        return [Problem("", "", f"the plain copy of table {name} is not what the table is")]
    return []


def _check_unit(target: Field, unit: str, record: Record) -> list[str] | None:
    """What is wrong with a unit's arrays; None if it says of none that it wrote them."""
    written = record.payload.get("written")
    if not written:
        return None
    wrong = []
    for piece in written:
        region = tuple(slice(*ends) for ends in piece["region"])
        for name in piece[_kind(piece)]:
            label = f"{piece['group']}/{name}"
            try:
                values = target.stored(piece["group"], name, region)
            except Exception as error:
                wrong.append(f"{label} cannot be read: {type(error).__name__}: {error}")
                continue
            if not _agrees(piece, name, values, target.shape):
                wrong.append(f"{label} is not what was written")
    return wrong


def _kind(piece: Mapping[str, Any]) -> str:
    """Which checksums a piece has: before they added up there was one CRC-32 a region."""
    return "sums" if "sums" in piece else "crc32"


def _agrees(piece: Mapping[str, Any], name: str, values: NDArray[Any], shape: tuple[int, int]) -> bool:
    """Whether an array's values are those that a piece was written with."""
    expected = piece[_kind(piece)][name]
    if _kind(piece) == "crc32":
        return bool(zlib.crc32(np.ascontiguousarray(values).tobytes()) == expected)
    region = tuple(slice(*ends) for ends in piece["region"])
    # Arrays without time have the region's (y, x).
    region = region if values.shape[: len(region)] == tuple(p.stop - p.start for p in region) else region[-2:]
    found = cell_sums(values, shape, region)
    # One alone is of the whole region.
    return found == expected or (len(expected) == 1 and sum(found) % MODULUS == expected[0])
