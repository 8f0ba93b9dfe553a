"""What the ledgers say of the data that units wrote: their regions and checksums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from survey.io.checksums import MODULUS, cells_of

Cells = Mapping[tuple[int, int], int]
# A group, and of each array the checksums of the cells in which something was replaced.
Patched = tuple[str, Mapping[str, Cells]]


def written_entry(group: str, region: Sequence[slice], sums: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """One group's region and its arrays' checksums, as plain data."""
    spans = [[part.start, part.stop] for part in region]
    return {"group": group, "region": spans, "sums": {name: list(cells) for name, cells in sums.items()}}


def patch_written(written: Iterable[Mapping[str, Any]], patched: Iterable[Patched]) -> list[dict[str, Any]]:
    """What was written before, with the checksums of patched cells in the place of theirs.

    Entries of a patched group become one, which spans them all: checksums of parts add up.
    """
    entries = [dict(entry) for entry in written]
    for group, arrays in patched:
        mine = [entry for entry in entries if entry["group"] == group]
        entries = [entry for entry in entries if entry["group"] != group]
        # Without checksums of what was not touched there are none of the whole.
        if mine and all("sums" in entry for entry in mine):
            entries.append(_patch(mine, group, arrays))
    return entries


def _patch(entries: Sequence[Mapping[str, Any]], group: str, arrays: Mapping[str, Cells]) -> dict[str, Any]:
    ends = list(zip(*(entry["region"] for entry in entries), strict=True))
    region = tuple(slice(min(e[0] for e in axis), max(e[1] for e in axis)) for axis in ends)
    sums = {}
    # An array that is new in the windows has no checksums elsewhere, hence none at all.
    for name in sorted(set.intersection(*(set(entry["sums"]) for entry in entries))):
        total: dict[tuple[int, int], int] = dict.fromkeys(cells_of(region), 0)
        for entry in entries:
            places = cells_of(tuple(slice(*span) for span in entry["region"]))
            for place, value in zip(places, entry["sums"][name], strict=True):
                total[place] = (total[place] + value) % MODULUS
        sums[name] = list({**total, **arrays.get(name, {})}.values())
    return written_entry(group, region, sums)
