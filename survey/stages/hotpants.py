"""Differences made by the external program HOTPANTS, one frame and tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey.config import Config
from survey.hotpants import HotpantsError, find_hotpants, subtract_hotpants
from survey.kernels.subtraction import Subtraction
from survey.stages import forecast, pairwise
from survey.stages.kernel_model import kernel_order
from survey.stages.matching import units
from survey.stages.pairwise import Pair, PairBlock, Shared, read
from survey.stages.protocol import Output, Stage

GROUP = "difference/hotpants"
# A reference's noise is in the leverage already; the program wants some, and gets this share of a frame's.
_NO_NOISE = 1e-3
# Half a stamp in FWHM, as in `subtract_hotpants`, and the most stamps along an edge.
_STAMP_FWHM, _MOST_STAMPS = 4.0, 10


def program_of(config: Config) -> str:
    """Path of the program that the settings name.

    Raises
    ------
    HotpantsError
        If it is not there.
    """
    return find_hotpants(config.subtraction.hotpants)


def apply(data: PairBlock, state: Shared | None, config: Config) -> Output:
    """Have every frame of the block subtracted; what the program fails on stays masked in that frame."""
    data.shared = state if state is not None else data.shared
    # Not a frame's failure: without the program nothing can be subtracted.
    program = program_of(config)

    def subtract(data: PairBlock, k: int, pair: Pair) -> Subtraction:
        return run_program(data, k, pair, program, config)

    return pairwise.apply(data, config, GROUP, subtract)


def run_program(data: PairBlock, k: int, pair: Pair, program: str, config: Config) -> Subtraction:
    """One frame around a tile.

    Raises
    ------
    ValueError
        If the program fails, runs too long or finds nothing that it could subtract.
    """
    wanted = config.subtraction
    template_error = pair.template_error if pair.template_error is not None else _NO_NOISE * pair.error
    template_psf = data.shared.template_psf
    width = float(data.fwhm[k]) if np.isfinite(data.fwhm[k]) else None
    template_width = None if template_psf is None else template_psf.fwhm
    known = [w for w in (width, template_width) if w is not None]
    stamp = 2 * int(np.ceil(_STAMP_FWHM * max(known, default=3.0))) + 1
    count = int(np.clip(pair.image.shape[0] // stamp, 1, _MOST_STAMPS))
    try:
        return subtract_hotpants(
            pair.image, pair.template, mask=pair.bad, template_mask=pair.template_bad, error=pair.error,
            template_error=np.maximum(template_error, _NO_NOISE * pair.error), image_fwhm=width,
            template_fwhm=template_width, kernel_poly_order=kernel_order(data.shape, config),
            bg_poly_order=wanted.background_order, stamps=(count, count), direction="template",
            executable=program, timeout=wanted.timeout,
        )  # fmt: skip
    except HotpantsError as problem:
        raise ValueError(str(problem)) from problem


def settings(config: Config) -> dict[str, Any]:
    """What the program is told of the settings."""
    return pairwise.settings(config, ("template", "kernel_order", "background_order"))


STAGE = Stage("hotpants", 3, settings, units, read, apply=apply, memory=forecast.pairs)
