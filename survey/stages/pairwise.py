"""What methods share that subtract a template from each frame alone, tile by tile: zogy and hotpants.

A unit is a tile and a block of frames. Each frame is cut out around the tile on its own pixels, where it is
evenly sampled whatever the rotation, and the template is evaluated at the places of those pixels: the data
are never interpolated. The difference is put on the sky grid as images are, by nearest pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels.continuous import reference_at, spline_at
from survey.kernels.pixelmap import PixelMap, nearest_pixels
from survey.kernels.psf import EffectivePSF
from survey.kernels.reference import ReferenceFit
from survey.kernels.subtraction import Subtraction
from survey.stages.calibrated import calibrated_frames, frame_map, psf_widths
from survey.stages.matching import SPLINE_REACH, SPLINE_TAIL, read_template
from survey.stages.nn2_cutouts import Cutouts, pair_grid, read_cutouts
from survey.stages.protocol import Output, Unit
from survey.stages.template_records import template_looks
from survey.stages.template_share import TemplateShare, empty, read_share, without_own
from survey.tiles import Tile, Window

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
# FWHM of the broadest PSF around a tile that its differences look at.
REACH_FWHM = 5.0


@dataclass
class FrameState:
    """What is known of one frame before it is subtracted; ``failed``: why it cannot be, anywhere."""

    psf: EffectivePSF | None = None
    ratio: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    shift_error: tuple[float, float] = (0.0, 0.0)
    guess: Array | None = None
    failed: str | None = None


@dataclass
class Shared:
    """What all tiles of a block of frames are told: its frames, and the template's PSF."""

    frames: list[FrameState]
    template_psf: EffectivePSF | None = None


@dataclass
class Pair:
    """A frame and the template on the frame's own pixels, all arrays (y, x).

    ``core`` are the pixels of the tile's core, those its neighbours look at too.
    """

    image: Array
    error: Array
    bad: Mask
    template: Array
    template_error: Array | None
    template_bad: Mask
    core: Mask


@dataclass
class PairBlock:
    """Frames of a block around a tile, each on its own pixels, and the template on the sky grid."""

    first: int
    tile: Tile
    cutouts: Cutouts
    fwhm: Array
    shape: tuple[int, int]
    window: Window
    reference: ReferenceFit | None
    template: Array
    template_bad: Mask
    template_variance: Array | None
    share: TemplateShare | None
    shared: Shared = field(default_factory=lambda: Shared([]))

    def pair(self, k: int) -> Pair:
        """The k-th frame of the block and the template."""
        c = self.cutouts
        size = c.flux.shape[1]
        y, x = np.mgrid[:size, :size].astype(float)
        xs, ys = c.maps[k].inverse(x + c.corner[k, 1], y + c.corner[k, 0])
        at = np.array([ys - self.window[0].start, xs - self.window[1].start])
        noise = None
        if self.reference is not None:
            template, template_bad = reference_at(self.reference, at)
        else:
            variance = np.zeros_like(self.template)
            if self.template_variance is not None:
                variance = self.template_variance
            template, noise, template_bad = spline_at(self.template, variance, self.template_bad, at)
            template = np.where(template_bad, 0.0, template)
        tile = self.tile
        core = (ys >= tile.y0 - 0.5) & (ys < tile.y1 - 0.5) & (xs >= tile.x0 - 0.5) & (xs < tile.x1 - 0.5)
        error = None if noise is None else np.sqrt(noise)
        return Pair(c.flux[k], c.error[k], c.mask[k], template, error, template_bad, core)

    def on_sky(self, k: int, *planes: NDArray[Any]) -> list[NDArray[Any]]:
        """Planes of the k-th frame at the sky pixels of the tile's core."""
        c = self.cutouts
        rows, columns = ((s.start, s.stop) for s in self.tile.core)
        jy, jx = nearest_pixels(c.maps[k], rows, columns, self.shape)[:2]
        return [plane[jy - c.corner[k, 0], jx - c.corner[k, 1]] for plane in planes]


