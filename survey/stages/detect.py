"""The search for events: matched filters over time scales, thresholds by false alarms, peaks merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.matched_filter import EventBank, event_bank, matched_filter_bank
from survey.kernels.peaks import PEAK_DTYPE, find_peaks, merge_peaks, search_halo, search_thresholds
from survey.kernels.psf import EffectivePSF
from survey.stages.calibrated import calibrated_frames, phases
from survey.stages.constant import read_searched
from survey.stages.forecast import held
from survey.stages.methods import method_of
from survey.stages.model_error import model_scatter, model_share, reference_level
from survey.stages.protocol import Outlook, Output, Stage, Unit, tile_units
from survey.tiles import Tile

# Largest stamp of the spatial filter the halo allows for.
MAX_STAMP = 9
# Distance in pixels of the pixels whose S/N says how wide its distribution is.
SPREAD = 3
# A tile with more peaks than this is no search result but a sign that the differences are wrong.
MAX_PEAKS = 20000
# Ratio of an event's two sides, in time, from which on a gap lies in the longer.
GAP = 3.0
# Sigma of a lone epoch from which on it is taken for a spike, as the kernel has it.
SPIKE = 6.0
# Excess of the S/N's width over 1 that is put down to the model.
NOISE_TOLERANCE = 0.15
MAPS = ("significance", "scale_index", "time_index")
# How far before new epochs an event's centre may lie to be looked for again, and how far its samples reach,
# in sigma: beyond them a sample has 1 % of an event's weight.
LATER_CENTERS = 1.5
LATER_READ = 3.0
# Places of the field over which the reference's share of an event is averaged where phases vary.
PLACES = 4


@dataclass
class Search:
    """What every tile's search shares: PSF, bank of time scales, thresholds, the model's error."""

    psf: EffectivePSF
    bank: EventBank
    thresholds: tuple[float, ...]
    stamp: int
    model_share: float


@dataclass(frozen=True)
class Later:
    """Item of a unit whose earlier epochs were searched before.

    Parameters
    ----------
    start : int
        First epoch to look at.
    centers : tuple of float
        For each scale, the centre of events from which on they are looked for again.
    payload : dict
        What the earlier search reported.
    """

    start: int
    centers: tuple[float, ...]
    payload: dict[str, Any]


@dataclass
class TileDifference:
    """Differences of a tile's core and halo, and what an earlier search of the core said.

    ``level`` is the reference's flux.
    """

    tile: Tile
    halo: int
    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    mask: NDArray[np.bool_]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]
    origin: tuple[int, int]
    level: NDArray[np.float32] | None = None
    later: Later | None = None
    maps: dict[str, NDArray[Any]] | None = None


def tile_halo(config: Config) -> int:
    """Overlap with which a tile's peaks are exactly the whole image's."""
    return search_halo(MAX_STAMP)


def stamp_edge(psf: EffectivePSF) -> int:
    """Edge of the filter's stamp: three FWHM, odd, from 5 to `MAX_STAMP` pixels."""
    return int(min(max(2 * round(1.5 * psf.fwhm) + 1, 5), MAX_STAMP))


def search_time(frames: xr.Dataset, config: Config) -> NDArray[np.float64]:
    """Time axis of the search: days, or the rank of each image in time."""
    time = frames["time"].values
    if config.detect.unit == "days":
        return np.asarray(time - time.min(), np.float64)
    return np.argsort(np.argsort(time, kind="stable"), kind="stable").astype(np.float64)


def prepare(field: Field, psf: EffectivePSF, config: Config) -> Search:
    """Bank and thresholds of a field; small, made once."""
    frames = calibrated_frames(field)
    height, width = field.shape
    rows = np.unique(np.linspace(0, height - 1, PLACES + 2).astype(int)[1:-1])
    columns = np.unique(np.linspace(0, width - 1, PLACES + 2).astype(int)[1:-1])
    py, px = phases(frames, (slice(0, 1), slice(0, 1)), field.shape)
    if py.ndim == 3:
        places = [
            phases(frames, (slice(y, y + 1), slice(x, x + 1)), field.shape) for y in rows for x in columns
        ]
        py = np.column_stack([p[0].ravel() for p in places])
        px = np.column_stack([p[1].ravel() for p in places])
    weight = np.where(frames["flags"].values == 0, 1.0, 0.0)
    noise = frames["background_rms"].values / frames["scale"].values
    weight = weight * np.median(noise) ** 2 / np.maximum(noise, 1e-3 * np.median(noise)) ** 2
    stamp = stamp_edge(psf)
    bank = event_bank(
        config.detect.temporal_sigma,
        py,
        px,
        psf=psf,
        time=search_time(frames, config),
        frame_weight=weight,
        n_basis=method_of(config).n_basis(config),
        extension=config.reference.extension,
        size=stamp,
    )
    if config.detect.threshold is not None:
        thresholds = (config.detect.threshold,) * len(bank.temporal_sigma)
    else:
        thresholds = search_thresholds(bank, height * width, config.detect.false_alarms)
    return Search(psf, bank, thresholds, stamp, model_share(field, frames, config))


