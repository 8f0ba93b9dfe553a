"""What a stage is: pure functions over units. `survey.run` does the rest for any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.tiles import Tile

STAGES: dict[str, Stage] = {}


@dataclass(frozen=True)
class Unit:
    """A piece of work that one task does and one ledger record remembers.

    Parameters
    ----------
    name : str
        Its name in the ledger.
    tile : Tile, optional
        The tile it works on.
    items : tuple
        What else it works on: sources of frames, objects …; plain, picklable data.
    """

    name: str
    tile: Tile | None = None
    items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What of a field decides how much memory a unit takes.

    Parameters
    ----------
    epochs : int
    own_phases : bool
        Whether every sample has a phase of its own (rotation, distortion), not every frame one for all.
    psf_widths : tuple of float
        FWHM of the sharpest and of the broadest frames, pixels; NaN where they are unknown.
    template : tuple of float
        FWHM of the template and how far its stars lie from the field's, pixels; NaN where unknown.
    """

    epochs: int
    own_phases: bool = False
    psf_widths: tuple[float, float] = (math.nan, math.nan)
    template: tuple[float, float] = (math.nan, math.nan)

    def samples(self, tile: Tile, halo: int) -> int:
        """Samples of a tile and its halo."""
        height, width = tile.shape
        return (height + 2 * halo) * (width + 2 * halo) * self.epochs


@dataclass
class Output:
    """What `apply` returns: arrays to write and a small report.

    Parameters
    ----------
    arrays : mapping
        Group -> name -> array of the unit's core.
    region : tuple of slice
        (time, y, x) where the arrays belong.
    pieces : list of Output
        Further arrays with regions of their own, inside the unit's core.
    tables : mapping
        Folder of the field -> pyarrow table, written as a part of the unit's own.
    payload : dict
        Plain JSON data, kept in the ledger: counts, candidates.
    """

    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    region: tuple[slice, ...] = ()
    pieces: list[Output] = field(default_factory=list)
    tables: Mapping[str, Any] = field(default_factory=dict)
    payload: dict[str, Any] = field(default_factory=dict)


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Stage:
    """A stage as its functions.

    Parameters
    ----------
    name : str
        Its name in ledgers, messages and on the command line.
    version : int
        Raised whenever the same settings would give other numbers.
    settings : callable (config) -> data
        The settings its results depend on, and no others.
    units : callable (field, config) -> list of Unit
        In a fixed order.
    read : callable (field, unit, config) -> data
        What a unit needs from the store: its core and halo.
    partial : callable (data, config) -> small arrays
        Optional first pass, gathered by ``combine``.
    combine : callable (partials in unit order, config) -> state
    apply : callable (data, state, config) -> Output
    merge : callable (payloads) -> payload
        Puts together what the row blocks of one tile reported, first rows first. A stage that has it,
        and whose cores do not depend on how the image is cut, is done in row blocks where a tile does
        not fit into memory.
    memory : callable (unit, outlook, config) -> bytes
        Forecast of what one step on a unit takes above the import baseline.
    """

    name: str
    version: int
    settings: Callable[[Config], Any]
    units: Callable[[Field, Config], list[Unit]]
    read: Callable[[Field, Unit, Config], Any]
    partial: Callable[[Any, Config], Any] = _nothing
    combine: Callable[[list[Any], Config], Any] = _nothing
    apply: Callable[[Any, Any, Config], Output] = _nothing  # type: ignore[assignment]
    merge: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    memory: Callable[[Unit, Outlook, Config], float] | None = None

    def __post_init__(self) -> None:
        STAGES[self.name] = self

    @property
    def gathers(self) -> bool:
        """Whether it has a first pass whose results are combined."""
        return self.partial is not _nothing


def tile_units(field: Field, config: Config) -> list[Unit]:
    """One unit a tile, in the tiles' order: the usual case."""
    return [Unit(tile.name, tile) for tile in field.tiles]
