"""What the pipeline asks of a method's differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from survey.stages.events import Event
from survey.stages.protocol import Unit

# Tickets by name of the tile whose differences they make; none where all has ended already.
Waiting = dict[str, list[Any]]


class RunError(RuntimeError):
    """A run that cannot go on."""


class Differences(Protocol):
    """Makes ``difference/<method>``; the pipeline searches and measures it whatever the method."""

    units: list[Unit]

    def groups(self) -> tuple[str, ...]:
        """Groups of the store that its stages write."""

    def sizes(self) -> Mapping[str, int]:
        """Lengths of dimensions that only its arrays have."""

    def key(self, unit: Unit, events: Sequence[Event] = ()) -> str:
        """Key that a tile's differences carry when they are made, or made again without events."""

    def before(self, unit: Unit) -> tuple[str, int] | None:
        """Key and number of epochs until later ones were last added; None where all were made together."""

    def stands(self, unit: Unit, events: Sequence[Event], *, before: bool = False) -> str | None:
        """Identity of a tile's differences as light curves see them; with ``before`` of those of the epochs
        before the last addition, as far as they are still what they were then. None: nobody can say.
        """

    def additions(self) -> list[int]:
        """First epochs of what was added to the field, addition by addition."""

    def tries_again(self) -> bool:
        """Whether there is something to submit although all that is known has been searched."""

    def submit(self) -> Waiting:
        """Submit what is missing."""

    def refit(self, touched: Mapping[str, list[Event]]) -> Waiting:
        """Make tiles again without the samples of the events that touch them, where the method can."""
