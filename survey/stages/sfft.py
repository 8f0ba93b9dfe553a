"""Differences by a kernel, polynomial over the field, that matches a template to every frame.

The template is the oversampled reference, or one kept in the field. Where it is the reference, which was
fitted to the very frames it is subtracted from, what a sample put into it is taken out again by the sample's
leverage, as for a leave-one-out difference: exact for a kernel of one pixel, nearly so for one that
only trims the PSF.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from survey.config import Config
from survey.stages import forecast
from survey.stages.matching import BlockData, evaluate, partial, read, settings, units
from survey.stages.protocol import Output, Stage
from survey.stages.template_share import empty, without_own

GROUP = "difference/sfft"


def apply(data: BlockData, state: Any, config: Config) -> Output:
    """Subtract the matched template from every frame of the block."""
    data.kernels = state if state is not None else data.kernels
    rows, columns = data.inner
    arrays = empty((len(data.samples.time), rows.stop - rows.start, columns.stop - columns.start))
    for k, kernel in enumerate(data.kernels):
        if kernel.failed is not None:
            continue
        planes, bad, scene = evaluate(data, k, config)
        where = data.inner
        flux = (scene.image - planes.convolved)[where]
        # what the kernel is known to miss in bright stars counts as error
        missed = (kernel.model_error or 0.0) * np.maximum(planes.convolved[where], 0)
        error = np.sqrt(planes.variance[where] + missed**2)
        without_own(arrays, k, flux, error, bad[where], planes.fit_mask[where], data.share)
    return finish(data, arrays, GROUP)


def finish(data: BlockData, arrays: dict[str, Any], group: str) -> Output:
    """The arrays in their place, and what there is to know of the block's kernels."""
    middle = tuple((n - 1) / 2 for n in data.model.image_shape)
    payload: dict[str, Any] = {
        "samples": int((~arrays["mask"]).sum()), "kernel_sums": [], "model_errors": [], "failed": [],
    }  # fmt: skip
    for k, kernel in enumerate(data.kernels):
        if kernel.failed is not None:
            payload["failed"].append([data.first + k, kernel.failed])
        elif kernel.coefficients is not None:
            matched = data.model.kernel(kernel.coefficients)
            payload["kernel_sums"].append(round(float(matched.flux_scale(middle[1], middle[0])), 6))
            payload["model_errors"].append(round(kernel.model_error or 0.0, 6))
    region = (slice(data.first, data.first + len(data.samples.time)), *data.tile.core)
    return Output({group: arrays}, region, payload=payload)


STAGE = Stage(
    "sfft",
    8,
    settings,
    units,
    read,
    partial,
    lambda partials, config: partials,
    apply,
    memory=forecast.matching,
)
