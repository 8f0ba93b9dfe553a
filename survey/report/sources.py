"""The true sources of a simulated field, on the field's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from survey.io.catalogs import read_table
from survey.io.frames import parse_wcs
from survey.io.sky_positions import sky_to_pixels
from survey.io.store import Field
from survey.kernels.pixelmap import PixelMap
from survey.stages.calibrated import calibrated_frames, frame_map

Row = dict[str, Any]

TRUTH_FILE = "truth.ecsv"


def field_truth(field: Field, path: str | Path | None = None) -> list[Row]:
    """The truth of a field's sources on its own grid; empty where none is known.

    Parameters
    ----------
    field : Field
        A field made of simulated frames.
    path : path, optional
        Table of the truth; by default ``truth.ecsv`` beside the frames.

    Notes
    -----
    The simulator states positions on the pixels of frame 0. Where the field holds that frame, its measured
    map takes them to the field's grid; else right ascension and declination do, by the field's WCS; else
    they are taken as they are.
    """
    if not field.has_table("frames"):
        return []
    frames = calibrated_frames(field)
    files = [Path(str(name)) for name in frames["path"].values]
    if path is None:
        beside = (file.parent / TRUTH_FILE for file in files[:1])
        path = next((p for p in beside if p.exists()), None)
    if path is None:
        return []
    rows = as_rows(read_table(path))
    names = [file.name.split(".")[0] for file in files]
    if "frame_00000" in names:
        return _placed(rows, frame_map(frames, names.index("frame_00000")))
    return _from_sky(rows, field)


def _placed(rows: list[Row], pixel_map: PixelMap) -> list[Row]:
    for row in rows:
        x, y = pixel_map.inverse(row["x"], row["y"])
        row["x"], row["y"] = float(x), float(y)
    return rows


def _from_sky(rows: list[Row], field: Field) -> list[Row]:
    text = field.attrs.get("wcs")
    if text and rows and {"ra", "dec"} <= rows[0].keys():
        x, y = sky_to_pixels(parse_wcs(text), [row["ra"] for row in rows], [row["dec"] for row in rows])
        for k, row in enumerate(rows):
            row["x"], row["y"] = float(x[k]), float(y[k])
    return rows


def as_rows(table: Any) -> list[Row]:
    """Rows of an astropy or Arrow table, a dict of columns, or a list of dict, as plain dicts."""
    if table is None:
        return []
    if hasattr(table, "to_pylist"):
        return list(table.to_pylist())
    if hasattr(table, "colnames"):
        table = {name: table[name] for name in table.colnames}
    if isinstance(table, Mapping):
        columns = {name: _items(values) for name, values in table.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [dict(row) for row in table]


def _items(values: Iterable[Any]) -> list[Any]:
    filled = np.ma.filled(np.ma.asarray(values)) if hasattr(values, "mask") else values
    return filled.tolist() if hasattr(filled, "tolist") else list(filled)
