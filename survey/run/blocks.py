"""Blocks of frames that are fitted together, and what is remembered of their units that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from survey.io.ledger import Ledger
from survey.stages.protocol import Unit

# First epoch of a block, and the one after its last.
Span = tuple[int, int]


@dataclass(eq=False)
class Block:
    """Frames that are fitted together, from the sums of all tiles.

    Parameters
    ----------
    span : Span
    units : list of Unit
        Its tiles.
    lost : list of str
        Units that have no differences, as far as is known.
    without : list of str
        Those of them whose sums the fits lack: the differences of the others are other ones by that.
    """

    span: Span
    units: list[Unit]
    lost: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name in the ledger of what was lost."""
        return f"epochs-{self.span[0]:05d}"

    @property
    def summed(self) -> list[Unit]:
        """Units whose sums the fits are made of."""
        return [unit for unit in self.units if unit.name not in self.without]

    def forget(self) -> None:
        """Nothing is known to be lost: all is tried anew."""
        self.lost, self.without = [], []

    def recall(self, ledger: Ledger) -> None:
        """What was lost when its differences were made last."""
        record = ledger.records.get(self.name)
        if record is not None:
            self.lost, self.without = list(record.payload["lost"]), list(record.payload["without"])

    def remember(self, ledger: Ledger) -> None:
        """Have the next run know what was lost."""
        if self.lost:
            ledger.record(self.name, "lost", {"lost": self.lost, "without": self.without})
        else:
            ledger.invalidate([self.name])


def blocks_of(units: Iterable[Unit]) -> dict[Span, Block]:
    """Units by the epochs that they begin their items with."""
    found: dict[Span, Block] = {}
    for unit in units:
        span = unit.items[:2]
        found.setdefault(span, Block(span, [])).units.append(unit)
    return found


def at_once(blocks: Sequence[Block], frame_bytes: int, room: int) -> list[list[Block]]:
    """Blocks that go through their passes together: as many as take this room, one at least.

    Parameters
    ----------
    frame_bytes : int
        What one frame's sums of one tile take.
    """
    groups: list[list[Block]] = []
    left = 0.0
    for block in blocks:
        need = frame_bytes * len(block.units) * (block.span[1] - block.span[0])
        if not groups or need > left:
            groups.append([])
            left = room
        groups[-1].append(block)
        left -= need
    return groups
