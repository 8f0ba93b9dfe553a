"""Light curves relative to an ensemble of comparison stars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_MAD_TO_SIGMA = 1.482602218505602
_SCATTER_FLOOR = 1e-3  # no star is known to be steadier than this, so none takes all the weight


@dataclass(frozen=True)
class EnsembleLightCurve:
    """A star's light curve relative to its comparison stars.

    Parameters
    ----------
    flux, error : array (time,)
        Relative to the star's own median (or baseline); NaN where the star or the ensemble is missing.
    ensemble, ensemble_error : array (time,)
        What the comparison stars did together: transparency, relative to its median.
    comparisons : int array (n_comparisons,)
        Columns that were used in the end.
    weights : array (n_comparisons,)
        Their weights; sum 1.
    scatter : array (star,)
        Robust scatter of every star against the ensemble (itself left out); NaN where not considered.
    normalisation : float
        Flux that stands for 1.
    """

    flux: Array
    error: Array
    ensemble: Array
    ensemble_error: Array
    comparisons: NDArray[np.intp]
    weights: Array
    scatter: Array
    normalisation: float


def ensemble_light_curve(
    flux: ArrayLike,
    error: ArrayLike,
    *,
    target: int,
    mask: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
    brightness: tuple[float, float] | None = None,
    color: ArrayLike | None = None,
    color_range: float | None = None,
    max_comparisons: int = 50,
    min_comparisons: int = 2,
    coverage: float = 0.8,
    reject: float = 2.5,
    max_weight: float = 0.25,
    iterations: int = 10,
) -> EnsembleLightCurve:
    """Light curve of one star, corrected by an ensemble of comparison stars.

    Comparison stars are weighted by the inverse square of their scatter against the others, variable
    ones leave the ensemble one after the other, and the target is never part of it.

    Parameters
    ----------
    flux, error : array (time, star)
        Aperture or PSF fluxes (of the whole star, not of a difference) and 1-sigma errors.
    target : int
        Column of the star wanted.
    mask : bool array (time, star), optional
        True = bad; NaN count as bad too.
    baseline : bool array (time,), optional
        Epochs whose median flux stands for 1 (outside a transit); all by default.
    candidates : int array, optional
        Columns allowed as comparison stars.
    brightness : tuple of float, optional
        Smallest and largest flux of a comparison star relative to the target.
    color, color_range : array (star,), float, optional
        Comparison stars whose colour differs by more than this from the target's are left out.
    max_comparisons : int
        The brightest candidates are taken.
    coverage : float
        Fraction of the target's good epochs a comparison star must have.
    reject : float
        A star whose scatter, in units of its expected noise, is this many times the ensemble's median
        is variable (or blended, or badly measured) and leaves.
    max_weight : float
        Largest share of one star.

    Raises
    ------
    ValueError
        If fewer than `min_comparisons` stars remain.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> sky = 1 + 0.2 * np.sin(np.arange(60) / 9)
    >>> flux = sky[:, None] * np.array([1.0, 2.0, 1.5, 1.2]) * rng.normal(1, 1e-3, (60, 4))
    >>> curve = ensemble_light_curve(flux, 1e-3 * flux, target=0)
    >>> bool(np.std(curve.flux) < 2e-3), curve.comparisons
    (True, array([1, 2, 3]))
    """
    flux, error = np.asarray(flux, float), np.asarray(error, float)
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    if mask is not None:
        good &= ~np.asarray(mask, bool)
    if not good[:, target].any():
        raise ValueError(f"star {target} has no good epoch")
    with np.errstate(all="ignore"):
        level = np.array([np.median(flux[g, k]) if g.any() else np.nan for k, g in enumerate(good.T)])
    chosen = _candidates(level, good, target, candidates, brightness, coverage)
    if color is not None and color_range is not None:
        color = np.asarray(color, float)
        chosen = chosen[np.abs(color[chosen] - color[target]) <= color_range]
    chosen = np.sort(chosen[np.argsort(-level[chosen], kind="stable")][:max_comparisons])
    _enough(chosen, min_comparisons)
    scatter = np.full(flux.shape[1], np.nan)
    for _ in range(iterations * 5):
        fit = _ensemble(flux[:, chosen], error[:, chosen], good[:, chosen], max_weight, iterations)
        weights, curve, curve_error, own_scatter, excess = fit
        scatter[chosen] = own_scatter
        worst = int(np.argmax(excess))
        if excess[worst] <= reject * max(float(np.median(excess)), 1.0) or len(chosen) <= min_comparisons:
            break
        chosen = np.delete(chosen, worst)
    usable = good[:, target] & np.isfinite(curve) & (curve > 0)
    relative = np.where(usable, flux[:, target] / np.where(usable, curve, 1.0), np.nan)
    reference = usable if baseline is None else usable & np.asarray(baseline, bool)
    if not reference.any():
        raise ValueError(f"star {target} has no good epoch together with its comparison stars")
    normal = float(np.median(relative[reference]))
    own = error[:, target] / np.where(usable, curve, np.nan) / normal
    relative = relative / normal
    total = np.hypot(own, relative * curve_error / np.where(usable, curve, np.nan))
    scatter[target] = _robust_scatter(relative[usable])
    return EnsembleLightCurve(relative, total, curve, curve_error, chosen, weights, scatter, normal)


def _enough(chosen: NDArray[np.intp], least: int) -> None:
    if len(chosen) < least:
        raise ValueError(
            f"{len(chosen)} comparison stars, at least {least} needed: widen brightness, colour or coverage"
        )


def _candidates(
    level: Array,
    good: NDArray[np.bool_],
    target: int,
    candidates: ArrayLike | None,
    brightness: tuple[float, float] | None,
    coverage: float,
) -> NDArray[np.intp]:
    allowed = np.isfinite(level) & (level > 0)
    allowed[target] = False
    if candidates is not None:
        listed = np.zeros(len(level), bool)
        listed[np.asarray(candidates)] = True
        allowed &= listed
    if brightness is not None:
        with np.errstate(invalid="ignore"):
            ratio = level / level[target]
            allowed &= (ratio >= brightness[0]) & (ratio <= brightness[1])
    epochs = good[:, target]
    allowed &= good[epochs].mean(axis=0) >= coverage
    return np.flatnonzero(allowed)


def _robust_scatter(values: Array) -> float:
    return _MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values)))) if len(values) else np.nan


def _ensemble(
    flux: Array, error: Array, good: NDArray[np.bool_], max_weight: float, iterations: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Weights, common curve and its error, and every star's scatter and scatter over expected noise."""
    n_time, n_star = flux.shape
    level = np.array([np.median(flux[good[:, s], s]) for s in range(n_star)])
    noise = np.array([np.median(error[good[:, s], s]) for s in range(n_star)]) / level
    scatter = np.maximum(noise, _SCATTER_FLOOR)
    safe = np.where(good, flux, 0.0)
    weights = np.full(n_star, 1.0 / n_star)
    curve = np.ones(n_time)
    for _ in range(iterations):
        weights = _limited(1.0 / scatter**2, max_weight)
        # Missing samples must not move the curve: levels and curve are fitted in turn.
        for _ in range(5):
            share = good * weights
            total = share.sum(axis=1)
            curve = np.divide(
                (safe / level * share).sum(axis=1), total, out=np.full(n_time, np.nan), where=total > 0
            )
            curve /= np.nanmedian(curve)
            known = good & np.isfinite(curve)[:, None]
            inverse = np.where(known, np.nan_to_num(curve, nan=1.0)[:, None], 1.0)
            level = np.array(
                [
                    np.median(flux[known[:, s], s] / inverse[known[:, s], s])
                    if known[:, s].any()
                    else level[s]
                    for s in range(n_star)
                ]
            )
        new = np.empty(n_star)
        for s in range(n_star):
            others = np.delete(weights, s)
            share = np.delete(good, s, axis=1) * others
            rest = (np.delete(safe / level, s, axis=1) * share).sum(axis=1)
            total = share.sum(axis=1)
            known_s = good[:, s] & (total > 0)
            without = rest[known_s] / total[known_s]
            new[s] = _robust_scatter(flux[known_s, s] / level[s] / without)
        new = np.maximum(new, _SCATTER_FLOOR)
        if np.allclose(new, scatter, rtol=1e-3):
            break
        scatter = new
    share = good * weights
    total = share.sum(axis=1)
    variance = (share**2 * np.maximum(scatter, noise) ** 2).sum(axis=1)
    curve_error = np.divide(np.sqrt(variance), total, out=np.full(n_time, np.nan), where=total > 0) * curve
    expected = np.hypot(np.maximum(noise, _SCATTER_FLOOR), np.nanmedian(curve_error / curve))
    return weights, curve, curve_error, scatter, scatter / expected


def _limited(weights: Array, largest: float) -> Array:
    """Weights of sum 1, none above `largest` (or above an equal share, if that is more)."""
    weights = weights / weights.sum()
    limit = max(largest, 1.0 / len(weights))
    for _ in range(50):
        over = weights > limit * (1 + 1e-12)
        if not over.any():
            break
        rest = ~over & (weights < limit)
        weights = np.where(over, limit, weights)
        if not rest.any():
            break
        weights[rest] *= (1 - weights[~rest].sum()) / weights[rest].sum()
    return np.asarray(weights / weights.sum())
