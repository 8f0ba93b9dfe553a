"""What a point source looks like in the differences of every epoch.

One PSF serves the oversampled reference and cpm. A matched template was convolved with a kernel a frame, so
that a source shows its kernel * PSF; a difference by HOTPANTS, the frame's own PSF; a proper difference, that
PSF through the filter which makes its noise white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.config import Config
from survey.io.store import Field
from survey.kernels._zogy_tile import source_filter
from survey.kernels.decorrelate import filtered_psf
from survey.kernels.psf import EffectivePSF, stamp_psf
from survey.kernels.subtraction import MatchingKernel
from survey.stages import frame_psf, psf
from survey.stages.matching import read_template
from survey.stages.methods import TEMPLATE_METHODS

Array = NDArray[np.float64]
# Edge of the middle of a template in which its PSF's stars are looked for.
MIDDLE = frame_psf.EDGE
# A template's wings are seen further out than a frame's.
TEMPLATE_REACH = 3.5


@dataclass(frozen=True)
class DifferencePSF:
    """PSF of the differences.

    Attributes
    ----------
    base : EffectivePSF
        Of the template.
    common : EffectivePSF, optional
        Of all differences alike, where it is not the template's.
    frames : sequence of EffectivePSF, optional
        Of every frame, where its difference shows that.
    kernels : array (time, ky, kx, n_terms), optional
        Matching kernels as `MatchingKernel` holds them; NaN in frames without one.
    shape : tuple of int
        (y, x) of the field, over which the kernels' polynomials run.
    """

    base: EffectivePSF
    common: EffectivePSF | None = None
    frames: Sequence[EffectivePSF] | None = None
    kernels: Array | None = None
    shape: tuple[int, int] = (1, 1)

    @property
    def typical(self) -> EffectivePSF:
        """One PSF for all differences, to find a place by."""
        return self.common or self.base

    def since(self, start: int) -> DifferencePSF:
        """Of the differences from an epoch on."""
        if not start:
            return self
        frames = None if self.frames is None else self.frames[start:]
        kernels = None if self.kernels is None else self.kernels[start:]
        return replace(self, frames=frames, kernels=kernels)

    def kernel_at(self, y: float, x: float) -> Array | None:
        """Kernels (time, ky, kx) at a position."""
        if self.kernels is None:
            return None
        model = MatchingKernel(np.moveaxis(self.kernels, 0, -2), np.zeros(1), self.shape)
        terms = model.terms(x, y, self.kernels.shape[-1])
        return np.asarray(self.kernels @ terms)

    def stamps(
        self,
        phase_y: ArrayLike,
        phase_x: ArrayLike,
        y: float,
        x: float,
        shape: tuple[int, int],
        origin: tuple[float, float] = (0.0, 0.0),
    ) -> Array:
        """Stamps (time, y, x) of a source of unit flux at (y, x), as `stamp_psf` makes them."""
        if self.frames is not None:
            py, px = np.asarray(phase_y, float), np.asarray(phase_x, float)
            parts = [
                stamp_psf(own, py[k : k + 1], px[k : k + 1], y, x, shape, origin)
                for k, own in enumerate(self.frames)
            ]
            return np.concatenate(parts)
        kernels = self.kernel_at(y, x)
        if kernels is None:
            return stamp_psf(self.common or self.base, phase_y, phase_x, y, x, shape, origin)
        size_y, size_x = kernels.shape[1:]
        total = np.zeros((len(kernels), *shape))
        for i in range(size_y):
            for j in range(size_x):
                # template(p - a): its star lies a further on
                at = (y + i - size_y // 2, x + j - size_x // 2)
                part = stamp_psf(self.base, phase_y, phase_x, *at, shape, origin)
                total += np.nan_to_num(kernels[:, i, j])[:, None, None] * part
        total[np.isnan(kernels).any(axis=(1, 2))] = 0.0
        return total


def as_subtracted(field: Field, config: Config) -> Config:
    """Settings with the template and the choice of PSFs that the method's differences were made with."""
    group = f"difference/{config.method}"
    noted = field.group_attrs(group) if field.has(group) else {}
    made = {name: noted[name] for name in ("template", "psf") if isinstance(noted.get(name), str)}
    own = config.subtraction.model_copy(update=made)
    return config.model_copy(update={"subtraction": own})


def load(field: Field, config: Config) -> DifferencePSF:
    """PSF of ``difference/<method>``."""
    group = f"difference/{config.method}"
    if config.method not in TEMPLATE_METHODS or not field.has(group, "flux"):
        return DifferencePSF(psf.load(field))
    base = template_psf(field, config)
    if config.method == "sfft":
        kernels = np.asarray(field.array(group, "kernel")[...], float)
        return DifferencePSF(base, kernels=kernels, shape=field.shape)
    common = psf.load(field)
    epochs = np.arange(field.array(group, "flux").shape[0])
    if frame_psf.own_psfs(config, common):
        # a run that was killed may have made room for frames whose PSFs it had not measured
        found = frame_psf.load(field, epochs, partly=True)
    elif config.method == "zogy" and is_of_others(field, config):
        found = {int(k): common for k in epochs}
    else:
        return DifferencePSF(base, common)
    if config.method == "zogy":
        found = _proper(field, found, base)
    return DifferencePSF(base, common, [found.get(int(k), common) for k in epochs])


def is_of_others(field: Field, config: Config) -> bool:
    """Whether a template is not of the field's frames: then it has a PSF of its own."""
    name = config.subtraction.template
    return name != "reference" and field.group_attrs(f"template/{name}").get("source") != "stack"


def _proper(field: Field, own: Mapping[int, EffectivePSF], template: EffectivePSF) -> dict[int, EffectivePSF]:
    """PSFs of frames as their proper differences show them, by what the ledger notes of each."""
    noted: dict[int, list[list[float]]] = {}
    for record in field.ledger("zogy.zogy").records.values():
        for epoch, *values in record.payload.get("noted", ()):
            noted.setdefault(int(epoch), []).append(values)
    reference = _stamp(template)
    found = dict(own)
    for k, values in noted.items():
        if k in own:
            ratio, *noise = np.median(values, axis=0)
            shown = source_filter(_stamp(own[k]), reference, (noise[0], noise[1]), ratio)
            found[k] = filtered_psf(own[k], np.asarray(shown, float))
    return found


def _stamp(psf_: EffectivePSF) -> Array:
    """A PSF in pixels, sum 1."""
    stamp = psf_.evaluate(0.0, 0.0, psf_.size | 1)[0]
    return np.asarray(stamp / stamp.sum())


def template_psf(field: Field, config: Config) -> EffectivePSF:
    """The field's PSF for its reference; for another template that of the template's own stars."""
    name = config.subtraction.template
    if name == "reference":
        return psf.load(field)
    half = min(MIDDLE, *field.shape) // 2
    window = tuple(slice(n // 2 - half, n // 2 + half) for n in field.shape)
    _, flux, bad, variance = read_template(field, (window[0], window[1]), config)
    error = np.sqrt(variance) if variance is not None else np.zeros(flux.shape)
    usable = ~bad & (error > 0)
    known = field.group_attrs(f"template/{name}").get("psf_fwhm")
    width = float(known) if isinstance(known, float | int) else np.nan
    error = np.where(usable, error, 1.0)
    places = frame_psf.star_places(flux, error, ~usable)
    return frame_psf.psf_of_stars(flux, error, ~usable, width, places, TEMPLATE_REACH)[0]
