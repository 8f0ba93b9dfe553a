"""Oversampled (Dazzle) differences: a per-pixel Legendre reference over the sub-pixel phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.reference import ReferenceFit, difference_images, halo
from survey.stages.calibrated import CalibratedTile, read_calibrated
from survey.stages.events import Event, event_mask
from survey.stages.prior import prior_reference
from survey.stages.protocol import Outlook, Output, Stage, Unit, tile_units
from survey.tiles import BYTES_AT_LEAST, BYTES_PER_PHASE, BYTES_PER_PIXEL, BYTES_PER_SAMPLE, Tile, sums_bytes

# Radius in pixels around an event within which samples leave the fit; the PSF's wings beyond it hold
# too little of an event to bend a reference.
EVENT_RADIUS = 4.0


@dataclass(frozen=True)
class Later:
    """Item of a unit that adds epochs from ``start`` on to the reference of those before.

    ``before`` is the key of that reference.
    """

    start: int
    before: str


@dataclass
class WindowData:
    """Calibrated samples of a window (a tile's core, or a part of it) and its halo.

    ``prior`` is the reference that the samples, of epochs from ``start`` on, are added to.
    """

    window: Tile
    halo: int
    samples: CalibratedTile
    start: int = 0
    prior: ReferenceFit | None = None


@dataclass
class TileData:
    """What a unit fits: its tile's core, or only windows in it."""

    tile: Tile
    windows: list[WindowData]


def tile_halo(config: Config) -> int:
    """Pixels of overlap that make a tile's core equal to the whole image's."""
    return halo(config.reference.extension)


def event_windows(tile: Tile, events: Sequence[Event], config: Config) -> tuple[Tile, ...]:
    """The parts of a tile's core that differ when the samples of these events leave the fit."""
    reach = int(np.ceil(EVENT_RADIUS)) + tile_halo(config)
    boxes = [
        Tile(
            0,
            max(int(np.floor(e["y"])) - reach, tile.y0),
            min(int(np.ceil(e["y"])) + reach + 1, tile.y1),
            max(int(np.floor(e["x"])) - reach, tile.x0),
            min(int(np.ceil(e["x"])) + reach + 1, tile.x1),
        )
        for e in events
    ]
    return join_windows([box for box in boxes if box.y0 < box.y1 and box.x0 < box.x1])


def join_windows(windows: Sequence[Tile]) -> tuple[Tile, ...]:
    """Windows that touch made one, so that nothing is fitted twice."""
    joined: list[Tile] = []
    for window in windows:
        box = window
        while (other := next((b for b in joined if _overlap(b, box)), None)) is not None:
            joined.remove(other)
            box = Tile(
                0,
                min(box.y0, other.y0),
                max(box.y1, other.y1),
                min(box.x0, other.x0),
                max(box.x1, other.x1),
            )
        joined.append(box)
    return tuple(Tile(i, w.y0, w.y1, w.x0, w.x1) for i, w in enumerate(joined))


def _overlap(a: Tile, b: Tile) -> bool:
    return a.y0 < b.y1 and b.y0 < a.y1 and a.x0 < b.x1 and b.x0 < a.x1


def _inside(windows: Sequence[Tile], tile: Tile) -> list[Tile]:
    """The parts of windows that lie in a tile."""
    cut = [
        Tile(w.index, max(w.y0, tile.y0), min(w.y1, tile.y1), max(w.x0, tile.x0), min(w.x1, tile.x1))
        for w in windows
    ]
    return [w for w in cut if w.y0 < w.y1 and w.x0 < w.x1]


def read(field: Field, unit: Unit, config: Config) -> TileData:
    """Calibrated samples of the core and its halo, or of the windows or later epochs that its items name."""
    assert unit.tile is not None
    margin = tile_halo(config)
    if unit.items and isinstance(unit.items[0], Later):
        return TileData(unit.tile, [_read_later(field, unit.tile, unit.items[0], config)])
    windows = _inside(unit.items, unit.tile) if unit.items else [unit.tile]
    return TileData(
        unit.tile,
        [WindowData(w, margin, read_calibrated(field, w.window(margin, field.shape))) for w in windows],
    )


def _read_later(field: Field, tile: Tile, later: Later, config: Config) -> WindowData:
    """Samples of later epochs, and the reference of those before with its sums."""
    margin = tile_halo(config)
    window = tile.window(margin, field.shape)
    # Zeros in the halo, whose fits are not kept and bend no core pixel's.
    stored: dict[str, NDArray[Any]] = prior_reference(field, tile, later.before, margin)
    samples = read_calibrated(field, window, start=later.start)
    coefficients = stored["coefficients"].astype(np.float64)
    prior = ReferenceFit(
        coefficients,
        stored["n_used"],
        stored["chi2"],
        np.any(coefficients != 0, axis=(2, 3)),
        config.reference.extension,
        stored["normal"],
        stored["moment"],
    )
    return WindowData(tile, margin, samples, later.start, prior)


def apply(data: TileData, state: Sequence[Event] | None, config: Config) -> Output:
    """Reference and leave-one-out differences of the core, or of windows in it.

    Parameters
    ----------
    state : sequence of events, optional
        Events whose samples are kept out of the fit.
    """
    pieces = [_fit(window, state, config) for window in data.windows]
    if pieces and data.windows[0].window is data.tile:
        return pieces[0]
    n_time = len(data.windows[0].samples.time) if pieces else 0
    region = (slice(0, n_time), *data.tile.core)
    return Output(region=region, pieces=pieces, payload={"events": len(state or ())})


def _fit(data: WindowData, state: Sequence[Event] | None, config: Config) -> Output:
    samples, settings = data.samples, config.reference
    excluded = np.broadcast_to((samples.flags != 0)[:, None, None], samples.flux.shape)
    if state:
        usable = ~(excluded | samples.mask)
        needed = settings.needed_images
        excluded = excluded | event_mask(state, samples.time, samples.window, EVENT_RADIUS, usable, needed)
    result = difference_images(
        samples.flux,
        samples.error,
        samples.mask,
        samples.phase_y,
        samples.phase_x,
        n_basis=settings.n_basis,
        extension=settings.extension,
        iterations=settings.iterations,
        clip=settings.clip,
        min_images=settings.needed_images,
        fit_mask=excluded,
        gain=samples.gain if np.isfinite(samples.gain).all() else None,
        keep_normal=settings.keep_sums,
        prior=data.prior,
    )
    tile = data.window
    y, x = tile.inner(data.halo)
    cube = (slice(None), y, x)
    difference = {
        "flux": result.flux[cube],
        "error": result.error[cube],
        "mask": result.mask[cube],
        "fit_mask": result.fit_mask[cube],
        "leverage": result.leverage[cube],
    }
    reference = {
        "coefficients": result.reference.coefficients[y, x],
        "n_used": result.reference.n_used[y, x],
        "chi2": result.reference.chi2[y, x],
    }
    if result.reference.normal is not None and result.reference.moment is not None:
        reference["normal"] = result.reference.normal[y, x]
        reference["moment"] = result.reference.moment[y, x]
    good = ~np.asarray(result.mask[cube], bool)
    scaled = difference["flux"][good] / difference["error"][good]
    payload = {
        "samples": int(good.sum()),
        "sum": float(scaled.sum(dtype=np.float64)),
        "sum2": float((scaled.astype(np.float64) ** 2).sum()),
        "clipped": int(difference["fit_mask"].sum()),
        "histogram": np.histogram(scaled, np.linspace(-8, 8, 81))[0].tolist(),
        "events": len(state or ()),
    }
    region = (slice(data.start, data.start + len(samples.time)), *tile.core)
    return Output({"difference/oversampled": difference, "reference": reference}, region, payload=payload)


def merge(payloads: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the row blocks of a tile; windows alone report none."""
    if "histogram" not in payloads[0]:
        return payloads[0]
    histogram = np.sum([payload["histogram"] for payload in payloads], axis=0)
    merged = {name: sum(p[name] for p in payloads) for name in ("samples", "sum", "sum2", "clipped")}
    return {**merged, "histogram": histogram.tolist(), "events": max(p["events"] for p in payloads)}


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile, which is what the tiles' size was chosen by."""
    assert unit.tile is not None
    samples = outlook.samples(unit.tile, tile_halo(config))
    pixels = samples // outlook.epochs
    each = BYTES_PER_SAMPLE + (BYTES_PER_PHASE if outlook.own_phases else 0)
    kept = sums_bytes(config.reference.n_basis) if config.reference.keep_sums else 0
    return each * samples + (BYTES_PER_PIXEL + kept) * pixels + BYTES_AT_LEAST


STAGE = Stage(
    "oversampled",
    3,
    lambda config: config.reference.model_dump(exclude={"keep_sums"}),
    tile_units,
    read,
    apply=apply,
    merge=merge,
    memory=memory,
)
