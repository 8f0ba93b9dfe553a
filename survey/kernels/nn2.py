"""Light curves from all pairwise differences: the N(N-1)/2 method (NN2).

Barris et al. 2005, AJ 130, 2272. Every pair of epochs (i, j) was subtracted and the object's flux measured
in the difference, ``difference[i, j] = V_j - V_i`` with error ``E_ij``; NN2 finds the fluxes V that explain
all pairs best, so that no single template's flaw shifts the light curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from survey.kernels._nn2_solve import solve_batch

Array = NDArray[np.float64]
Gauge = Literal["zero-sum", "weighted", "baseline"]
_GAUGES = {"zero-sum": 0, "weighted": 1, "baseline": 2}
# Median of a squared normal deviate.
_MEDIAN_OF_CHI2 = 0.4549364


@dataclass(frozen=True)
class NN2Solution:
    """Fluxes and errors of a batch of objects, shape (..., N); see `solve_nn2`.

    Attributes
    ----------
    flux : array (..., N)
        V; NaN where an epoch is not tied to the others.
    covariance : array (..., N, N)
        C^-1 in the chosen gauge, as if the weights were those of independent pairs.
    external_error : array (..., N)
        e_i, each image's share of the pair errors.
    internal_error : array (..., N)
        sqrt(covariance_ii chi2/dof), how well the pairs agree; 0 where dof is 0.
    chi2, dof : array (...)
        Misfit of the pairs, and number of pairs less epochs plus 1.
    connected : bool array (...)
        Whether pairs tie all epochs together.
    separate : bool
        Whether the weights are those of the subtraction alone, without the images' noise.
    """

    flux: Array
    covariance: Array
    external_error: Array
    internal_error: Array
    chi2: Array
    dof: NDArray[np.int64]
    connected: NDArray[np.bool_]
    separate: bool = False

    @property
    def total_error(self) -> Array:
        """External and internal error in quadrature, the paper's recipe."""
        return np.hypot(self.external_error, self.internal_error)

    def pooled_ratio(self) -> float:
        """The objects' common chi2/dof, the c of `partitioned_error`; NaN where no pair is left over."""
        used = self.dof > 0
        return float(self.chi2[used].sum() / self.dof[used].sum()) if used.any() else np.nan

    def partitioned_error(self, ratio: ArrayLike | None = None) -> Array:
        """Errors ``(1 - c) e_i^2 + c C^-1_ii``, better calibrated than `total_error`.

        Parameters
        ----------
        ratio : float or array (...), optional
            c, the part of the pair variance made by the subtraction and not by the images; by default each
            object's own chi2/dof (noisy: `pooled_ratio` where there are many). Above 1 the pair errors
            were too small: they are scaled by sqrt(c) and c counts as 1. With the subtraction's own errors
            as weights the parts are known apart: ``e_i^2 + c C^-1_ii``.
        """
        own = self.chi2 / np.maximum(self.dof, 1)
        c = np.asarray(own if ratio is None else ratio, float)[..., None]
        diagonal = np.diagonal(self.covariance, axis1=-2, axis2=-1)
        if self.separate:
            return np.sqrt(self.external_error**2 + c * diagonal)
        share = np.minimum(c, 1.0)
        return np.sqrt(np.maximum(c, 1.0) * ((1 - share) * self.external_error**2 + share * diagonal))


