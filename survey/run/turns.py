"""Which execution of a unit may write: a cluster may begin one again while the first still runs.

A worker's thread goes on when its host is cut off from the scheduler, which then gives the task to another
worker. Where a unit writes a whole shard, both write the same bits. Where it writes a part of one, or where
something was written over it meanwhile, the one that comes late would put back what was there before.
"""

from __future__ import annotations

import uuid

from survey.io.locations import Location, remove, write_atomic
from survey.io.store import Field

FOLDER = "turns"


class LostTurnError(RuntimeError):
    """Another execution of the unit has begun since, or its run has ended."""


class Turn:
    """The right of one execution to write its unit, until another begins.

    Parameters
    ----------
    target : Field
    stage : str
        Method and stage.
    unit : str
    """

    def __init__(self, target: Field, stage: str, unit: str) -> None:
        self.place: Location = _folder(target, stage) / unit
        self.unit = unit
        self.token = uuid.uuid4().hex.encode()
        write_atomic(self.place, self.token, synced=False)

    def check(self) -> None:
        """See that no other has begun.

        Raises
        ------
        LostTurnError
            If one has, or if the run has ended without this one.
        """
        try:
            current = self.place.read_bytes()
        except FileNotFoundError:
            current = b""
        if current != self.token:
            raise LostTurnError(f"{self.unit} was given to another worker meanwhile: nothing is written")


def forget_turns(target: Field, stage: str) -> None:
    """End the turns of all executions that may still be under way somewhere."""
    remove(_folder(target, stage))


def _folder(target: Field, stage: str) -> Location:
    return target.path / FOLDER / stage
