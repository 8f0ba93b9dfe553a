"""The user's targets, from a table of whatever making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import Angle
from astropy.table import MaskedColumn, Table
from numpy.typing import NDArray

from survey.io._tables import CatalogError, read_table

_NAMES = {
    "ra": ("ra", "raj2000", "_raj2000", "ra_icrs", "ra_deg", "ra_j2000", "alpha_j2000", "right_ascension"),
    "dec": ("dec", "dej2000", "_dej2000", "de_icrs", "dec_deg", "dec_j2000", "delta_j2000", "declination"),
    "x": ("x", "x_pixel", "xpix", "xcentroid"),
    "y": ("y", "y_pixel", "ypix", "ycentroid"),
    "name": ("name", "object_id", "event_id", "id", "target", "object", "source_id", "main_id"),
}


def read_target_table(path: str | Path) -> list[dict[str, Any]]:
    """Targets: rows with ``ra, dec`` in degrees or ``x, y`` in pixels, and ``name`` where there is one.

    Column names are matched without regard to case, catalogues' usual names too (``RAJ2000`` …). Text is
    read as sexagesimal, RA in hours; a unit in the file is honoured. All other columns come along.

    Raises
    ------
    CatalogError
        If there are no such columns, or a position is missing, not a number or off the sphere.
    """
    table = read_table(path)
    name = Path(path).name
    if len(table) == 0:
        raise CatalogError(f"{name}: the table has no rows")
    found = {role: _find_column(table, names) for role, names in _NAMES.items()}
    pair = next((p for p in (("x", "y"), ("ra", "dec")) if found[p[0]] and found[p[1]]), None)
    if pair is None:
        raise CatalogError(
            f"{name}: no columns ra, dec (degrees) or x, y (pixels); it has {', '.join(table.colnames)}"
        )
    pairs = [p for p in (("x", "y"), ("ra", "dec")) if found[p[0]] and found[p[1]]]
    positions = {role: _numbers(name, table, found[role] or "", role) for p in pairs for role in p}
    used = [str(found[role]) for role in positions]
    rows = []
    for i in range(len(table)):
        row = {c: _plain(table[c][i]) for c in table.colnames if c not in used}
        if found["name"]:
            row["name"] = str(table[found["name"]][i])
        present = [p for p in pairs if np.isfinite([positions[role][i] for role in p]).all()]
        if not present:
            raise CatalogError(f"{name}: row {i + 1} has no position ({', '.join(used)})")
        row.update({role: float(positions[role][i]) for p in present for role in p})
        rows.append(row)
    _check_sky(name, rows)
    return rows


def _find_column(table: Table, names: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(table.colnames)}
    return next((lower[name] for name in names if name in lower), None)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _numbers(file: str, table: Table, column: str, role: str) -> NDArray[np.float64]:
    values = table[column]
    mask = np.ma.getmaskarray(values) if isinstance(values, MaskedColumn) else np.zeros(len(table), bool)
    numbers = np.full(len(table), np.nan)
    unit = None if role in ("x", "y") else values.unit
    for i in np.flatnonzero(~mask):
        try:
            numbers[i] = _angle(values[i], role, unit)
        except ValueError:
            raise CatalogError(
                f"{file}: row {i + 1}, column {column}: {values[i]!r} is no "
                + ("pixel coordinate" if role in ("x", "y") else "angle (degrees, or sexagesimal text)")
            ) from None
    return numbers


def _angle(value: Any, role: str, unit: Any) -> float:
    try:
        number = float(value)
        text = False
    except ValueError:
        text = True
    if role in ("x", "y"):
        return float(value)
    if text:
        return float(Angle(str(value), unit=units.hourangle if role == "ra" else units.deg).deg)
    return number if unit is None else float((number * unit).to_value(units.deg))


def _check_sky(file: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(rows):
        if "ra" in row and "dec" in row and not (-180 <= row["ra"] <= 360 and -90 <= row["dec"] <= 90):
            raise CatalogError(
                f"{file}: row {i + 1}: ra {row['ra']}, dec {row['dec']} is no position in degrees"
            )
