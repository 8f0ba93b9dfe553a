"""NN2's light curves beside those of every single template, from the pairs that they carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.kernels.nn2_templates import TemplateComparison, compare_templates

Rows = Sequence[Mapping[str, Any]]


class NoPairsError(ValueError):
    """No light curve has pairs to compare."""


def compare_with_templates(blocks: Iterable[Rows]) -> tuple[TemplateComparison, NDArray[np.int64]]:
    """NN2 beside every single template, from the pairs that its light curves carry.

    Parameters
    ----------
    blocks : iterable of sequences of rows
        Light curves, a block at a time. Those without pairs are left out.

    Returns
    -------
    comparison : TemplateComparison
        Scatter about a constant.
    epochs : int array
        Frames of the field that are its templates.

    Raises
    ------
    NoPairsError
        If no light curve has pairs.
    """
    found = [_compare(rows) for block in blocks if (rows := [row for row in block if row["pair_flux"]])]
    if not found:
        raise NoPairsError("no light curve has pairs to compare")
    epochs = np.unique(np.concatenate([of_block for _, _, of_block in found]))
    nn2_rms = np.concatenate([own for own, _, _ in found])
    template_rms = np.concatenate([single[:, epochs] for _, single, _ in found])
    return TemplateComparison(nn2_rms, template_rms), epochs


def _compare(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Scatter of NN2, and with every frame of the field as the template; frames that have pairs."""
    pairs = [(row["pair_template"], row["pair_image"]) for row in rows]
    epochs = np.unique(np.concatenate([np.ravel(both) for both in pairs])).astype(int)
    flux = np.array([row["flux"] for row in rows], float)
    difference, error = np.full((2, len(rows), len(epochs), len(epochs)), np.nan)
    for k, (row, (template, image)) in enumerate(zip(rows, pairs, strict=True)):
        at = (k, np.searchsorted(epochs, template), np.searchsorted(epochs, image))
        difference[at], error[at] = row["pair_flux"], row["pair_error"]
    table = compare_templates(flux[:, epochs], difference, error)
    single = np.full(flux.shape, np.nan)
    single[:, epochs] = table.template_rms
    return table.nn2_rms, single, epochs
