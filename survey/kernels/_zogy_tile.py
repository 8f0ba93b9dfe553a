"""Proper subtraction of one tile in Fourier space (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import maximum_filter

Floats = NDArray[np.floating]
Complex = NDArray[np.complexfloating]
Mask = NDArray[np.bool_]
# A pixel has no difference where what fills bad ones may put it off by so many sigma, or where their noise is
# more than this share of its variance.
_OFF, _NOISE = 0.5, 0.05


@dataclass
class Doubt:
    """How wrong what fills bad pixels may be: pairs, of the new image and the reference; arrays (y, x).

    Attributes
    ----------
    variance
        Of noise, 0 in good pixels.
    off
        By light that may be missing, all of it together, 0 in good pixels.
    """

    variance: tuple[Floats, Floats]
    off: tuple[Floats, Floats]

    def transforms(self, shape: tuple[int, int]) -> list[Complex]:
        """Of the four arrays."""
        return [rfft2(part, shape) for part in (*self.variance, *self.off)]


@dataclass
class TilePair:
    """A tile of both images with its overlap, skies subtracted, bad pixels filled.

    Attributes
    ----------
    new, reference : array (y, x)
    new_variance, reference_variance : array (y, x)
        Of every pixel, the photons of stars included.
    new_noise, reference_noise : float
        Of the sky, 1 sigma: the white noise that the statistic is built for.
    new_psf, reference_psf : array (k, k)
        At the tile's centre, sum 1, centred on their middle pixel.
    doubt : Doubt, optional
        Of what fills bad pixels, where some are.
    """

    new: Floats
    reference: Floats
    new_variance: Floats
    reference_variance: Floats
    new_noise: float
    reference_noise: float
    new_psf: Floats
    reference_psf: Floats
    doubt: Doubt | None = None


@dataclass
class Proper:
    """What comes out of a tile, all (y, x), fluxes in the new image's units.

    Attributes
    ----------
    difference, variance : array
        Proper difference image (its noise is white where there are no stars) and its variance.
    flux, flux_variance : array
        PSF flux of a point source at every pixel.
    psf : array (k, k)
        PSF of the difference, sum 1.
    spoilt, flux_spoilt : bool array or None
        Where what fills bad pixels may be wrong by a part of the noise of ``difference``, of ``flux``.
    """

    difference: Floats
    variance: Floats
    flux: Floats
    flux_variance: Floats
    psf: Floats
    spoilt: Mask | None = None
    flux_spoilt: Mask | None = None


def transform_psf(psf: Floats, shape: tuple[int, int], dtype: np.dtype) -> Complex:
    """Transform of a PSF whose middle pixel is moved to the origin."""
    big = np.zeros(shape, dtype)
    ky, kx = psf.shape
    big[:ky, :kx] = psf
    big = np.roll(big, (-(ky // 2), -(kx // 2)), (0, 1))
    return np.asarray(rfft2(big))


def fft_shape(tile: TilePair) -> tuple[int, int]:
    """Lengths that transform fast and hold a tile, and its PSFs."""
    sides = (tile.new.shape, tile.new_psf.shape, tile.reference_psf.shape)
    return _fast_shape(max(s[0] for s in sides), max(s[1] for s in sides))


def _fast_shape(ny: int, nx: int) -> tuple[int, int]:
    return next_fast_len(ny, real=True), next_fast_len(nx, real=True)


def shift_ramp(shape: tuple[int, int], dy: float, dx: float) -> Complex:
    """Factor that moves an image by (dy, dx): what was at p comes to lie at p + (dy, dx)."""
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :]
    return np.asarray(np.exp(-2j * np.pi * (fy * dy + fx * dx)))


def matched_pair(tile: TilePair) -> tuple[Floats, Floats, Floats, Floats]:
    """Each image convolved with the other's PSF, and the variances: they differ by ratio and shift."""
    ny, nx = tile.new.shape
    shape = fft_shape(tile)
    dtype = tile.new.dtype
    pn, pr = (transform_psf(p, shape, dtype) for p in (tile.new_psf, tile.reference_psf))
    a = irfft2(rfft2(tile.new, shape) * pr, shape)[:ny, :nx]
    b = irfft2(rfft2(tile.reference, shape) * pn, shape)[:ny, :nx]
    squared = [rfft2(irfft2(p, shape) ** 2) for p in (pr, pn)]
    va = irfft2(rfft2(tile.new_variance, shape) * squared[0], shape)[:ny, :nx]
    vb = irfft2(rfft2(tile.reference_variance, shape) * squared[1], shape)[:ny, :nx]
    return a, b, va, vb


def source_filter(new_psf: Floats, reference_psf: Floats, noise: tuple[float, float], ratio: float) -> Floats:
    """Filter (k, k) through which the proper difference shows the new image, in its units.

    A source's PSF there, P_D of eq. 14, is the new image's own through this filter: narrower where the
    reference is broad and noisy.

    Parameters
    ----------
    new_psf, reference_psf : array (k, k)
        Odd k, sum 1.
    noise : (float, float)
        1-sigma noise of the new image's and of the reference's sky.
    ratio : float
        New flux per reference flux.
    """
    half = max(new_psf.shape[0], reference_psf.shape[0]) // 2
    shape = _fast_shape(8 * half + 1, 8 * half + 1)
    pn, pr = (transform_psf(p, shape, np.dtype(float)) for p in (new_psf, reference_psf))
    den = noise[0] ** 2 * np.abs(pr) ** 2 + (noise[1] * ratio) ** 2 * np.abs(pn) ** 2
    den += 1e-10 * float(den.max())
    full = np.asarray(irfft2(pr / np.sqrt(den), shape)) * np.hypot(noise[0], noise[1] * ratio)
    return np.roll(full, (half, half), (0, 1))[: 2 * half + 1, : 2 * half + 1]


