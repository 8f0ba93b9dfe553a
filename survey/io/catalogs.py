"""Tables in and out: events, light curves, targets; Parquet, CSV, ECSV, VOTable and plain text."""

from survey.io._tables import (
    COLUMNS,
    FORMATS,
    CatalogError,
    as_table,
    dump_table,
    explode,
    format_of,
    read_table,
    to_arrow,
    write_catalog,
    write_table,
)
from survey.io._targets import read_target_table

__all__ = [
    "COLUMNS",
    "FORMATS",
    "CatalogError",
    "as_table",
    "dump_table",
    "explode",
    "format_of",
    "read_table",
    "read_target_table",
    "to_arrow",
    "write_catalog",
    "write_table",
]
