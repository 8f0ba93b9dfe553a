"""Registration of frames by their stars: reference pixel -> detector pixel, without any first guess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.special import gammainc

from survey.kernels.pixelmap import PixelMap, fit_pixel_map, n_terms
from survey.kernels.stars import StarFlag, StarList, find_stars, psf_width

__all__ = [
    "Match",
    "RegistrationError",
    "find_stars",
    "held_out_residuals",
    "match_stars",
    "photometric_scale",
    "psf_width",
]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_FLOOR = 0.01  # px; no centroid is better than this, whatever its formal error
_BRIGHTEST = 80  # stars that vote for the offset
_CANDIDATES = 12  # peaks of the vote that are tried
_LOG_CHANCE = -3.0  # a registration that chance gives more often is none
_LINEAR_TOLERANCE = 0.03  # an affine that stretches or shears more than this is a chance match


class RegistrationError(ValueError):
    """A frame cannot be placed on the reference."""


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
        guesses = _vote(stars, reference, max_rotation, max_shift)
    best: tuple[PixelMap, Indices, Indices] | None = None
    best_chance, most = 0.0, 0
    for guess in guesses:
        refined = _refine(stars, reference, guess, tolerance, clip, order)
        if refined is None:
            continue
        most = max(most, len(refined[1]))
        chance = _log_chance(stars, reference, refined, tolerance, 0.0 if initial else max_rotation)
        if chance < best_chance:
            best, best_chance = refined, chance
    if best is None or len(best[1]) < min_matches or best_chance > _LOG_CHANCE:
        raise RegistrationError(
            f"fewer than {min_matches} matched stars, or no more than chance would match "
            f"(found {most} of {len(stars)} in the frame and {len(reference)} in the reference, "
            f"chance 10^{min(best_chance, 0.0):.1f})"
        )
    return _summary(stars, reference, best, order, folds)


def _log_chance(
    stars: StarList,
    reference: StarList,
    found: tuple[PixelMap, Indices, Indices],
    tolerance: float,
    max_rotation: float,
) -> float:
    """log10 of the probability that unrelated fields match this well at any offset and rotation tried."""
    pixel_map, i, j = found
    if len(i) <= 3:
        return 0.0
    xd, yd = pixel_map.evaluate(reference.x[j], reference.y[j])
    distance = np.hypot(xd - stars.x[i], yd - stars.y[i])
    # Chance pairs fill the whole disc of the tolerance, true ones its middle.
    radius = float(np.clip(2 * np.sqrt(np.mean(distance**2)), 0.05, tolerance))
    extent = np.array([max(np.ptp(reference.x), 1.0), max(np.ptp(reference.y), 1.0)])
    expected = len(stars) * len(reference) / extent.prod() * np.pi * radius**2
    offsets = 4 * extent.prod() / (np.pi * radius**2)
    rotations = 1 + 2 * np.radians(max_rotation) * extent.max() / radius
    # Three pairs fix an affine map and so say nothing.
    tail = float(gammainc(len(i) - 3, expected))
    return float(np.log10(offsets * rotations) + np.log10(max(tail, 1e-300)))


def _vote(
    stars: StarList, reference: StarList, max_rotation: float, max_shift: float | None
) -> list[PixelMap]:
    """Offsets, for a grid of rotations, that bring most bright stars together; best first."""
    a, b = _brightest(stars), _brightest(reference)
    center = b.mean(axis=0)
    extent = max(float(np.ptp(b, axis=0).max()), 10.0)
    bin_size = max(extent / 200, 2.0)
    # Between two rotations of the grid a star at the edge moves by less than a bin.
    step = np.degrees(bin_size / extent)
    n_steps = int(np.ceil(max_rotation / step))
    angles = np.linspace(-max_rotation, max_rotation, 2 * n_steps + 1)
    low = a.min(axis=0) - b.max(axis=0) - extent / 2
    n_bins = np.ceil((a.max(axis=0) - b.min(axis=0) + extent / 2 - low) / bin_size).astype(int) + 2
    candidates: list[tuple[float, PixelMap]] = []
    for angle in np.radians(angles):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = (b - center) @ turn.T + center
        shifts = (a[:, None] - turned[None]).reshape(-1, 2)
        cells = np.floor((shifts - low) / bin_size).astype(int)
        inside = ((cells >= 0) & (cells < n_bins)).all(axis=1)
        if max_shift is not None:
            inside &= np.hypot(*shifts.T) <= max_shift
        votes = np.zeros(n_bins)
        np.add.at(votes, tuple(cells[inside].T), 1.0)
        # A true offset may lie on the border of bins: count in windows of 2 x 2.
        votes[:-1] += votes[1:]
        votes[:, :-1] += votes[:, 1:]
        for k in np.argsort(-votes, axis=None, kind="stable")[:3]:
            i, j = np.unravel_index(k, votes.shape)
            window = ((cells - [i, j] >= 0) & (cells - [i, j] <= 1)).all(axis=1) & inside
            if not window.any():
                continue
            shift = np.median(shifts[window], axis=0)
            constant = shift + center - turn @ center
            coefficients = np.column_stack([constant, turn])
            candidates.append((float(votes[i, j]), PixelMap(coefficients)))
    candidates.sort(key=lambda c: -c[0])
    return [pixel_map for _, pixel_map in candidates[:_CANDIDATES]]


def _brightest(stars: StarList) -> Array:
    usable = (stars.flags & (StarFlag.SHARP | StarFlag.POOR_FIT)) == 0
    saturated = (stars.flags & StarFlag.SATURATED) > 0
    usable |= saturated
    order = np.argsort(np.where(usable, -stars.flux, np.inf), kind="stable")[:_BRIGHTEST]
    order = order[usable[order]]
    return np.column_stack([stars.x, stars.y])[order]


def _refine(
    stars: StarList, reference: StarList, guess: PixelMap, tolerance: float, clip: float, order: int
) -> tuple[PixelMap, Indices, Indices] | None:
    """Nearest neighbours and fits in turn, from wide to narrow; None where it collapses."""
    unusable = StarFlag.SATURATED | StarFlag.SHARP | StarFlag.POOR_FIT
    used, ref_used = (np.flatnonzero((s.flags & unusable) == 0) for s in (stars, reference))
    if len(used) < 3 or len(ref_used) < 3:
        return None
    tree = cKDTree(np.column_stack([stars.x, stars.y])[used])
    pixel_map = guess
    i = j = np.zeros(0, np.intp)
    previous = np.zeros((0, 2), np.intp)
    for step in range(20):
        radius = max(tolerance * (4.0, 2.5, 1.5)[step], tolerance) if step < 3 else tolerance
        i, j = _pairs(tree, pixel_map, stars, reference, used, ref_used, radius)
        fit_order = _affordable(order if step >= 3 else min(order, 1), len(i))
        if fit_order < 0:
            return None
        pixel_map, keep = _clipped_fit(stars, reference, i, j, fit_order, clip)
        i, j = i[keep], j[keep]
        if step >= 3 and len(i) == len(previous) and np.array_equal(np.column_stack([i, j]), previous):
            break
        previous = np.column_stack([i, j])
    if fit_order >= 1 and not _plausible(pixel_map, reference):
        return None
    return pixel_map, i, j


def _affordable(order: int, n: int) -> int:
    """Highest degree, up to `order`, with twice as many stars as terms (for a line three suffice)."""
    while order > 1 and n < 2 * n_terms(order):
        order -= 1
    if order >= 1 and n < 3:
        order = 0
    return order if n else -1


def _pairs(
    tree: cKDTree,
    pixel_map: PixelMap,
    stars: StarList,
    reference: StarList,
    used: Indices,
    ref_used: Indices,
    radius: float,
) -> tuple[Indices, Indices]:
    """Mutual nearest neighbours within a radius: indices into the two lists."""
    xd, yd = pixel_map.evaluate(reference.x[ref_used], reference.y[ref_used])
    distance, nearest = tree.query(np.column_stack([xd, yd]), distance_upper_bound=radius)
    candidates = np.flatnonzero(np.isfinite(distance))
    order = candidates[np.argsort(distance[candidates], kind="stable")]
    _, first = np.unique(nearest[order], return_index=True)
    chosen = np.sort(order[first])
    return used[nearest[chosen]], ref_used[chosen]


def _weights(stars: StarList, reference: StarList, i: Indices, j: Indices) -> Array:
    return 1.0 / (stars.position_error[i] ** 2 + reference.position_error[j] ** 2 + _FLOOR**2)


def _clipped_fit(
    stars: StarList, reference: StarList, i: Indices, j: Indices, order: int, clip: float
) -> tuple[PixelMap, NDArray[np.bool_]]:
    weights = _weights(stars, reference, i, j)
    keep = np.ones(len(i), bool)
    for _ in range(8):
        pixel_map = fit_pixel_map(
            reference.x[j[keep]],
            reference.y[j[keep]],
            stars.x[i[keep]],
            stars.y[i[keep]],
            order,
            weights[keep],
        )
        xd, yd = pixel_map.evaluate(reference.x[j], reference.y[j])
        scaled = np.hypot(xd - stars.x[i], yd - stars.y[i]) * np.sqrt(weights)
        # The median of a Rayleigh distribution is 1.1774 sigma.
        sigma = max(float(np.median(scaled[keep])) / 1.1774, 1.0)
        new = scaled <= clip * sigma
        if np.array_equal(new, keep) or new.sum() < max(n_terms(order), 3):
            break
        keep = new
    return pixel_map, keep


def _plausible(pixel_map: PixelMap, reference: StarList) -> bool:
    """Whether the map's linear part is a rotation to within the tolerance."""
    jacobian = pixel_map.jacobian(float(reference.x.mean()), float(reference.y.mean()))
    return bool(np.all(np.abs(np.linalg.svd(jacobian, compute_uv=False) - 1) < _LINEAR_TOLERANCE))


