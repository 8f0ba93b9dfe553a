"""One time series predicted from others: the public form of the algebra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import ArrayLike, NDArray

from survey.kernels._cpm_solve import principal
from survey.kernels._ridge import residual_matrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CPMSolution:
    """One target's ridge fit.

    Attributes
    ----------
    coefficients : array (n,)
        Of the predictors.
    constant : float
    prediction, residual : array (time,)
        ``constant + predictors @ coefficients`` and the polynomial in time; ``target - prediction``.
    polynomial : array (time_order,)
        Coefficients of the Legendre polynomials of degree 1 and higher in time, which runs from -1 to 1 over
        the epochs trained on.
    """

    coefficients: Array
    constant: float
    prediction: Array
    residual: Array
    polynomial: Array


def solve_cpm(
    predictors: ArrayLike,
    target: ArrayLike,
    *,
    ridge: float,
    error: ArrayLike | None = None,
    train: ArrayLike | None = None,
    constant: bool = True,
    time_order: int = 0,
    time: ArrayLike | None = None,
    components: int | None = None,
) -> CPMSolution:
    """Ridge regression of one time series on others.

    Minimises ``sum_train ((target - constant - predictors @ a) / error)^2 + ridge sum(a^2)``.

    Parameters
    ----------
    predictors : array (time, n)
    target : array (time,)
    ridge : float
        Penalty, in units of 1/predictors^2 where error is given, else target^2/predictors^2.
    error : array (time,), optional
        1-sigma errors of the target.
    train : bool array (time,), optional
        Epochs that enter the fit; the others are predicted all the same. Epochs whose target, error or
        predictors are not finite never enter.
    constant : bool
        Fit an unpenalised constant.
    time_order : int
        Degree of an unpenalised polynomial in time, fitted as well.
    time : array (time,), optional
        Times of the epochs; by default they are equally spaced.
    components : int, optional
        Fit so many leading principal components of the predictors in their place; coefficients are given for
        the predictors all the same.

    Raises
    ------
    ValueError
        If shapes do not match, the ridge is negative, or no epoch is left to train on.

    References
    ----------
    Wang et al. 2017, eqs. 1-3.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> solution = solve_cpm(x, [1.0, 3.0, 5.0], ridge=0.0)
    >>> solution.coefficients.round(12).tolist(), round(solution.constant, 12)
    ([2.0], 1.0)
    """
    x, y = np.asarray(predictors, float), np.asarray(target, float)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"predictors must be (time, n) and target (time,), not {x.shape} and {y.shape}")
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, not {ridge}")
    sigma = np.ones_like(y) if error is None else np.broadcast_to(np.asarray(error, float), y.shape)
    use = np.isfinite(y) & np.isfinite(sigma) & (sigma > 0) & np.isfinite(x).all(1)
    if train is not None:
        use &= np.asarray(train, bool)
    if not use.any():
        raise ValueError("no epoch is left to train on: all are masked, not finite or outside train")
    weight = 1 / sigma[use]
    when = np.arange(len(y), dtype=float) if time is None else np.asarray(time, float)
    basis = legendre_in_time(when, use, time_order)[:, 0 if constant else 1 :]
    x_used, free = (x[use] * weight[:, None]).T, basis[use] * weight[:, None]
    turn = None if components is None else principal(x_used, free, components)
    r = residual_matrix(x_used if turn is None else turn.T @ x_used, free, float(ridge))
    fitted = r.fit((y[use] * weight)[:, None])
    a = (fitted.coefficients if turn is None else turn @ fitted.coefficients)[:, 0]
    c = fitted.free[:, 0]
    prediction = x @ a + basis @ c
    level = float(c[0]) if constant else 0.0
    return CPMSolution(a, level, prediction, y - prediction, c[1:] if constant else c)


def legendre_in_time(time: Array, train: NDArray[Any], order: int) -> Array:
    """Legendre polynomials (time, order + 1) that run from -1 to 1 over the epochs trained on."""
    first, last = time[train].min(), time[train].max()
    return legvander((2 * time - first - last) / max(last - first, 1e-300), order)
