"""What differences from the reference have in common in a pixel: the reference's noise, and no event."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.stages.methods import method_of


def holds_constant(config: Config) -> bool:
    """Whether a pixel's differences may have a mean: those from a reference that a kernel has convolved.

    A least-squares reference leaves residuals without a mean, an event's among them: it takes that up.
    A kernel mixes neighbouring pixels' references, and their noise stays, the same in all epochs.
    """
    return config.method != "oversampled" and method_of(config).subtracts_reference(config)


def take_off_constant(arrays: dict[str, NDArray[Any]]) -> None:
    """Take the weighted mean over a pixel's epochs in the reference's fit off its differences.

    Parameters
    ----------
    arrays : dict
        ``flux`` (changed in place), ``error``, ``mask`` and ``fit_mask``, (time, y, x), of all epochs. With
        the errors of leave-one-out differences, ``sum(flux / error**2)`` is that of the fit's own normal
        equation, which is zero but for samples that a kernel's fit has clipped.
    """
    total, mean = np.zeros((2, *arrays["flux"].shape[1:]))
    # Frame by frame all of it stays in the processor's cache.
    for flux, error, mask, fit_mask in zip(
        *(arrays[name] for name in ("flux", "error", "mask", "fit_mask")), strict=True
    ):
        good = ~(mask | fit_mask) & np.isfinite(flux) & (error > 0)
        weight = np.where(good, 1 / np.where(good, error, 1).astype(np.float64) ** 2, 0)
        total += weight
        mean += weight * np.where(good, flux, 0)
    arrays["flux"] -= (mean / np.where(total > 0, total, 1)).astype(arrays["flux"].dtype)
