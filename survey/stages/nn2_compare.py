"""NN2's light curves beside those of every single template, from the pairs that they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.io.locations import Location
from survey.io.store import Field
from survey.kernels.nn2_templates import TemplateComparison, compare_templates
from survey.stages import nn2


def nn2_path(field: Field, method: str) -> Location:
    """File of NN2's light curves."""
    return field.path / nn2.FOLDER / f"{method}.parquet"


def compare_with_templates(rows: Sequence[Mapping[str, Any]]) -> tuple[TemplateComparison, NDArray[np.int64]]:
    """NN2 beside every single template, from the pairs that its light curves carry.

    Returns
    -------
    comparison : TemplateComparison
        Scatter about a constant.
    epochs : int array
        Frames of the field that are its templates.
    """
    epochs = np.unique(np.concatenate([[*r["pair_template"], *r["pair_image"]] for r in rows])).astype(int)
    flux = np.array([r["flux"] for r in rows], float)[:, epochs]
    difference, error = np.full((2, len(rows), len(epochs), len(epochs)), np.nan)
    for k, row in enumerate(rows):
        at = (k, np.searchsorted(epochs, row["pair_template"]), np.searchsorted(epochs, row["pair_image"]))
        difference[at], error[at] = row["pair_flux"], row["pair_error"]
    return compare_templates(flux, difference, error), epochs