def solve_nn2(
    difference: ArrayLike,
    error: ArrayLike,
    *,
    gauge: Gauge = "zero-sum",
    baseline: ArrayLike | None = None,
    subtraction_error: ArrayLike | None = None,
) -> NN2Solution:
    """Fluxes of N epochs from their pairwise differences.

    Parameters
    ----------
    difference : array (..., N, N)
        ``difference[..., i, j] = V_j - V_i`` (i the template), any flux unit; NaN where a pair is missing,
        the diagonal is ignored. Where both A_ij and A_ji were measured, ``(A_ij - A_ji) / 2`` is used with
        the quadratic mean of both errors: the reverse subtraction is not independent data.
    error : array (..., N, N)
        1-sigma errors E of the differences; a pair with a non-finite or non-positive error is missing.
    gauge : {"zero-sum", "weighted", "baseline"}
        What fixes the free constant: the sum of V is 0 (the paper), its weighted mean is 0 (weights
        ``sum_k E_ik^-2``, so that one bad epoch does not shift all others), or its mean over ``baseline``.
    baseline : int or bool array (N,), optional
        Epochs without flux, for ``gauge="baseline"``.
    subtraction_error : array (..., N, N), optional
        Internal errors s, what the subtraction alone adds to each pair (`pooled_subtraction_error`). They
        then make the weights instead of E: the images' own noise is the same in all pairs of an epoch and
        says nothing of how far two pairs may disagree. ``E^2 - s^2`` is what the epochs share.

    Returns
    -------
    NN2Solution
        If pairs do not tie all epochs together, those outside the largest connected set are NaN (with a
        baseline: the set with most baseline epochs) and ``connected`` is False.

    Raises
    ------
    ValueError
        If shapes do not match, the gauge is unknown, or a baseline is missing, out of range or empty.

    References
    ----------
    Barris et al. 2005, eqs. 3-18: C V = y with ``C_ij = -1/E_ij^2 + 1/Ebar^2``; ``M e^2 = z``.

    Examples
    --------
    >>> flux = np.array([1.0, 4.0, -5.0])
    >>> solution = solve_nn2(flux - flux[:, None], np.ones((3, 3)))
    >>> solution.flux.round(12).tolist()
    [1.0, 4.0, -5.0]
    """
    within = error if subtraction_error is None else subtraction_error
    try:
        a, e, s = np.broadcast_arrays(*(np.asarray(v, float) for v in (difference, error, within)))
    except ValueError:
        shapes = ", ".join(str(np.shape(v)) for v in (difference, error, within))
        raise ValueError(
            f"difference and errors do not broadcast to one (..., N, N) shape: {shapes}"
        ) from None
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 2:
        raise ValueError(f"difference and error must be (..., N, N) with N >= 2, not {a.shape}")
    if gauge not in _GAUGES:
        raise ValueError(f"unknown gauge {gauge!r}; choose one of {', '.join(_GAUGES)}")
    n, batch = a.shape[-1], a.shape[:-2]
    chosen = _baseline(baseline, n) if gauge == "baseline" else np.ones(n, bool)
    separate = subtraction_error is not None
    a, e, s = (np.ascontiguousarray(v).reshape(-1, n, n) for v in (a, e, s))
    results = solve_batch(a, e, s, separate, _GAUGES[gauge], chosen)
    flux, covariance, variance, chi2, dof, connected = results
    shaped = chi2.reshape(batch), dof.reshape(batch), connected.reshape(batch)
    ratio = np.where(dof > 0, chi2 / np.maximum(dof, 1), 0.0)[:, None]
    diagonal = np.diagonal(covariance, axis1=-2, axis2=-1)
    return NN2Solution(
        flux.reshape(*batch, n),
        covariance.reshape(*batch, n, n),
        np.sqrt(variance).reshape(*batch, n),
        np.sqrt(diagonal * ratio).reshape(*batch, n),
        *shaped,
        separate,
    )


def _baseline(baseline: ArrayLike | None, n: int) -> NDArray[np.bool_]:
    """Epochs that a baseline names, as a mask."""
    chosen = np.zeros(n, bool)
    if baseline is not None:
        try:
            chosen[np.asarray(baseline)] = True
        except IndexError:
            raise ValueError(f"baseline {baseline!r} does not fit {n} epochs") from None
    if not chosen.any():
        raise ValueError("gauge 'baseline' needs at least one epoch in baseline")
    return chosen


def pooled_subtraction_error(difference: ArrayLike, error: ArrayLike, solution: NN2Solution) -> Array:
    """What each pair of images adds to its errors, from how far many objects' pairs are off their solution.

    An object's pair (i, j) misses ``V_j - V_i`` by the subtraction's error alone. The median over objects of
    that residual over E, freed of the pair's own weight in the solution, is the pair's; times each object's E
    it is the error that `solve_nn2` takes as ``subtraction_error``.

    Parameters
    ----------
    difference, error : array (objects, N, N)
        As given to `solve_nn2`.
    solution : NN2Solution
        What it gave.

    Returns
    -------
    array (objects, N, N)
        s, symmetric; NaN for a pair that no object has.

    Raises
    ------
    ValueError
        If there is not a batch of objects to pool.
    """
    a, e = np.broadcast_arrays(np.asarray(difference, float), np.asarray(error, float))
    if a.ndim != 3 or solution.flux.shape != a.shape[:2]:
        raise ValueError(f"a batch (objects, N, N) and its solution are needed, not {a.shape}")
    flux, cov = solution.flux, solution.covariance
    diagonal = np.diagonal(cov, axis1=1, axis2=2)
    spread = diagonal[:, :, None] + diagonal[:, None, :] - 2 * cov
    residual = a - flux[:, None, :] + flux[:, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        # The part of its own noise that a pair keeps as a residual is 1 - h, h its leverage.
        squared = residual**2 / np.maximum(e**2 - spread, 1e-3 * e**2)
    squared = np.where(np.isfinite(squared), squared, np.nan)
    squared[:, np.arange(a.shape[1]), np.arange(a.shape[1])] = np.nan
    seen = np.isfinite(squared).any(0)
    part = np.full(seen.shape, np.nan)
    part[seen] = np.sqrt(np.nanmedian(squared[:, seen], axis=0) / _MEDIAN_OF_CHI2)
    part = np.where(np.isfinite(part), part, part.T)
    both = (part + part.T) / 2
    pair_error = np.sqrt((e**2 + e.transpose(0, 2, 1) ** 2) / 2)
    return np.where(np.isfinite(pair_error), pair_error, np.fmin(e, e.transpose(0, 2, 1))) * both
