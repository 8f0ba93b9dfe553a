"""Star finding and centroids for undersampled frames."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from survey.kernels._star_fit import fit_among_neighbours, fit_stars
from survey.kernels.background import Background, measure_background

Array = NDArray[np.float64]

FWHM = 2.3548200450309493  # of a Gaussian, in sigma
# A star of FWHM 0.9 px centred on a pixel puts 12 % of its peak into each neighbour; a hot pixel none.
_HOT_NEIGHBOUR = 0.06
_SHARPEST = 0.6  # fitted width over the frame's, below which a peak is a hot pixel or a cosmic ray
_MODEL_ERROR = 0.03
_GUESSED = 120  # peaks that a first look at the width takes


class StarFlag(IntFlag):
    """Why a star may be unfit for a measurement."""

    SATURATED = 1
    EDGE = 2
    BLENDED = 4
    SHARP = 8  # hot pixel or cosmic ray; only kept on request
    POOR_FIT = 16


@dataclass(frozen=True)
class StarList:
    """Stars of one image, brightest first; every field has shape (n,).

    Positions are pixel centres counted from 0, fluxes in image units above the local sky, `fwhm` the
    width of the PSF before the pixel integrates it (geometric mean of the axes), `elongation` the
    ratio of its axes, `peak` the brightest pixel above the sky, `flags` bits of `StarFlag`.
    """

    x: Array
    y: Array
    position_error: Array
    flux: Array
    flux_error: Array
    fwhm: Array
    elongation: Array
    peak: Array
    flags: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, index: ArrayLike) -> StarList:
        """Stars by a bool mask or by indices."""
        index = np.asarray(index)
        return StarList(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Stars without any flag."""
        return self.flags == 0


