"""Differences by prediction: every pixel from pixels too far away to share its stars.

On the detector grid, where flat-field errors stay in their pixels. Where frames drift by more than a few
pixels a detector pixel's series holds no one star, and the sky grid does better (`deploy/ARCHITECTURE.md`).

A first pass predicts every pixel with one ridge and keeps the mean |difference| / photon error of each,
and how well each ridge of a grid, with each number of predictors asked for, does on blocks that lie on a
lattice of the field. From these one ridge, one number and the variable pixels are chosen for the whole field;
the second pass predicts without the variables. Epochs that come later are predicted by all before, with what
was chosen then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from survey.config import Config
from survey.kernels.cpm import RIDGE_GRID, CPMFit, best, fit_and_score, fit_cpm, ridge_scores
from survey.stages import forecast
from survey.stages.cpm_data import VARIABILITY, Later, TileData, campaigns, read, tile_halo
from survey.stages.protocol import Outlook, Output, Stage, Unit, tile_units
from survey.tiles import Window

__all__ = ["GROUP", "STAGE", "VARIABILITY", "Later", "TileData", "apply", "combine", "partial", "tile_halo"]

GROUP = "difference/cpm"
# Ridge of the first pass, and of a pass that knows of no other.
FIRST_RIDGE = 1.0
# One block in so many, along both axes, tells which ridge is best.
LATTICE = 4


@dataclass(frozen=True)
class FirstPass:
    """What one tile tells of the field.

    Parameters
    ----------
    core : tuple of slice
    deviation : array (y, x)
        Mean |difference| / photon error of the core.
    scores : array (count, ridge, 2)
        For every number of predictors and ridge: sum over the core's lattice blocks of the logarithm of
        squared residuals, and pixels summed.
    """

    core: Window
    deviation: NDArray[np.float32]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """What all tiles share in the second pass.

    Parameters
    ----------
    n_predictors : int
    ridge : float
    variable : bool array (y, x)
        Pixels that must not predict, of the field or a part of it.
    origin : tuple of int
        Where that part begins.
    """

    n_predictors: int
    ridge: float
    variable: NDArray[np.bool_]
    origin: tuple[int, int] = (0, 0)

    def variable_in(self, window: Window) -> NDArray[np.bool_]:
        """The variable pixels of a window; of tiles that told nothing none is known."""
        found = np.zeros([part.stop - part.start for part in window], bool)
        rows, columns = (
            slice(part.start - at, part.stop - at) for part, at in zip(window, self.origin, strict=True)
        )
        known = self.variable[rows, columns]
        found[: known.shape[0], : known.shape[1]] = known
        return found

    def of(self, unit: Unit, config: Config) -> State:
        """What a unit needs of it: a worker is not sent the whole field's map with each tile."""
        assert unit.tile is not None
        height, width = self.variable.shape
        rows, columns = unit.tile.window(tile_halo(config), (height, width))
        return replace(self, variable=self.variable[rows, columns], origin=(rows.start, columns.start))


def _empty(data: TileData, ridge: float) -> CPMFit:
    """Nothing predicted in the core's wanted epochs."""
    rows, columns = data.tile.core
    shape = (len(data.stretch) - data.start, rows.stop - rows.start, columns.stop - columns.start)
    prediction, residual, error = (np.full(shape, np.nan) for _ in range(3))
    mask, used = np.ones(shape, bool), np.zeros(shape[1:], np.int64)
    kept_out, leverage = np.zeros(shape, bool), np.zeros(shape, np.float32)
    return CPMFit(prediction, residual, error, mask, ridge, used, kept_out, leverage)


def _join(whole: CPMFit, fit: CPMFit, epochs: NDArray[np.int64], start: int) -> None:
    """Write a campaign's fit, of the last of its epochs perhaps, into the core's."""
    at = epochs[len(epochs) - len(fit.prediction) :]
    wanted = at >= start
    for name in ("prediction", "residual", "error", "mask", "fit_mask", "leverage"):
        getattr(whole, name)[at[wanted] - start] = getattr(fit, name)[wanted]
    np.maximum(whole.n_predictors, fit.n_predictors, out=whole.n_predictors)


def _fit(data: TileData, config: Config, state: State, exclude: NDArray[np.bool_] | None) -> CPMFit:
    """The core predicted campaign by campaign; masked where none could be."""
    whole = _empty(data, state.ridge)
    for epochs, arguments in campaigns(data, config):
        fit = fit_cpm(n_predictors=state.n_predictors, ridge=state.ridge, exclude=exclude, **arguments)
        _join(whole, fit, epochs, data.start)
    return whole


