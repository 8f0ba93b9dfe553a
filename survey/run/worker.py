"""What a worker does for one unit: read, compute, write, report. Plain functions, no Dask in here."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from threadpoolctl import threadpool_limits

import survey.stages.registry  # noqa: F401  (a worker must know every stage)
from survey.config import Config
from survey.io.files import write_parquet
from survey.io.store import Field
from survey.stages.protocol import STAGES, Output, Unit


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
    checksum: int = 0
    payload: dict[str, Any] = field(default_factory=dict)
    result: Any = None


def execute(
    path: str, stage_name: str, step: str, unit: Unit, config: Config, state: Any, key: str, *_: Any
) -> UnitReport:
    """Run one step (``partial`` or ``apply``) of a stage on one unit.

    Trailing arguments are results that must be there first; their values are not looked at.
    """
    stage = STAGES[stage_name]
    report = UnitReport(stage_name, step, unit.name, key)
    report.baseline_memory = psutil.Process().memory_info().rss
    _reset_peak()
    clock = time.perf_counter
    # Threads inside BLAS would fight the other workers, and change a sum's last bits.
    with threadpool_limits(1):
        target = Field.open(path)
        t0 = clock()
        data = stage.read(target, unit, config)
        t1 = clock()
        if step == "partial":
            report.result = stage.partial(data, config)
            output = Output()
        else:
            output = stage.apply(data, state, config)
        t2 = clock()
        for group, arrays in sorted(output.arrays.items()):
            report.checksum ^= target.write(group, arrays, output.region)
        for folder, table in sorted(output.tables.items()):
            write_parquet(target.path / folder / f"{config.method}.parts" / f"{unit.name}.parquet", table)
    report.payload = output.payload
    report.seconds = {"read": t1 - t0, "compute": t2 - t1, "write": clock() - t2}
    report.peak_memory = _peak()
    return report


def function_key(*parts: Any) -> str:
    """Hash of plain data: the identity of a unit's result."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reset_peak() -> None:
    """Start the kernel's high-water mark of resident memory again, where the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)
