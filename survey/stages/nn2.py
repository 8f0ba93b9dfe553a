"""Light curves from all pairs of epochs (Barris et al. 2005) on cutouts around objects.

Frames of an undersampled, dithered field cannot be subtracted from each other as they are. For the pair
(i, j) frame i is carried to frame j's phases by the leave-one-out references of `oversampled`: what frame i
shows above its reference is added to the reference at frame j's phases. `subtract_sfft` then fits a scalar
scale and a constant background over the cutout, the object itself left out, and the object's PSF flux is
that of frame j less scale times that of frame i, each with the PSF at its own phases. All pairs share the
frames' photons, so the pairs' chi2/dof says how well scales and backgrounds agree (far below 1 where they
do); the light curve's errors are the epochs' share of the pairs' errors.

Crude: at most `MAX_EPOCHS` epochs, evenly spread; kernels of one pixel, their errors not counted; positions
are taken as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.nn2 import solve_nn2
from survey.kernels.psf import EffectivePSF, fit_psf_flux, stamp_psf
from survey.kernels.sfft import subtract_sfft
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.photometry import FLAG_FRAME, FLAG_NO_DATA, light_curve_table
from survey.stages.protocol import Output, Stage, Unit
from survey.tiles import Window

MAX_EPOCHS = 16
# Half width of the cutout that fixes a pair's scale, and radius around the object that stays out of that fit.
HALF = 16
OWN_RADIUS = 4.0
# Half width of the stamp for the PSF flux.
STAMP = 4


@dataclass
class Cutout:
    """Frames around one object and their leave-one-out differences (time, y, x)."""

    item: dict[str, Any]
    samples: CalibratedTile
    flux: NDArray[np.float64]
    error: NDArray[np.float64]
    mask: NDArray[np.bool_]


def units(field: Field, config: Config, objects: Sequence[dict[str, Any]]) -> list[Unit]:
    """One unit a tile that holds objects; each belongs to the tile its pixel lies in."""
    found = []
    for tile in field.tiles:
        mine = tuple(o for o in objects if tile.contains(o["y"], o["x"]))
        if mine:
            found.append(Unit(tile.name, tile, mine))
    return found


def read(field: Field, unit: Unit, config: Config) -> list[Cutout]:
    """A small window for each object."""
    frames = calibrated_frames(field)
    cutouts = []
    for item in unit.items:
        y, x = round(item["y"]), round(item["x"])
        window = (
            slice(max(y - HALF, 0), min(y + HALF + 1, field.shape[0])),
            slice(max(x - HALF, 0), min(x + HALF + 1, field.shape[1])),
        )
        region = (slice(0, frames.sizes["time"]), *window)
        flux, error, mask = (
            np.asarray(field.array("difference/oversampled", name)[region])
            for name in ("flux", "error", "mask")
        )
        samples = read_calibrated(field, window, frames)
        cutouts.append(Cutout(item, samples, flux.astype(float), error.astype(float), mask | samples.mask))
    return cutouts


def apply(data: list[Cutout], state: EffectivePSF, config: Config) -> Output:
    """Light curves of the objects, as one table file, and how well each one's pairs agree."""
    rows = [measure(cutout, state) for cutout in data]
    pairs = {row["object_id"]: row.pop("pairs") for row in rows}
    return Output(tables={"lightcurves/nn2": light_curve_table(rows)}, payload={"pairs": pairs})


def measure(data: Cutout, psf: EffectivePSF) -> dict[str, Any]:
    """Zero-sum light curve of one object from all pairs of its epochs."""
    n_time = len(data.samples.time)
    usable = np.flatnonzero(~data.mask.all(axis=(1, 2)) & (data.samples.flags == 0))
    count = min(MAX_EPOCHS, len(usable))
    epochs = usable[np.linspace(0, len(usable) - 1, count).round().astype(int)] if count else usable
    flux, error = np.full(n_time, np.nan), np.full(n_time, np.inf)
    pairs: dict[str, Any] = {"epochs": count, "chi2": None, "dof": 0}
    if count >= 2:
        solution = solve_nn2(*_pairs(data, psf, epochs))
        flux[epochs], error[epochs] = solution.flux, solution.partitioned_error()
        if np.isfinite(solution.chi2):
            pairs |= {"chi2": float(solution.chi2), "dof": int(solution.dof)}
    good = np.isfinite(flux) & np.isfinite(error)
    flags = np.where(good, 0, FLAG_NO_DATA) | np.where(data.samples.flags != 0, FLAG_FRAME, 0)
    return {
        "object_id": data.item["object_id"],
        "kind": data.item["kind"],
        "y": float(data.item["y"]),
        "x": float(data.item["x"]),
        "position_error": np.nan,
        "reference_flux": np.nan,
        "reference_flux_error": np.nan,
        "time": data.samples.time,
        "flux": flux,
        "error": error,
        "flags": flags.astype(np.int32),
        "pairs": pairs,
    }


