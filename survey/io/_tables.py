"""Tables in Parquet, CSV, ECSV, VOTable and plain text.

A table here is anything with columns: an astropy or Arrow table, a dict of columns, a list of rows. Units
and meanings of the project's own columns are written wherever the format can hold them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Column, MaskedColumn, Table
from astropy.utils.exceptions import AstropyWarning

from survey.io.files import read_parquet
from survey.io.locations import Location, locate, write_atomic
from survey.io.times import quiet

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "ecsv": (".ecsv",),
    "votable": (".vot", ".votable", ".xml"),
}
FLUX = "flux"
COLUMNS: dict[str, tuple[str, str]] = {
    "object_id": ("", "name of the event or target"),
    "event_id": ("", "name of the event"),
    "kind": ("", "event, variable or target"),
    "ra": ("deg", "right ascension, ICRS"),
    "dec": ("deg", "declination, ICRS"),
    "x": ("pixel", "column on the reference grid, centres at whole numbers from 0"),
    "y": ("pixel", "row on the reference grid, centres at whole numbers from 0"),
    "position_error": ("pixel", "1-sigma error of the position, each axis"),
    "time": ("d", "MJD at mid-exposure"),
    "time_start": ("d", "MJD at the first supporting epoch"),
    "time_end": ("d", "MJD at the last supporting epoch"),
    "bjd_tdb": ("d", "barycentric Julian date, TDB"),
    "sigma_days": ("d", "time scale, 1 sigma"),
    "significance": ("", "signal to noise of the best time scale"),
    "flux": (FLUX, "difference flux"),
    "error": (FLUX, "1-sigma error of flux"),
    "flux_error": (FLUX, "1-sigma error of flux"),
    "amplitude": (FLUX, "of the search's Gaussian in time, before the event left the reference's fit"),
    "amplitude_error": (FLUX, "1-sigma error of amplitude"),
    "peak_flux": (FLUX, "difference flux at the maximum, from the light curve"),
    "peak_flux_error": (
        FLUX,
        "1-sigma error of peak_flux by the light curve's own noise, without the reference's",
    ),
    "peak_time": ("d", "MJD of the maximum, from the light curve"),
    "n_peaks": ("", "peaks of the search at this place"),
    "reference_flux": (FLUX, "flux in the reference"),
    "reference_flux_error": (FLUX, "1-sigma error of reference_flux"),
    "magnitude": ("mag", "magnitude"),
    "magnitude_error": ("mag", "1-sigma error of magnitude"),
    "upper_limit": (FLUX, "upper limit of flux"),
    "flags": ("", "bits: what may be wrong"),
}
"""Unit and meaning of the columns that the project writes; ``"flux"`` stands for the field's flux unit."""


class CatalogError(ValueError):
    """A table that cannot be read or written; the message names the file and the way out."""


def format_of(path: str | Location) -> str:
    """Format of a table file by its ending.

    Raises
    ------
    CatalogError
        If the ending is none of those known.

    Examples
    --------
    >>> format_of("events.vot")
    'votable'
    """
    suffix = locate(path).suffix.lower()
    for name, endings in FORMATS.items():
        if suffix in endings:
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise CatalogError(f"{locate(path).name}: {suffix or 'no'} ending is no table format; known: {known}")


def as_table(
    table: Any, *, flux_unit: str = "", time_scale: str = "", meta: Mapping[str, Any] | None = None
) -> Table:
    """An astropy table with units and descriptions of the columns known; None becomes masked.

    Parameters
    ----------
    table : astropy Table, pyarrow Table, dict of columns, or sequence of rows (dicts)
        List columns, as of light curves, stay one array a row.
    flux_unit : str
        Unit of the flux columns, e.g. ``"electron / s"``.
    time_scale : str
        Scale of the times in MJD, for their descriptions.

    Examples
    --------
    >>> t = as_table([{"ra": 268.1, "dec": -29.0, "flux": 3.0}], flux_unit="count")
    >>> str(t["ra"].unit), str(t["flux"].unit)
    ('deg', 'ct')
    """
    result = table.copy() if isinstance(table, Table) else Table(_columns(table))
    for name in result.colnames:
        unit, meaning = COLUMNS.get(name, ("", ""))
        unit = flux_unit if unit == FLUX else unit
        column = result[name]
        if unit and column.unit is None and column.dtype.kind in "fiu":
            _set_unit(column, unit)
        if meaning and not column.description:
            column.description = meaning
        if time_scale and column.description:
            column.description = column.description.replace("MJD at", f"MJD ({time_scale.upper()}) at")
    result.meta.update(meta or {})
    return result


