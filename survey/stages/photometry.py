"""PSF-fitted light curves of events and targets on the difference images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.files import read_parquet, write_parquet
from survey.io.locations import Location
from survey.io.store import Field
from survey.kernels._psf_flux import as_phases
from survey.kernels.psf import EffectivePSF, fit_psf_flux, refine_position, stamp_psf
from survey.kernels.psf_shape import fit_flux_and_shape
from survey.stages.calibrated import CalibratedTile, calibrated_frames, phases, read_calibrated
from survey.stages.difference_psf import DifferencePSF
from survey.stages.differences import object_windows, read_difference
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


@dataclass
class Template:
    """What was subtracted, at phase 0; arrays (y, x)."""

    flux: NDArray[np.float64]
    bad: NDArray[np.bool_]
    variance: NDArray[np.float64] | None


@dataclass
class Window3:
    """Differences of a window and what is needed to fit stars in it."""

    window: Window
    arrays: dict[str, NDArray[Any]]
    phase_y: NDArray[np.float64]
    phase_x: NDArray[np.float64]
    time: NDArray[np.float64]
    frame_flags: NDArray[np.int64]
    template: Template | None
    objects: tuple[dict[str, Any], ...]


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
) -> Window3:
    """Read differences and reference of a window.

    ``frames`` is the calibrated table and ``calibrated`` the window's images where they are known.
    """
    frames = calibrated_frames(field) if frames is None else frames
    arrays = read_difference(field, window, frames, config, ("flux", "error", "mask", "fit_mask"))
    template = None
    if field.has("reference", "coefficients"):
        template = Template(*read_template(field, window, template_settings(config))[1:])
    if config.method == "sfft":
        images = read_calibrated(field, window, frames) if calibrated is None else calibrated
        arrays["error"] = _without_model(field, window, images.error)
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
    )


def template_settings(config: Config) -> Config:
    """Settings whose template is the one that the method subtracts."""
    if config.method in TEMPLATE_METHODS:
        return config
    own = config.subtraction.model_copy(update={"template": "reference"})
    return config.model_copy(update={"subtraction": own})


def _without_model(field: Field, window: Window, error: NDArray[np.float32]) -> NDArray[np.float32]:
    """Errors (time, y, x) of the images alone, with what their own share of the template takes.

    In bright stars a matched difference's error holds a share of the model, which says how far single pixels
    of a star may be off. As a weight it takes the star's core, where its own light changes, out of the fit
    of its flux.
    """
    leverage = np.asarray(field.array("difference/sfft", "leverage")[(slice(None), *window)])
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
    """Differences around the tile's objects, with a margin for stars at its edge."""
    assert unit.tile is not None
    margin = tile_halo(config)
    frames = calibrated_frames(field)
    places = [(item["y"], item["x"]) for item in unit.items]
    return [
        read_window(field, window, config, tuple(unit.items[i] for i in served), frames)
        for window, served in object_windows(unit.tile.window(margin, field.shape), places, margin)
    ]


def measure(
    data: Window3,
    psf: DifferencePSF,
    item: dict[str, Any],
    config: Config,
    fwhm: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Light curve of one object.

    Given the frames' ``fwhm`` (time,), the PSF's shape counts as known to `SHAPE_ERROR` of the object's
    light.

    Returns
    -------
    dict
        ``y``, ``x`` (refined), ``position_error``, ``reference_flux``, ``reference_flux_error`` and the
        columns ``time``, ``flux``, ``error``, ``flags``.
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
    error = with_template_noise(data, psf, (float(item["y"]), float(item["x"])), cut)
    py, px = data.phase_y, data.phase_x
    if py.ndim == 3:
        py, px = py[cut], px[cut]
    origin = (float(rows.start + y0), float(columns.start + x0))
    y, x = float(item["y"]), float(item["x"])
    position_error = np.nan
    if config.photometry.refine_position and item.get("refine", True):
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
    ref_flux, ref_error = _reference_flux(data, psf.base, (y, x), cut, origin, error)
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
    return {
        "y": y,
        "x": x,
        "position_error": position_error,
        "reference_flux": ref_flux,
        "reference_flux_error": ref_error,
        "time": data.time,
        "flux": values,
        "error": sigma,
        "flags": flags.astype(np.int32),
    }


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
    return np.exp(-0.5 * ((time - item["time"]) / max(item["sigma_days"], 1e-12)) ** 2)


def _reference_flux(
    data: Window3,
    psf: EffectivePSF,
    position: tuple[float, float],
    cut: tuple[slice, slice, slice],
    origin: tuple[float, float],
    error: NDArray[Any],
) -> tuple[float, float]:
    """PSF flux of the object in the template itself, on a local background."""
    if data.template is None:
        return np.nan, np.nan
    zero = np.zeros(1)
    bad = data.template.bad[cut[1:]][None]
    image = np.where(bad, np.nan, data.template.flux[cut[1:]])
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.nansum(1.0 / np.asarray(error, float) ** 2, axis=0)
        sigma = np.where(weight > 0, 1.0 / np.sqrt(weight), np.inf)[None]
    bad = bad | ~np.isfinite(sigma)
    model = stamp_psf(psf, zero, zero, *position, image.shape[1:], origin=origin)
    flux, flux_error = fit_psf_flux(image, np.where(bad, 1.0, sigma), bad, model, background=True)
    return float(flux[0]), float(flux_error[0])


def apply(data: list[Window3], state: DifferencePSF, config: Config) -> Output:
    """Light curves of the tile's objects, as one table file."""
    rows = [
        {**_identity(item), **measure(window, state, item, config)}
        for window in data
        for item in window.objects
    ]
    return Output(tables={"lightcurves": light_curve_table(rows)}, payload={"objects": len(rows)})


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    return {"object_id": item["object_id"], "kind": item["kind"]}


def light_curve_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of `measure` as a table: one row an object, its light curve in list columns."""
    columns: dict[str, Any] = {}
    for name, kind in (
        ("object_id", pa.string()),
        ("kind", pa.string()),
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("position_error", pa.float64()),
        ("reference_flux", pa.float64()),
        ("reference_flux_error", pa.float64()),
        ("time", pa.list_(pa.float64())),
        ("flux", pa.list_(pa.float64())),
        ("error", pa.list_(pa.float64())),
        ("flags", pa.list_(pa.int32())),
    ):
        columns[name] = pa.array([row[name] for row in rows], kind)
    return pa.table(columns)


def part_path(field: Field, method: str, unit: str) -> Location:
    """File of one unit's light curves."""
    return field.path / "lightcurves" / f"{method}.parts" / f"{unit}.parquet"


def gather(field: Field, config: Config, names: Sequence[str]) -> None:
    """Put the units' light curves into one file, by name of the object."""
    parts = []
    for name in names:
        try:
            parts.append(read_parquet(part_path(field, config.method, name)))
        except FileNotFoundError:
            continue
    table = pa.concat_tables(parts) if parts else light_curve_table([])
    table = table.sort_by("object_id").combine_chunks()
    write_parquet(field.light_curves_path(config.method), table)


STAGE = Stage("photometry", 3, lambda config: config.photometry, lambda field, config: [], read, apply=apply)