def _deviation(fit: CPMFit, data: TileData) -> NDArray[np.float32]:
    """Mean |difference| / photon error of every pixel of the core, 0 where there is none.

    The error of the difference will not do: a variable bends its own coefficients, and so its error.
    """
    good = ~fit.mask
    error = data.samples.error[(slice(None), *data.tile.inner(data.halo))]
    pulls = np.where(good, np.abs(np.nan_to_num(fit.residual)) / np.where(good, error, 1.0), 0.0)
    return (pulls.sum(0) / np.maximum(good.sum(0), 1)).astype(np.float32)


def _first(config: Config) -> State:
    """What the first pass takes, and a pass that knows of no other."""
    return State(config.cpm.counts[-1], config.cpm.ridge or FIRST_RIDGE, np.zeros((0, 0), bool))


def partial(data: TileData, config: Config) -> FirstPass:
    """Deviations of the core's pixels, and how well each ridge does on its lattice blocks."""
    settings, first = config.cpm, _first(config)
    scores = np.zeros((len(settings.counts), len(RIDGE_GRID), 2))
    asked = settings.ridge is None or len(settings.counts) > 1
    whole = _empty(data, first.ridge)
    for epochs, arguments in campaigns(data, config):
        arguments.pop("start")
        if asked and settings.two_passes:
            fit, found = fit_and_score(
                lattice=LATTICE, counts=settings.counts, n_predictors=first.n_predictors, ridge=first.ridge,
                **arguments,
            )  # fmt: skip
            _join(whole, fit, epochs, 0)
            scores += found
        elif asked:
            scores += ridge_scores(lattice=LATTICE, n_predictors=settings.counts, **arguments)
        elif settings.two_passes:
            fit = fit_cpm(n_predictors=first.n_predictors, ridge=first.ridge, **arguments)
            _join(whole, fit, epochs, 0)
    return FirstPass(data.tile.core, _deviation(whole, data), scores)


def combine(partials: list[FirstPass], config: Config) -> State:
    """One ridge and number of predictors for the field, and its variable pixels."""
    shape = tuple(max(p.core[axis].stop for p in partials) for axis in (0, 1))
    deviation = np.zeros(shape, np.float32)
    for p in partials:
        deviation[p.core] = p.deviation
    settings, first = config.cpm, _first(config)
    total = np.sum([p.scores for p in partials], axis=0)
    count, ridge = best(total, settings.counts, settings.ridge) or (first.n_predictors, first.ridge)
    seen = deviation[deviation > 0]
    limit = settings.variable
    if len(seen):
        limit = max(limit, float(np.quantile(seen, 1 - settings.max_variable, method="higher")))
    return State(count, ridge, deviation > limit)


def apply(data: TileData, state: State | None, config: Config) -> Output:
    """Residuals of the core, held out unless the settings say otherwise; of later epochs always."""
    state = state or _first(config)
    if data.later is None:
        fit = _fit(data, config, state, state.variable_in(data.samples.window))
    else:
        chosen = replace(state, n_predictors=data.later.n_predictors, ridge=data.later.ridge)
        fit = _fit(data, config, chosen, data.excluded)
    core = data.tile.inner(data.halo)
    bad = fit.mask | ~np.isfinite(fit.error)
    arrays = {
        "flux": np.where(bad, np.nan, fit.residual).astype(np.float32),
        "error": np.where(bad, np.nan, fit.error).astype(np.float32),
        "mask": bad,
        "fit_mask": fit.fit_mask & ~bad,
        "leverage": fit.leverage,
    }
    payload: dict[str, Any] = {
        "samples": int((~bad).sum()),
        "unpredicted": int((bad & ~data.samples.mask[(slice(data.start, None), *core)]).sum()),
        "predictors": int(np.median(fit.n_predictors)),
    }
    region = (slice(data.start, len(data.samples.time)), *data.tile.core)
    if data.later is not None:
        return Output({GROUP: arrays}, region, payload=payload)
    deviation, excluded = _deviation(fit, data), state.variable_in(data.tile.core)
    payload |= {
        "n_predictors": state.n_predictors,
        "ridge": fit.ridge,
        "variables": int(excluded.sum()),
        "median deviation": round(float(np.median(deviation)), 4),
    }
    maps = {"deviation": deviation, "excluded": excluded}
    return Output({GROUP: arrays, VARIABILITY: maps}, region, payload=payload)


def memory(unit: Unit, outlook: Outlook, config: Config) -> float:
    """Forecast of a tile and all that may predict it."""
    return forecast.predicted(unit, outlook, tile_halo(config))


STAGE = Stage(
    "cpm",
    7,
    lambda config: config.cpm,
    tile_units,
    read,
    partial=partial,
    combine=combine,
    apply=apply,
    memory=memory,
)
