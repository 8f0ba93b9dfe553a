"""PSF-fitted light curves of events and targets on the difference images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet
from survey.io.store import Field
from survey.kernels.event_peak import Peak, fit_peak
from survey.kernels.psf import EffectivePSF, fit_psf_flux, stamp_psf
from survey.stages.calibrated import (
    CalibratedTile,
    calibrated_frames,
    differenced_frames,
    phases,
    read_calibrated,
)
from survey.stages.difference_psf import DifferencePSF
from survey.stages.differences import object_windows, read_difference
from survey.stages.light_curve_tables import PEAK_COLUMNS, WEIGHT, light_curve_table, part_path
from survey.stages.matching import read_template
from survey.stages.methods import TEMPLATE_METHODS
from survey.stages.object_stamp import FLAG_KEPT_OUT_OF_FIT, ObjectStamp
from survey.stages.protocol import Output, Stage, Unit
from survey.tiles import Window

# Sigma from its centre at which an event is over: epochs beyond, where it has 3e-4 of its height, do not
# tell where it is.
EVENT_REACH = 4.0


@dataclass
class Template:
    """What was subtracted, at phase 0; arrays (y, x)."""

    flux: NDArray[np.float64]
    bad: NDArray[np.bool_]
    variance: NDArray[np.float64] | None


@dataclass(frozen=True)
class Known:
    """Item of a unit: objects whose light curves up to an epoch are there and stay as they are.

    ``start`` is the first epoch to measure, ``rows`` tells for each object of the unit which row of the
    unit's table it is; None: it is measured anew.
    """

    start: int
    rows: tuple[int | None, ...]


@dataclass
class Window3:
    """Differences of a window, from the epoch ``start`` on, and what is needed to fit stars in it.

    ``known`` are the objects' light curves before that epoch, where they stay.
    """

    window: Window
    arrays: dict[str, NDArray[Any]]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]
    time: NDArray[np.float64]
    frame_flags: NDArray[np.int64]
    template: Template | None
    objects: tuple[dict[str, Any], ...]
    start: int = 0
    known: tuple[dict[str, Any] | None, ...] = ()


def tile_halo(config: Config) -> int:
    """Pixels beyond the core that a star at its edge needs."""
    return config.photometry.size // 2 + 2


def units(field: Field, config: Config, objects: Sequence[dict[str, Any]]) -> list[Unit]:
    """One unit a tile that holds objects; each object belongs to the tile its pixel lies in."""
    found = []
    for tile in field.tiles:
        mine = tuple(o for o in objects if tile.contains(o["y"], o["x"]))
        if mine:
            found.append(Unit(tile.name, tile, mine))
    return found


def read_window(
    field: Field,
    window: Window,
    config: Config,
    objects: tuple[dict[str, Any], ...] = (),
    frames: xr.Dataset | None = None,
    calibrated: CalibratedTile | None = None,
    *,
    start: int = 0,
) -> Window3:
    """Read differences of a window, from an epoch on, and its reference.

    ``frames`` is the calibrated table and ``calibrated`` the window's images where they are known.
    """
    frames = differenced_frames(field, config.method) if frames is None else frames
    names = ("flux", "error", "mask", "fit_mask")
    arrays = read_difference(field, window, frames, config, names, start=start)
    template = None
    if field.has("reference", "coefficients"):
        template = Template(*read_template(field, window, template_settings(config))[1:])
    if config.method == "sfft":
        if calibrated is None:
            calibrated = read_calibrated(field, window, frames, start=start)
        arrays["error"] = _without_model(field, window, calibrated.error, start)
    frames = frames.isel(time=slice(start, None))
    phase_y, phase_x = phases(frames, window, field.shape)
    return Window3(
        window,
        arrays,
        phase_y,
        phase_x,
        frames["time"].values,
        frames["flags"].values,
        template,
        objects,
        start,
        (None,) * len(objects),
    )


def template_settings(config: Config) -> Config:
    """Settings whose template is the one that the method subtracts."""
    if config.method in TEMPLATE_METHODS:
        return config
    own = config.subtraction.model_copy(update={"template": "reference"})
    return config.model_copy(update={"subtraction": own})


def _without_model(
    field: Field, window: Window, error: NDArray[np.float32], start: int
) -> NDArray[np.float32]:
    """Errors (time, y, x) of the images alone, with what their own share of the template takes.

    In bright stars a matched difference's error holds a share of the model, which says how far single pixels
    of a star may be off. As a weight it takes the star's core, where its own light changes, out of the fit
    of its flux.
    """
    leverage = np.asarray(field.array("difference/sfft", "leverage")[(slice(start, None), *window)])
    return np.asarray(error / np.sqrt(np.clip(1 - leverage, 1e-3, 1)), np.float32)


def with_template_noise(
    data: Window3, psf: DifferencePSF, place: tuple[float, float], cut: tuple[slice, slice, slice]
) -> NDArray[np.float32]:
    """Errors (time, y, x) of a part of the window, with the noise that kernels at a place (y, x) bring."""
    error = data.arrays["error"][cut]
    kernels = psf.kernel_at(*place)
    if kernels is None or data.template is None or data.template.variance is None:
        return np.asarray(error)
    gain = np.nansum(kernels**2, axis=(1, 2))[:, None, None]
    return np.asarray(np.sqrt(error**2 + gain * data.template.variance[cut[1:]]), np.float32)


def read(field: Field, unit: Unit, config: Config) -> list[Window3]:
    """Differences around the tile's objects, with a margin for stars at its edge.

    Of objects whose light curves are known in part the later epochs alone.
    """
    assert unit.tile is not None
    frames, margin = calibrated_frames(field), tile_halo(config)
    around = unit.tile.window(margin, field.shape)
    objects = [item for item in unit.items if not isinstance(item, Known)]
    known = next((item for item in unit.items if isinstance(item, Known)), None)
    start, rows = (0, [None] * len(objects)) if known is None else _known_rows(field, unit, config, known)
    found = []
    for begin, chosen in (
        (0, [k for k, row in enumerate(rows) if row is None]),
        (start, [k for k, row in enumerate(rows) if row is not None]),
    ):
        places = [(objects[k]["y"], objects[k]["x"]) for k in chosen]
        for window, served in object_windows(around, places, margin) if chosen else ():
            mine = tuple(objects[chosen[i]] for i in served)
            data = read_window(field, window, config, mine, frames, start=begin)
            found.append(replace(data, known=tuple(rows[chosen[i]] for i in served)))
    return found


def _known_rows(
    field: Field, unit: Unit, config: Config, known: Known
) -> tuple[int, list[dict[str, Any] | None]]:
    """What the unit's table holds of the objects; nothing where a run before this has written it anew."""
    table = read_parquet(part_path(field, config.method, unit.name)).to_pylist()
    if any(len(row["time"]) != known.start for row in table):
        return 0, [None] * len(known.rows)
    return known.start, [None if row is None else table[row] for row in known.rows]