def _summary(
    stars: StarList, reference: StarList, best: tuple[PixelMap, Indices, Indices], order: int, folds: int
) -> Match:
    pixel_map, i, j = best
    weights = _weights(stars, reference, i, j)
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


def photometric_scale(
    flux: ArrayLike,
    reference_flux: ArrayLike,
    flux_error: ArrayLike,
    reference_error: ArrayLike,
    *,
    clip: float = 4.0,
    min_stars: int = 3,
) -> tuple[float, float]:
    """Ratio of a frame's fluxes to the reference's, robust to variable stars and blends.

    Minimises ``sum (f - s r)^2 / (ef^2 + s^2 er^2 + (q s r)^2)`` over s, where the scatter q beyond the
    errors (flat field, PSF changes) is found from the residuals; outliers are clipped.

    Parameters
    ----------
    flux, reference_flux, flux_error, reference_error : arrays (n,)
        Fluxes of the same stars in the frame and in the reference and their 1-sigma errors; pairs that
        are not finite or not positive in the reference are left out.

    Returns
    -------
    scale, scale_error : float
        ``flux(frame) / flux(reference)``.

    Raises
    ------
    RegistrationError
        If fewer than `min_stars` pairs are usable.

    Examples
    --------
    >>> r = np.linspace(100.0, 1000.0, 20)
    >>> scale, scale_error = photometric_scale(0.8 * r, r, 0.01 * r, 0.01 * r)
    >>> round(scale, 6)
    0.8
    """
    f, r, ef, er = (np.asarray(a, float) for a in (flux, reference_flux, flux_error, reference_error))
    good = np.isfinite(f) & np.isfinite(r) & (r > 0) & (ef > 0) & (er > 0) & np.isfinite(ef + er)
    if good.sum() < min_stars:
        raise RegistrationError(
            f"fewer than {min_stars} stars with good fluxes for a photometric scale (found {good.sum()})"
        )
    f, r, ef, er = f[good], r[good], ef[good], er[good]
    scale, extra = float(np.median(f / r)), 0.0
    keep = np.ones(len(f), bool)
    for _ in range(20):
        relative_variance = (ef / (scale * r)) ** 2 + (er / r) ** 2 + extra**2
        deviation = f / (scale * r) - 1
        limit = clip * np.sqrt(relative_variance)
        spread = 1.4826 * float(np.median(np.abs(deviation[keep])))
        new_keep = np.abs(deviation) <= np.maximum(limit, clip * min(spread, 0.3))
        keep = new_keep if new_keep.sum() >= min_stars else keep
        weight = 1 / relative_variance[keep]
        step = float(np.sum(weight * deviation[keep]) / weight.sum())
        scale *= 1 + step
        chi2 = float(np.sum(weight * (deviation[keep] - step) ** 2)) / max(keep.sum() - 1, 1)
        excess = (chi2 - 1) * keep.sum() / weight.sum()
        extra = float(np.sqrt(max(extra**2 + excess, 0.0)))
        if abs(step) < 1e-9 and abs(excess) < 1e-3 * (keep.sum() / weight.sum()):
            break
    error = scale * np.sqrt(max(chi2, 1.0) / weight.sum())
    return scale, float(error)
