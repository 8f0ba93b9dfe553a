"""What is known of a template: which tiles the ledger vouches for, and how its stars look.

The tiles are those of the version that is the template now.

Records of a version are written before it takes the old one's place, and the old one's are struck after. So
whatever a kill leaves, the template that is there has its records, and others mean nothing.
"""

from __future__ import annotations

import math

from survey.io.ledger import Record
from survey.io.store import Field, FieldError
from survey.tiles import Tile


def template_unit(version: str, tile: Tile) -> str:
    """Name of a tile's record."""
    return f"{version}-{tile.name}"


def template_records(field: Field, name: str) -> dict[str, Record]:
    """Records of the template that is there now; none where there is none."""
    try:
        version = field.group_attrs(f"template/{name}").get("version")
    except FieldError:
        return {}
    records = field.ledger(f"template/{name}").records
    # Templates made before there were versions have their tiles' names alone.
    units = [tile.name if version is None else template_unit(str(version), tile) for tile in field.tiles]
    return {unit: records[unit] for unit in units if unit in records}


def template_looks(field: Field, name: str) -> tuple[float, float]:
    """FWHM of a template's stars, and how far they lie from the field's, pixels; NaN where unknown.

    The oversampled reference is made of the frames, so that their PSFs say all.
    """
    try:
        noted = {} if name == "reference" else field.group_attrs(f"template/{name}")
    except FieldError:
        noted = {}
    width, offset = noted.get("psf_fwhm"), noted.get("offset")
    return (
        float(width) if isinstance(width, float | int) and width > 0 else math.nan,
        math.hypot(*offset) if isinstance(offset, list) and len(offset) == 2 else math.nan,
    )
