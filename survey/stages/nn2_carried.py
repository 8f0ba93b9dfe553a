"""Pairs of undersampled, dithered frames, which cannot be subtracted from each other as they are.

For the pair (i, j) frame i is carried to frame j's phases by the leave-one-out references of `oversampled`:
what frame i shows above its reference is added to the reference at frame j's phases. `subtract_sfft` fits a
scalar scale and a constant background around the object, the object left out, and the object's PSF flux is
that of frame j less scale times that of frame i, each with the PSF at its own phases. All pairs share the
frames' photons, so the pairs' chi2/dof says how well scales and backgrounds agree (far below 1 if they do).
The kernel has one pixel, its error is not counted, and errors are the noise map's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.psf import EffectivePSF, fit_psf_flux, stamp_psf
from survey.kernels.sfft import subtract_sfft
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.nn2_pairs import FOLDER, SCHEMA
from survey.stages.protocol import Output, Stage, Unit
from survey.tiles import Window

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


def read(field: Field, unit: Unit, config: Config) -> tuple[NDArray[np.int64], list[Cutout]]:
    """The pairs, and a small window of all frames for each object of the group."""
    group, pairs = unit.items
    frames = calibrated_frames(field)
    return np.asarray(pairs, np.int64), [read_object(field, frames, item) for item in group.objects]


def read_object(field: Field, frames: xr.Dataset, item: dict[str, Any]) -> Cutout:
    """Frames and their differences from the reference around an object."""
    y, x = round(item["y"]), round(item["x"])
    window = (
        slice(max(y - HALF, 0), min(y + HALF + 1, field.shape[0])),
        slice(max(x - HALF, 0), min(x + HALF + 1, field.shape[1])),
    )
    region = (slice(0, frames.sizes["time"]), *window)
    flux, error, mask = (
        np.asarray(field.array("difference/oversampled", name)[region]) for name in ("flux", "error", "mask")
    )
    samples = read_calibrated(field, window, frames)
    return Cutout(item, samples, flux.astype(float), error.astype(float), mask | samples.mask)


def apply(data: tuple[NDArray[np.int64], list[Cutout]], state: EffectivePSF, config: Config) -> Output:
    """Fluxes of all objects in all differences of the unit, as a table."""
    pairs, cutouts = data
    epochs = np.unique(pairs)
    wanted = np.zeros((len(epochs), len(epochs)), bool)
    first, second = np.searchsorted(epochs, pairs).T
    wanted[first, second] = wanted[second, first] = True
    rows, failed = [], []
    for cutout in cutouts:
        difference, error, problems = _pairs(cutout, state, epochs, wanted)
        failed += problems
        for i, j in np.argwhere(np.isfinite(difference)):
            rows.append(
                {
                    "object_id": cutout.item["object_id"],
                    "template": int(epochs[i]),
                    "image": int(epochs[j]),
                    "flux": difference[i, j],
                    "error": error[i, j],
                    "noise_error": error[i, j],
                    "bias": np.nan,
                    "copies": 0,
                    "scale": np.nan,
                    "level": np.nan,
                }
            )
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return Output(tables={FOLDER: table}, payload={"measured": len(rows), "failed": failed})


def _pairs(
    data: Cutout, psf: EffectivePSF, epochs: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[list[Any]]]:
    """Fluxes (n, n) of the object in frame j less frame i, and their errors; NaN where there is none.

    Third are the pairs that failed: template, image, reason.
    """
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
    failed: list[list[Any]] = []
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
            if not wanted[i, j] or not (np.isfinite(own_flux[i]) and np.isfinite(own_flux[j])):
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
            except ValueError as problem:  # too few pixels to fix the pair's scale
                failed.append([int(epochs[i]), int(epochs[j]), str(problem)])
                continue
            scale, sky = float(result.kernel.flux_scale(0, 0)), float(result.kernel.background(0, 0))
            flat = fit_psf_flux(
                np.full((1, *level.shape), sky), sigma[j][cut[1:]][None], bad[j][cut[1:]][None], model[[j]]
            )[0]
            difference[i, j] = own_flux[j] + (1 - scale) * in_reference[0] - scale * own_flux[i] - flat[0]
            error[i, j] = np.hypot(own_error[j], scale * own_error[i])
    return difference, error, failed


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
    own = {"half": HALF, "own_radius": OWN_RADIUS, "stamp": STAMP}
    return {**own, "reference": config.reference.model_dump(mode="json")}


STAGE = Stage("nn2_carried", 2, settings, lambda field, config: [], read, apply=apply)
