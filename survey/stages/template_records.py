"""Which tiles of a template the ledger vouches for: those of the version that is the template now.

Records of a version are written before it takes the old one's place, and the old one's are struck after. So
whatever a kill leaves, the template that is there has its records, and others mean nothing.
"""

from __future__ import annotations

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
