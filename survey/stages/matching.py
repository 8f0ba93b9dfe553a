"""What the classical methods share: a template at each frame's true positions, and a kernel a frame.

A unit is a tile and a block of frames. `partial` sums the normal equations of every frame over the tile's
blocks; the sums of all tiles together give one kernel a frame in a few passes (`survey.run.subtraction`), by
which each tile is then evaluated alone. Polynomials run over the whole sky grid: of a frame that a shift,
rotation or shear places there they span what polynomials of its detector coordinates would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, spline_filter

from survey.config import Config
from survey.io.store import Field, FieldError
from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_inputs import make_samples, shows_signal, sky_lattice
from survey.kernels._sfft_pass import Planes, Scene, pad_variance, sweep
from survey.kernels._sfft_samples import Samples, block_side
from survey.kernels._sfft_solve import CLIP_FRACTION, Solver, add_sums, check_error, check_pixels
from survey.kernels._sfft_sums import Sums
from survey.kernels.continuous import fill_holes
from survey.kernels.pixelmap import n_terms
from survey.kernels.reference import ReferenceFit
from survey.stages.calibrated import CalibratedTile, calibrated_frames, read_calibrated
from survey.stages.kernel_model import model_of
from survey.stages.protocol import Unit
from survey.stages.template_records import template_records
from survey.stages.template_share import TemplateShare, read_share
from survey.tiles import Tile, Window

# Pixels beyond the kernel's reach that a cubic spline at a phase looks at, and beyond which the coefficients
# there feel an edge by less than one part in ten million.
SPLINE_REACH = 3
SPLINE_TAIL = 12


@dataclass
class FrameKernel:
    """How far one frame's kernel has come."""

    coefficients: NDArray[np.float64] | None = None
    model_error: float | None = None
    failed: str | None = None

    def clip(self, config: Config) -> tuple[float, float]:
        """Limits for `sweep`: nothing is clipped before it is known how well stars are followed."""
        return (np.inf if self.model_error is None else config.subtraction.clip), CLIP_FRACTION


@dataclass
class BlockData:
    """Frames of a block in a tile's window, and the template there.

    Attributes
    ----------
    reference : ReferenceFit or None
        The oversampled reference, where that is the template.
    template, template_bad, template_variance : arrays (y, x)
    spline : array (y, x) or None
        The template's spline coefficients, those that more than the window gives.
    silent : bool array (y, x) or None
        Where a template of its own noise shows nothing else: that would draw the kernels towards zero.
    share : TemplateShare or None
        What the frames put into the reference, in the tile's core.
    kernels : list of FrameKernel
        Of every frame, so far.
    """

    first: int
    tile: Tile
    samples: CalibratedTile
    inner: Window
    model: KernelModel
    reference: ReferenceFit | None
    template: NDArray[np.float64]
    template_bad: NDArray[np.bool_]
    template_variance: NDArray[np.float64] | None
    spline: NDArray[np.float64] | None = None
    silent: NDArray[np.bool_] | None = None
    share: TemplateShare | None = None
    kernels: list[FrameKernel] = field(default_factory=list)


def units(field: Field, config: Config, ends: Sequence[int] = ()) -> list[Unit]:
    """Every tile times every time block; items are the first epoch and the one after the last.

    Blocks are cut at the ``ends`` of earlier nights: what was made then is not made again.
    """
    n, step = calibrated_frames(field).sizes["time"], field.time_block
    cuts = sorted({*range(0, n, step), *(end for end in ends if end < n), n})
    return [
        Unit(f"{tile.name}-{block_name(start, step)}", tile, (start, stop))
        for start, stop in pairwise(cuts)
        for tile in field.tiles
    ]


def block_name(start: int, step: int) -> str:
    """Name of the block of epochs from ``start`` on, in a field whose time blocks are ``step`` long."""
    return f"block-{start // step:05d}" + (f"+{start}" if start % step else "")


def read(field: Field, unit: Unit, config: Config) -> BlockData:
    """Calibrated frames of the block and the template, in the tile and the kernel's reach around it."""
    assert unit.tile is not None
    first, last = unit.items[:2]
    model = model_of(field, config)
    halo = tile_halo(unit.tile, model)
    window = unit.tile.window(halo, field.shape)
    frames = calibrated_frames(field).isel(time=slice(0, last))
    samples = read_calibrated(field, window, frames, start=first)
    data = BlockData(
        first, unit.tile, samples, unit.tile.inner(halo), model, *read_template(field, window, config)
    )
    if data.reference is None:
        data.spline = template_spline(field, window, config)
        data.silent = _silent(data)
    else:
        data.share = read_share(field, (slice(first, last), *unit.tile.core))
    kernels = unit.items[2] if len(unit.items) > 2 else ()
    data.kernels = list(kernels) or [FrameKernel() for _ in range(last - first)]
    return data