def blind_scales(bank: EventBank) -> list[float]:
    """Time scales of a bank at which nothing can be found: the reference takes all such events up."""
    pairs = zip(bank.temporal_sigma, bank.ratio, strict=True)
    return [sigma for sigma, ratio in pairs if not np.isfinite(ratio).any()]


def read(field: Field, unit: Unit, config: Config) -> TileDifference:
    """Differences of the core and halo."""
    assert unit.tile is not None
    margin = tile_halo(config)
    window = unit.tile.window(margin, field.shape)
    frames = calibrated_frames(field)
    later: Later | None = unit.items[0] if unit.items else None
    start = 0 if later is None else later.start
    arrays = read_searched(field, window, frames, config, ("flux", "error", "mask"), start=start)
    frames = frames.isel(time=slice(start, None))
    flux, error, mask = arrays["flux"], arrays["error"], arrays["mask"]
    level = reference_level(field, window)
    phase_y, phase_x = phases(frames, window, field.shape)
    maps = None
    if later is not None:
        group = f"search/{config.method}"
        maps = {name: np.asarray(field.array(group, name)[unit.tile.core]) for name in MAPS}
    origin = (window[0].start, window[1].start)
    return TileDifference(unit.tile, margin, flux, error, mask, phase_y, phase_x, origin, level, later, maps)


def later_search(frames: xr.Dataset, bank: EventBank, start: int, payload: dict[str, Any]) -> Later | None:
    """What has to be searched when the epochs from ``start`` on are new; None: everything.

    An event within `LATER_CENTERS` sigma of the first new epoch gains from it; its samples are read out to
    `LATER_READ` sigma.
    """
    time = bank.time
    first = float(time[start:].min())
    if first <= float(time[:start].max()):
        return None
    scales = np.array(bank.temporal_sigma)
    centers = first - LATER_CENTERS * scales
    read = float((centers - LATER_READ * scales).min())
    begin = int(np.searchsorted(np.maximum.accumulate(time), read))
    if begin == 0 or np.any(np.diff(frames["time"].values[begin:]) < 0) or time[:begin].max() >= read:
        return None
    kept = {name: payload[name] for name in ("candidates", "noise", "found")}
    return Later(begin, tuple(centers.tolist()), kept)


def _later_bank(bank: EventBank, later: Later) -> EventBank:
    """The part of a bank that looks for events near the later epochs."""
    chosen = [t0 >= low for t0, low in zip(bank.t0, later.centers, strict=True)]
    return EventBank(
        bank.time[later.start :],
        bank.temporal_sigma,
        tuple(t0[c] for t0, c in zip(bank.t0, chosen, strict=True)),
        tuple(ratio[c] for ratio, c in zip(bank.ratio, chosen, strict=True)),
        bank.subpixel,
    )


def apply(data: TileDifference, state: Search, config: Config) -> Output:
    """S/N maps of the core and its peaks over the thresholds."""
    core = data.tile.inner(data.halo)
    shape = data.tile.shape
    best = np.zeros(shape, np.float32)
    scale_index = np.full(shape, -1, np.int16)
    time_index = np.full(shape, -1, np.int32)
    if data.maps is not None:
        best, scale_index, time_index = (data.maps[name].copy() for name in MAPS)
    bank = state.bank if data.later is None else _later_bank(state.bank, data.later)
    peaks = []
    noise = []
    maps = matched_filter_bank(
        data.flux,
        data.error * model_scatter(data.level, data.flux, data.error, data.mask, state.model_share),
        data.mask,
        data.phase_y,
        data.phase_x,
        bank,
        psf=state.psf,
        size=state.stamp,
        # A lone high epoch is no event, unless one epoch is asked to suffice.
        spike=SPIKE if config.detect.min_epochs > 1 else None,
    )
    for i, scale_map in enumerate(maps):
        peaks.append(find_peaks(scale_map, state.thresholds[i], scale=i, core=core, origin=data.origin))
        snr = np.where(np.isfinite(scale_map.snr[:, core[0], core[1]]), scale_map.snr[:, core[0], core[1]], 0)
        noise.append(_robust_width(snr))
        at = np.abs(snr).argmax(axis=0)
        value = np.take_along_axis(snr, at[None], axis=0)[0]
        better = np.abs(value) > np.abs(best)
        best[better], scale_index[better] = value[better], i
        time_index[better] = _nearest_epoch(state.bank.time, scale_map.t0[at])[better]
    every = np.concatenate(peaks) if peaks else np.empty(0, PEAK_DTYPE)
    found = len(every)
    if data.later is not None:
        # Widths are those of the long stretch of time; old peaks stand where nothing was looked at again.
        old = np.array([tuple(row) for row in data.later.payload["candidates"]], PEAK_DTYPE)
        every = np.concatenate([old[old["time"] < np.array(data.later.centers)[old["scale"]]], every])
        noise = data.later.payload["noise"]
        found += data.later.payload["found"]
    strongest = np.argsort(-np.abs(every["snr"]), kind="stable")[:MAX_PEAKS]
    payload = {
        "candidates": [every[i].item() for i in np.sort(strongest)],
        "found": found,
        "noise": noise,
        "thresholds": list(state.thresholds),
    }
    arrays: dict[str, NDArray[Any]] = {
        "significance": best,
        "scale_index": scale_index,
        "time_index": time_index,
    }
    return Output({f"search/{config.method}": arrays}, data.tile.core, payload=payload)


