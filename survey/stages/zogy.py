"""Proper differences (Zackay, Ofek & Gal-Yam 2016) of every frame from a template, with known PSFs.

A frame's PSF is that of its own stars, or the field's; flux ratio and shift of each frame come from the
stars of all tiles together, after which every tile is subtracted alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.kernels._zogy_match import (
    FEWEST_PIXELS,
    Match,
    match_parts,
    noise_correlation,
    scatter,
    solve_match,
)
from survey.kernels._zogy_tile import TilePair, matched_pair
from survey.kernels.masks import grow_square
from survey.kernels.subtraction import Subtraction
from survey.kernels.zogy import subtract_zogy
from survey.stages import forecast, pairwise
from survey.stages.frame_psf import SAMPLED
from survey.stages.matching import units
from survey.stages.pairwise import Pair, PairBlock, Shared, read
from survey.stages.protocol import Output, Stage

GROUP = "difference/zogy"
# A template is never taken for better than this share of a frame's noise: what it lacks is divided by that.
_LEAST_NOISE = 0.1


def stamps(data: PairBlock, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PSFs (n, n) of a frame and of the template, at the tile."""
    template = data.shared.template_psf
    assert template is not None
    own = data.shared.frames[k].psf or template
    tile = data.tile
    y, x = (tile.y0 + tile.y1 - 1) / 2, (tile.x0 + tile.x1 - 1) / 2
    most = 2 * ((data.cutouts.flux.shape[1] - 1) // 4) + 1
    first, second = (psf.evaluate(0.0, 0.0, min(psf.size | 1, most), y, x)[0] for psf in (own, template))
    return first, second


def template_noise(data: PairBlock, k: int, pair: Pair) -> NDArray[np.float64]:
    """1-sigma noise of the template: its own, or what a frame's share of the reference says of it."""
    least = _LEAST_NOISE * float(np.median(pair.error[~pair.bad]))
    if pair.template_error is not None:
        return np.maximum(pair.template_error, least)
    return np.full(pair.error.shape, max(least, np.sqrt(_share(data, k)) * least / _LEAST_NOISE))


def _share(data: PairBlock, k: int) -> float:
    """Typical leverage of a frame's samples: the template's variance in units of a frame's."""
    if data.share is None:
        return 0.0
    leverage = data.share.leverage[k]
    return float(np.median(leverage[leverage > 0])) if (leverage > 0).any() else 0.0


def partial(data: PairBlock, config: Config) -> list[list[Match] | None]:
    """Sums of every frame over the stars of the tile's parts, for ratio and shift."""
    found: list[list[Match] | None] = []
    for k, state in enumerate(data.shared.frames):
        if state.failed is not None:
            found.append(None)
            continue
        pair = data.pair(k)
        bad = pair.bad | pair.template_bad
        if bad.all():
            found.append(None)
            continue
        psf, template_psf = stamps(data, k)
        noise = template_noise(data, k, pair)
        tile = TilePair(
            np.where(bad, 0.0, pair.image), np.where(bad, 0.0, pair.template), pair.error**2, noise**2,
            1.0, 1.0, psf, template_psf,
        )  # fmt: skip
        good = pair.core & ~grow_square(bad, max(psf.shape[0], template_psf.shape[0]) // 2)
        shared = noise_correlation(psf, template_psf)
        found.append(match_parts(*matched_pair(tile), good, state.guess, shared))
    return found


class FrameMatches:
    """Ratio and shift of a block of frames, from the sums of all tiles, pass by pass."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._parts: list[list[Match]] = [[] for _ in shared.frames]

    @property
    def state(self) -> Shared:
        """Frames as they are known so far."""
        return Shared(list(self.shared.frames), self.shared.template_psf)

    def add(self, tile: list[list[Match] | None]) -> None:
        """Sums of one more tile, in the tiles' order."""
        for k, sums in enumerate(tile):
            self._parts[k] += sums or []

    def step(self) -> None:
        """What the sums say of every frame.

        One with too few stars keeps what was found before, at first its calibration; one that does not show
        the template's stars has failed.
        """
        of_frames, self._parts = self._parts, [[] for _ in self.shared.frames]
        for k, (state, parts) in enumerate(zip(self.shared.frames, of_frames, strict=True)):
            total = sum(parts, Match(np.zeros((4, 4)), np.zeros(4), 0))
            if total.pixels < FEWEST_PIXELS:
                continue
            try:
                ratio, shift, guess = solve_match(total, sky=False)
            except ValueError as problem:
                self.shared.frames[k] = replace(state, failed=str(problem))
                continue
            noise = scatter(parts, sky=False)
            self.shared.frames[k] = replace(state, ratio=ratio, shift=shift, shift_error=noise, guess=guess)


def subtract(data: PairBlock, k: int, pair: Pair) -> Subtraction:
    """Proper difference of one frame; its error is without the share of a template that holds the frame."""
    state = data.shared.frames[k]
    psf, template_psf = stamps(data, k)
    # Undersampled frames and the template at their places have one PSF; what matching would make of such
    # stars is so much in doubt that most pixels near bright ones were masked, frame by frame others.
    fill: Literal["matched", "alike"] = "matched" if data.fwhm[k] >= SAMPLED else "alike"
    # a leak from the cutout's edge to the other side stays out of the core: no filter looks that far
    found = subtract_zogy(
        pair.image, pair.template, image_psf=psf, template_psf=template_psf, mask=pair.bad,
        template_mask=pair.template_bad, error=pair.error, template_error=template_noise(data, k, pair),
        flux_ratio=state.ratio, shift=state.shift, shift_error=state.shift_error, sky="given", grow=1,
        tile=max(pair.image.shape), overlap=0, fill=fill,
    )  # fmt: skip
    if data.share is None:
        return found
    return replace(found, error=found.error / np.sqrt(1 + state.ratio**2 * _share(data, k)))


def apply(data: PairBlock, state: Shared | None, config: Config) -> Output:
    """Subtract the template from every frame of the block."""
    data.shared = state if state is not None else data.shared
    return pairwise.apply(data, config, GROUP, subtract, note)


def note(found: Subtraction) -> list[float]:
    """Flux ratio and the noises that the filters were made for: they say what a source looks like."""
    return [float(found.kernel.ratio), *(float(n) for n in found.kernel.noise)]


def settings(config: Config) -> dict[str, Any]:
    """What zogy takes of the settings."""
    return pairwise.settings(config, ("template", "passes", "psf"))


STAGE = Stage(
    "zogy", 8, settings, units, read, partial, lambda partials, config: partials, apply, memory=forecast.pairs
)
