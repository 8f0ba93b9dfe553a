"""The leases that a run holds from its first step to its last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from survey.io.ledger import Lease
from survey.io.store import Field


@contextmanager
def held(field: Field, owner: str, *groups: str) -> Iterator[list[Lease]]:
    """The right to write these groups, all or none.

    Raises
    ------
    FieldBusyError
        If another run holds one of them.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(field.lease(group, owner)) for group in groups]
