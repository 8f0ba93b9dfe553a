"""Which predictors an L1 penalty keeps, for several targets together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Targets are represented by so many principal components.
_COMPONENTS = 4
# The penalty falls by this factor at a time; steps of the minimiser at each.
_FALL, _STEPS = 0.7, 30


def select(x: Array, y: Array, n: int) -> NDArray[np.int64]:
    """Indices of the n predictors that come first as the penalty falls; the first n where none varies.

    Minimises ``||Y - A^T X||^2 / 2 + mu sum_i |A_i|``, |A_i| the length of predictor i's row of coefficients,
    by accelerated proximal gradients, until n rows are not zero.

    Parameters
    ----------
    x : array (predictors, time)
    y : array (targets, time)
        Replaced by their leading principal components.

    References
    ----------
    Yuan & Lin 2006 (group lasso); Beck & Teboulle 2009 (the minimiser).
    """
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    if len(y) > _COMPONENTS:
        y = np.linalg.eigh(y @ y.T)[1][:, -_COMPONENTS:].T @ y
    gram, side = x @ x.T, x @ y.T
    if not gram.any():
        return np.arange(n)
    step = 1 / float(np.abs(gram).sum(1).max())  # no less than the largest eigenvalue
    a = np.zeros_like(side)
    mu = float(np.sqrt((side**2).sum(1)).max())
    while (kept := np.count_nonzero(a.any(1))) < n and mu * step > 0:
        mu *= _FALL
        a = _minimise(gram, side, a, mu, step)
        if kept and mu < 1e-12 * np.sqrt((side**2).sum(1)).max():
            break
    strength = np.sqrt((a**2).sum(1))
    return np.argsort(-strength, kind="stable")[:n]


def _minimise(gram: Array, side: Array, a: Array, mu: float, step: float) -> Array:
    """A few accelerated steps from a start."""
    ahead, momentum = a, 1.0
    for _ in range(_STEPS):
        moved = ahead - step * (gram @ ahead - side)
        length = np.sqrt((moved**2).sum(1, keepdims=True))
        new = moved * np.maximum(1 - step * mu / np.maximum(length, 1e-300), 0)
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / faster * (new - a)
        a, momentum = new, faster
    return a
