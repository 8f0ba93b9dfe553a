"""What a worker does for one unit: read, compute, write, report. Plain functions, no Dask in here."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from threadpoolctl import threadpool_limits

import survey.stages.registry  # noqa: F401  (a worker must know every stage)
from survey.config import Config
from survey.io.checksums import MODULUS
from survey.io.files import write_parquet
from survey.io.ledger import LostLeaseError
from survey.io.store import Field
from survey.run.memory import kept_memory, peak, reset_peak, resident
from survey.run.turns import Turn
from survey.run.written import Patched, written_entry
from survey.stages.protocol import STAGES, Output, Stage, Unit
from survey.tiles import Tile


@dataclass
class UnitReport:
    """What came of one unit.

    Parameters
    ----------
    seconds : dict
        Wall time of ``read``, ``compute`` and ``write``.
    peak_memory : int
        Highest resident size of the worker's process during the unit, bytes.
    baseline_memory : int
        Its resident size when the unit began, bytes.
    written, patched : list
        Checksums of the regions that were written, and of the cells in which windows were.
    result : object
        Of ``partial``; None for ``apply``.
    """

    stage: str
    step: str
    unit: str
    key: str
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    baseline_memory: int = 0
    written: list[dict[str, Any]] = field(default_factory=list)
    patched: list[Patched] = field(default_factory=list)
    payload: dict[str, Any] = field(default_factory=dict)
    result: Any = None


# The group whose lease a run holds, and the run.
Holder = tuple[str, str]


def execute(
    path: str,
    stage_name: str,
    step: str,
    unit: Unit,
    config: Config,
    state: Any,
    key: str,
    parts: int = 1,
    holder: Holder | None = None,
) -> UnitReport:
    """Run one step (``partial`` or ``apply``) of a stage on one unit.

    With ``parts`` above 1 the unit's tile is done in row blocks, one after the other; what each reported is
    put together by the stage's ``merge``. Cores do not depend on how they are cut, so the data are the same.

    With a ``holder`` nothing is written once its run has lost the lease: a task may outlive its run. Nor is
    anything once the same unit has been begun elsewhere.
    """
    stage = STAGES[stage_name]
    report = UnitReport(stage_name, step, unit.name, key, {"read": 0.0, "compute": 0.0, "write": 0.0})
    report.baseline_memory = resident()
    reset_peak()
    # Threads inside BLAS would fight the other workers, and change a sum's last bits.
    with threadpool_limits(1), kept_memory():
        target = Field.open(path)
        turn = None
        if step == "apply" and unit.tile is not None:
            _check_rights(target, holder, None)  # who may not write takes nobody's turn
            turn = Turn(target, f"{config.method}.{stage_name}", unit.name)
        payloads = [
            _piece(target, stage, step, piece, config, state, report, (holder, turn), unit.tile)
            for piece in row_blocks(unit, parts)
        ]
    report.payload = payloads[0] if stage.merge is None or len(payloads) == 1 else stage.merge(payloads)
    report.peak_memory = peak()
    return report


def execute_batch(
    path: str,
    stage_name: str,
    step: str,
    config: Config,
    calls: list[tuple[Unit, Any, str, int]],
    holder: Holder | None = None,
) -> list[UnitReport | Exception]:
    """Run one step on several units, each a (unit, state, key, parts); an error is its own unit's alone."""
    results: list[UnitReport | Exception] = []
    for unit, state, key, parts in calls:
        try:
            results.append(execute(path, stage_name, step, unit, config, state, key, parts, holder))
        except Exception as error:
            results.append(error)
    return results


def _piece(
    target: Field,
    stage: Stage,
    step: str,
    unit: Unit,
    config: Config,
    state: Any,
    report: UnitReport,
    rights: tuple[Holder | None, Turn | None],
    whole: Tile | None,
) -> dict[str, Any]:
    """Read, compute and write one piece of a unit; adds to the report, returns the stage's payload.

    ``whole`` is the unit's tile, of which the piece may be a row block.
    """
    output = Output()
    with _timed(report, "read"):
        data = stage.read(target, unit, config)
    with _timed(report, "compute"):
        if step == "partial":
            report.result = stage.partial(data, config)
        else:
            output = stage.apply(data, state, config)
    with _timed(report, "write"):
        if step == "apply":
            _check_rights(target, *rights)
        for group, arrays in sorted(output.arrays.items()):
            sums = target.write(group, arrays, output.region)
            if unit.tile is None:
                # Nothing but a tile is ever patched, and a block of images has hundreds of cells.
                sums = {name: [sum(cells) % MODULUS] for name, cells in sums.items()}
            report.written.append(written_entry(group, output.region, sums))
        if output.pieces and whole is not None:
            _write_pieces(target, output, (output.region[0], *whole.core), report)
        for folder, table in sorted(output.tables.items()):
            write_parquet(target.path / folder / f"{config.method}.parts" / f"{unit.name}.parquet", table)
    return output.payload


def _check_rights(target: Field, holder: Holder | None, turn: Turn | None) -> None:
    """Whether the run still holds its lease and this execution its unit."""
    if holder is not None and target.holder(holder[0]) != holder[1]:
        raise LostLeaseError(f"run {holder[1]} no longer holds {holder[0]}: nothing is written")
    if turn is not None:
        turn.check()


def _write_pieces(target: Field, output: Output, region: tuple[slice, ...], report: UnitReport) -> None:
    """Write parts of a unit's core; what is reported are the checksums of the cells they lie in.

    ``region`` is the whole unit's: a cell may lie in two row blocks, and what was summed last holds.
    """
    for group, arrays in sorted(output.pieces[0].arrays.items()):
        patched = {}
        for name in sorted(arrays):
            parts = [(piece.region, piece.arrays[group][name]) for piece in output.pieces]
            patched[name] = target.patch(group, name, region, parts)
        report.patched.append((group, patched))


@contextmanager
def _timed(report: UnitReport, what: str) -> Iterator[None]:
    """Add to the seconds of a phase; an error is told which one it struck."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        error.add_note(f"{what} {report.unit}")
        raise
    finally:
        report.seconds[what] += time.perf_counter() - started


def row_blocks(unit: Unit, parts: int) -> list[Unit]:
    """A unit cut into so many row blocks of its tile, as far as it has rows."""
    tile = unit.tile
    if parts < 2 or tile is None:
        return [unit]
    rows = -(-(tile.y1 - tile.y0) // parts)
    starts = range(tile.y0, tile.y1, rows)
    return [replace(unit, tile=replace(tile, y0=y, y1=min(y + rows, tile.y1))) for y in starts]


def function_key(*parts: Any) -> str:
    """Hash of plain data: the identity of a unit's result."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
