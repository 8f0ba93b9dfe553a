"""How each method's differences are made on a field: which stages, in which order, with which keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from survey.run.differences import Differences
from survey.run.oversampled import OversampledDifferences
from survey.run.pairwise import PairDifferences
from survey.run.predicted import PredictedDifferences
from survey.run.subtraction import SubtractionDifferences

if TYPE_CHECKING:
    from survey.run.pipeline import Pipeline


def differences_of(pipeline: Pipeline) -> Differences:
    """How the method that the settings name makes its differences."""
    method = pipeline.config.method
    if method == "oversampled":
        return OversampledDifferences(pipeline)
    if method == "sfft":
        return SubtractionDifferences(pipeline)
    if method in ("zogy", "hotpants"):
        return PairDifferences(pipeline)
    return PredictedDifferences(pipeline)
