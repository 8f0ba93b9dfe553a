"""Everything of a method made again; a mark in the field tells one that was begun from one to begin."""

from __future__ import annotations

from survey.config import Config
from survey.io.files import write_json
from survey.io.locations import Location, folders
from survey.io.store import Field
from survey.run.progress import Progress
from survey.stages.frame_table import flag_table
from survey.stages.prior import forget_prior

# Ledgers that all methods share: a full run of any of them makes a reference, of which no events are out yet,
# and frames' PSFs, which are of images alone.
SHARED = ("refine", "psf", "oversampled.oversampled", "oversampled.frame_psf")


def begin_rebuild(field: Field, config: Config, owner: str, progress: Progress) -> None:
    """Forget what a method made and what it shares, so that everything is wanted again.

    A rebuild that did not end goes on instead: what it has made is not made once more.
    """
    if _mark(field, config).is_file():
        progress.message("a rebuild was begun and did not end: it goes on")
        return
    forget_prior(field)  # of an addition that did not end, which is not gone on with
    with field.lease("frame_psf", owner):
        field.write_table("frames", flag_table(field.frames()))
        for folder in folders(field.path / "ledger"):
            if folder.name in SHARED or folder.name.startswith(f"{config.method}."):
                ledger = field.ledger(folder.name)
                ledger.invalidate(list(ledger.records))
                ledger.compact()
    write_json(_mark(field, config), {"run": owner})


def end_rebuild(field: Field, config: Config) -> None:
    """Say that everything is there: whoever asks for a rebuild next means another one."""
    _mark(field, config).unlink(missing_ok=True)


def _mark(field: Field, config: Config) -> Location:
    return field.path / "rebuilds" / f"{config.method}.json"