def _nearest_epoch(time: NDArray[np.float64], t0: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first epoch at or after each time; epochs need not be in order."""
    order = np.argsort(time, kind="stable")
    return np.asarray(order[np.minimum(np.searchsorted(time[order], t0), len(time) - 1)])


def _robust_width(snr: NDArray[np.float32]) -> float:
    """Width of the S/N's distribution from its quartiles: 1 on noise, events or not.

    Of pixels `SPREAD` apart: those between say much the same again, and would take half of the search's time.
    """
    some = snr[:, ::SPREAD, ::SPREAD]
    known = some[some != 0]
    if not known.size:
        return float("nan")
    low, high = np.percentile(known, [25, 75])
    return float((high - low) / 1.349)


def noise_factors(payloads: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Width of the field's S/N per scale where it is more than noise, else 1.

    Where the model is wrong everywhere (a PSF or a sky that changes from frame to frame) the residuals are
    correlated, and S/N in units of their own scatter is the honest one.
    """
    widths = np.array([payload["noise"] for payload in payloads], float)
    # A scale at which no tile knows anything has no width.
    known = np.where(np.isfinite(widths).any(axis=0), widths, 1.0)
    middle = np.nanmedian(known, axis=0)
    return np.where(middle > 1 + NOISE_TOLERANCE, middle, 1.0)


def merged(payloads: Sequence[dict[str, Any]], config: Config) -> NDArray[np.void]:
    """The field's peaks, one an event, best S/N first."""
    rows = [tuple(row) for payload in payloads for row in payload["candidates"]]
    peaks = np.array(rows, PEAK_DTYPE)
    factor = noise_factors(payloads)[peaks["scale"]]
    threshold = np.array(payloads[0]["thresholds"])[peaks["scale"]]
    kept = np.abs(peaks["snr"]) >= threshold * factor
    return merge_peaks(peaks[kept])[: config.detect.max_events]


def to_days(frames: xr.Dataset, config: Config, value: float, sigma: float) -> tuple[float, float]:
    """MJD and sigma in days of a peak given on the search's own time axis."""
    time = frames["time"].values
    if config.detect.unit == "days":
        return float(time.min() + value), float(sigma)
    ordered = np.sort(time)
    index = np.arange(len(ordered), dtype=np.float64)
    cadence = float(np.median(np.diff(ordered))) if len(ordered) > 1 else 1.0

    def at(i: float) -> float:
        inside = float(np.interp(i, index, ordered))
        return float(inside + cadence * (min(i, 0.0) + max(i - index[-1], 0.0)))

    middle = at(value)
    before, after = sorted((middle - at(value - sigma), at(value + sigma) - middle))
    # Near an evening or a morning one side spans the day between: the other says how long the event takes.
    return middle, before if after > GAP * before > 0 else (before + after) / 2


# Bytes of what is there at once: for a sample of core and halo flux, error, the error with the model's, mask,
# two sums and one time scale's map (6 x 4 + 1), and what a phase of its own adds; for a sample of the core
# the map without holes, where it is known, and its magnitude (2 x 4 + 1); and the rest, which was measured.
BYTES = {"sample": 25, "phase": 20, "core": 9, "least": 3e6}


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile with its halo."""
    assert unit.tile is not None
    each = BYTES["sample"] + (BYTES["phase"] if outlook.own_phases else 0)
    around, core = outlook.samples(unit.tile, tile_halo(config)), outlook.samples(unit.tile, 0)
    freed = held(4 * around) + 2 * held(4 * core)
    return each * around + BYTES["core"] * core + freed + BYTES["least"]


def _settings(config: Config) -> dict[str, Any]:
    settings = config.detect.model_dump(exclude={"refit", "max_events", "min_epochs"})
    return {**settings, "spikes": True} if config.detect.min_epochs == 1 else settings


STAGE = Stage(
    "detect",
    3,
    _settings,
    tile_units,
    read,
    apply=apply,
    memory=memory,
)