def tile_halo(tile: Tile, model: KernelModel) -> int:
    """The kernel's reach, and a block's where the tile cuts blocks."""
    side = block_side(model.image_shape)
    height, width = model.image_shape
    cuts = [y for y in (tile.y0, tile.y1) if y != height] + [x for x in (tile.x0, tile.x1) if x != width]
    beyond = side if any(cut % side for cut in cuts) else 0
    return max(model.kernel_shape) // 2 + SPLINE_REACH + beyond


def read_template(
    field: Field, window: Window, config: Config
) -> tuple[ReferenceFit | None, NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64] | None]:
    """Reference (or None), flux, bad pixels and variance of the template in a window.

    Raises
    ------
    FieldError
        If the field has no such template.
    """
    name = config.subtraction.template
    if name == "reference":
        coefficients = np.asarray(field.array("reference", "coefficients")[window], np.float64)
        valid = np.any(coefficients != 0, axis=(2, 3))
        zeros = np.zeros(valid.shape)
        reference = ReferenceFit(coefficients, zeros.astype(int), zeros, valid, config.reference.extension)
        flux = reference.evaluate(np.zeros(1), np.zeros(1))[0]
        return reference, np.where(valid, flux, 0.0), ~valid, None
    check_template(field, config)
    group = field.live(f"template/{name}")
    flux, error, mask = (np.asarray(field.array(group, part)[window]) for part in ("flux", "error", "mask"))
    bad = mask.astype(bool) | ~np.isfinite(flux)
    variance = np.where(bad | ~np.isfinite(error), 0.0, error.astype(float) ** 2)
    return None, np.where(bad, 0.0, flux).astype(float), bad, variance


def template_spline(field: Field, window: Window, config: Config) -> NDArray[np.float64]:
    """Spline coefficients of a template in a window, the same whatever the window is."""
    wide, inner = zip(
        *(
            (slice(max(part.start - SPLINE_TAIL, 0), min(part.stop + SPLINE_TAIL, size)), part)
            for part, size in zip(window, field.shape, strict=True)
        ),
        strict=True,
    )
    _, flux, bad, _ = read_template(field, (wide[0], wide[1]), config)
    coefficients = spline_filter(fill_holes(flux, bad), 3, mode="mirror")
    cut = [slice(i.start - w.start, i.stop - w.start) for w, i in zip(wide, inner, strict=True)]
    return np.asarray(coefficients[cut[0], cut[1]])


def check_template(field: Field, config: Config) -> None:
    """Raise `FieldError` if the template that the settings name is not in the field, or not whole."""
    name = config.subtraction.template
    if name == "reference":
        return
    group = f"template/{name}"
    way_out = 'make it by `survey template`, or set [subtraction] template = "reference"'
    if not field.has(group, "flux"):
        raise FieldError(f"{field.path}: has no {group}; {way_out}")
    # Its records are there before it takes the old one's place.
    lacking = len(field.tiles) - len(template_records(field, name))
    if lacking:
        raise FieldError(
            f"{field.path}: {group} was not written whole: {lacking} of {len(field.tiles)} tiles have no "
            f"record; {way_out}"
        )


