"""Tables of light curves: one a tile while they are made, one for the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from survey.config import Config
from survey.io.files import read_parquet, write_parquet
from survey.io.locations import Location
from survey.io.store import Field

# Column of the tiles' tables alone: what later epochs are added to.
WEIGHT = "weight"
# What the light curve says of an event's maximum.
PEAK_COLUMNS = ("peak_flux", "peak_flux_error", "peak_time")


def light_curve_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of `measure` as a table: one row an object, its light curve in list columns."""
    columns: dict[str, Any] = {}
    for name, kind in (
        ("object_id", pa.string()),
        ("kind", pa.string()),
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("position_error", pa.float64()),
        ("reference_flux", pa.float64()),
        ("reference_flux_error", pa.float64()),
        *((name, pa.float64()) for name in PEAK_COLUMNS),
        ("time", pa.list_(pa.float64())),
        ("flux", pa.list_(pa.float64())),
        ("error", pa.list_(pa.float64())),
        ("flags", pa.list_(pa.int32())),
    ):
        columns[name] = pa.array([row.get(name) for row in rows], kind)
    return pa.table(columns)


def part_path(field: Field, method: str, unit: str) -> Location:
    """File of one unit's light curves."""
    return field.path / "lightcurves" / f"{method}.parts" / f"{unit}.parquet"


def gather(field: Field, config: Config, names: Sequence[str]) -> pa.Table:
    """Put the units' light curves into one file, by name of the object, and return them."""
    parts = []
    for name in names:
        try:
            parts.append(read_parquet(part_path(field, config.method, name)).drop_columns([WEIGHT]))
        except FileNotFoundError:
            continue
    table = pa.concat_tables(parts, promote_options="default") if parts else light_curve_table([])
    table = table.sort_by("object_id").combine_chunks()
    write_parquet(field.light_curves_path(config.method), table)
    return table


def with_peaks(events: Sequence[dict[str, Any]], curves: pa.Table) -> list[dict[str, Any]]:
    """Events with the peaks of their light curves."""
    peaks = {row["object_id"]: row for row in curves.select(["object_id", *PEAK_COLUMNS]).to_pylist()}
    return [{**event, **peaks.get(event["object_id"], {})} for event in events]