def proper_subtraction(
    tile: TilePair, ratio: float, shift: tuple[float, float], shift_error: tuple[float, float]
) -> Proper:
    """Difference, matched-filter flux and their variances of a tile.

    Parameters
    ----------
    ratio : float
        New flux per reference flux.
    shift : (dy, dx)
        Where the new image's stars lie, less where the reference's do, pixels.
    shift_error : (dy, dx)
        1-sigma registration noise, pixels.

    Notes
    -----
    With F_r = 1 and F_n = ratio: D (eq. 13), F_D (eq. 15), P_D (eq. 14), S (eq. 12), kernels k_r, k_n (eqs.
    28, 29), astrometric noise (eq. 31), flux S / F_S (eq. 41), F_S = sum over pixels of F_D^2 P_D^2.
    """
    ny, nx = tile.new.shape
    shape = fft_shape(tile)
    dtype = tile.new.dtype
    pn, pr = (transform_psf(p, shape, dtype) for p in (tile.new_psf, tile.reference_psf))
    n, r = rfft2(tile.new, shape), rfft2(tile.reference, shape) * shift_ramp(shape, *shift).astype(pn.dtype)
    sn2, sr2 = tile.new_noise**2, tile.reference_noise**2
    power_n, power_r = np.abs(pn) ** 2, np.abs(pr) ** 2
    den = sn2 * power_r + sr2 * ratio**2 * power_n
    # both PSFs vanish at high frequency: what is left there is noise over noise
    floor = 1e-10 * float(den.max())
    den = den + dtype.type(floor)
    root = np.sqrt(den)
    f_d = ratio / np.sqrt(sn2 + sr2 * ratio**2)
    to_new, to_reference = pr / root, ratio * pn / root  # D = to_new N - to_reference R
    d = to_new * n - to_reference * r
    p_d = ratio * pn * pr / (f_d * root)
    k_n = ratio * np.conj(pn) * power_r / den
    k_r = ratio**2 * np.conj(pr) * power_n / den
    s_r = irfft2(k_r * r, shape)
    s = irfft2(k_n * n, shape) - s_r
    variances = [rfft2(v, shape) for v in (tile.new_variance, tile.reference_variance)]
    squares_d, squares_s = _squares((to_new, to_reference), shape), _squares((k_n, k_r), shape)
    variance_d, variance_s = (_through(s, variances, shape, (ny, nx)) for s in (squares_d, squares_s))
    spoilt_d, spoilt_s = None, None
    if tile.doubt is not None:
        doubt, ramp = tile.doubt.transforms(shape), shift_ramp(shape, *shift)
        spoilt_d = _spoilt(doubt, (to_new, to_reference * ramp), squares_d, variance_d, shape)
        spoilt_s = _spoilt(doubt, (k_n, k_r * ramp), squares_s, variance_s, shape)
    s_r = s_r[:ny, :nx]
    if any(shift_error):
        gy, gx = np.gradient(s_r)
        variance_s = variance_s + (shift_error[0] * gy) ** 2 + (shift_error[1] * gx) ** 2
        gy, gx = np.gradient(irfft2(to_reference * r, shape)[:ny, :nx])
        variance_d = variance_d + (shift_error[0] * gy) ** 2 + (shift_error[1] * gx) ** 2
    psf = np.asarray(irfft2(p_d, shape))
    f_s = f_d**2 * float((psf**2).sum())
    unit, flux_unit = ratio / f_d, ratio / f_s
    half = tile.new_psf.shape[0] // 2
    stamp = np.roll(psf, (half, half), (0, 1))[: 2 * half + 1, : 2 * half + 1]
    d_image = irfft2(d, shape)[:ny, :nx]
    return Proper(
        d_image * dtype.type(unit), variance_d * dtype.type(unit**2), s[:ny, :nx] * dtype.type(flux_unit),
        variance_s * dtype.type(flux_unit**2), stamp, spoilt_d, spoilt_s,
    )  # fmt: skip


def _squares(filters: tuple[Complex, Complex], shape: tuple[int, int]) -> list[Complex]:
    """Transforms of the filters' squares, through which variances go."""
    return [rfft2(irfft2(k, shape) ** 2) for k in filters]


def _through(
    filters: Sequence[Complex], images: Sequence[Complex], shape: tuple[int, int], tile: tuple[int, ...]
) -> Floats:
    """Sum of two variances, by their transforms, through filters of variances."""
    total = irfft2(filters[0] * images[0] + filters[1] * images[1], shape)
    return np.maximum(total[: tile[0], : tile[1]], 0)


def _spoilt(
    doubt: list[Complex],
    filters: tuple[Complex, Complex],
    squares: list[Complex],
    variance: Floats,
    shape: tuple[int, int],
) -> Mask:
    """Pixels of a variance, of the new image less the reference through filters, that doubts may put off."""
    ny, nx = variance.shape
    off = irfft2(filters[0] * doubt[2] - filters[1] * doubt[3], shape)[:ny, :nx]
    wrong = maximum_filter(np.abs(off), 3)  # where it changes sign, too
    noise = _through(squares, doubt[:2], shape, variance.shape)
    return np.asarray((wrong**2 > _OFF**2 * variance) | (noise > _NOISE * variance))
