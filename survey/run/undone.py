"""Additions of later epochs that a kill interrupted are undone, and so done again to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping

from survey.io.files import write_json
from survey.io.ledger import Ledger, Record
from survey.io.locations import Location
from survey.io.store import Field
from survey.run.turns import forget_turns
from survey.stages.prior import FOLDER, forget_prior, restore_prior


def note_additions(field: Field, records: Mapping[str, Record]) -> None:
    """Keep the records of tiles that epochs are about to be added to."""
    write_json(_notes(field), {name: [record.key, record.payload] for name, record in records.items()})


def undo_additions(field: Field, ledger: Ledger, stage: str) -> None:
    """Put back what was there before additions that did not end, with its records.

    Parameters
    ----------
    ledger : Ledger
        Of the reference.
    stage : str
        Method and stage, as workers' turns know it.
    """
    try:
        notes = json.loads(_notes(field).read_text())
    except FileNotFoundError:
        notes = {}
    tiles = {tile.name: tile for tile in field.tiles}
    interrupted = {name: note for name, note in notes.items() if name not in ledger.records}
    if interrupted:
        forget_turns(field, stage)  # a worker of the killed run may be about to write
    for name, (key, _) in interrupted.items():
        restore_prior(field, tiles[name], key)
    for name, (key, payload) in interrupted.items():
        ledger.record(name, key, payload)
    ledger.flush()
    forget_prior(field)


def _notes(field: Field) -> Location:
    return field.path / FOLDER / "records.json"
