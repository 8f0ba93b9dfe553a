"""What a frame itself put into the reference that is subtracted from it, and how it is taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.io.store import Field

# A pixel that fits its samples this closely says nothing of any one of them.
MAX_LEVERAGE = 0.98


@dataclass
class TemplateShare:
    """What the reference took of each sample, and the samples that it never saw; arrays (time, y, x)."""

    leverage: NDArray[np.float64]
    kept_out: NDArray[np.bool_]


def read_share(field: Field, region: tuple[slice, ...]) -> TemplateShare:
    """Of a region (time, y, x) of the sky grid."""
    leverage, kept_out = (
        np.asarray(field.array("difference/oversampled", name)[region]) for name in ("leverage", "fit_mask")
    )
    return TemplateShare(leverage.astype(float), kept_out)


def empty(shape: tuple[int, ...]) -> dict[str, Any]:
    """Arrays (time, y, x) of a unit's core, all masked."""
    return {
        "flux": np.full(shape, np.nan, np.float32),
        "error": np.full(shape, np.nan, np.float32),
        "mask": np.ones(shape, bool),
        "fit_mask": np.zeros(shape, bool),
        "leverage": np.zeros(shape, np.float32),
    }


def without_own(
    arrays: dict[str, Any],
    k: int,
    flux: NDArray[Any],
    error: NDArray[Any],
    bad: NDArray[np.bool_],
    fit_mask: NDArray[np.bool_],
    share: TemplateShare | None,
) -> None:
    """Store the k-th frame's difference, freed of what its own samples put into the template.

    As for a leave-one-out difference: exact for a kernel of one pixel, nearly so for one that only trims
    the PSF.
    """
    if share is not None:
        leverage, kept_out = share.leverage[k], share.kept_out[k]
        bad = bad | (leverage > MAX_LEVERAGE)
        rest = np.where(bad, 1.0, 1 - leverage)
        # kept out: the reference never saw the sample
        flux, error = flux / np.where(kept_out, 1.0, rest), error / np.sqrt(rest)
        fit_mask = fit_mask | kept_out
        arrays["leverage"][k] = np.where(bad, 0.0, leverage)
    arrays["flux"][k] = np.where(bad, np.nan, flux)
    arrays["error"][k] = np.where(bad, np.nan, error)
    arrays["mask"][k] = bad
    arrays["fit_mask"][k] = fit_mask & ~bad
