"""One block of targets: its ridge fit, its residuals without their folds, and its errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from survey.kernels._cpm_series import Series
from survey.kernels._held_out import fill_missing, held_out, in_sample
from survey.kernels._ridge import ResidualMatrix, residual_matrix

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """What a block's fit is made of.

    Attributes
    ----------
    predictors, targets, train : int arrays
        Flat indices of pixels, and epochs.
    x, y : arrays (predictors, train), (train, targets)
        Whitened.
    free : array (train, p)
        Whitened columns without penalty.
    basis : array (time, p)
        The same, not whitened, in all epochs.
    error : array (time,)
        Relative error of the epochs by which all is whitened.
    ridge : float
    folds : list of int arrays
        Positions in ``train``.
    gram, product : arrays (predictors, predictors), (predictors, targets), optional
        ``x @ x.T`` and ``x @ y`` where they are known.
    components : int, optional
        How many principal components of the predictors stand for them.
    held_out : bool
        Whether a training epoch's residual is of a fit without its fold.
    """

    predictors: Index
    targets: Index
    train: Index
    x: Array
    y: Array
    free: Array
    basis: Array
    error: Array
    ridge: float
    folds: list[Index]
    gram: Array | None
    product: Array | None
    components: int | None
    held_out: bool


@dataclass(frozen=True)
class Rest:
    """Epochs to predict that are not trained on, and which predictors have a sample in them.

    Attributes
    ----------
    epochs : int array
    there : bool array (predictors, epochs), optional
        None where all have.
    """

    epochs: Index
    there: Mask | None


def principal(x: Array, free: Array, components: int, gram: Array | None = None) -> Array:
    """Weights (predictors, components) of the leading principal components, free of the free columns."""
    mean = x @ np.linalg.qr(free)[0]
    centred = (x @ x.T if gram is None else gram) - mean @ mean.T
    n = len(x)
    return np.asarray(eigh(centred, subset_by_index=[max(n - components, 0), n - 1])[1])


def predict(series: Series, design: Design, rest: Rest) -> tuple[Array, Array]:
    """Prediction and variance of the residual (time, targets), in the series' units; NaN where unknown."""
    d = design
    x, gram, product, turn = d.x, d.gram, d.product, None
    if d.components is not None and d.components < len(x):
        turn = principal(x, d.free, d.components, gram)
        x, gram, product = turn.T @ x, None, None
    r = residual_matrix(x, d.free, d.ridge, gram)
    missing = series.bad[d.targets][:, d.train].T
    y = fill_missing(r, d.y, missing)
    fitted = r.fit(y, product if y is d.y else None)
    residuals = held_out(r, fitted.residual, missing, d.folds) if d.held_out else None
    left, inflation = residuals or in_sample(r, fitted.residual, d.folds)
    a = fitted.coefficients if turn is None else turn @ fitted.coefficients

    error = d.error[:, None]
    prediction = np.full((len(d.error), len(d.targets)), np.nan)
    spread = np.ones((len(d.error), inflation.shape[1]))
    prediction[d.train] = (y - left) * error[d.train]
    spread[d.train] = inflation
    extra: Array | float = 0.0
    if len(rest.epochs):
        values = series.values[d.predictors][:, rest.epochs]
        if rest.there is not None and not rest.there.all():
            whole = r if turn is None else residual_matrix(d.x, d.free, d.ridge, d.gram)
            values, extra = bridge(whole, d, values, rest, a)
        prediction[rest.epochs] = values.T @ a + d.basis[rest.epochs] @ fitted.free
        spread[rest.epochs] = np.median(inflation, axis=0)
    typical = series.typical[d.targets] ** 2
    noise = series.noise[d.targets].T
    variance = error**2 * (spread - 1) * typical
    variance += np.where(series.bad[d.targets].T, typical * error**2, noise * noise)
    brought = _predictor_noise(series, d.predictors, a)
    # a fit that saw an epoch has taken up its share of that as well
    variance += brought if d.held_out else brought * spread
    if len(rest.epochs):
        variance[rest.epochs] += extra
    return prediction, variance


def _predictor_noise(series: Series, predictors: Index, a: Array) -> Array:
    """Variance (time, targets) that the predictors' own noise brings into the prediction."""
    squares, even = a**2, series.even[predictors]
    noise = series.epoch_error[:, None] ** 2 * (series.typical[predictors[even]] ** 2 @ squares[even])
    if not even.all():
        # errors need no more than single precision
        noise += (series.noise[predictors[~even]] ** 2).T @ squares[~even].astype(np.float32)
    return noise


def bridge(r: ResidualMatrix, d: Design, values: Array, rest: Rest, a: Array) -> tuple[Array, Array]:
    """Predict epochs in which some predictors have no sample from the others, as a fit to those would.

    Leaving predictors M out of a ridge fit changes its prediction as if their samples were
    ``-(K_MM)^-1 K_MO x_O``, K the inverse of the normal matrix, and leaves ``a_M^T (K_MM)^-1 a_M`` more of
    the sum of squares.

    Returns
    -------
    values : array (predictors, epochs)
        With the gaps filled.
    extra : array (epochs, targets)
        Variance that is added.
    """
    assert rest.there is not None
    mean = (d.basis[rest.epochs] @ np.linalg.lstsq(d.free, d.x.T, rcond=None)[0]).T
    filled, extra = values.copy(), np.zeros((len(rest.epochs), a.shape[1]))
    solved: dict[bytes, tuple[Array, Array]] = {}
    for k, there in enumerate(rest.there.T):
        if there.all():
            continue
        gone = np.nonzero(~there)[0]
        key = gone.tobytes()
        if key not in solved:
            columns = r.inverse_columns(gone)
            weights = -np.linalg.solve(columns[gone], columns[there].T)
            more = (a[gone] * np.linalg.solve(columns[gone], a[gone])).sum(0) / len(d.train)
            solved[key] = weights, more
        weights, more = solved[key]
        filled[gone, k] = mean[gone, k] + weights @ (values[there, k] - mean[there, k])
        extra[k] = more * d.error[rest.epochs[k]] ** 2
    return filled, extra
