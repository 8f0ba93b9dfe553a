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
from survey.kernels._psf_flux import as_phases
from survey.kernels.event_peak import Peak, fit_peak
from survey.kernels.psf import EffectivePSF, fit_psf_flux, refine_position, stamp_psf
from survey.kernels.psf_shape import fit_flux_and_shape
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
from survey.stages.protocol import Output, Stage, Unit
from survey.tiles import Window

# Bits of a light curve's flags.
FLAG_NO_DATA = 1
FLAG_BAD_PIXEL = 2
FLAG_KEPT_OUT_OF_FIT = 4
FLAG_FRAME = 8
# Of a bright star's light, what kernels leave in each term of its shape: sampling and seeing are never
# matched better (measured by the comparison stars of HAT-P-32, whose scatter is least at 0.06 to 0.1).
SHAPE_ERROR = 0.1
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
    half = config.photometry.size // 2
    rows, columns = data.window
    height, width = data.arrays["flux"].shape[1:]
    cy, cx = round(item["y"]) - rows.start, round(item["x"]) - columns.start
    # Near the image's edge the stamp is cut; what the PSF has outside is simply not seen.
    y0, y1 = max(cy - half, 0), min(cy + half + 1, height)
    x0, x1 = max(cx - half, 0), min(cx + half + 1, width)
    cut = (slice(None), slice(y0, y1), slice(x0, x1))
    flux, mask, fit_mask = (data.arrays[name][cut] for name in ("flux", "mask", "fit_mask"))
    psf = psf.since(data.start)
    error = with_template_noise(data, psf, (float(item["y"]), float(item["x"])), cut)
    py, px = data.phase_y, data.phase_x
    if py.ndim == 3:
        py, px = py[cut], px[cut]
    origin = (float(rows.start + y0), float(columns.start + x0))
    y, x = float(item["y"]), float(item["x"])
    position_error = np.nan
    if known is not None:
        y, x, position_error = known["y"], known["x"], known["position_error"]
    elif config.photometry.refine_position and item.get("refine", True):
        fit = refine_position(
            flux,
            error,
            mask,
            psf.typical,
            py,
            px,
            (y, x),
            origin=origin,
            light_curve=event_profile(item, data.time),
            background=config.photometry.background,
        )
        if fit.converged:
            y, x = float(fit.y), float(fit.x)
            position_error = float(np.sqrt(np.trace(fit.covariance) / 2))
    model = psf.stamps(py, px, y, x, (flux.shape[1], flux.shape[2]), origin)
    weight = _total_weight(error, known)
    ref_flux, ref_error = _reference_flux(data, psf.base, (y, x), cut, origin, weight)
    if fwhm is not None and np.isfinite(ref_flux):
        offsets = _offsets(py, px, (y, x), origin, flux.shape)
        shape_error = SHAPE_ERROR * abs(ref_flux)
        values, sigma = fit_flux_and_shape(
            flux, error, mask, model, *offsets, fwhm=fwhm, amplitude=shape_error
        )
    else:
        values, sigma = fit_psf_flux(flux, error, mask, model, background=config.photometry.background)
    core = model >= 0.1 * model.max(axis=(1, 2), keepdims=True)
    flags = np.where(np.isfinite(values), 0, FLAG_NO_DATA)
    flags |= np.where((mask & core).any(axis=(1, 2)), FLAG_BAD_PIXEL, 0)
    flags |= np.where((fit_mask & core).any(axis=(1, 2)), FLAG_KEPT_OUT_OF_FIT, 0)
    flags |= np.where(data.frame_flags != 0, FLAG_FRAME, 0)
    curve: dict[str, NDArray[Any]] = {"time": data.time, "flux": values, "error": sigma}
    curve["flags"] = flags.astype(np.int32)
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


def _peak(item: dict[str, Any], curve: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Highest flux of an event and when it was; NaN for a target."""
    peak = Peak(np.nan, np.nan, np.nan)
    if "sigma_days" in item:
        good = (curve["flags"] & ~FLAG_KEPT_OUT_OF_FIT) == 0
        time, flux, error = (curve[name][good] for name in ("time", "flux", "error"))
        peak = fit_peak(time, flux, error, float(item["time"]), float(item["sigma_days"]))
    return dict(zip(PEAK_COLUMNS, peak, strict=True))


def _total_weight(error: NDArray[Any], known: dict[str, Any] | None) -> NDArray[np.float64]:
    """Inverse variance (y, x) of all epochs together, added up in their order."""
    total = np.zeros(error.shape[1:]) if known is None else np.array(known["weight"]).reshape(error.shape[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = 1.0 / np.asarray(error, float) ** 2
    for share in np.where(np.isnan(shares), 0.0, shares):
        total = total + share
    return total


def _offsets(
    phase_y: NDArray[np.float64],
    phase_x: NDArray[np.float64],
    place: tuple[float, float],
    origin: tuple[float, float],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (time, y, x) of a stamp's samples, counted from the object."""
    rows, columns = np.indices(shape[1:])
    phase_y, phase_x = as_phases(phase_y, phase_x)
    y, x = rows + origin[0] + phase_y - place[0], columns + origin[1] + phase_x - place[1]
    return np.broadcast_to(y, shape), np.broadcast_to(x, shape)


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
    cut: tuple[slice, slice, slice],
    origin: tuple[float, float],
    weight: NDArray[np.float64],
) -> tuple[float, float]:
    """PSF flux of the object in the template itself, on a local background."""
    if data.template is None:
        return np.nan, np.nan
    zero = np.zeros(1)
    bad = data.template.bad[cut[1:]][None]
    image = np.where(bad, np.nan, data.template.flux[cut[1:]])
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.where(weight > 0, 1.0 / np.sqrt(weight), np.inf)[None]
    bad = bad | ~np.isfinite(sigma)
    model = stamp_psf(psf, zero, zero, *position, image.shape[1:], origin=origin)
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