def samples_of(data: BlockData, k: int) -> tuple[Samples, Scene, NDArray[np.bool_]]:
    """Template samples of a frame, what is fitted to them, and the pixels that have no difference."""
    model, s = data.model, data.samples
    samples, unsampled = make_samples(
        data.template, 0.0, model.kernel_shape, s.phase_y[k], s.phase_x[k], data.reference, data.spline
    )
    reach = 0 if data.reference is not None else 2
    size = tuple(n + 2 * reach for n in model.kernel_shape)
    # beyond the field's edge there is no template; beyond the window's the halo has seen to it
    bad = s.mask[k] | unsampled | maximum_filter(data.template_bad, size=size, mode="constant", cval=False)
    bad |= _outside(data, tuple(n // 2 for n in size))
    image = np.where(bad, 0.0, s.flux[k]).astype(float)
    variance = np.where(bad, np.inf, s.error[k].astype(float) ** 2)
    noise = (
        None if data.template_variance is None else pad_variance(data.template_variance, model.kernel_shape)
    )
    rows, columns = s.window
    scene = Scene(image, variance, bad, noise, origin=(rows.start, columns.start))
    return samples, scene, bad


def _silent(data: BlockData) -> NDArray[np.bool_] | None:
    """Pixels without signal of the template, but for the field's lattice of bare sky."""
    variance = data.template_variance
    if variance is None or not variance.any():
        return None
    rows, columns = data.samples.window
    signal = shows_signal(data.template, data.template_bad, variance, data.model.kernel_shape)
    return ~(signal | sky_lattice(signal.shape, (rows.start, columns.start)))


def _outside(data: BlockData, reach: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels whose kernel looks over the edge of the field."""
    near = []
    for part, size, r in zip(data.samples.window, data.model.image_shape, reach, strict=True):
        index = np.arange(part.start, part.stop)
        near.append((index < r) | (index >= size - r))
    return near[0][:, None] | near[1][None, :]


def corners(data: BlockData, *, own: bool) -> list[tuple[int, int]]:
    """Blocks of the field that begin in the tile's core, which are its own; or all that reach into it.

    Blocks are the field's, wherever tiles are cut: the polynomials held over them do not depend on tiles.
    """
    side = block_side(data.model.image_shape)
    starts = []
    for core, window in zip(data.tile.core, data.samples.window, strict=True):
        first = (core.start + side - 1 if own else core.start) // side * side
        starts.append([at - window.start for at in range(first, core.stop, side)])
    return [(y, x) for y in starts[0] for x in starts[1]]


def partial(data: BlockData, config: Config) -> list[Sums | None]:
    """Normal sums of every frame over the tile's own blocks."""
    found: list[Sums | None] = []
    for k, kernel in enumerate(data.kernels):
        if kernel.failed is not None:
            found.append(None)
            continue
        samples, scene, bad = samples_of(data, k)
        scene.excluded = bad if data.silent is None else bad | data.silent
        found.append(
            sweep(
                data.model, samples, scene, kernel.coefficients, model_error=kernel.model_error or 0.0,
                clip=kernel.clip(config), corners=corners(data, own=True),
            )
        )  # fmt: skip
    return found


def evaluate(data: BlockData, k: int, config: Config) -> tuple[Planes, NDArray[np.bool_], Scene]:
    """Convolved template, variance and fit mask of a frame in the window; its bad pixels; what was fitted."""
    kernel = data.kernels[k]
    samples, scene, bad = samples_of(data, k)
    planes = Planes(np.zeros(bad.shape), np.full(bad.shape, np.inf), np.zeros(bad.shape, bool))
    sweep(
        data.model, samples, scene, kernel.coefficients, clip=kernel.clip(config),
        model_error=kernel.model_error or 0.0, gram=False, corners=corners(data, own=False), planes=planes,
    )  # fmt: skip
    return planes, bad, scene


class FrameFits:
    """Kernels of a block of frames, from the sums of all tiles, pass by pass."""

    def __init__(self, model: KernelModel, count: int, config: Config) -> None:
        self.model = model
        self.kernels = [FrameKernel() for _ in range(count)]
        self._passes_left = config.subtraction.passes
        self._solvers = [Solver(model, config.subtraction.ridge) for _ in range(count)]
        self._totals: list[Sums | None] = [None] * count

    @property
    def state(self) -> list[FrameKernel]:
        """The kernels so far."""
        return list(self.kernels)

    def add(self, tile: list[Sums | None]) -> None:
        """Sums of one more tile, in the tiles' order."""
        for k, sums in enumerate(tile):
            if sums is not None:
                total = self._totals[k]
                self._totals[k] = sums if total is None else add_sums([total, sums])

    def step(self) -> None:
        """The kernels after a pass, once all tiles are added."""
        totals, self._totals = self._totals, [None] * len(self.kernels)
        self._passes_left -= 1
        for k, (kernel, total) in enumerate(zip(self.kernels, totals, strict=True)):
            if kernel.failed is not None or total is None:
                continue
            error = None if kernel.coefficients is None else total.model_error()
            try:
                check_pixels(self.model, total.pixels)
                found = self._solvers[k].step(total)
                if not self._passes_left:
                    check_error(error or 0.0)
                    self._solvers[k].check_flux()
                self.kernels[k] = FrameKernel(found, error)
            except (
                ValueError
            ) as problem:  # too little is good, nothing fits, no star in common: it stays masked
                self.kernels[k] = replace(kernel, failed=str(problem))


def kernel_sizes(model: KernelModel) -> dict[str, int]:
    """Lengths of the dimensions of what is kept of a kernel."""
    return {
        "kernel_y": model.kernel_shape[0],
        "kernel_x": model.kernel_shape[1],
        "kernel_term": n_terms(max(model.kernel_order, model.flux_order)),
        "kernel_background_term": n_terms(model.background_order),
    }


def kernel_arrays(model: KernelModel, kernels: Sequence[FrameKernel]) -> dict[str, NDArray[np.float64]]:
    """What is kept of the kernels of a block of frames; NaN where there is none."""
    size = kernel_sizes(model)
    n = len(kernels)
    arrays = {
        "kernel": np.full((n, *model.kernel_shape, size["kernel_term"]), np.nan),
        "kernel_background": np.full((n, size["kernel_background_term"]), np.nan),
    }
    for k, kernel in enumerate(kernels):
        if kernel.failed is None and kernel.coefficients is not None:
            found = model.kernel(kernel.coefficients)
            arrays["kernel"][k], arrays["kernel_background"][k] = (
                found.coefficients,
                found.background_coefficients,
            )
    return arrays


def bytes_of_sums(field: Field, config: Config) -> int:
    """What one frame's sums of one tile take."""
    model = model_of(field, config)
    return 8 * ((model.n_kernel + 1) * model.n_poly) ** 2


def settings(config: Config) -> dict[str, Any]:
    """The kernel's, and the reference's where that is the template."""
    own = config.subtraction.model_dump(mode="json", exclude={"hotpants", "timeout", "psf"})
    if config.subtraction.template == "reference":
        own["reference"] = config.reference.model_dump(mode="json")
    return own
