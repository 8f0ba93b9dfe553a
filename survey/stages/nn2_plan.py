"""Which pairs are subtracted where: groups of objects, pairs of epochs, and blocks of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from survey.stages.protocol import Unit

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Objects that are measured on the same cutouts.

    Parameters
    ----------
    name : str
    y, x : float
        Middle of the cutouts on the reference grid.
    size : int
        Edge of the cutouts in pixels, odd.
    objects : tuple of dict
    """

    name: str
    y: int
    x: int
    size: int
    objects: tuple[dict[str, Any], ...]


def object_groups(objects: Sequence[dict[str, Any]], cell: int, margin: int) -> list[Group]:
    """Objects by the cell of a fixed grid they lie in; the cutout is the cell and a margin."""
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for item in objects:
        key = (int((item["y"] + 0.5) // cell), int((item["x"] + 0.5) // cell))
        cells.setdefault(key, []).append(item)
    size = 2 * (cell // 2 + margin) + 1
    return [
        Group(f"cell-{r:04d}-{c:04d}", r * cell + cell // 2, c * cell + cell // 2, size, tuple(found))
        for (r, c), found in sorted(cells.items())
    ]


def epoch_pairs(epochs: NDArray[np.int64], partners: int | Literal["all"], seed: int = 0) -> Pairs:
    """Pairs of epochs (n, 2), the earlier first, that tie all of them together.

    Parameters
    ----------
    epochs : int array
        Epochs to be used.
    partners : int or "all"
        All pairs, or about so many random partners an epoch: every epoch is in ``partners / 2`` closed
        tours through all epochs, so that no set of epochs is left apart. An odd number takes half a tour
        more.
    seed : int
        Of the tours.

    Examples
    --------
    >>> len(epoch_pairs(np.arange(16), "all"))
    120
    >>> len(epoch_pairs(np.arange(50), 4)) <= 100
    True
    """
    epochs = np.sort(np.asarray(epochs, np.int64))
    n = len(epochs)
    if n < 2:
        return np.zeros((0, 2), np.int64)
    i, j = np.triu_indices(n, 1)
    if partners != "all" and partners < n - 1:
        if partners < 2:
            raise ValueError(f"pairs = {partners}: an epoch needs at least 2 partners")
        rng = np.random.default_rng(seed)
        chosen: set[tuple[int, int]] = set()
        for tour in range((partners + 1) // 2):
            order = rng.permutation(n)
            steps = list(zip(order, np.roll(order, -1), strict=True))
            # Every second step of the last tour: one partner each.
            steps = steps[::2] if 2 * tour + 1 == partners else steps
            chosen |= {(min(a, b), max(a, b)) for a, b in steps}
        i, j = np.array(sorted(chosen)).T
    return np.column_stack([epochs[i], epochs[j]])


def later_pairs(
    epochs: NDArray[np.int64], start: int, partners: int | Literal["all"], seed: int = 0
) -> Pairs:
    """Pairs (n, 2) of epochs, the earlier first, that the epochs from ``start`` on bring to those before.

    All of them, or so many random partners an epoch, which lie before ``start``: there all are tied together.

    Examples
    --------
    >>> later_pairs(np.arange(4), 2, "all").tolist()
    [[0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    >>> len(later_pairs(np.arange(50), 49, 4))
    4
    """
    epochs = np.sort(np.asarray(epochs, np.int64))
    before = epochs[epochs < start]
    if partners == "all" or partners >= len(before):
        pairs = epoch_pairs(epochs, "all")
        return pairs[pairs[:, 1] >= start]
    rng = np.random.default_rng([seed, start])
    rows = [np.sort(rng.choice(before, partners, replace=False)) for _ in epochs[epochs >= start]]
    later = np.repeat(epochs[epochs >= start], partners)
    found = np.column_stack([np.concatenate(rows) if rows else np.zeros(0, np.int64), later])
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def pair_blocks(pairs: Pairs, block: int) -> Iterator[tuple[str, Pairs]]:
    """Pairs by the blocks of epochs that their two lie in, so that a block's cutouts are read once."""
    first, second = pairs[:, 0] // block, pairs[:, 1] // block
    for a, b in sorted(set(zip(first.tolist(), second.tolist(), strict=True))):
        yield f"{a:04d}-{b:04d}", pairs[(first == a) & (second == b)]


def pair_units(
    groups: Sequence[Group], pairs: Pairs, block: int, subtraction: str, start: int = 0
) -> list[Unit]:
    """One unit a group of objects and block of pairs; its name, and so its files, tell the subtraction.

    Those of pairs that later epochs brought, from ``start`` on, have names of their own.
    """
    later = f"+{start}" if start else ""
    return [
        Unit(f"{group.name}-{subtraction}-{name}{later}", items=(group, found))
        for group in groups
        for name, found in pair_blocks(pairs, block)
    ]