def _set_unit(column: Any, unit: str) -> None:
    from astropy import units

    column.unit = units.Unit(unit, parse_strict="silent")


def _columns(table: Any) -> dict[str, Any]:
    if isinstance(table, pa.Table):
        return {name: _column(table.column(name).to_pylist()) for name in table.column_names}
    if isinstance(table, Mapping):
        return {name: _column(values) for name, values in table.items()}
    rows = list(table)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: Any) -> Any:
    """A column; missing numbers as NaN, other missing values masked, lists as objects."""
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values
    values = list(values)
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        column = np.empty(len(values), object)
        for i, value in enumerate(values):
            column[i] = np.asarray(value)
        return column
    missing = np.array([value is None for value in values], bool)
    if not missing.any():
        return np.array(values) if values else np.array([], float)
    present = [value for value in values if value is not None]
    if not present or all(isinstance(v, float) for v in present):
        return np.array([np.nan if value is None else value for value in values], float)
    filler = type(present[0])()
    return MaskedColumn([filler if value is None else value for value in values], mask=missing)


def explode(table: Any) -> Table:
    """One row an epoch from one row an object: list columns unrolled, the others repeated.

    Examples
    --------
    >>> t = explode({"object_id": ["a", "b"], "time": [[1.0, 2.0], [3.0]], "flux": [[5.0, 6.0], [7.0]]})
    >>> t["object_id"].tolist(), t["flux"].tolist()
    (['a', 'a', 'b'], [5.0, 6.0, 7.0])

    Raises
    ------
    CatalogError
        If the lists of a row differ in length.
    """
    table = as_table(table)
    nested = [name for name in table.colnames if table[name].dtype.kind == "O" or table[name].ndim > 1]
    if not nested:
        return table
    lengths = np.array([[len(values) for values in table[name]] for name in nested], int).reshape(
        len(nested), -1
    )
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.flatnonzero((lengths != lengths[0]).any(axis=0))[0])
        raise CatalogError(f"row {row}: columns {', '.join(nested)} have {lengths[:, row].tolist()} epochs")
    long = Table(meta=table.meta)
    for name in table.colnames:
        values = table[name]
        if name in nested:
            joined = np.concatenate([np.asarray(v) for v in values]) if len(values) else np.array([], float)
            long[name] = Column(joined, description=values.description)
        else:
            long[name] = values[np.repeat(np.arange(len(table)), lengths[0])]
    return as_table(long)


def to_arrow(table: Any, *, flux_unit: str = "", meta: Mapping[str, Any] | None = None) -> pa.Table:
    """Arrow table with units and descriptions in the fields' metadata; lists stay lists."""
    source = as_table(table, flux_unit=flux_unit, meta=meta)
    arrays, fields = [], []
    for name in source.colnames:
        column = source[name]
        array = _arrow_column(column)
        about = {"unit": str(column.unit or ""), "description": str(column.description or "")}
        fields.append(pa.field(name, array.type, metadata={k: v for k, v in about.items() if v}))
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields, metadata={k: str(v) for k, v in source.meta.items()}))


def _arrow_column(column: Any) -> pa.Array:
    if column.dtype.kind == "O" or column.ndim > 1:
        return pa.array([None if value is None else np.asarray(value).tolist() for value in column])
    mask = np.ma.getmaskarray(column) if isinstance(column, MaskedColumn) else None
    values = np.asarray(column)
    if values.dtype.kind in "US":
        return pa.array(values.astype(str).tolist(), pa.string(), mask=mask)
    values = values.astype(values.dtype.newbyteorder("="))
    return pa.array(values, mask=mask)


