"""Registration of frames by their stars: reference pixel -> detector pixel, without any first guess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._matching import log_chance, pair_weights, refine, vote
from survey.kernels.frame_quality import RegistrationError, photometric_scale
from survey.kernels.pixelmap import PixelMap, fit_pixel_map, n_terms
from survey.kernels.stars import StarList, find_stars, psf_width

__all__ = [
    "Match",
    "RegistrationError",
    "find_stars",
    "held_out_residuals",
    "match_stars",
    "pair_weights",
    "photometric_scale",
    "psf_width",
]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_LOG_CHANCE = -3.0  # a registration that chance gives more often is none


@dataclass(frozen=True)
class Match:
    """Registration of one frame.

    Parameters
    ----------
    pixel_map : PixelMap
        Reference pixel -> detector pixel.
    index, reference_index : int arrays (n_matched,)
        Matched stars in the two lists.
    n_matched : int
        Stars that entered the fit.
    rms : float
        Weighted 2-D rms of the fit's residuals in detector pixels.
    held_out_rms : float
        The same for stars held out of the fit (k-fold): what a star that had no say is off by. It
        includes the centroid noise of both frames.
    held_out_median : float
        Median distance of the held-out stars, unweighted.
    map_error : float
        1-sigma error of the map itself at the middle of the matched stars, per axis, in pixels.
    rotation : float
        Degrees, counter-clockwise.
    scale_ratio : float
        Detector pixels per reference pixel.
    """

    pixel_map: PixelMap
    index: Indices
    reference_index: Indices
    n_matched: int
    rms: float
    held_out_rms: float
    held_out_median: float
    map_error: float
    rotation: float
    scale_ratio: float


def match_stars(
    stars: StarList,
    reference: StarList,
    *,
    initial: PixelMap | None = None,
    max_rotation: float = 2.0,
    min_matches: int = 6,
    order: int = 1,
    tolerance: float = 1.5,
    clip: float = 4.0,
    folds: int = 5,
    max_shift: float | None = None,
) -> Match:
    """Match a frame's stars to a reference frame's and fit the map between them.

    Without a first guess the brightest stars of the two lists vote for an offset, for every rotation
    of a grid; the best-supported offsets are refined by nearest neighbours, and the one that brings
    most stars together wins. The fit is weighted by the centroid errors and clipped.

    Parameters
    ----------
    stars, reference : StarList
        Detector and reference stars; saturated stars vote but do not enter the fit.
    initial : PixelMap, optional
        First guess, right to a few pixels (for instance from a WCS or the frame before).
    max_rotation : float
        Largest rotation tried, degrees; 180 tries all (a frame after a meridian flip).
    min_matches : int
        With fewer matched stars the frame is not registered.
    order : int
        Degree of the map; lowered to 1 where matched stars are too few for it.
    tolerance : float
        Largest distance of a matched pair in pixels.
    clip : float
        Residuals beyond this many sigma leave the fit.
    folds : int
        For the held-out residuals; every star its own fold below 4 * folds stars.
    max_shift : float, optional
        Largest offset of the reference's middle in pixels; without it any overlap is tried.

    Raises
    ------
    RegistrationError
        If there are too few stars, too few of them match, or chance would match as many.

    Examples
    --------
    >>> rng = np.random.default_rng(3)
    >>> x, y, flux = rng.uniform(0, 300, 40), rng.uniform(0, 300, 40), rng.uniform(1e3, 1e5, 40)
    >>> def stars_at(x, y):
    ...     one = np.ones(40)
    ...     return StarList(x, y, 0.01 * one, flux, one, one, one, one, np.zeros(40, np.int32))
    >>> match = match_stars(stars_at(x + 31.4, y - 12.2), stars_at(x, y))
    >>> match.n_matched, match.pixel_map.evaluate(0.0, 0.0)[0].__round__(3)
    (40, 31.4)
    """
    for name, found in (("frame", stars), ("reference", reference)):
        if len(found) < min_matches:
            raise RegistrationError(f"fewer than {min_matches} stars in the {name} (found {len(found)})")
    if initial is not None:
        guesses = [initial]
    else:
        guesses = vote(stars, reference, max_rotation, max_shift)
    best: tuple[PixelMap, Indices, Indices] | None = None
    best_chance, most = 0.0, 0
    for guess in guesses:
        refined = refine(stars, reference, guess, tolerance, clip, order)
        if refined is None:
            continue
        most = max(most, len(refined[1]))
        chance = log_chance(stars, reference, refined, tolerance, 0.0 if initial else max_rotation)
        if chance < best_chance:
            best, best_chance = refined, chance
    if best is None or len(best[1]) < min_matches or best_chance > _LOG_CHANCE:
        raise RegistrationError(
            f"fewer than {min_matches} matched stars, or no more than chance would match "
            f"(found {most} of {len(stars)} in the frame and {len(reference)} in the reference, "
            f"chance 10^{min(best_chance, 0.0):.1f})"
        )
    return _summary(stars, reference, best, order, folds)


def _summary(
    stars: StarList, reference: StarList, best: tuple[PixelMap, Indices, Indices], order: int, folds: int
) -> Match:
    pixel_map, i, j = best
    weights = pair_weights(stars, reference, i, j)
    x, y, xd, yd = reference.x[j], reference.y[j], stars.x[i], stars.y[i]
    fitted_x, fitted_y = pixel_map.evaluate(x, y)
    square = (fitted_x - xd) ** 2 + (fitted_y - yd) ** 2
    held_out = held_out_residuals(x, y, xd, yd, order=pixel_map.order, weights=weights, folds=folds)
    held_square = (held_out**2).sum(axis=0)
    jacobian = pixel_map.jacobian(float(x.mean()), float(y.mean()))
    rms = float(np.sqrt(np.average(square, weights=weights)))
    freedom = max(len(i) - n_terms(pixel_map.order), 1)
    chi2 = float((square * weights).sum()) / (2 * freedom)
    return Match(
        pixel_map=pixel_map,
        index=i,
        reference_index=j,
        n_matched=len(i),
        rms=rms,
        held_out_rms=float(np.sqrt(np.average(held_square, weights=weights))),
        held_out_median=float(np.median(np.sqrt(held_square))),
        map_error=float(np.sqrt(max(chi2, 1.0) / weights.sum())),
        rotation=float(
            np.degrees(np.arctan2(jacobian[1, 0] - jacobian[0, 1], jacobian[0, 0] + jacobian[1, 1]))
        ),
        scale_ratio=float(np.sqrt(abs(np.linalg.det(jacobian)))),
    )


def held_out_residuals(
    x: ArrayLike,
    y: ArrayLike,
    xd: ArrayLike,
    yd: ArrayLike,
    *,
    order: int = 1,
    weights: ArrayLike | None = None,
    folds: int = 5,
) -> Array:
    """Residuals of pairs of positions, each from a fit that did not see it.

    Parameters
    ----------
    x, y, xd, yd : arrays (n,)
        Reference and detector positions, pixels.
    order, weights
        As in `survey.kernels.pixelmap.fit_pixel_map`.
    folds : int
        Stars k, k + folds, ... form fold k; every star its own fold below 4 * folds stars.

    Returns
    -------
    residual : array (2, n)
        Measured minus fitted detector x and y.
    """
    x, y, xd, yd = (np.asarray(a, float) for a in (x, y, xd, yd))
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    n = len(x)
    fold = np.arange(n) % (folds if n >= 4 * folds else n)
    residual = np.full((2, n), np.nan)
    for k in range(int(fold.max()) + 1):
        out, rest = fold == k, fold != k
        pixel_map = fit_pixel_map(x[rest], y[rest], xd[rest], yd[rest], order, w[rest])
        fitted_x, fitted_y = pixel_map.evaluate(x[out], y[out])
        residual[:, out] = xd[out] - fitted_x, yd[out] - fitted_y
    return residual