def read(field: Field, unit: Unit, config: Config) -> PairBlock:
    """Frames of the block around the tile, and the template where they look."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    frames = calibrated_frames(field)
    tile, epochs = unit.tile, np.arange(first, last)
    maps = [frame_map(frames, int(k)) for k in epochs]
    centre = ((tile.y0 + tile.y1) // 2, (tile.x0 + tile.x1) // 2)
    halo = reach(psf_widths(frames), template_looks(field, config.subtraction.template)[0])
    half = max(_half_width(m, tile, centre) for m in maps) + halo
    cutouts = read_cutouts(field, frames, epochs, centre, 2 * half + 1, pair_grid(field))
    window = _seen(cutouts, field.shape, 1 if config.subtraction.template == "reference" else SPLINE_TAIL)
    found = read_template(field, window, config)
    share = read_share(field, (slice(first, last), *tile.core)) if found[0] is not None else None
    fwhm = frames["psf_fwhm"].values[epochs].astype(float)
    shared = unit.items[2] if len(unit.items) > 2 else Shared([FrameState() for _ in epochs])
    return PairBlock(first, tile, cutouts, fwhm, field.shape, window, *found, share, shared)


def _seen(cutouts: Cutouts, shape: tuple[int, int], margin: int) -> Window:
    """What of the sky grid the pixels of cutouts look at, and a margin."""
    ends = np.linspace(0, cutouts.flux.shape[1] - 1, 5)
    y, x = (part.ravel() for part in np.meshgrid(ends, ends, indexing="ij"))
    seen = np.array(
        [m.inverse(x + c[1], y + c[0]) for m, c in zip(cutouts.maps, cutouts.corner, strict=True)]
    )
    low, high = (np.floor(seen.min((0, 2))) - margin, np.ceil(seen.max((0, 2))) + margin + 1)
    rows, columns = (
        slice(int(np.clip(low[axis], 0, size - 1)), int(np.clip(high[axis], 1, size)))
        for axis, size in ((1, shape[0]), (0, shape[1]))
    )
    return rows, columns


def reach(widths: tuple[float, float], template: float = np.nan) -> int:
    """Pixels around a core that its differences look at, for the FWHM of the frames and a template's."""
    broad = max((w for w in (*widths, template) if np.isfinite(w)), default=2.5)
    return int(np.ceil(REACH_FWHM * broad)) + SPLINE_REACH


def _half_width(pixel_map: PixelMap, tile: Tile, centre: tuple[int, int]) -> int:
    """Half the edge of a square about a tile's centre that holds the tile in a frame's own pixels."""
    y, x = np.meshgrid(np.linspace(tile.y0, tile.y1, 5), np.linspace(tile.x0, tile.x1, 5), indexing="ij")
    xd, yd = pixel_map.evaluate(x.ravel(), y.ravel())
    xc, yc = pixel_map.evaluate(float(centre[1]), float(centre[0]))
    return int(np.ceil(max(np.abs(xd - xc).max(), np.abs(yd - yc).max()))) + 2


def apply(
    data: PairBlock,
    config: Config,
    group: str,
    subtract: Callable[[PairBlock, int, Pair], Subtraction],
    note: Callable[[Subtraction], list[float]] | None = None,
) -> Output:
    """Subtract every frame of the block; one that cannot be subtracted here stays masked, with its reason.

    ``note`` says what the ledger remembers of a frame's subtraction.
    """
    rows, columns = data.tile.core
    arrays = empty((len(data.cutouts.epochs), rows.stop - rows.start, columns.stop - columns.start))
    failed: list[list[Any]] = []
    noted: list[list[float]] = []
    for k, epoch in enumerate(data.cutouts.epochs):
        problem = data.shared.frames[k].failed
        if problem is not None:
            failed.append([int(epoch), problem])
            continue
        pair = data.pair(k)
        if not (pair.core & ~pair.bad & ~pair.template_bad).any():
            continue  # the frame does not cover this tile
        try:
            found = subtract(data, k, pair)
        except ValueError as reason:
            failed.append([int(epoch), str(reason)])
            continue
        if note is not None:
            noted.append([int(epoch), *note(found)])
        planes = (np.asarray(found.difference), np.asarray(found.error), found.mask, found.fit_mask)
        flux, error, bad, out_of_fit = data.on_sky(k, *planes)
        without_own(arrays, k, flux, error, bad, out_of_fit, data.share)
    payload = {"samples": int((~arrays["mask"]).sum()), "failed": failed, "noted": noted}
    region = (slice(data.first, data.first + len(data.cutouts.epochs)), *data.tile.core)
    return Output({group: arrays}, region, payload=payload)


def settings(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    """Some of ``[subtraction]``, and the reference's where that is the template."""
    own = config.subtraction.model_dump(mode="json", include=set(names))
    if config.subtraction.template == "reference":
        own["reference"] = config.reference.model_dump(mode="json")
    return own