def dump_table(
    table: Any, format: str = "csv", *, flux_unit: str = "", meta: Mapping[str, Any] | None = None
) -> bytes:
    """A table as the bytes of a file.

    Parameters
    ----------
    table
        As for `as_table`. List columns stay nested in Parquet and are unrolled to one row an epoch elsewhere.
    format : {"table", "csv", "ecsv", "votable", "parquet"}
        ``"table"`` is plain text in aligned columns.

    Raises
    ------
    CatalogError
        If the format is unknown.

    Examples
    --------
    >>> dump_table({"time": [1.5], "flux": [2.0]}).decode().split()
    ['time,flux', '1.5,2.0']
    """
    if format == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(to_arrow(table, flux_unit=flux_unit, meta=meta), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())
    if format not in ("table", *FORMATS):
        raise CatalogError(f"no table format {format!r}; known: table, {', '.join(FORMATS)}")
    flat = as_table(explode(as_table(table)), flux_unit=flux_unit, meta=meta)
    if format == "table":
        return ("\n".join(flat.pformat(max_lines=-1, max_width=-1, show_unit=True)) + "\n").encode()
    if format == "votable":
        sink_bytes = io.BytesIO()
        with quiet(AstropyWarning):
            flat.write(sink_bytes, format="votable")
        return sink_bytes.getvalue()
    text = io.StringIO()
    flat.write(text, format={"csv": "ascii.csv", "ecsv": "ascii.ecsv"}[format])
    return text.getvalue().encode()


def write_table(
    table: Any,
    path: str | Location,
    *,
    format: str | None = None,
    flux_unit: str = "",
    meta: Mapping[str, Any] | None = None,
) -> Location:
    """Write a table, whole or not at all; the format follows from the ending unless given.

    Raises
    ------
    CatalogError
        If neither format nor ending is known.
    """
    path = locate(path)
    format = format or format_of(path)
    write_atomic(path, dump_table(table, format, flux_unit=flux_unit, meta=meta))
    return path


def write_catalog(
    table: Any,
    format: str = "table",
    output: str | Location | None = None,
    *,
    flux_unit: str = "",
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a table to a file, or to standard output where none is given.

    Raises
    ------
    CatalogError
        If the format is unknown, or Parquet is asked for without a file.
    """
    if output is not None:
        write_table(table, output, format=format, flux_unit=flux_unit, meta=meta)
        return
    if format == "parquet":
        raise CatalogError("Parquet is binary: name a file with -o FILE.parquet")
    sys.stdout.write(dump_table(table, format, flux_unit=flux_unit, meta=meta).decode())


def read_table(path: str | Location) -> Table:
    """Read a table of any format that `write_table` writes.

    Raises
    ------
    CatalogError
        If there is no such file, or it cannot be read in the format of its ending.
    """
    path = locate(path)
    format = format_of(path)
    if not path.is_file():
        raise CatalogError(f"{path}: no such file")
    try:
        if format == "parquet":
            return _from_arrow(read_parquet(path))
        with quiet(AstropyWarning):
            reader = {"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(format, format)
            table = Table.read(io.BytesIO(path.read_bytes()), format=reader)
    except Exception as error:  # readers raise many kinds; the user needs the file and the first line
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CatalogError(f"{path.name}: cannot be read as {format} ({first})") from None
    for column in table.itercols():
        if column.unit is not None:  # VOTable's own reader does not know all of astropy's units
            _set_unit(column, str(column.unit))
    return table


def _from_arrow(arrow: pa.Table) -> Table:
    table = Table(_columns(arrow))
    for field in arrow.schema:
        about = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        column = table[field.name]
        if about.get("unit"):
            _set_unit(column, about["unit"])
        column.description = about.get("description")
    skipped = (b"pandas", b"ARROW:schema")
    meta = arrow.schema.metadata or {}
    table.meta.update({k.decode(): v.decode() for k, v in meta.items() if k not in skipped})
    return table