def _pairs(
    data: Cutout, psf: EffectivePSF, epochs: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fluxes (n, n) of the object in frame j less frame i, and their errors; NaN where there is none."""
    rows, columns = data.samples.window
    y, x = float(data.item["y"]), float(data.item["x"])
    yy, xx = np.ogrid[rows, columns]
    distance = np.hypot(yy - y, xx - x)
    near = distance <= OWN_RADIUS
    stamp = _stamp(near.shape, rows.start, columns.start, y, x)
    py, px = data.samples.phase_y, data.samples.phase_x
    model = _model(psf, py, px, epochs, (y, x), stamp, (rows.start, columns.start))
    n = len(epochs)
    difference, error = np.full((2, n, n), np.nan)
    image = data.samples.flux[epochs].astype(float)
    excess, sigma, bad = (a[epochs] for a in (data.flux, data.error, data.mask))
    expected = image - excess  # the leave-one-out reference at each frame's phases
    cut = (slice(None), *stamp)
    own_flux, own_error = fit_psf_flux(excess[cut], sigma[cut], bad[cut], model)
    for j in range(n):
        level = np.where(bad[j], 0.0, expected[j])[cut[1:]]
        in_reference, _ = fit_psf_flux(
            level[None], sigma[j][cut[1:]][None], bad[j][cut[1:]][None], model[[j]]
        )
        for i in range(n):
            if i == j or not (np.isfinite(own_flux[i]) and np.isfinite(own_flux[j])):
                continue
            try:
                result = subtract_sfft(
                    image[j],
                    expected[j] + excess[i],
                    mask=bad[j] | bad[i] | near,
                    error=np.hypot(sigma[i], sigma[j]),
                    kernel_shape=(1, 1),
                    kernel_poly_order=0,
                    flux_poly_order=0,
                    bg_poly_order=0,
                    max_iter=3,
                )
            except ValueError:  # too few pixels to fix the pair's scale
                continue
            scale, sky = float(result.kernel.flux_scale(0, 0)), float(result.kernel.background(0, 0))
            flat = fit_psf_flux(
                np.full((1, *level.shape), sky), sigma[j][cut[1:]][None], bad[j][cut[1:]][None], model[[j]]
            )[0]
            difference[i, j] = own_flux[j] + (1 - scale) * in_reference[0] - scale * own_flux[i] - flat[0]
            error[i, j] = np.hypot(own_error[j], scale * own_error[i])
    return difference, error


def _stamp(shape: tuple[int, ...], y0: int, x0: int, y: float, x: float) -> Window:
    """The stamp around the object inside its cutout."""
    cy, cx = round(y) - y0, round(x) - x0
    return (
        slice(max(cy - STAMP, 0), min(cy + STAMP + 1, shape[0])),
        slice(max(cx - STAMP, 0), min(cx + STAMP + 1, shape[1])),
    )


def _model(
    psf: EffectivePSF,
    phase_y: NDArray[np.float64],
    phase_x: NDArray[np.float64],
    epochs: NDArray[np.int64],
    position: tuple[float, float],
    stamp: Window,
    origin: tuple[int, int],
) -> NDArray[np.float64]:
    """The object's PSF (epoch, y, x) in its stamp."""
    py, px = phase_y[epochs], phase_x[epochs]
    if py.ndim == 3:
        py, px = py[(slice(None), *stamp)], px[(slice(None), *stamp)]
    corner = (float(origin[0] + stamp[0].start), float(origin[1] + stamp[1].start))
    shape = (stamp[0].stop - stamp[0].start, stamp[1].stop - stamp[1].start)
    return stamp_psf(psf, py, px, *position, shape, origin=corner)


def settings(config: Config) -> dict[str, Any]:
    """Its own, and those of the references that carry a frame to another's phases."""
    own = {"max_epochs": MAX_EPOCHS, "half": HALF, "own_radius": OWN_RADIUS, "stamp": STAMP}
    return {**own, "reference": config.reference.model_dump(mode="json")}


STAGE = Stage("nn2", 1, settings, lambda field, config: [], read, apply=apply)
