"""What NN2 knows of objects from earlier nights: where they are, and up to which frame pairs are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.io.store import Field
from survey.run.engine import Engine, stage_key
from survey.run.identity import epoch_keys
from survey.run.worker import function_key
from survey.stages.candidates import SOURCE_RADIUS
from survey.stages.nn2_carried import HALF
from survey.stages.nn2_pairs import BLOCK, POSITION_EPOCHS
from survey.stages.nn2_plan import Group, epoch_pairs, later_pairs, pair_units
from survey.stages.protocol import Unit

# What of an object is known of it; the rest is its owner's affair.
_OBJECT = ("object_id", "kind", "y", "x", "refine", "position_error")


@dataclass(frozen=True)
class Measured:
    """A group as its pairs are measured.

    Parameters
    ----------
    group : Group
        Objects by the names that they had first, where they were found to be.
    ends : tuple of int
        Frames of the field when it was measured first, and after each addition.
    order : tuple of int
        Which of the group's objects each of those is that are wanted now.
    """

    group: Group
    ends: tuple[int, ...]
    order: tuple[int, ...]

    def named(self, given: Group) -> Group:
        """The group with the names that its objects have now; ``measured_as`` are those of the pairs."""
        objects = []
        for item, k in zip(given.objects, self.order, strict=True):
            known = self.group.objects[k]
            objects.append({**known, "object_id": item["object_id"], "measured_as": known["object_id"]})
        return replace(given, objects=tuple(objects))


class Nights:
    """The groups that earlier runs have measured, each with its additions.

    A group whose objects, settings and images of the earlier frames are what they were keeps its places and
    pairs; only pairs with later frames are new. Places are fitted on `POSITION_EPOCHS` frames at most: while
    there are fewer, all is measured anew with more.

    Parameters
    ----------
    engine : Engine
    epochs : int array
        Frames that are used.
    keys_of : callable (Group) -> list of str
        Identity of each of the field's frames, as far as the pairs of a group depend on it.
    """

    def __init__(
        self, engine: Engine, epochs: NDArray[np.int64], keys_of: Callable[[Group], Sequence[str]]
    ) -> None:
        self.engine, self.settings, self.epochs, self.keys_of = engine, engine.config.nn2, epochs, keys_of
        self.stage = "nn2_carried" if self.settings.subtract == "carried" else "nn2_pairs"
        self.ledger = engine.ledger("nn2_groups")
        self._pairs: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def refines(self) -> bool:
        """Whether places are fitted."""
        return self.stage == "nn2_pairs" and self.settings.refine_position

    def recall(self, given: Group) -> Measured | None:
        """A group as it was measured before, with the frames that are new; None where all is new."""
        record = self.ledger.records.get(self._name(given))
        if record is None:
            return None
        ends = [int(end) for end in record.payload["ends"]]
        if record.key != self._key(given, ends[-1]):
            return None
        first = record.payload["given"]
        order = _matches(given.objects, first, loose=self._is_fitted)
        if order is None:
            return None
        if (self.epochs >= ends[-1]).any():
            fitted = any(self._is_fitted(item) for item in given.objects)
            if fitted and (self.epochs < ends[0]).sum() < POSITION_EPOCHS:
                return None
            ends.append(int(self.epochs[-1]) + 1)
        group = replace(given, objects=tuple(record.payload["objects"]))
        measured = Measured(group, tuple(ends), tuple(order))
        self._write(given, first, measured)
        return measured

    def begin(self, given: Group, placed: Group, *, kept: bool = True) -> Measured:
        """A group measured from nothing, its objects at the places that were found; ``kept``: for good."""
        ledger, start = self.engine.ledger(self.stage), f"{self._name(given)}-"
        ledger.invalidate([name for name in ledger.records if name.startswith(start) and "+" in name])
        placed = replace(placed, objects=tuple(_known(item) for item in placed.objects))
        measured = Measured(placed, (int(self.epochs[-1]) + 1,), tuple(range(len(placed.objects))))
        if kept:
            self._write(given, [_known(item) for item in given.objects], measured)
        else:
            self.ledger.invalidate([self._name(given)])
        return measured

    def units(self, measured: Measured) -> list[Unit]:
        """Units that measure a group's pairs, those of each addition apart."""
        return [
            unit
            for start, stop in pairwise((0, *measured.ends))
            for unit in pair_units(
                [measured.group], self.pairs(start, stop), BLOCK, self.settings.subtract, start
            )
        ]

    def pairs(self, start: int, stop: int) -> NDArray[np.int64]:
        """Pairs that an addition of frames from ``start`` up to ``stop`` brings; all of the first frames."""
        if (start, stop) not in self._pairs:
            known, s = self.epochs[self.epochs < stop], self.settings
            self._pairs[start, stop] = (
                later_pairs(known, start, s.pairs, s.seed) if start else epoch_pairs(known, s.pairs, s.seed)
            )
        return self._pairs[start, stop]

    def _is_fitted(self, item: dict[str, Any]) -> bool:
        return self.refines and bool(item.get("refine", True))

    def _name(self, group: Group) -> str:
        return f"{group.name}-{self.settings.subtract}"

    def _key(self, given: Group, stop: int) -> str:
        """Of what the places and the pairs up to a frame were measured on."""
        keys = self.keys_of(given)
        inputs = {
            "cutout": [given.y, given.x, given.size],
            "pairs": [self.settings.pairs, self.settings.seed],
            "epochs": [[int(k), keys[k]] for k in self.epochs[self.epochs < stop]],
            "refine": self.refines,
        }
        return stage_key(self.stage, self.engine.config, self._name(given), inputs)

    def _write(self, given: Group, first: list[dict[str, Any]], measured: Measured) -> None:
        key = self._key(given, measured.ends[-1])
        payload = {"given": first, "objects": list(measured.group.objects), "ends": list(measured.ends)}
        if not self.ledger.has(self._name(given), key):
            self.ledger.record(self._name(given), key, payload)


