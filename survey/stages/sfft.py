"""Differences by a polynomial kernel whose template is the oversampled reference at each frame's phases.

Small fields only (issue 5 cuts them): one kernel a frame needs the whole sky grid, so a unit holds a block of
frames of all of it. The reference was fitted to the frames it is subtracted from. What a sample put into it
is taken out again by the sample's leverage, as for a leave-one-out difference: exact for a kernel of one
pixel, nearly so for one that only trims the PSF. The frames' own errors are the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.reference import ReferenceFit
from survey.kernels.sfft import subtract_sfft
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.protocol import Output, Stage, Unit

GROUP = "difference/sfft"
# What `subtract_sfft` is called with; crude: the same for every field.
KERNEL: dict[str, Any] = {
    "kernel_shape": (3, 3),
    "kernel_poly_order": 0,
    "flux_poly_order": 0,
    "bg_poly_order": 0,
}
# A pixel that fits its samples this closely says nothing of any one of them.
MAX_LEVERAGE = 0.98


@dataclass
class BlockData:
    """Frames of a block, and the reference they were part of."""

    first: int
    samples: CalibratedTile
    coefficients: NDArray[np.float64]
    leverage: NDArray[np.float64]
    kept_out: NDArray[np.bool_]


def units(field: Field, config: Config) -> list[Unit]:
    """One unit a time block; items are its first epoch and the one after its last."""
    n, step = calibrated_frames(field).sizes["time"], field.time_block
    return [
        Unit(f"block-{i:05d}", items=(start, min(start + step, n)))
        for i, start in enumerate(range(0, n, step))
    ]


def read(field: Field, unit: Unit, config: Config) -> BlockData:
    """Calibrated frames of the block, the reference and the leverage their samples had in it."""
    first, last = unit.items
    window = (slice(0, field.shape[0]), slice(0, field.shape[1]))
    # Calibrated windows begin at the first frame: what lies before the block is read and dropped.
    whole = read_calibrated(field, window, calibrated_frames(field).isel(time=slice(0, last)))
    block = slice(first, last)
    names = ("flux", "error", "mask", "phase_y", "phase_x", "time", "flags", "gain")
    samples = CalibratedTile(**{name: getattr(whole, name)[block] for name in names}, window=window)
    leverage, kept_out = (
        np.asarray(field.array("difference/oversampled", name)[(block, *window)])
        for name in ("leverage", "fit_mask")
    )
    coefficients = np.asarray(field.array("reference", "coefficients")[window], np.float64)
    return BlockData(first, samples, coefficients, leverage.astype(np.float64), kept_out)


def apply(data: BlockData, state: None, config: Config) -> Output:
    """Subtract the matched reference from every frame of the block."""
    samples = data.samples
    valid = np.any(data.coefficients != 0, axis=(2, 3))
    reference = ReferenceFit(
        data.coefficients,
        np.zeros(valid.shape, int),
        np.zeros(valid.shape),
        valid,
        config.reference.extension,
    )
    template = reference.evaluate(np.zeros(1), np.zeros(1))[0]
    arrays = {
        "flux": np.full(samples.flux.shape, np.nan, np.float32),
        "error": np.full(samples.flux.shape, np.nan, np.float32),
        "mask": np.ones(samples.flux.shape, bool),
        "fit_mask": np.zeros(samples.flux.shape, bool),
        "leverage": np.zeros(samples.flux.shape, np.float32),
    }
    scales, failed = [], []
    for k in range(len(samples.time)):
        try:
            result = subtract_sfft(
                samples.flux[k],
                template,
                mask=samples.mask[k],
                error=samples.error[k],
                phase_y=samples.phase_y[k],
                phase_x=samples.phase_x[k],
                template_samples=reference,
                **KERNEL,
            )
        except ValueError as error:  # too few good pixels: the frame stays masked
            failed.append([data.first + k, str(error)])
            continue
        leverage = data.leverage[k]
        bad = result.mask | (leverage > MAX_LEVERAGE)
        own = np.where(data.kept_out[k], 0.0, leverage)  # kept out: the reference never saw the sample
        rest = np.where(bad, 1.0, 1 - leverage)
        arrays["flux"][k] = np.where(bad, np.nan, result.difference / np.where(bad, 1.0, 1 - own))
        arrays["error"][k] = np.where(bad, np.nan, result.error / np.sqrt(rest))
        arrays["mask"][k] = bad
        arrays["fit_mask"][k] = (data.kept_out[k] | result.fit_mask) & ~bad
        arrays["leverage"][k] = np.where(bad, 0.0, leverage)
        scales.append(float(result.kernel.flux_scale(0, 0)))
    payload = {"samples": int((~arrays["mask"]).sum()), "kernel_sums": scales, "failed": failed}
    region = (slice(data.first, data.first + len(samples.time)), *samples.window)
    return Output({GROUP: arrays}, region, payload=payload)


def settings(config: Config) -> dict[str, Any]:
    """The kernel's, and the reference's that is its template."""
    return {**KERNEL, "reference": config.reference.model_dump(mode="json")}


STAGE = Stage("sfft", 1, settings, units, read, apply=apply)
