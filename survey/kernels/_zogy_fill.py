"""Bad pixels of a tile: filled with what the other image says of them, and how far that can be trusted.

The filters of a proper subtraction look at pixels all around, so that what stands in a hole is a part of the
difference beside it. It has to be likely; and where it may be wrong by as much as noise is, there is no
difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import binary_dilation

from survey.kernels._zogy_tile import (
    Complex,
    Doubt,
    Floats,
    Mask,
    TilePair,
    fft_shape,
    shift_ramp,
    transform_psf,
)
from survey.kernels.continuous import fill_holes

# Pixels around a place that neither image shows within which the one cannot tell of the other.
_NEAR = 4
# How wrong the nearest good pixel may be of such a place: a saturated core is far above its rim.
_UNKNOWN = 2.0
# Light below this many sigma is noise.
_LIGHT = 2.0
# Power of a PSF from which on it is divided by: the least with which noise of the other image, matched to
# this one, stays within this one's.
_DEEP = tuple(10.0**k for k in range(-8, 0))


@dataclass
class _Image:
    """One image of a tile with its holes, the nearest good pixel in them; ``psf`` is a transform."""

    values: Floats
    variance: Floats
    noise: float
    psf: Complex
    bad: Mask

    def light(self, values: Floats) -> Floats:
        """What of values is no noise."""
        return np.maximum(np.abs(values) - _LIGHT * np.sqrt(self.variance), 0)


def fill_bad(
    tile: TilePair, bad: Mask, reference_bad: Mask, ratio: float, shift: tuple[float, float]
) -> TilePair:
    """The tile with its bad pixels filled, and what is to be doubted of that.

    Parameters
    ----------
    bad, reference_bad : bool array (y, x)
    ratio, shift
        New flux per reference flux; where the new image's stars lie less where the reference's do, pixels.

    Notes
    -----
    What neither image shows is guessed in the reference, and matched in the new image: so the guess, however
    wrong, makes little difference.
    """
    if not bad.any() and not reference_bad.any():
        return tile
    near = binary_dilation(bad & reference_bad, iterations=_NEAR, mask=bad | reference_bad)
    shape, dtype = fft_shape(tile), tile.new.dtype
    new = _Image(
        fill_holes(tile.new, bad), tile.new_variance, tile.new_noise,
        transform_psf(tile.new_psf, shape, dtype), bad,
    )  # fmt: skip
    reference = _Image(
        fill_holes(tile.reference, reference_bad), tile.reference_variance, tile.reference_noise,
        transform_psf(tile.reference_psf, shape, dtype), reference_bad,
    )  # fmt: skip
    known = reference_bad & ~near
    values, off = reference.values, np.where(reference_bad, _UNKNOWN * reference.light(reference.values), 0)
    if known.any():
        back, missed = _matched(new, reference, 1 / ratio, (-shift[0], -shift[1]), shape)
        told = _filtered(new.values, back, shape)
        values, off = np.where(known, told, values), np.where(known, missed * reference.light(told), off)
    filled, new_off = new.values, np.zeros(bad.shape)
    if bad.any():
        there, missed = _matched(reference, new, ratio, shift, shape)
        told, doubt = _filtered(values, there, shape), _filtered(off, there, shape)
        filled = np.where(bad, told, filled)
        # light that begins at the edge of what neither image shows, as of a new source
        more = np.where(near, new.light(np.maximum(new.values - told - doubt, 0)), 0)
        new_off = np.where(bad, doubt + missed * new.light(told) + more, 0)
    noise = tuple(np.where(side.bad, side.variance, 0) for side in (new, reference))
    return replace(
        tile, new=filled.astype(dtype), reference=values.astype(dtype),
        doubt=Doubt((noise[0], noise[1]), (new_off, off)),
    )  # fmt: skip


def fill_alike(tile: TilePair, bad: Mask, reference_bad: Mask, ratio: float) -> TilePair:
    """The tile with bad pixels set to those of the other image, in the ratio of the PSFs' peaks.

    Enough to leave no step where both have one PSF; nothing is doubted.
    """
    broad = tile.new_psf.max() / tile.reference_psf.max() * ratio
    new = np.where(bad & ~reference_bad, broad * tile.reference, tile.new)
    reference = np.where(reference_bad & ~bad, tile.new / broad, tile.reference)
    return replace(tile, new=new.astype(tile.new.dtype), reference=reference.astype(tile.new.dtype))


def _matched(
    source: _Image, target: _Image, ratio: float, shift: tuple[float, float], shape: tuple[int, int]
) -> tuple[Complex, float]:
    """Filter that makes of one image the other, and the share of a star's peak that it misses."""
    power = np.abs(source.psf) ** 2
    shown = np.conj(source.psf) * target.psf
    for deep in _DEEP:
        matched = shown / (power + deep)
        noise = abs(ratio) * source.noise * np.sqrt(np.mean(np.abs(matched) ** 2))
        if noise <= target.noise:
            break
    lost = np.abs(irfft2(target.psf * (deep / (power + deep)), shape)).max()
    return ratio * matched * shift_ramp(shape, *shift), float(lost / irfft2(target.psf, shape).max())


def _filtered(values: Floats, matched: Complex, shape: tuple[int, int]) -> Floats:
    ny, nx = values.shape
    return np.asarray(irfft2(rfft2(values, shape) * matched, shape)[:ny, :nx])