def measure(
    data: Window3,
    psf: DifferencePSF,
    item: dict[str, Any],
    config: Config,
    fwhm: NDArray[np.float64] | None = None,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Light curve of one object; with ``known`` of one whose light curve before the window's epochs is there.

    Given the frames' ``fwhm`` (time,), the PSF's shape counts as known to `SHAPE_ERROR` of the object's
    light.

    Returns
    -------
    dict
        ``y``, ``x`` (refined), ``position_error``, ``reference_flux``, ``reference_flux_error``, the columns
        ``time``, ``flux``, ``error``, ``flags``, for an event ``peak_flux``, ``peak_flux_error`` and
        ``peak_time``, and ``weight``, the stamp's inverse variance in all epochs.
    """
    psf = psf.since(data.start)
    stamp = _stamp(data, psf, item, config)
    y, x, position_error = _position(stamp, psf, item, data.time, config, known)
    model = psf.stamps(stamp.phase_y, stamp.phase_x, y, x, stamp.flux.shape[1:], stamp.origin)
    weight = stamp.total_weight(known)
    ref_flux, ref_error = _reference_flux(data, psf.base, (y, x), stamp, weight)
    values, sigma = stamp.fluxes(model, (y, x), config, fwhm, ref_flux)
    curve: dict[str, NDArray[Any]] = {"time": data.time, "flux": values, "error": sigma}
    curve["flags"] = stamp.flags(model, values, data.frame_flags)
    if known is not None:
        curve = {name: np.concatenate([known[name], new]) for name, new in curve.items()}
    return {
        "y": y,
        "x": x,
        "position_error": position_error,
        "reference_flux": ref_flux,
        "reference_flux_error": ref_error,
        "weight": weight,
        **curve,
        **_peak(item, curve),
    }


def _stamp(data: Window3, psf: DifferencePSF, item: dict[str, Any], config: Config) -> ObjectStamp:
    """The window's samples around an object."""
    half = config.photometry.size // 2
    rows, columns = data.window
    height, width = data.arrays["flux"].shape[1:]
    y, x = float(item["y"]), float(item["x"])
    cy, cx = round(y) - rows.start, round(x) - columns.start
    y0, y1 = max(cy - half, 0), min(cy + half + 1, height)
    x0, x1 = max(cx - half, 0), min(cx + half + 1, width)
    cut = (slice(None), slice(y0, y1), slice(x0, x1))
    flux, mask, fit_mask = (data.arrays[name][cut] for name in ("flux", "mask", "fit_mask"))
    error = with_template_noise(data, psf, (y, x), cut)
    phase_y, phase_x = (p[cut] if p.ndim == 3 else p for p in (data.phase_y, data.phase_x))
    origin = (float(rows.start + y0), float(columns.start + x0))
    return ObjectStamp(cut, origin, flux, error, mask, fit_mask, phase_y, phase_x)


def _position(
    stamp: ObjectStamp,
    psf: DifferencePSF,
    item: dict[str, Any],
    time: NDArray[np.float64],
    config: Config,
    known: dict[str, Any] | None,
) -> tuple[float, float, float]:
    """Where an object is, and the error of that: as it is known, as given, or as it is found."""
    if known is not None:
        return known["y"], known["x"], known["position_error"]
    given = (float(item["y"]), float(item["x"]))
    if not (config.photometry.refine_position and item.get("refine", True)):
        return *given, np.nan
    return stamp.find(psf.typical, given, event_profile(item, time), config)


def _peak(item: dict[str, Any], curve: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Highest flux of an event and when it was; NaN for a target."""
    peak = Peak(np.nan, np.nan, np.nan)
    if "sigma_days" in item:
        good = (curve["flags"] & ~FLAG_KEPT_OUT_OF_FIT) == 0
        time, flux, error = (curve[name][good] for name in ("time", "flux", "error"))
        peak = fit_peak(time, flux, error, float(item["time"]), float(item["sigma_days"]))
    return dict(zip(PEAK_COLUMNS, peak, strict=True))


def event_profile(item: dict[str, Any], time: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Shape of an event in time, as the search saw it; None for a target."""
    if "sigma_days" not in item:
        return None
    away = (time - item["time"]) / max(item["sigma_days"], 1e-12)
    return np.where(np.abs(away) < EVENT_REACH, np.exp(-0.5 * away**2), 0.0)


def is_settled(item: dict[str, Any], time: float, config: Config) -> bool:
    """Whether epochs from a time on tell nothing of where an object is."""
    if not (config.photometry.refine_position and item.get("refine", True)):
        return True
    return "sigma_days" in item and time - item["time"] > EVENT_REACH * max(item["sigma_days"], 1e-12)


def _reference_flux(
    data: Window3,
    psf: EffectivePSF,
    position: tuple[float, float],
    stamp: ObjectStamp,
    weight: NDArray[np.float64],
) -> tuple[float, float]:
    """PSF flux of the object in the template itself, on a local background."""
    if data.template is None:
        return np.nan, np.nan
    zero, place = np.zeros(1), stamp.cut[1:]
    bad = data.template.bad[place][None]
    image = np.where(bad, np.nan, data.template.flux[place])
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.where(weight > 0, 1.0 / np.sqrt(weight), np.inf)[None]
    bad = bad | ~np.isfinite(sigma)
    model = stamp_psf(psf, zero, zero, *position, image.shape[1:], origin=stamp.origin)
    flux, flux_error = fit_psf_flux(image, np.where(bad, 1.0, sigma), bad, model, background=True)
    return float(flux[0]), float(flux_error[0])


def apply(data: list[Window3], state: DifferencePSF, config: Config) -> Output:
    """Light curves of the tile's objects, as one table file."""
    rows = [
        {**_identity(item), **measure(window, state, item, config, known=known)}
        for window in data
        for item, known in zip(window.objects, window.known, strict=True)
    ]
    table = light_curve_table(rows)
    weights = pa.array([row["weight"].ravel() for row in rows], pa.list_(pa.float64()))
    # in which row an object's light curve is, for who adds to it
    payload = {"objects": len(rows), "rows": [item_identity(i) for window in data for i in window.objects]}
    return Output(tables={"lightcurves": table.append_column(WEIGHT, weights)}, payload=payload)


def item_identity(item: dict[str, Any]) -> list[Any]:
    """What of an object its light curve depends on: not its name."""
    return [item.get(name) for name in ("y", "x", "kind", "refine", "time", "sigma_days")]


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    return {"object_id": item["object_id"], "kind": item["kind"]}


STAGE = Stage("photometry", 5, lambda config: config.photometry, lambda field, config: [], read, apply=apply)