def find_stars(
    image: ArrayLike,
    error: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    threshold: float = 8.0,
    max_stars: int = 500,
    saturation: float | None = None,
    background: Background | None = None,
    fwhm: float | None = None,
    edge: int | None = None,
    keep_sharp: bool = False,
) -> StarList:
    """Find the brightest stars of an image and measure them to a few hundredths of a pixel.

    Peaks of the smoothed signal-to-noise image are fitted with Gaussians integrated over the pixel,
    so that the centroids carry no pixel-phase error for FWHM 1.1 to 4 px; the shape is common to the
    frame (from its clean bright stars), and each star is fitted with its neighbours' light taken away.

    Parameters
    ----------
    image : array (y, x)
        With or without its sky pedestal, which is measured and taken away.
    error : array (y, x), optional
        1-sigma; without it the noise of the sky.
    mask : bool array (y, x), optional
        True = bad.
    threshold : float
        Signal-to-noise of the smoothed peak; in a crowded field the confusion counts as noise.
    max_stars : int
        The brightest are kept.
    saturation : float, optional
        Level, in units of `image`, from which on a pixel is saturated.
    background : Background, optional
        Measured here (order 1) if missing.
    fwhm : float, optional
        First guess of the PSF's width in pixels.
    edge : int, optional
        Stars nearer to the edge than this are flagged; default the fit's radius.
    keep_sharp : bool
        Keep hot pixels and cosmic rays, flagged, instead of dropping them.

    Returns
    -------
    StarList

    Examples
    --------
    >>> from scipy.special import ndtr
    >>> t = np.arange(32)
    >>> profile = lambda c: ndtr((t - c + 0.5) / 0.7) - ndtr((t - c - 0.5) / 0.7)
    >>> stars = find_stars(100 + 1e4 * np.outer(profile(14.3), profile(17.6)), np.ones((32, 32)))
    >>> stars.x.round(2), stars.y.round(2), stars.flux.round(-1)
    (array([17.6]), array([14.3]), array([10000.]))
    """
    image = np.asarray(image, float)
    bad = ~np.isfinite(image) if mask is None else ~np.isfinite(image) | np.asarray(mask, bool)
    if background is None:
        background = measure_background(image, bad, order=1)
    signal = np.where(bad, 0.0, image - background.surface())
    noise = np.full(image.shape, max(background.rms, 1e-30)) if error is None else np.asarray(error, float)
    bad |= ~(noise > 0) | ~np.isfinite(noise)
    saturated = np.zeros(image.shape, bool) if saturation is None else image >= saturation
    # No star is a Gaussian: a model error of 3 % keeps a bright star's core from deciding alone.
    variance = np.where(bad, 1.0, noise) ** 2 + (_MODEL_ERROR * np.maximum(signal, 0.0)) ** 2
    variance[bad | saturated] = np.inf

    guess = 1.8 if fwhm is None else fwhm
    peaks = _peaks(signal, noise, bad, guess, threshold, (3 * max_stars) // 2 + 100)
    if len(peaks[0]) == 0:
        return _empty()
    # The brightest tell how wide stars are; then all are looked for and fitted from that width.
    shape, _ = _common_shape(signal, variance, (peaks[0][:_GUESSED], peaks[1][:_GUESSED]), guess)
    width = _axes(shape[None])[0][0]
    if not 0.7 < width / guess < 1.4:
        peaks = _peaks(signal, noise, bad, width, threshold, (3 * max_stars) // 2 + 100)
        guess = width
    shape, fitted = _common_shape(signal, variance, peaks, guess)
    stars = _measure(signal, variance, noise, saturated | bad, saturated, fitted, shape, edge)
    if not keep_sharp:
        stars = stars.select((stars.flags & StarFlag.SHARP) == 0)
    return stars.select(np.argsort(-stars.flux, kind="stable")[:max_stars])


def _empty() -> StarList:
    return StarList(
        **{f.name: np.zeros(0, np.int32 if f.name == "flags" else float) for f in fields(StarList)}
    )


def _peaks(
    signal: Array, noise: Array, bad: NDArray[np.bool_], fwhm: float, threshold: float, most: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Local maxima of the matched-filtered signal-to-noise image, brightest first."""
    sigma = np.clip(fwhm / FWHM, 0.5, 1.7)
    inverse = np.where(bad, 0.0, 1.0 / np.where(bad, 1.0, noise) ** 2)
    smooth = ndimage.gaussian_filter(signal * inverse, sigma, mode="constant", truncate=3.0)
    impulse = np.zeros(15)
    impulse[7] = 1.0
    squared = ndimage.gaussian_filter1d(impulse, sigma, truncate=3.0) ** 2
    scatter = inverse
    for axis in (0, 1):
        scatter = ndimage.convolve1d(scatter, squared, axis=axis, mode="constant")
    scatter = np.sqrt(scatter)
    snr = np.divide(smooth, scatter, out=np.zeros_like(smooth), where=scatter > 0)
    # Confusion: where stars overlap everywhere, the scatter of S/N is far above one.
    core = snr[~bad]
    spread = 1.4826 * np.median(np.abs(core - np.median(core))) if core.size else 1.0
    limit = threshold * max(1.0, spread)
    size = 2 * max(int(np.ceil(0.6 * fwhm)), 1) + 1
    is_peak = (snr == ndimage.maximum_filter(snr, size=size, mode="constant")) & (snr > limit) & ~bad
    y, x = np.nonzero(is_peak)
    order = np.argsort(-smooth[y, x] / np.maximum(inverse[y, x], 1e-300), kind="stable")[:most]
    return y[order], x[order]


def _first_guess(signal: Array, y: NDArray[np.intp], x: NDArray[np.intp], fwhm: float) -> Array:
    guess = np.zeros((len(x), 7))
    q = (FWHM / fwhm) ** 2
    guess[:, 0], guess[:, 1] = x, y
    guess[:, 2] = np.maximum(signal[y, x], 1e-12) * 2 * np.pi / q * (1 + q / 12)
    guess[:, 4] = guess[:, 5] = q
    return guess


def _radius(fwhm: float) -> int:
    return int(np.clip(np.ceil(1.1 * fwhm), 2, 7))


def _axes(parameters: Array) -> tuple[Array, Array]:
    """FWHM (geometric mean) and axis ratio of rows (..., qxx, qyy, qxy)."""
    qxx, qyy, qxy = parameters[:, -3], parameters[:, -2], parameters[:, -1]
    mean, half = (qxx + qyy) / 2, np.hypot((qxx - qyy) / 2, qxy)
    minor, major = 1 / np.sqrt(mean + half), 1 / np.sqrt(np.maximum(mean - half, 1e-12))
    return FWHM * np.sqrt(minor * major), major / minor


def _hot(signal: Array, y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Peaks without light in any of the four next pixels: no optics makes them."""
    padded = np.pad(signal, 2)
    # The smoothed peak of a hot pixel beside a star may lie one pixel off.
    window = np.stack([padded[y + 2 + j, x + 2 + i] for j in (-1, 0, 1) for i in (-1, 0, 1)])
    best = np.argmax(window, axis=0)
    py, px = y + 1 + best // 3, x + 1 + best % 3
    next_to = np.stack([padded[py + j, px + i] for j, i in ((0, 1), (1, 0), (0, -1), (-1, 0))])
    peak = padded[py, px]
    # Two of the four: noise or one faint neighbour must not make a hot pixel a star.
    return np.asarray(np.sort(next_to, axis=0)[2] < _HOT_NEIGHBOUR * peak)


def _common_shape(
    signal: Array, variance: Array, peaks: tuple[NDArray[np.intp], NDArray[np.intp]], fwhm: float
) -> tuple[Array, Array]:
    """The frame's shape (3,) from its clean bright stars, and the free fits of all peaks (n, 7)."""
    y, x = peaks
    guess = _first_guess(signal, y, x, fwhm)
    hot = _hot(signal, y, x)
    fitted, _, _, converged = fit_stars(signal, variance, guess, _radius(fwhm), True, 30)
    widths, elongations = _axes(fitted)
    peak_error = np.sqrt(np.where(np.isfinite(variance[y, x]), variance[y, x], np.inf))
    bright = signal[y, x] > 15 * peak_error
    usable = converged & ~hot & bright & (widths > 0.4) & (widths < 12) & (elongations < 5)
    if usable.sum() < 3:
        usable = converged & ~hot & (widths > 0.4) & (widths < 12)
    if not usable.any():
        return _first_guess(signal, y[:1], x[:1], fwhm)[0, 4:], fitted
    # Blends and cosmic rays are wide or narrow outliers: twice a clipped median.
    for _ in range(3):
        middle = np.median(widths[usable])
        spread = max(1.4826 * np.median(np.abs(widths[usable] - middle)), 0.03 * middle)
        usable &= np.abs(widths - middle) < 3 * spread
    return np.median(fitted[usable, 4:], axis=0), fitted


def _measure(
    signal: Array,
    variance: Array,
    noise: Array,
    unusable: NDArray[np.bool_],
    saturated: NDArray[np.bool_],
    free: Array,
    shape: Array,
    edge: int | None,
) -> StarList:
    width = float(_axes(shape[None])[0][0])
    radius = _radius(width)
    x0, y0 = np.rint(free[:, 0]).astype(int), np.rint(free[:, 1]).astype(int)
    inside = (x0 >= 0) & (y0 >= 0) & (x0 < signal.shape[1]) & (y0 < signal.shape[0])
    free, x0, y0 = free[inside], x0[inside], y0[inside]
    sharp = _hot(signal, y0, x0) | (_axes(free)[0] < _SHARPEST * width)
    start = free.copy()
    # Hot pixels keep their own shape, so that they are taken away from their neighbours as they are.
    start[~sharp, 4:] = shape
    start, *_ = fit_stars(signal, variance, start, radius, False, 20)
    fit, variances, _, converged = fit_among_neighbours(signal, variance, start, radius, 2 * radius, 10)
    ny, nx = signal.shape
    margin = radius if edge is None else edge
    flags = np.zeros(len(fit), np.int32)
    near = ndimage.binary_dilation(saturated, iterations=max(round(width), 1))
    flags[near[y0, x0]] |= StarFlag.SATURATED
    at_edge = (fit[:, 0] < margin) | (fit[:, 1] < margin)
    at_edge |= (fit[:, 0] > nx - 1 - margin) | (fit[:, 1] > ny - 1 - margin)
    at_edge |= (unusable & ~saturated)[y0, x0]
    flags[at_edge] |= StarFlag.EDGE
    flags[_blended(fit, 1.5 * width)] |= StarFlag.BLENDED
    flags[sharp] |= StarFlag.SHARP
    flags[~converged | ~np.isfinite(variances[:, 0])] |= StarFlag.POOR_FIT
    fwhm, elongation = _axes(free)
    stars = StarList(
        x=fit[:, 0],
        y=fit[:, 1],
        position_error=np.sqrt((variances[:, 0] + variances[:, 1]) / 2),
        flux=fit[:, 2],
        flux_error=np.sqrt(variances[:, 2]),
        fwhm=fwhm,
        elongation=elongation,
        peak=signal[y0, x0],
        flags=flags,
    )
    real = (stars.flux > 0) & np.isfinite(stars.flux)
    return stars.select(real & ~_doubles(stars, 0.5 * width))


def _blended(fit: Array, radius: float) -> NDArray[np.bool_]:
    """Stars with a neighbour of more than a tenth of their light nearby."""
    blended = np.zeros(len(fit), bool)
    for a, b in cKDTree(fit[:, :2]).query_pairs(radius, output_type="ndarray"):
        blended[a] |= fit[b, 2] > 0.1 * fit[a, 2]
        blended[b] |= fit[a, 2] > 0.1 * fit[b, 2]
    return blended


def _doubles(stars: StarList, radius: float) -> NDArray[np.bool_]:
    """Fainter members of pairs of fits that fell onto one star."""
    double = np.zeros(len(stars), bool)
    for a, b in cKDTree(np.column_stack([stars.x, stars.y])).query_pairs(radius, output_type="ndarray"):
        double[b if stars.flux[a] >= stars.flux[b] else a] = True
    return double


def psf_width(stars: StarList, *, min_stars: int = 3) -> tuple[float, float]:
    """Median PSF width and elongation of a frame's unsaturated, unblended stars.

    Parameters
    ----------
    stars : StarList
    min_stars : int
        With fewer clean stars, flagged ones count too (saturated ones never).

    Returns
    -------
    psf_fwhm : float
        Pixels, before integration over the pixel; NaN without stars.
    elongation : float
        Ratio of the axes.
    """
    good = stars.clean & (stars.flux > 20 * stars.flux_error)
    if good.sum() < min_stars:
        good = (stars.flags & (StarFlag.SATURATED | StarFlag.SHARP)) == 0
    if not good.any():
        return float("nan"), float("nan")
    return float(np.median(stars.fwhm[good])), float(np.median(stars.elongation[good]))
