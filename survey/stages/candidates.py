"""What the search's peaks are: place, amplitude, shape and support of each, and which are events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.catalogs import write_table
from survey.io.frames import DQ_SATURATED, parse_wcs
from survey.io.sky_positions import pixels_to_sky
from survey.io.store import Field
from survey.kernels.candidates import EventFlag, measure_candidate
from survey.kernels.peaks import PEAK_DTYPE
from survey.stages.calibrated import calibrated_frames, phases
from survey.stages.constant import read_searched
from survey.stages.detect import Search, search_time, tile_halo, to_days
from survey.stages.differences import object_windows
from survey.stages.events import Event
from survey.stages.methods import method_of
from survey.stages.model_error import model_scatter, reference_level
from survey.stages.protocol import Output, Stage, Unit
from survey.tiles import Window

# Margin beyond the search's own halo: a candidate is measured on a stamp and a rim of its neighbours' rows.
RIM = 2
# Share of bad epochs from which on a pixel is as useless as a saturated one.
BAD_SHARE = 0.5
# Share of saturated epochs, and their number, from which on it is no cosmic ray that saturates a pixel.
SATURATED_SHARE, SATURATED_EPOCHS = 0.02, 2
# Peaks closer than this, in pixels, are one source.
SOURCE_RADIUS = 1.5
# Sum of two peaks' time scales beyond which they are no wings of each other.
APART = 4.0


@dataclass
class Stamp:
    """Differences around one peak."""

    peak: tuple[Any, ...]
    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    mask: NDArray[np.bool_]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]
    origin: tuple[int, int]
    saturated: NDArray[np.bool_]
    fit_mask: NDArray[np.bool_] | None = None
    leverage: NDArray[np.float32] | None = None
    level: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Measured:
    """Item of a unit: peaks that an earlier run measured on data that have not changed, and what it found."""

    peaks: tuple[tuple[Any, ...], ...]
    rows: tuple[dict[str, Any], ...]


@dataclass
class TilePeaks:
    """The stamps of a tile's peaks, what is known of others, and the search's time axis."""

    stamps: list[Stamp]
    time: NDArray[np.float64]
    frames: xr.Dataset
    edge: tuple[int, int]
    known: Measured


def units(field: Field, peaks: NDArray[np.void]) -> list[Unit]:
    """One unit a tile that has peaks; every peak belongs to the tile its pixel lies in."""
    found = []
    for tile in field.tiles:
        mine = tuple(p.item() for p in peaks if tile.contains(float(p["y"]), float(p["x"])))
        if mine:
            found.append(Unit(tile.name, tile, mine))
    return found


def with_known(unit: Unit, payload: dict[str, Any], centers: Sequence[float]) -> Unit:
    """The unit, told of peaks of an earlier run that later epochs cannot bear upon.

    Parameters
    ----------
    payload : dict
        What the earlier run reported of the unit.
    centers : sequence of float
        For each scale, the time from which on peaks were looked for again.
    """
    earlier = dict(zip(map(tuple, payload.get("peaks", ())), payload["rows"], strict=False))
    names = PEAK_DTYPE.names or ()
    time, scale = names.index("time"), names.index("scale")
    settled = tuple(p for p in unit.items if tuple(p) in earlier and p[time] < centers[p[scale]])
    rows = tuple(earlier[tuple(p)] for p in settled)
    return Unit(unit.name, unit.tile, (*unit.items, Measured(settled, rows)))


def read(field: Field, unit: Unit, config: Config) -> TilePeaks:
    """Differences around every peak of the tile that is not known yet."""
    assert unit.tile is not None
    margin = tile_halo(config) + RIM
    frames = calibrated_frames(field)
    known = next((i for i in unit.items if isinstance(i, Measured)), Measured((), ()))
    items = [i for i in unit.items if not isinstance(i, Measured) and tuple(i) not in known.peaks]
    peaks = [dict(zip(PEAK_DTYPE.names or (), peak, strict=True)) for peak in items]
    places = [(peak["y"], peak["x"]) for peak in peaks]
    stamps: dict[int, Stamp] = {}
    for window, served in object_windows(unit.tile.window(margin, field.shape), places, margin):
        part = _read_window(field, window, frames, config)
        for i in served:
            stamps[i] = _cut(part, window, items[i], places[i], margin)
    ordered = [stamps[i] for i in range(len(peaks))]
    return TilePeaks(ordered, search_time(frames, config), frames, field.shape, known)


def _read_window(field: Field, window: Window, frames: xr.Dataset, config: Config) -> dict[str, NDArray[Any]]:
    """Differences of a window as the search takes them, and their phases."""
    names = ["flux", "error", "mask"]
    if not method_of(config).holds_out(config):
        # else what was in the fit does not matter either: nothing was taken off a sample for its sake
        names += ["fit_mask", "leverage"]
    arrays = read_searched(field, window, frames, config, names)
    arrays["saturated"] = saturated_pixels(field, window, frames)
    level = reference_level(field, window)
    if level is not None:
        arrays["level"] = level
    arrays["phase_y"], arrays["phase_x"] = phases(frames, window, field.shape)
    return arrays


def saturated_pixels(field: Field, window: Window, frames: xr.Dataset) -> NDArray[np.bool_]:
    """Pixels (y, x) of the sky grid that a star saturates in some of the frames without flags."""
    dq = np.asarray(field.array("images/sky", "dq")[(slice(0, frames.sizes["time"]), *window)])
    usable = frames["flags"].values == 0
    dq &= np.where(usable, np.uint32(DQ_SATURATED), np.uint32(0))[:, None, None]
    return np.asarray(np.count_nonzero(dq, axis=0) >= max(SATURATED_EPOCHS, SATURATED_SHARE * usable.sum()))


def _cut(
    arrays: dict[str, NDArray[Any]],
    window: Window,
    peak: tuple[Any, ...],
    place: tuple[float, float],
    margin: int,
) -> Stamp:
    """The stamp around one peak, out of a window that holds it."""
    height, width = arrays["flux"].shape[1:]
    cy, cx = round(place[0]) - window[0].start, round(place[1]) - window[1].start
    rows = slice(max(cy - margin, 0), min(cy + margin + 1, height))
    columns = slice(max(cx - margin, 0), min(cx + margin + 1, width))
    origin = (window[0].start + rows.start, window[1].start + columns.start)
    values = {name: a[..., rows, columns] if a.ndim > 1 else a for name, a in arrays.items()}
    return Stamp(peak=tuple(peak), origin=origin, **values)


def apply(data: TilePeaks, state: Search, config: Config) -> Output:
    """Measure every peak of the tile."""
    rows = list(data.known.rows)
    peaks = [list(peak) for peak in data.known.peaks] + [list(stamp.peak) for stamp in data.stamps]
    for stamp in data.stamps:
        peak = dict(zip(PEAK_DTYPE.names or (), stamp.peak, strict=True))
        usable = ~stamp.mask.all(axis=(1, 2))
        useless = stamp.mask[usable].mean(axis=0) > BAD_SHARE
        found = measure_candidate(
            stamp.flux,
            stamp.error * model_scatter(stamp.level, stamp.flux, stamp.error, stamp.mask, state.model_share),
            stamp.mask,
            y=peak["y"] - stamp.origin[0],
            x=peak["x"] - stamp.origin[1],
            t0=peak["time"],
            temporal_sigma=peak["temporal_sigma"],
            psf=state.psf,
            phase_y=stamp.phase_y,
            phase_x=stamp.phase_x,
            time=data.time,
            leverage=stamp.leverage,
            fit_mask=stamp.fit_mask,
            saturated=stamp.saturated | useless,
            n_basis=method_of(config).n_basis(config),
            extension=config.reference.extension,
            size=state.stamp,
        )
        row = {name: _plain(value) for name, value in asdict(found).items()}
        row["y"], row["x"] = row["y"] + stamp.origin[0], row["x"] + stamp.origin[1]
        row["search_snr"], row["scale"] = float(peak["snr"]), int(peak["scale"])
        row["unit"] = config.detect.unit
        row["time"], row["sigma_days"] = to_days(data.frames, config, found.time, found.temporal_sigma)
        rows.append(row)
    return Output(payload={"rows": rows, "peaks": peaks})


def _plain(value: Any) -> Any:
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value)


def is_event(row: dict[str, Any], threshold: float, config: Config) -> bool:
    """Whether a measured peak counts as an event.

    It must hold its S/N in the exact fit, look like a point source, be seen in several epochs, and not be
    one epoch's doing.
    """
    if not np.isfinite(row["snr"]) or not np.isfinite(row["amplitude"]):
        return False
    unlike = bool(row["flags"] & EventFlag.UNLIKE_PSF)
    several = row["n_epochs"] >= config.detect.min_epochs
    single = config.detect.min_epochs > 1 and bool(row["flags"] & EventFlag.SINGLE_EPOCH)
    return abs(row["snr"]) >= threshold and several and not (single or unlike)


def combine(
    payloads: Sequence[dict[str, Any]], thresholds: Sequence[float], field: Field, config: Config
) -> list[Event]:
    """The list of events, best S/N first, with names and sky positions."""
    rows = [dict(row) for payload in payloads for row in payload["rows"]]
    rows = [row for row in rows if is_event(row, thresholds[row["scale"]], config)]
    rows.sort(key=_rank)
    rows = one_per_source(rows)
    text = field.attrs.get("wcs")
    wcs = parse_wcs(text) if text else None
    for i, row in enumerate(rows):
        ra, dec = (float("nan"), float("nan"))
        if wcs is not None:
            ra, dec = (float(v[0]) for v in pixels_to_sky(wcs, row["x"], row["y"]))
        row.update(object_id=f"E{i + 1:05d}", ra=ra, dec=dec)
    return rows


def one_per_source(rows: Sequence[dict[str, Any]]) -> list[Event]:
    """The strongest event of every place, with the number of its peaks.

    A source that peaks three times or more, or brightens and fades both, is a ``variable``: it has no
    baseline, and its samples stay in the reference. Of one that peaks twice, far apart in time, both peaks
    are events.
    """
    kept: list[Event] = []
    second: dict[int, Event] = {}
    for row in rows:
        same = [k for k in kept if np.hypot(k["y"] - row["y"], k["x"] - row["x"]) <= SOURCE_RADIUS]
        if same:
            first = same[0]
            first["n_peaks"] += 1
            opposite = row["snr"] * first["snr"] < 0
            if first["n_peaks"] >= 3 or opposite:
                first["kind"] = "variable"
            elif abs(row["time"] - first["time"]) > APART * (row["sigma_days"] + first["sigma_days"]):
                second[id(first)] = {**row, "kind": "event", "n_peaks": 2}
        else:
            kept.append({**row, "kind": "event", "n_peaks": 1})
    twice = [other for k in kept if k["kind"] == "event" and (other := second.get(id(k))) is not None]
    return sorted([*kept, *twice], key=_rank)


def _rank(row: dict[str, Any]) -> tuple[float, ...]:
    """Best S/N first, and the same order whatever the tiles."""
    return (-abs(row["snr"]), row["y"], row["x"], row["time"])


EVENT_COLUMNS = (
    "object_id",
    "kind",
    "ra",
    "dec",
    "x",
    "y",
    "position_error",
    "time",
    "sigma_days",
    "temporal_sigma",
    "snr",
    "amplitude",
    "amplitude_error",
    "peak_flux",
    "peak_flux_error",
    "peak_time",
    "psf_correlation",
    "psf_chi2",
    "n_epochs",
    "n_peaks",
    "snr_without_best",
    "drift",
    "drift_error",
    "flags",
)


def write_events(field: Field, method: str, events: Sequence[Event]) -> None:
    """Write ``events/<method>.parquet``; peaks are NaN until the light curves are there."""
    columns: dict[str, Any] = {name: [event.get(name, np.nan) for event in events] for name in EVENT_COLUMNS}
    if not events:
        columns = {
            name: np.zeros(0, "U1" if name in ("object_id", "kind") else float) for name in EVENT_COLUMNS
        }
    meta = {"method": method, "reference_frame": str(field.attrs["reference_frame"])}
    write_table(columns, field.events_path(method), flux_unit=field.attrs["units"], meta=meta)


STAGE = Stage(
    "candidates",
    4,
    lambda config: config.detect.model_dump(exclude={"refit", "max_events", "min_epochs"}),
    lambda field, config: [],
    read,
    apply=apply,
)
