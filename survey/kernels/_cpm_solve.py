"""One block of targets: its ridge fit, its residuals without their folds, and its errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from survey.kernels._cpm_series import Series
from survey.kernels._held_out import Rows, as_slice, fill_missing, held_out, in_sample, picked
from survey.kernels._ridge import DualSolution, Fitted, ResidualMatrix, Solution, is_dual, residual_matrix

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

# Epochs, fewer than which need no model of their noise.
_FEW = 32


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


@dataclass(frozen=True)
class Prediction:
    """Of some epochs of a block's targets, in the series' units; NaN where unknown.

    Attributes
    ----------
    value, variance : arrays (epochs, targets)
        The variance is the residual's.
    leverage : array (epochs,), optional
        Weight of an epoch in its own prediction; None where nothing predicts itself.
    """

    value: Array
    variance: Array
    leverage: Array | None = None


@dataclass(frozen=True)
class Fit:
    """A block's factorisation, residuals and coefficients.

    ``turn`` (predictors, components) makes principal components of predictors.
    """

    r: Solution
    fitted: Fitted
    turn: Array | None

    @property
    def coefficients(self) -> Array:
        """Of the predictors themselves, (predictors, targets)."""
        a = self.fitted.coefficients
        return a if self.turn is None else self.turn @ a


def principal(x: Array, free: Array, components: int, gram: Array | None = None) -> Array:
    """Weights (predictors, components) of the leading principal components, free of the free columns."""
    mean = x @ np.linalg.qr(free)[0]
    centred = (x @ x.T if gram is None else gram) - mean @ mean.T
    n = len(x)
    return np.asarray(eigh(centred, subset_by_index=[max(n - components, 0), n - 1])[1])


def _inputs(d: Design) -> tuple[Array, Array | None, Array | None, Array | None]:
    """Predictors or their components, products that are known, and what makes components."""
    if d.components is None or d.components >= len(d.x):
        return d.x, d.gram, d.product, None
    turn = principal(d.x, d.free, d.components, d.gram)
    return turn.T @ d.x, None, None, turn


def predict(series: Series, d: Design, rest: Rest) -> Prediction:
    """All epochs: those trained on without their folds, or as the fit saw them, and the rest.

    Each target's own missing samples do not enter its fit.
    """
    x, gram, product, turn = _inputs(d)
    r = residual_matrix(x, d.free, d.ridge, gram)
    missing = series.bad[d.targets][:, d.train].T
    y = fill_missing(r, d.y, missing)
    f = Fit(r, r.fit(y, product if y is d.y else None), turn)
    value = np.full((len(d.error), len(d.targets)), np.nan)
    if d.held_out:
        (left, inflation), seen = held_out(r, f.fitted.residual, missing, d.folds), None
    else:
        left, inflation, seen = in_sample(r, f.fitted.residual, d.folds)
    spread = np.ones((len(d.error), inflation.shape[1]))
    value[d.train], spread[d.train] = (y - left) * d.error[d.train, None], inflation
    others: Array | float = 0.0
    if len(rest.epochs):
        value[rest.epochs], spread[rest.epochs], others = _predict_rest(series, d, rest, f)
    variance = _variance(series, d, f, slice(None), spread)
    variance[rest.epochs] += others
    leverage = None
    if seen is not None:
        leverage = np.zeros(len(d.error))
        leverage[d.train] = seen
    return Prediction(value, variance, leverage)


def predict_rest(series: Series, d: Design, rest: Rest) -> Prediction:
    """The rest's epochs alone: no fold is held out, nothing is worked out for the epochs trained on."""
    x, gram, product, turn = _inputs(d)
    missing = series.bad[d.targets][:, d.train].T
    if is_dual(x, d.ridge, gram):
        few = DualSolution(x, d.free, d.ridge)
        f = Fit(few, few.fit(d.y, missing=missing), turn)
    else:
        r = residual_matrix(x, d.free, d.ridge, gram)
        y = fill_missing(r, d.y, missing)
        f = Fit(r, r.fit(y, product if y is d.y else None), turn)
    value, spread, others = _predict_rest(series, d, rest, f)
    return Prediction(value, _variance(series, d, f, rest.epochs, spread) + others)


def _predict_rest(series: Series, d: Design, rest: Rest, f: Fit) -> tuple[Array, Array, Array | float]:
    """Prediction of epochs not trained on, the variance it brings with it in units of the noise plus 1, and
    what gaps of predictors add."""
    values = picked(series.values, d.predictors, as_slice(rest.epochs))
    others: Array | float = 0.0
    if rest.there is not None and not rest.there.all():
        whole = residual_matrix(d.x, d.free, d.ridge, d.gram)
        values, others = bridge(whole, d, values, rest, f.coefficients)
    predicted = values.T @ f.coefficients + d.basis[rest.epochs] @ f.fitted.free
    error = d.error[rest.epochs]
    x = (values if f.turn is None else f.turn.T @ values) / error
    spread = 1 + f.r.new_variance(x, d.basis[rest.epochs] / error[:, None])
    return predicted, spread[:, None], others


def _variance(series: Series, d: Design, f: Fit, epochs: Index | slice, spread: Array) -> Array:
    """Variance of residuals: photon noise, and what noise in fit and predictors does to the prediction."""
    error = d.error[epochs, None]
    typical = series.typical[d.targets] ** 2
    epochs = epochs if isinstance(epochs, slice) else as_slice(epochs)
    noise = picked(series.noise, d.targets, epochs).T
    variance = error**2 * (spread - 1) * typical
    variance += np.where(picked(series.bad, d.targets, epochs).T, typical * error**2, noise * noise)
    brought = _predictor_noise(series, d.predictors, f.coefficients, epochs)
    # a fit that saw an epoch has taken up its share of that as well
    return np.asarray(variance + (brought if d.held_out else brought * np.minimum(spread, 1)))


def _predictor_noise(series: Series, predictors: Index, a: Array, epochs: Rows) -> Array:
    """Variance (epochs, targets) that the predictors' own noise brings into the prediction."""
    squares = a**2
    if len(series.epoch_error[epochs]) < _FEW:
        # errors need no more than single precision
        own = picked(series.noise, predictors, epochs)
        return np.asarray((own * own).T @ squares.astype(np.float32))
    even = series.even[predictors]
    noise = series.epoch_error[epochs, None] ** 2 * (series.typical[predictors[even]] ** 2 @ squares[even])
    if not even.all():
        noise += (picked(series.noise, predictors[~even], epochs) ** 2).T @ squares[~even].astype(np.float32)
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