class CarriedKeys:
    """Identity of each frame, for pairs that go through the oversampled reference and its differences.

    Differences of a frame stay when others are added: they are of the reference as it was when their frame
    came, but for the events that have been taken out of the tile since.
    """

    def __init__(self, field: Field, frames: xr.Dataset) -> None:
        self.field, self.images = field, epoch_keys(field, frames)
        self.records = field.ledger("oversampled.oversampled").records
        psfs = field.ledger("psf").records
        self.psf = {name: record.key for name, record in sorted(psfs.items())}
        self._found: dict[str, list[str]] = {}

    def __call__(self, group: Group) -> list[str]:
        """Of every frame, around the objects of a group."""
        if group.name not in self._found:
            self._found[group.name] = self._keys(group)
        return self._found[group.name]

    def _keys(self, group: Group) -> list[str]:
        payloads = [self.records[n].payload for n in self._tiles(group) if n in self.records]
        keys = []
        for k, image in enumerate(self.images):
            tiles = [
                [
                    p.get("root", p["first"]),
                    [start for start in p.get("appended", ()) if start <= k],
                    p.get("windows", ()),
                    p.get("excluded", ()),
                ]
                for p in payloads
            ]
            keys.append(function_key(image, tiles, self.psf))
        return keys

    def _tiles(self, group: Group) -> list[str]:
        """Tiles that the objects' cutouts look at."""
        found = []
        for tile in self.field.tiles:
            rows, columns = tile.window(HALF + 1, self.field.shape)
            if any(
                rows.start <= o["y"] < rows.stop and columns.start <= o["x"] < columns.stop
                for o in group.objects
            ):
                found.append(tile.name)
        return found


def _known(item: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an object, as plain data."""
    return {k: float(v) if k in ("y", "x", "position_error") else v for k, v in item.items() if k in _OBJECT}


def _matches(
    given: Sequence[dict[str, Any]],
    known: Sequence[dict[str, Any]],
    loose: Callable[[dict[str, Any]], bool],
) -> list[int] | None:
    """For every object the known one that it is, each once; None where they are not the same objects.

    Names do not count, as events are numbered by strength. A place that is only where a fit begins may have
    moved a little; any other may not.
    """
    if len(given) != len(known):
        return None
    left, found = list(range(len(known))), []
    for item in given:
        able = [k for k in left if all(item.get(n) == known[k].get(n) for n in ("kind", "refine"))]
        far = {k: float(np.hypot(known[k]["y"] - item["y"], known[k]["x"] - item["x"])) for k in able}
        best = min(far, key=lambda k: (far[k], k), default=None)
        if best is None or far[best] > (SOURCE_RADIUS if loose(item) else 0.0):
            return None
        left.remove(best)
        found.append(best)
    return found
