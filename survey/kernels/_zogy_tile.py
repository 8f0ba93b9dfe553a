"""Proper subtraction of one tile in Fourier space (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

Floats = NDArray[np.floating]
Complex = NDArray[np.complexfloating]


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
    """

    new: Floats
    reference: Floats
    new_variance: Floats
    reference_variance: Floats
    new_noise: float
    reference_noise: float
    new_psf: Floats
    reference_psf: Floats


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
    """

    difference: Floats
    variance: Floats
    flux: Floats
    flux_variance: Floats
    psf: Floats


def transform_psf(psf: Floats, shape: tuple[int, int], dtype: np.dtype) -> Complex:
    """Transform of a PSF whose middle pixel is moved to the origin."""
    big = np.zeros(shape, dtype)
    ky, kx = psf.shape
    big[:ky, :kx] = psf
    big = np.roll(big, (-(ky // 2), -(kx // 2)), (0, 1))
    return np.asarray(rfft2(big))


def fft_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Lengths near a shape that transform fast."""
    return next_fast_len(shape[0], real=True), next_fast_len(shape[1], real=True)


def shift_ramp(shape: tuple[int, int], dy: float, dx: float) -> Complex:
    """Factor that moves an image by (dy, dx): what was at p comes to lie at p + (dy, dx)."""
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :]
    return np.asarray(np.exp(-2j * np.pi * (fy * dy + fx * dx)))


def matched_pair(tile: TilePair) -> tuple[Floats, Floats, Floats, Floats]:
    """Each image convolved with the other's PSF, and the variances: they differ by ratio and shift."""
    ny, nx = tile.new.shape
    shape = fft_shape((ny, nx))
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
    shape = fft_shape((8 * half + 1, 8 * half + 1))
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
    shape = fft_shape((ny, nx))
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
    vn, vr = rfft2(tile.new_variance, shape), rfft2(tile.reference_variance, shape)

    def through(kn: Complex, kr: Complex) -> Floats:
        squares = [rfft2(irfft2(k, shape) ** 2) for k in (kn, kr)]
        return np.maximum(irfft2(squares[0] * vn + squares[1] * vr, shape)[:ny, :nx], 0)

    variance_d, variance_s = through(to_new, to_reference), through(k_n, k_r)
    s_r = s_r[:ny, :nx]
    if any(shift_error):
        gy, gx = np.gradient(s_r)
        variance_s = variance_s + (shift_error[0] * gy) ** 2 + (shift_error[1] * gx) ** 2
    psf = np.asarray(irfft2(p_d, shape))
    f_s = f_d**2 * float((psf**2).sum())
    unit, flux_unit = ratio / f_d, ratio / f_s
    half = tile.new_psf.shape[0] // 2
    stamp = np.roll(psf, (half, half), (0, 1))[: 2 * half + 1, : 2 * half + 1]
    d_image = irfft2(d, shape)[:ny, :nx]
    return Proper(
        d_image * dtype.type(unit), variance_d * dtype.type(unit**2), s[:ny, :nx] * dtype.type(flux_unit),
        variance_s * dtype.type(flux_unit**2), stamp,
    )  # fmt: skip
