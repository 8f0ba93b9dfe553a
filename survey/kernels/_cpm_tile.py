"""A tile's blocks of targets: their predictors, their epochs, their ridges' scores and their prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from survey.kernels._cpm_folds import held_out_squares
from survey.kernels._cpm_series import Series, middle
from survey.kernels._cpm_single import legendre_in_time
from survey.kernels._cpm_solve import Design, Prediction, Rest, predict, predict_rest, principal
from survey.kernels._held_out import as_slice, picked
from survey.kernels._predictors import (
    LOOKING,
    Choice,
    Neighbourhood,
    allowed_predictors,
    choose_predictors,
)
from survey.kernels._ridge import is_dual

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

# A pixel that predicts has a sample in all but this share of the epochs in which a target has one.
_MAX_LOST = 0.05
# Those of a block have samples together in all but this share.
_MAX_LOST_TOGETHER = 0.25
# A target that is predicted to this share of its noise is no data: a constant, which tells nothing of ridges.
_LEAST_RESIDUAL = 0.01
# The normal matrix of all pixels is made once if that is less work than one for each block, and if there
# are no more pixels than this (128 MiB).
_MAX_GRAM = 4096
# Targets of a block on which a ridge is judged, and of how many folds one is.
_SCORED, _SCORED_FOLDS = 32, 2


@dataclass(frozen=True)
class Model:
    """What is fitted; see `survey.kernels.cpm.fit_cpm`."""

    choice: Choice = "closest"
    folds: int = 10
    components: int | None = None
    time_order: int = 0
    weights: Literal["epoch", "pixel"] = "epoch"
    held_out: bool = True
    exclusion: tuple[float, int] = (16.0, 10)
    farthest: float = np.inf


@dataclass(frozen=True)
class BlockFit:
    """What is known of a block's targets, (epochs, targets), in flux units; NaN where unknown.

    Attributes
    ----------
    prediction, variance : arrays
        The variance is the residual's.
    leverage : array
        Weight of a sample in its own prediction.
    used : int
        Number of predictors.
    kept_out : bool array (epochs,)
        Epochs kept out of this block's fit; held out in turn, or later than all that trained, is not meant.
    """

    prediction: Array
    variance: Array
    leverage: Array
    used: int
    kept_out: Mask


@dataclass
class Tile:
    """Series of a tile's pixels, and what its blocks share.

    With ``start`` only epochs from there on are predicted, none of which is in ``train``.
    """

    series: Series
    model: Model
    train: Index  # epochs
    time: Array  # (time,)
    n_blocks: int = 1  # that will be predicted: whether one normal matrix for all pays
    start: int = 0
    left_out: Index = field(default_factory=lambda: np.zeros(0, np.int64))  # epochs kept out of every fit
    _near: dict[tuple[int, int], Neighbourhood] = field(default_factory=dict)  # by the size of a block

    @cached_property
    def folds(self) -> list[Index]:
        """Positions in ``train`` that are held out together: the same in every tile of a field."""
        return np.array_split(np.arange(len(self.train)), self.model.folds)

    @cached_property
    def basis(self) -> Array:
        """Columns that are not penalised: polynomials in time, (time, order + 1)."""
        return legendre_in_time(self.time, self.train, self.model.time_order)

    @cached_property
    def whitened(self) -> Array:
        """Series in the training epochs over those epochs' errors, (pixels, train)."""
        values, at = self.series.values, as_slice(self.train)
        error = self.series.epoch_error[at]
        if len(error) == values.shape[1] and (error == 1).all():
            return values
        return np.asarray(values[:, at] / error)

    def _white(self, pixels: Index) -> Array:
        """`whitened` of some pixels, without that of all where only later epochs are predicted."""
        if not self.start:
            return self.whitened[pixels]
        at = as_slice(self.train)
        return picked(self.series.values, pixels, at) / self.series.epoch_error[at]

    @cached_property
    def gram(self) -> Array:
        """Normal matrix of all pixels."""
        return np.asarray(self.whitened @ self.whitened.T)

    @cached_property
    def _samples(self) -> Index:
        """Number of the training epochs in which each pixel has a sample or one that was filled."""
        assert self.series.available is not None
        return np.asarray(self.series.available[:, as_slice(self.train)].sum(1))

    @cached_property
    def _present(self) -> Array:
        """Their share."""
        return np.asarray(self._samples / len(self.train))

    def _present_in(self, pixels: Index, alive: Index) -> Array:
        """Share of some training epochs in which each of these pixels has a sample or one that was filled."""
        assert self.series.available is not None
        # mostly nearly all: what the few others hold is taken off
        others = np.setdiff1d(self.train, alive, assume_unique=True)
        gone = self.series.available[pixels[:, None], others].sum(1)
        return np.asarray((self._samples[pixels] - gone) / max(len(alive), 1))

    def pixels(self, rows: tuple[int, int], columns: tuple[int, int]) -> Index:
        """Flat indices of a block's targets."""
        return (np.arange(*rows)[:, None] * self.series.shape[1] + np.arange(*columns)).ravel()

    def choose(self, rows, columns, n: int) -> Index:
        """The block's predictors, n at most; none where there are no candidates."""
        model, series = self.model, self.series
        candidates, distance = self._allowed(rows, columns)
        pixels = self.pixels(rows, columns)
        if series.available is not None and len(candidates):
            alive = self.train[~series.bad[pixels][:, as_slice(self.train)].all(0)]
            if len(alive) == len(self.train):
                kept = self._present[candidates] >= 1 - _MAX_LOST
            else:
                kept = self._present_in(candidates, alive) >= 1 - _MAX_LOST
            candidates, distance = candidates[kept], distance[kept]
        if len(candidates) == 0:
            return candidates
        looked_at = self.whitened if model.choice in LOOKING else None
        chosen = choose_predictors(
            model.choice, n, candidates, distance, looked_at, series.brightness, pixels
        )
        if series.available is None:
            return chosen
        # each loses a few epochs, all of them perhaps most: those that lose the most stay out
        there = series.available[chosen][:, alive]
        if there.all(0).mean() >= 1 - _MAX_LOST_TOGETHER:
            return chosen
        order = np.argsort(~there.sum(1), kind="stable")
        together = np.logical_and.accumulate(there[order], axis=0).mean(1) >= 1 - _MAX_LOST_TOGETHER
        return np.sort(chosen[order[together]])

    def _allowed(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Index, Array]:
        """Pixels that may predict a block, and their distance."""
        usable, model = self.series.usable, self.model
        if model.choice != "closest" or np.isinf(model.farthest):
            return allowed_predictors(usable, rows, columns, *model.exclusion, model.farthest)
        size = rows[1] - rows[0], columns[1] - columns[0]
        if size not in self._near:
            self._near[size] = Neighbourhood(size, *model.exclusion, min(model.farthest, max(usable.shape)))
        return self._near[size].of(usable, rows, columns)

    def trained(self, chosen: Index) -> Index:
        """Positions in ``train`` of the epochs in which every predictor has a sample."""
        available = self.series.available
        if available is None:
            return np.arange(len(self.train))
        return np.nonzero(available[chosen][:, as_slice(self.train)].all(0))[0]

    def _folds(self, kept: Index) -> list[Index]:
        if len(kept) == len(self.train):
            return self.folds
        return [np.nonzero(np.isin(kept, fold))[0] for fold in self.folds]

    def alive(self, pixels: Index, kept: Index) -> Mask:
        """Targets with a sample in half of these training epochs."""
        if self.series.available is None:
            return np.ones(len(pixels), bool)
        if len(kept) == 0:
            return np.zeros(len(pixels), bool)
        return self.series.bad[pixels][:, self.train[kept]].mean(1) < 0.5

    def _ridge(self, factor: float, chosen: Index, pixels: Index) -> float:
        return factor * len(chosen) * middle(self.series.typical[pixels] ** 2)

    def scores(self, rows, columns, n: int, factors: Sequence[float]) -> Array:
        """Mean square held-out residual, in units of the epochs' errors, (ridges, some targets).

        NaN where there are no data, too few epochs, or a target that does not vary.
        Missing samples stand at their pixel's median: enough to choose a ridge.
        """
        chosen = self.choose(rows, columns, n)
        kept = self.trained(chosen)
        every = self.pixels(rows, columns)
        every = every[:: -(-len(every) // _SCORED)]
        found = np.full((len(factors), len(every)), np.nan)
        alive = self.alive(every, kept)
        pixels = every[alive]
        if len(chosen) == 0 or len(pixels) == 0 or len(kept) < 2 * self.model.folds:
            return found
        train = self.train[kept]
        x = self.whitened[chosen][:, kept]
        free = self.basis[train] / self.series.epoch_error[train, None]
        if self.model.components is not None:
            x = principal(x, free, self.model.components).T @ x
        use = ~self.series.bad[pixels][:, train].T
        y = np.where(use, self.whitened[pixels][:, kept].T, 0.0)
        ridges = [self._ridge(factor, chosen, pixels) for factor in factors]
        squares = held_out_squares(
            x, free, y, use, self._folds(kept), ridges, judged=slice(0, None, _SCORED_FOLDS)
        )
        varies = (squares > (_LEAST_RESIDUAL * self.series.typical[pixels]) ** 2).all(0)
        found[:, alive] = np.where(varies, squares, np.nan)
        return found

    def predict(self, rows, columns, n: int, factor: float) -> BlockFit:
        """The block's epochs from ``start`` on."""
        series, pixels = self.series, self.pixels(rows, columns)
        shape = (len(self.time) - self.start, len(pixels))
        prediction, variance = np.full((2, *shape), np.nan)
        leverage, kept_out = np.zeros(shape), np.zeros(len(self.time), bool)
        chosen = self.choose(rows, columns, n)
        kept = self.trained(chosen)
        alive = np.nonzero(self.alive(pixels, kept))[0]
        if len(chosen) == 0 or len(alive) == 0 or len(kept) < 2 * self.model.folds:
            return BlockFit(prediction, variance, leverage, 0, kept_out[self.start :])
        kept_out[self.left_out] = True
        kept_out[np.delete(self.train, kept)] = True
        rest = self._rest(chosen, kept)
        ridge = self._ridge(factor, chosen, pixels[alive])
        for group in [[i] for i in alive] if self.model.weights == "pixel" else [alive]:
            at = pixels[group]
            found = self._predict(self._design(chosen, kept, at, ridge), rest)
            prediction[:, group] = found.value * series.scale[at] + series.brightness[at]
            variance[:, group] = found.variance * series.scale[at] ** 2
            if found.leverage is not None:
                leverage[:, group] = found.leverage[:, None]
        return BlockFit(prediction, variance, leverage, len(chosen), kept_out[self.start :])

    def _predict(self, design: Design, rest: Rest) -> Prediction:
        """Prediction of all epochs, or of those from ``start`` on alone."""
        if not self.start:
            return predict(self.series, design, rest)
        found = predict_rest(self.series, design, rest)
        shape = (len(self.time) - self.start, len(design.targets))
        value, variance = np.full((2, *shape), np.nan)
        at = rest.epochs - self.start
        value[at], variance[at] = found.value, found.variance
        return Prediction(value, variance)

    def _rest(self, chosen: Index, kept: Index) -> Rest:
        """Epochs that do not train; those in which half of the predictors have no sample stay unpredicted."""
        epochs = np.arange(self.start, len(self.time))
        if not self.start:
            epochs = np.delete(epochs, self.train[kept])
        available = self.series.available
        if available is None or len(epochs) == 0:
            return Rest(epochs, None)
        there = available[chosen][:, epochs]
        able = there.mean(0) > 0.5
        return Rest(epochs[able], there[:, able])

    def _design(self, chosen: Index, kept: Index, pixels: Index, ridge: float) -> Design:
        """Whitened predictors, free columns and targets of some training epochs."""
        series, train = self.series, self.train[kept]
        every = len(kept) == len(self.train)
        error, gram, product = series.epoch_error, None, None
        if self.model.weights == "pixel":
            (pixel,) = pixels
            own = series.noise[pixel] / series.typical[pixel]
            error = np.where(series.bad[pixel], error, own)
            x = series.values[chosen][:, train] / error[train]
            y = series.values[pixels][:, train] / error[train]
        else:
            x, y = self._white(chosen), self._white(pixels)
            if self._shares(len(chosen)):
                gram, product = self.gram[np.ix_(chosen, chosen)], self.gram[np.ix_(chosen, pixels)]
            if not every:
                lost = np.setdiff1d(np.arange(len(self.train)), kept)
                if gram is not None and product is not None:
                    gram -= x[:, lost] @ x[:, lost].T
                    product -= x[:, lost] @ y[:, lost].T
                x, y = x[:, kept], y[:, kept]
            primal = not is_dual(x, ridge, gram)
            if self.start and primal and product is None and self.model.components is None:
                product = x @ y.T  # there are no residuals, for which more would be worked out
        free = self.basis[train] / error[train, None]
        return Design(
            chosen, pixels, train, x, y.T, free, self.basis, error, ridge, self._folds(kept), gram, product,
            self.model.components, self.model.held_out,
        )  # fmt: skip

    def _shares(self, n: int) -> bool:
        """Whether one normal matrix of all pixels costs less than the blocks' own."""
        pixels = len(self.series.values)
        own = self.n_blocks * n**2 + 2 * n * pixels
        return len(self.train) >= n and pixels <= _MAX_GRAM and pixels**2 <= own
