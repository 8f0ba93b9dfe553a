"""A tile of normalised pixel series, and the held-out prediction of its blocks of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from survey.kernels._cpm_folds import held_out_squares
from survey.kernels._predictors import CHOICES, Choice, allowed_predictors, choose_predictors
from survey.kernels._ridge import ResidualMatrix, fill_missing, held_out, residual_matrix

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A pixel with a larger part of bad epochs than this predicts nobody.
MAX_BAD_PREDICTOR = 0.05
# The normal matrix of all pixels is made once if that is less work than one for each block, and if there
# are no more pixels than this (128 MiB).
_MAX_GRAM = 4096


@dataclass
class Tile:
    """Normalised series of all pixels of a tile, and what its blocks of targets share."""

    shape: tuple[int, int]
    series: Array  # (time, pixels), flux / scale, bad samples filled
    noise: Array  # (time, pixels), error / scale
    bad: Mask  # (time, pixels)
    scale: Array  # (pixels,)
    brightness: Array  # (pixels,)
    typical: Array  # (pixels,) median noise
    epoch_error: Array  # (time,) relative error of an epoch, median 1
    train: NDArray[np.int64]
    folds: list[NDArray[np.int64]]
    usable: Mask  # (y, x)
    choice: Choice
    n_predictors: int
    exclusion: tuple[float, int] = (0.0, 0)
    farthest: float = np.inf
    n_blocks: int = 1  # that will be predicted: whether one normal matrix for all pays

    @classmethod
    def prepare(
        cls, flux, error, mask, train, exclude, choice, n_predictors, folds, epoch_error_given=None
    ) -> Tile:
        """Check, mask, normalise and fill a tile."""
        flux, error, mask = np.asarray(flux, float), np.asarray(error, float), np.asarray(mask, bool)
        if flux.ndim != 3 or error.shape != flux.shape or mask.shape != flux.shape:
            raise ValueError(
                "flux, error and mask must have one (time, y, x) shape, "
                f"not {flux.shape}, {error.shape}, {mask.shape}"
            )
        if choice not in CHOICES:
            raise ValueError(f"unknown predictors {choice!r}; choose one of {', '.join(CHOICES)}")
        n_time, ny, nx = flux.shape
        bad = (mask | ~np.isfinite(flux) | ~np.isfinite(error) | (error <= 0)).reshape(n_time, -1)
        epochs = ~bad.all(1) if train is None else ~bad.all(1) & np.asarray(train, bool)
        rows = np.nonzero(epochs)[0]
        if folds < 2 or len(rows) < 2 * folds:
            raise ValueError(f"{len(rows)} training epochs are too few for {folds} folds; lower folds (>= 2)")
        f = np.where(bad, np.nan, flux.reshape(n_time, -1))
        e = np.where(bad, np.nan, error.reshape(n_time, -1))
        good = ~bad[rows].all(0)
        brightness, typical = np.zeros(ny * nx), np.ones(ny * nx)
        trained = slice(None) if len(rows) == n_time else rows
        brightness[good] = _column_medians(f[trained][:, good])
        typical[good] = _column_medians(e[trained][:, good])
        # the median normalises a star; a background-subtracted sky pixel has none and keeps its noise as unit
        scale = np.hypot(brightness, typical)
        series, noise = f / scale, e / scale
        usable = bad[rows].mean(0) <= MAX_BAD_PREDICTOR
        if exclude is not None:
            usable &= ~np.asarray(exclude, bool).reshape(-1)
        with_data = ~bad.all(1)
        epoch_error = np.ones(n_time)
        if epoch_error_given is None:
            epoch_error[with_data] = _column_medians((e / typical)[:, good][with_data].T)
        else:
            epoch_error[:] = epoch_error_given
        if bad.any():
            series = np.where(bad, (brightness / scale)[None, :], series)
            noise = np.where(bad, 0.0, noise)
        parts = [p.astype(np.int64) for p in np.array_split(np.arange(len(rows)), folds)]
        return cls(
            (ny, nx), series, noise, bad, scale, brightness, typical / scale, epoch_error, rows, parts,
            usable.reshape(ny, nx), cast(Choice, choice), n_predictors,
        )  # fmt: skip

    def pixels(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.int64]:
        """Flat indices of a block's targets."""
        return (np.arange(*rows)[:, None] * self.shape[1] + np.arange(*columns)).ravel()

    @cached_property
    def others(self) -> NDArray[np.int64]:
        """Epochs that do not train."""
        return np.setdiff1d(np.arange(len(self.series)), self.train)

    @cached_property
    def whitened(self) -> Array:
        """Predictors (pixels, training epochs): one row a pixel, so that choosing some copies whole rows."""
        return np.ascontiguousarray((self.series[self.train] / self.epoch_error[self.train, None]).T)

    @cached_property
    def noise_squared(self) -> Array:
        """Variance of every pixel's samples, (pixels, time)."""
        return np.ascontiguousarray(self.noise.T) ** 2

    @cached_property
    def gram(self) -> Array:
        """Normal matrix of all pixels."""
        return np.asarray(self.whitened @ self.whitened.T)

    def factorise(self, chosen: NDArray[np.int64], ridge: float) -> ResidualMatrix:
        """Residual matrix of the training epochs for these predictors."""
        n, pixels = len(chosen), self.series.shape[1]
        shared = len(self.train) >= n and pixels <= _MAX_GRAM and pixels**2 <= self.n_blocks * n**2
        gram = self.gram[np.ix_(chosen, chosen)] if shared else None
        return residual_matrix(self.whitened[chosen], 1 / self.epoch_error[self.train], ridge, gram)

    def choose(self, rows, columns, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block's predictors; none where there are no candidates."""
        candidates, distance = allowed_predictors(self.usable, rows, columns, *self.exclusion, self.farthest)
        if len(candidates) == 0:
            return candidates
        return choose_predictors(
            self.choice, self.n_predictors, candidates, distance, self.series, self.brightness, pixels
        )

    def scores(self, rows, columns, factors: Sequence[float]) -> Array:
        """Mean square held-out residual, in units of the epochs' errors, (ridges, pixels with data).

        Missing samples stand at their pixel's median: enough to choose a ridge.
        """
        pixels = self.pixels(rows, columns)
        pixels = pixels[self.bad[np.ix_(self.train, pixels)].mean(0) < 0.5]
        chosen = self.choose(rows, columns, pixels)
        if len(chosen) == 0 or len(pixels) == 0:
            return np.zeros((len(factors), 0))
        one = 1 / self.epoch_error[self.train]
        unit = len(chosen) * float(np.median(self.typical[pixels] ** 2))
        at = np.ix_(self.train, pixels)
        y, use = self.series[at] * one[:, None], ~self.bad[at]
        return held_out_squares(self.whitened[chosen], one, y, use, self.folds, [f * unit for f in factors])

    def predict(self, rows, columns, pixels, factor: float) -> tuple[Array, Array, int]:
        """Held-out prediction and variance (time, targets) in flux units, and the number of predictors."""
        shape = (len(self.series), len(pixels))
        prediction, variance = np.full(shape, np.nan), np.full(shape, np.nan)
        missing = self.bad[np.ix_(self.train, pixels)]
        alive = np.nonzero(missing.mean(0) < 0.5)[0]
        chosen = self.choose(rows, columns, pixels)
        if len(chosen) == 0 or len(alive) == 0:
            return prediction, variance, 0
        weight = 1 / self.epoch_error
        pixels, missing = pixels[alive], missing[:, alive]
        typical = self.typical[pixels] ** 2
        r = self.factorise(chosen, factor * len(chosen) * float(np.median(typical)))
        y = self.series[np.ix_(self.train, pixels)] * weight[self.train, None]
        y = fill_missing(r, y, missing)
        residual, inflation = held_out(r, y, missing, self.folds)
        predicted, spread = np.empty((2, len(self.series), len(pixels)))
        predicted[self.train] = (y - residual) / weight[self.train, None]
        spread[self.train] = inflation
        a, c = r.coefficients(y)
        if len(self.others):
            predicted[self.others] = self.series[np.ix_(self.others, chosen)] @ a + c
            spread[self.others] = np.median(inflation, axis=0)
        noise = self.noise[:, pixels] ** 2
        total = np.where(noise > 0, noise, typical * self.epoch_error[:, None] ** 2) * spread
        total += self.noise_squared[chosen].T @ a**2
        prediction[:, alive] = predicted * self.scale[pixels]
        variance[:, alive] = total * self.scale[pixels] ** 2
        return prediction, variance, len(chosen)


def _column_medians(values: Array) -> Array:
    """Medians along the first axis without the NaN; the common case has none and is ten times faster."""
    columns = np.ascontiguousarray(values.T)
    return np.nanmedian(columns, axis=1) if np.isnan(columns).any() else np.median(columns, axis=1)
