"""Differences as they are searched: without what they have in common in a pixel, which is no event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.stages.differences import read_difference
from survey.stages.methods import method_of
from survey.tiles import Window


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


def read_searched(
    field: Field,
    window: Window,
    frames: xr.Dataset,
    config: Config,
    names: Sequence[str],
    *,
    start: int = 0,
) -> dict[str, NDArray[Any]]:
    """Differences of a window from an epoch on, as `read_difference` names them, ready to be searched.

    Samples of flagged frames are masked: their light curve is shown, but it does not make an event.
    """
    constant = holds_constant(config)
    begin = 0 if constant else start  # the mean is that of all epochs
    wanted = dict.fromkeys((*names, "fit_mask")) if constant else names
    arrays = read_difference(field, window, frames, config, list(wanted), start=begin)
    arrays["mask"] |= (frames["flags"].values[begin:] != 0)[:, None, None]
    if constant:
        take_off_constant(arrays)
    return {name: arrays[name][start - begin :] for name in names}
